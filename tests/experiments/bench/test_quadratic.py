"""The benchmark of the quadratic ranking, on few digits."""

from __future__ import annotations

from dataclasses import replace

import pytest

from secateur.bench import quadratic
from secateur.papers.data import digits

FEW = replace(digits(), **{part: tuple(t[:60] for t in getattr(digits(), part)) for part in ("calibration", "test")})
WAYS = {name: quadratic.WAYS[name] for name in ("oracle, iterative", "quadratic, ggn")}


@pytest.fixture(scope="module")
def compared():
    return quadratic.compare(FEW, 20, (0, 1), ((8,), (4, 6)), WAYS, progress=False)


def test_each_network_is_pruned_in_each_way(compared):
    networks = ("64-8-10", "64-4-6-10")
    assert [(row.network, row.way) for row in compared] == [(n, w) for n in networks for w in WAYS]


def test_accuracies_are_read_off_the_plans_at_shares_of_all_units():
    _, row = quadratic.compare(FEW, 20, (3,), ((4, 6),), WAYS, progress=False)
    model, units = quadratic._trained([64, 4, 6, 10], FEW, 20, 3)
    plan = quadratic._rank(model, units, FEW, {**WAYS["quadratic, ggn"], "validation": FEW.test})
    found = [state.accuracy for state in plan.states]
    assert (row.start, row.at_30, row.at_50, row.at_70) == (found[0], found[3], found[5], found[7])
    assert len(set(found)) > 3  # or any place would do


def test_the_share_within_a_point_ends_before_the_first_that_is_not(monkeypatch):
    accuracies = [0.9, 0.895, 0.89, 0.88, 0.95]
    monkeypatch.setattr(quadratic, "_accuracies", lambda plan: accuracies[: plan.shown])
    plan = type("Plan", (), {"sizes": {"0": 3, "2": 2}, "shown": 5})
    assert quadratic._within_a_point(plan) == 40
    plan.shown = 3
    assert quadratic._within_a_point(plan) == 40
    plan.shown = 1
    assert quadratic._within_a_point(plan) == 0


def test_ratios_are_of_the_naive_oracle_and_swaps_lower_what_is_predicted(compared):
    for oracle, swapped in (compared[:2], compared[2:]):
        assert oracle.ratio * oracle.seconds == pytest.approx(swapped.ratio * swapped.seconds, rel=0.5)
        assert (oracle.swaps, oracle.before, oracle.after) == (None, None, None)
        assert swapped.after <= swapped.before
        assert (swapped.after < swapped.before) == (swapped.swaps > 0)
