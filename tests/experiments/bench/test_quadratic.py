"""The benchmark of the quadratic ranking, on few digits."""

from __future__ import annotations

from dataclasses import replace

import pytest

import secateur as sc
from experiments.studies import WHOLE, few
from secateur_experiments.bench import quadratic
from secateur_experiments.study import Study

FEW = few(len(WHOLE.train[0]), 60, 60)
WAYS = {name: quadratic.WAYS[name] for name in ("oracle, iterative", "quadratic, ggn")}


@pytest.fixture(scope="module")
def compared():
    return quadratic.compare(Study(FEW, 20, (0, 1)), ((8,), (4, 6)), WAYS, progress=False)


def test_each_network_is_pruned_in_each_way(compared):
    networks = ("64-8-10", "64-4-6-10")
    assert [(row.network, row.way) for row in compared] == [(n, w) for n in networks for w in WAYS]


def test_accuracies_are_read_off_the_plans_at_shares_of_all_units():
    study = Study(FEW, 20, (3,))
    _, row = quadratic.compare(study, ((4, 6),), WAYS, progress=False)
    model = study.network(study.logistic((4, 6)), 3)
    options = {**WAYS["quadratic, ggn"], "validation": FEW.test, "progress": False}
    accuracies = [state.accuracy for state in sc.rank(model, FEW.calibration, quadratic.LOSS, **options).states]
    assert (row.start, row.at_30, row.at_50, row.at_70) == tuple(accuracies[n] for n in (0, 3, 5, 7))
    assert len(set(accuracies)) > 3  # or any place would do


def test_the_share_within_a_point_ends_before_the_first_that_is_not(monkeypatch):
    rank = quadratic.rank

    def ranked(*data, **options):
        plan = rank(*data, **options)
        falling = zip(plan.states, (0.9, 0.895, 0.89, 0.88, 0.95, 0.95, 0.95), strict=False)
        start, *steps = [replace(state, accuracy=accuracy) for state, accuracy in falling]
        return replace(plan, start=start, steps=tuple(steps))

    monkeypatch.setattr(quadratic, "rank", ranked)
    (row,) = quadratic.compare(Study(FEW, 1, (0,)), ((5,),), {"magnitude": {"criterion": "magnitude"}}, progress=False)
    assert row.within_1pt == 40


def test_ratios_are_of_the_naive_oracle_and_swaps_lower_what_is_predicted(compared):
    for oracle, swapped in (compared[:2], compared[2:]):
        assert oracle.ratio * oracle.seconds == pytest.approx(swapped.ratio * swapped.seconds)  # the same naive seconds
        assert (oracle.swaps, oracle.before, oracle.after) == (None, None, None)
        assert swapped.after <= swapped.before
        assert (swapped.after < swapped.before) == (swapped.swaps > 0)
