"""What several figures share."""

from __future__ import annotations

import pytest
import torch

import secateur as sc
from secateur.papers import study as studies
from secateur.papers.study import Course, Study, Way
from studies import FEW, study


def test_networks_and_orders_are_made_once(monkeypatch):
    made, trained = study(), []
    train = studies.train
    monkeypatch.setattr(studies, "train", lambda *given, **options: (trained.append(1), train(*given, **options)))
    subject = made.logistic((4,))
    assert subject.name == "64-4-10"
    first = made.plan(subject, 0, Way("taylor1"))
    assert made.plan(subject, 0, Way("taylor1")) is first
    assert made.plan(subject, 0, Way("oracle")) is not first
    assert made.network(subject, 0) is made.network(subject, 0)
    assert len(trained) == 1
    assert made.network(subject, 1) is not made.network(subject, 0)
    assert len(trained) == 2


def test_what_is_left_is_measured_on_the_test_part():
    made = study()
    subject, way = made.logistic((3, 4)), Way("taylor2", "single")
    model = made.network(subject, 1)
    plan = sc.rank(
        model, FEW.calibration, "squared_error", None, "taylor2", "single", validation=FEW.test, progress=False
    )
    course = made.course(subject, 1, way)
    assert course.total == 7
    assert course.accuracy == [state.accuracy for state in plan.states]
    assert course.loss == [state.loss for state in plan.states]
    compensated = made.plan(subject, 1, Way("obs", compensate=True))
    assert compensated.compensated
    assert made.plan(subject, 1, Way("taylor1", threshold="mean")).criterion == "taylor1"


def test_the_iterative_oracle_of_a_large_network_has_a_shortlist(monkeypatch):
    seen = []
    monkeypatch.setattr(studies, "rank", lambda *given, **options: seen.append((len(given[1][0]), options)))
    made = study()
    subject = made.convolutional()
    assert subject.loss == "cross_entropy"
    wide = Study(FEW, 1)
    large = studies.Subject("large", subject.build, "cross_entropy", 1, samples=50, shortlist=25)
    for one in (Way("oracle"), Way("taylor1")):
        wide.plan(large, 0, one)
    assert [(samples, options["shortlist"]) for samples, options in seen] == [(50, 25), (50, None)]


def test_smaller_networks_are_trained_from_scratch():
    made = study()
    loss, accuracy = made.scratch((10, 4), 0, 0.75)
    model = made.network(made.logistic((2, 1)), 0)
    with torch.no_grad():
        out = model(FEW.test[0])
    assert accuracy == pytest.approx((out.argmax(1) == FEW.test[1]).float().mean().item())
    wanted = 0.5 * (out - torch.nn.functional.one_hot(FEW.test[1], 10)).square().sum(1).mean()
    assert loss == pytest.approx(wanted.item(), rel=1e-5)
    assert made.scratch((10, 4), 0, 0.999) == made.scratch((3, 3), 0, 0.9)  # one unit is left


@pytest.mark.parametrize(
    ("accuracies", "one", "five"),
    [([0.9, 0.89, 0.85, 0.9], 0.1, 0.3), ([0.9, 0.7], 0, 0), ([0.9, 0.9, 0.9], 0.2, 0.2)],
)
def test_the_share_within_some_points_ends_before_the_first_that_is_not(accuracies, one, five):
    course = Course(10, [], accuracies)
    assert (course.within(), course.within(0.05)) == (one, five)
    assert course.at(accuracies, 0.1) == accuracies[1]
    assert course.at(accuracies, 1) == accuracies[-1]
