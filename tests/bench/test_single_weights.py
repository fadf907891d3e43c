"""The benchmark of single weights, on few digits."""

from __future__ import annotations

from dataclasses import replace

import pytest

from secateur.bench import single_weights
from secateur.papers.data import digits

FEW = replace(digits(), **{part: tuple(t[:100] for t in getattr(digits(), part)) for part in ("calibration", "test")})


@pytest.fixture(scope="module")
def compared():
    return single_weights.compare(FEW, 60, (10,), ("obd", "random"), 12, progress=False)


def test_each_criterion_is_tried_without_and_with_training(compared):
    assert [(row.criterion, row.retrained) for row in compared] == [
        ("obd", 0), ("random", 0), ("obd", 4), ("random", 4)
    ]  # fmt: skip


def test_all_begin_at_the_same_network_and_obd_does_less_harm_than_chance(compared):
    assert len({row.start for row in compared}) == 1
    assert compared[0].start > 0.5
    for obd, chance in (compared[:2], compared[2:]):
        assert obd.at_50 > chance.at_50
        assert obd.within_1pt > chance.within_1pt


def test_the_bytes_are_those_of_the_largest_share_within_a_point(compared):
    dense = compared[0].bytes / compared[0].of_dense
    for row in compared:
        assert row.bytes / row.of_dense == pytest.approx(dense)
        assert (row.of_dense < 100) == (row.within_1pt > 0)


def test_accuracies_are_those_of_the_first_round_that_has_removed_so_many():
    step = type("Step", (), {"__init__": lambda self, removed, accuracy: self.__dict__.update(locals())})
    result = type("Result", (), {"curve": [step(5, 0.9), step(8, 0.7), step(9, 0.4)]})
    assert [single_weights._at(result, removed) for removed in (4, 5, 5.5, 9)] == [0.9, 0.9, 0.7, 0.4]
