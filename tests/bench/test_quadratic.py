"""The benchmark of the quadratic ranking, on few digits."""

from __future__ import annotations

from dataclasses import replace

import pytest

from secateur import rank
from secateur.bench import quadratic
from secateur.bench.curves import Curve
from secateur.papers.data import digits
from secateur.papers.training import logistic_network, train

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
    model = logistic_network([64, 4, 6, 10], seed=3)
    train(model, FEW.train, 20, seed=3, progress=False)
    way = {**WAYS["quadratic, ggn"], "validation": FEW.test}
    found = [state.accuracy for state in rank(model, FEW.calibration, "squared_error", progress=False, **way).states]
    assert (row.start, row.at_30, row.at_50, row.at_70) == (found[0], found[3], found[5], found[7])
    assert len(set(found)) > 3  # or any place would do
    assert row.within_1pt == Curve(range(len(found)), found, 10).within


def test_ratios_are_of_the_naive_oracle_and_swaps_lower_what_is_predicted(compared):
    for oracle, swapped in (compared[:2], compared[2:]):
        assert oracle.ratio * oracle.seconds == pytest.approx(swapped.ratio * swapped.seconds)
        assert (oracle.swaps, oracle.before, oracle.after) == (None, None, None)
        assert swapped.after <= swapped.before
        assert (swapped.after < swapped.before) == (swapped.swaps > 0)
