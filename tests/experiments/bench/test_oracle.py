"""The benchmark of the oracle: both sides compute the same."""

from __future__ import annotations

import pytest
import torch

from experiments.studies import FEW
from secateur import find_units
from secateur_experiments.bench import oracle
from secateur_experiments.networks import logistic_network


@pytest.mark.parametrize(("hidden", "passes"), [([5], 5 + 4 + 3 + 2), ([2, 2], 4 + 2)])
def test_the_naive_order_is_ours(hidden: list[int], passes: int) -> None:
    """One unit of each set is left, and none of these is tried."""
    model, (x, y) = logistic_network([64, *hidden, 10]).double(), FEW.test
    data = x.double(), y
    naive, ours = oracle.iterative(model, find_units(model, data[0][:2]), data, "squared_error", 25)
    (expected, tried), (losses, _) = naive(), ours()
    assert tried == passes
    assert len(expected) == sum(hidden) - len(hidden) + 1
    torch.testing.assert_close(losses, expected, rtol=1e-12, atol=0)


def test_small_networks_are_compared_in_both_tasks_and_large_ones_in_one() -> None:
    tasks = oracle.tasks(1000)
    assert {name: len(task.tasks) for name, task in tasks.items()} == {
        "784-100-10": 2, "784-50-50-10": 2, "LeNet-5": 1, "ResNet-18": 1, "ViT-tiny": 1
    }  # fmt: skip
    assert {name: task.samples for name, task in tasks.items() if task.samples < 1000} == {
        "ResNet-18": 256, "ViT-tiny": 256
    }  # fmt: skip


def test_every_network_of_the_benchmark_gives_the_losses_of_the_plain_model() -> None:
    (row,) = oracle.compare(["LeNet-5"], 6, 1, torch.float64, None, progress=False)
    assert (row.network, row.task, row.passes, row.units) == ("LeNet-5", "single", 226, 226)
    assert row.max_difference < 1e-12
    assert row.ratio == pytest.approx(row.naive_s / row.ours_s)


def test_the_best_batch_is_one_that_was_tried() -> None:
    model = logistic_network([64, 4, 10])
    assert oracle.best_batch(model, torch.rand(40, 64)) == 64
    assert oracle.best_batch(model, torch.rand(20, 64)) == 20  # fewer than half of the least that is tried
