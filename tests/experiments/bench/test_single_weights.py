"""The benchmark of single weights, on few digits."""

from __future__ import annotations

from argparse import Namespace

import pytest

from experiments.studies import WHOLE, few
from secateur_experiments.bench import single_weights
from secateur_experiments.study import Study

FEW = few(len(WHOLE.train[0]), 100, 100)


@pytest.fixture(scope="module")
def compared():
    return single_weights.compare(Study(FEW, 120), (30,), ("obd", "random"), 8, progress=False)


def test_each_criterion_is_tried_without_and_with_training(compared):
    assert [(row.criterion, row.retrained) for row in compared] == [
        ("obd", 0), ("random", 0), ("obd", 8), ("random", 8)
    ]  # fmt: skip


def test_all_begin_at_the_same_network_and_obd_does_less_harm_than_chance(compared):
    assert len({row.start for row in compared}) == 1
    assert compared[0].start > 0.5
    for obd, chance in (compared[:2], compared[2:]):
        assert obd.at_50 > chance.at_50
        assert obd.within_1pt > chance.within_1pt


def test_training_in_between_makes_up_for_much(compared):
    without, trained = compared[0], compared[2]
    assert trained.at_80 > without.at_80
    assert trained.within_1pt > without.within_1pt + 10


def test_the_largest_share_is_that_of_the_last_round_within_a_point():
    rounds = [(20, 0.895, 700), (40, 0.5, 500), (60, 0.89, 300), (98, 0.88, 100)]
    curve = [Namespace(removed=removed, accuracy=accuracy, bytes=size) for removed, accuracy, size in rounds]
    whole = Namespace(accuracy=0.9, bytes=1000)
    result = Namespace(curve=curve, before=whole, plan=Namespace(sizes={"a": 60, "b": 40}))
    row = single_weights.summary(result, "obd", 0)
    assert (row.within_1pt, row.bytes, row.of_dense) == (60, 300, 30)
    # those of the first round that has removed so many
    assert (row.start, row.at_50, row.at_80, row.at_90, row.at_95, row.at_98) == (0.9, 0.89, 0.88, 0.88, 0.88, 0.88)
    curve[0].accuracy = curve[2].accuracy = 0.1
    row = single_weights.summary(result, "obd", 0)
    assert (row.within_1pt, row.bytes, row.of_dense) == (0, 1000, 100)


def test_the_bytes_are_those_of_the_largest_share_within_a_point(compared):
    dense = compared[0].bytes / compared[0].of_dense
    for row in compared:
        assert row.bytes / row.of_dense == pytest.approx(dense)
        assert (row.of_dense < 100) == (row.within_1pt > 0)


def test_accuracies_are_those_of_the_first_round_that_has_removed_so_many():
    rounds = [(50, 0.9), (79, 0.7), (90, 0.4), (95, 0.3), (99, 0.2)]
    curve = [Namespace(removed=removed, accuracy=accuracy, bytes=100) for removed, accuracy in rounds]
    result = Namespace(curve=curve, before=Namespace(accuracy=0.9, bytes=1000), plan=Namespace(sizes={"a": 100}))
    row = single_weights.summary(result, "obd", 0)
    assert (row.at_50, row.at_80, row.at_90, row.at_95, row.at_98) == (0.9, 0.4, 0.4, 0.3, 0.2)
