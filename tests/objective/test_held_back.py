"""Every fifth sample judges what is fitted to the others."""

import itertools
from typing import Any

import pytest
import torch

from secateur.errors import DataError
from secateur.objective.data import Batch
from secateur.objective.held_back import hold_back, some_samples


def batch(first: int, size: int, targets: Any = None) -> Batch:
    numbers = torch.arange(first, first + size)
    return Batch(((numbers[:, None], torch.tensor(3)), {}), numbers if targets is None else targets, size)


def numbers_of(batches: list[Batch]) -> list[list[int]]:
    return [part.targets.tolist() for part in batches]


def test_every_fifth_sample_is_held_back_however_the_samples_come_in_batches() -> None:
    fitted, held = hold_back([batch(0, 3), batch(3, 6), batch(9, 2)], whole=False)
    assert numbers_of(fitted) == [[0, 1, 2], [3, 5, 6, 7, 8], [10]]
    assert numbers_of(held) == [[4], [9]]
    assert [part.size for part in fitted + held] == [3, 5, 1, 1, 1]


def test_inputs_go_with_their_targets_and_what_no_sample_has_part_in_stays() -> None:
    fitted, held = hold_back([batch(0, 5)], whole=False)
    for part in fitted + held:
        (inputs, scalar), _ = part.call
        assert inputs[:, 0].tolist() == part.targets.tolist()
        assert scalar.item() == 3


def test_targets_are_divided_in_lists_and_nested_tensors_too() -> None:
    words = ["a", "b", "c", "d", "e"]
    fitted, held = hold_back([batch(0, 5, words)], whole=False)
    assert ([part.targets for part in fitted], [part.targets for part in held]) == ([["a", "b", "c", "d"]], [["e"]])
    nested = {"boxes": torch.arange(10).reshape(5, 2), "name": "set"}
    fitted, held = hold_back([batch(0, 5, nested)], whole=False)
    assert held[0].targets["boxes"].tolist() == [[8, 9]]
    assert held[0].targets["name"] == "set"
    assert len(fitted[0].targets["boxes"]) == 4


def test_where_batches_cannot_be_divided_every_fifth_batch_is_held_back() -> None:
    batches = [batch(2 * i, 2) for i in range(6)]
    fitted, held = hold_back(batches, whole=True)
    assert numbers_of(held) == [[8, 9]]
    assert numbers_of(fitted) == [[0, 1], [2, 3], [4, 5], [6, 7], [10, 11]]


@pytest.mark.parametrize(("count", "whole", "what"), [(4, False, "samples"), (4, True, "batches")])
def test_with_fewer_than_five_nothing_is_left_to_judge_by(count: int, whole: bool, what: str) -> None:
    with pytest.raises(DataError, match=f"there are fewer than 5 {what}; give validation=, or more data"):
        hold_back([batch(i, 1) for i in range(count)], whole)


@pytest.mark.parametrize(
    ("most", "chosen"),
    [(11, [*range(11)]), (5, [2, 4, 6, 8, 10]), (3, [3, 7, 10]), (1, [10]), (40, [*range(11)])],
)
def test_some_samples_are_evenly_taken_however_the_samples_come_in_batches(most: int, chosen: list[int]) -> None:
    for sizes in ([11], [3, 6, 2], [1] * 11):
        batches = [batch(sum(sizes[:i]), size) for i, size in enumerate(sizes)]
        some = some_samples(batches, most, whole=False)
        assert list(itertools.chain(*numbers_of(some))) == chosen
        assert [part.size for part in some] == [len(part.targets) for part in some]
        assert all(part.call[0][0][:, 0].tolist() == part.targets.tolist() for part in some)


@pytest.mark.parametrize(("most", "chosen"), [(12, [0, 2, 4, 6, 8, 10]), (4, [4, 10]), (3, [10]), (1, [10])])
def test_where_batches_cannot_be_divided_some_are_taken_whole_and_evenly(most: int, chosen: list[int]) -> None:
    some = some_samples([batch(2 * i, 2) for i in range(6)], most, whole=True)
    assert numbers_of(some) == [[first, first + 1] for first in chosen]
