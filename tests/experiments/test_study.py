"""What a study makes once, and keeps."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

import secateur as sc
from experiments.studies import FEW, study
from secateur.errors import ArtifactError
from secateur_experiments import study as studies
from secateur_experiments.curves import Curve
from secateur_experiments.study import Study, Way, spared_by
from secateur_experiments.subjects import Subject


def test_networks_and_orders_are_made_once(monkeypatch):
    made, trained = study(), []
    train = studies.train
    monkeypatch.setattr(studies, "train", lambda *values, **options: (trained.append(1), train(*values, **options)))
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
        model, FEW.calibration, "squared_error", criterion="taylor2", ranking="single", validation=FEW.test,
        progress=False,
    )  # fmt: skip
    curve = made.curve(subject, 1, way)
    assert curve.total == 7
    assert curve.accuracy == [state.accuracy for state in plan.states]
    assert curve.loss == [state.loss for state in plan.states]
    compensated = made.plan(subject, 1, Way("obs", compensate=True))
    assert compensated.compensated
    assert made.plan(subject, 1, Way("taylor1", threshold="mean")).criterion == "taylor1"


def test_the_iterative_oracle_of_a_large_network_is_spared(monkeypatch):
    seen = []
    monkeypatch.setattr(studies, "rank", lambda *values, **options: seen.append((len(values[1][0]), options)))
    made = Study(FEW, 1)
    subject = replace(made.logistic((4,)), samples=50, spared={"samples": 20, "shortlist": 25})
    ways = [Way("oracle"), Way("oracle", fitted=True), Way("taylor1"), Way("obs", compensate=True, shortlist=5)]
    for way in ways:
        made.plan(subject, 0, way)
    expected = [(20, 25), (50, None), (50, None), (50, 5)]
    assert [(samples, options["shortlist"]) for samples, options in seen] == expected
    assert [tuple(spared_by(subject, way).values()) for way in ways] == expected
    assert [options["compensate"] for _, options in seen] == [False, False, False, True]


def test_only_the_unit_sets_that_count_lose_units():
    made = study()
    subject = replace(made.logistic((4, 6)), counts=lambda unit_set: unit_set.size == 6)
    assert [(unit_set.name, unit_set.size) for unit_set in made.units(subject, 0)] == [("2", 6)]
    assert {step.set for step in made.plan(subject, 0, Way("magnitude")).steps} == {"2"}


def test_smaller_networks_are_trained_from_scratch_as_the_whole_one_was():
    made = study()
    subject = made.logistic((10, 4))
    loss, accuracy = made.scratch(subject, 0, 75)
    model = made.network(made.logistic((2, 1)), 0)
    with torch.no_grad():
        out = model(FEW.test[0])
    assert accuracy == pytest.approx((out.argmax(1) == FEW.test[1]).float().mean().item())
    wanted = 0.5 * (out - torch.nn.functional.one_hot(FEW.test[1], 10)).square().sum(1).mean()
    assert loss == pytest.approx(wanted.item(), rel=1e-5)
    smaller = made.smaller(replace(subject, epochs=3, loss="cross_entropy"), 75)
    assert (smaller.name, smaller.hidden, smaller.epochs, smaller.loss) == ("64-2-1-10", (2, 1), 3, "cross_entropy")


# ------------------------------------------------------------ in a folder


def one_layer(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    return torch.nn.Linear(64, 10)


SUBJECT = Subject("net", one_layer, 1)


def test_trained_networks_are_read_again(tmp_path, monkeypatch):
    trained = Study(FEW, 1, folder=tmp_path).network(SUBJECT, 3)
    monkeypatch.setattr(studies, "train", lambda *_, **__: pytest.fail("trained twice"))
    again = Study(FEW, 1, folder=tmp_path).network(SUBJECT, 3)
    assert torch.equal(trained.weight, again.weight)
    assert not torch.equal(trained.weight, one_layer(3).weight)
    assert not again.training
    (tmp_path / "net-3.pt").write_bytes(b"no weights")
    with pytest.raises(ArtifactError, match=r"net-3\.pt: does not hold the weights of net"):
        Study(FEW, 1, folder=tmp_path).network(SUBJECT, 3)


def test_curves_are_read_again(tmp_path):
    curve = Curve([0, 2], [0.9, 0.8], 4, 1.5, 2)
    assert Study(FEW, 1, folder=tmp_path / "new").stored("a", lambda: curve) == curve
    again = Study(FEW, 1, folder=tmp_path / "new").stored("a", lambda: pytest.fail("measured twice"))
    assert again == curve
    assert Study(FEW, 1, folder=tmp_path / "new").stored("b", lambda: replace(curve, total=5)).total == 5
    assert list(json.loads((tmp_path / "new/curves.json").read_text())) == ["a", "b"]


@pytest.mark.parametrize("content", ["{", "[1]", '{"a": {"b": 1}}'])
def test_a_broken_file_of_curves_is_refused(tmp_path, content):
    (tmp_path / "curves.json").write_text(content)
    with pytest.raises(ArtifactError, match=r"curves\.json: holds no curves"):
        Study(FEW, 1, folder=tmp_path)


def test_a_folder_that_is_none_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ArtifactError, match="file: cannot be made a folder"):
        Study(FEW, 1, folder=tmp_path / "file")
