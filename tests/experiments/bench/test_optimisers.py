"""The weight update of the note beside SGD and Adam."""

from __future__ import annotations

import pytest
import torch

from rounding import assert_close_ulps
from secateur import SecateurError
from secateur.objective.losses import squared_error
from secateur_experiments.bench import optimisers
from secateur_experiments.bench.optimisers import OPTIMISERS, Run, compare, summary
from secateur_experiments.datasets import digits
from secateur_experiments.networks import logistic_network


@pytest.fixture(scope="module")
def runs():
    return compare(digits(), hidden=[4], steps=20, every=10, seeds=[0], progress=False)


def test_every_optimiser_starts_from_the_same_weights_and_is_measured_alike(runs):
    assert list(runs) == list(OPTIMISERS)
    network, (x, y) = logistic_network([64, 4, 10], 0), digits().train
    for name, run in runs.items():
        assert run.rate in OPTIMISERS[name][1]
        assert run.step == [0, 10, 20]
        assert_close_ulps(run.loss[0], squared_error(network(x), y).item(), dtype=torch.float32)
        assert len(run.loss) == len(run.accuracy) == 3
        assert run.seconds > 0


def test_all_have_as_many_learning_rates_to_choose_from():
    assert {len(rates) for _, rates in OPTIMISERS.values()} == {5}


def test_the_bounded_update_learns_and_the_second_order_one_uses_its_curvature(runs):
    first, second = runs["order 1, |x| ≤ 0.1"], runs["order 2, |x| ≤ 0.1"]
    assert max(first.loss[-1], second.loss[-1]) < 0.5 < first.loss[0]
    assert first.loss[-1] != second.loss[-1]


def only(monkeypatch, rates):
    monkeypatch.setattr(optimisers, "OPTIMISERS", {"SGD": (OPTIMISERS["SGD"][0], rates)})
    return lambda seeds: compare(digits(), [4], 20, 10, seeds, progress=False)["SGD"]


def test_the_learning_rate_is_that_of_the_least_training_loss_at_the_end(monkeypatch):
    tried = [only(monkeypatch, [rate])([0]) for rate in (0.01, 3, 100)]
    best = min(tried, key=lambda run: run.loss[-1])
    assert best.rate == 3
    assert only(monkeypatch, [0.01, 3, 100])([0]).loss == best.loss


def test_a_run_is_the_mean_over_its_seeds(monkeypatch):
    both, zero, one = (only(monkeypatch, [3])(seeds) for seeds in ([0, 1], [0], [1]))
    assert both.loss == pytest.approx([(a + b) / 2 for a, b in zip(zero.loss, one.loss, strict=True)])
    assert both.accuracy == pytest.approx([(a + b) / 2 for a, b in zip(zero.accuracy, one.accuracy, strict=True)])
    assert zero.loss[0] != one.loss[0]


def test_the_points_of_a_curve_have_to_fit_the_steps():
    with pytest.raises(SecateurError) as refused:
        compare(digits(), steps=25, every=10)
    assert str(refused.value) == "compare: every has to divide steps, got 10 and 25"


def test_the_table_shows_the_ends():
    run = Run(0.3, [0, 10], [1.0, 0.25], [0.1, 0.9], 0.02)
    title, heads, row = summary({"SGD": run}).splitlines()
    assert title == "after 10 steps, at the best of five learning rates"
    assert heads.split("  ")[0] == "optimiser"
    assert row.split() == ["SGD", "0.3", "0.2500", "0.900", "2.00"]
