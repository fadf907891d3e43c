"""Every question that takes units holds them against the model, once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.errors import DataError, ModelError
from secateur.objective.question import find_or_check
from secateur.saliency.gain_sweep import gain_sweep

X, Y = torch.randn(12, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1] * 6)
LOSS = "cross_entropy"


class Counting(nn.Sequential):
    """Knows how many samples each of its calls had; None where it is traced, for any number."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(3, 4), nn.Sigmoid(), nn.Linear(4, 2))
        self.calls: list[int | None] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append(x.shape[0] if isinstance(x.shape[0], int) else None)
        return super().forward(x)


def network() -> Counting:
    torch.manual_seed(0)
    return Counting()


Ask = Callable[[nn.Module, Any, Any], object]
QUESTIONS: dict[str, Ask] = {
    "score": lambda model, data, units: sc.score(model, data, LOSS, units=units),
    "score without a loss": lambda model, data, units: sc.score(model, data, None, units=units, criterion="activation"),
    "score of weights": lambda model, data, units: sc.score(model, data, LOSS, units=units, granularity="weight"),
    "interactions": lambda model, data, units: sc.interactions(model, data, LOSS, units=units),
    "gain_sweep": lambda model, data, units: gain_sweep(model, data, LOSS, units, [("0", 1)], [0.0, 2.0]),
}


@pytest.mark.parametrize("name", QUESTIONS)
def test_units_of_another_forward_are_refused(name: str) -> None:
    model = network()
    units = sc.find_units(model, X)
    model[1] = nn.ReLU()
    with pytest.raises(
        ModelError, match=r"^units: found on another forward: the captured graph differs from the model"
    ):
        QUESTIONS[name](model, (X, Y), units)


@pytest.mark.parametrize("granularity", ["unit", "weight"])
def test_without_data_they_are_compared_on_random_inputs(granularity: str) -> None:
    model = network()
    units = sc.find_units(model, X)
    sc.score(model, None, None, units=units, criterion="magnitude", granularity=granularity)
    model[1] = nn.ReLU()
    with pytest.raises(ModelError, match="units: found on another forward"):
        sc.score(model, None, None, units=units, criterion="magnitude", granularity=granularity)


@pytest.mark.parametrize("name", QUESTIONS)
def test_units_that_are_handed_in_cost_one_pass_of_the_first_batch(name: str) -> None:
    model = network()
    units = sc.find_units(model, X)
    model.calls.clear()
    QUESTIONS[name](model, [(X[:4], Y[:4]), (X[4:], Y[4:])], units)
    assert model.calls == [4]


@pytest.mark.parametrize("name", QUESTIONS)
def test_units_that_are_found_by_the_call_itself_cost_none(name: str) -> None:
    model = network()
    sc.find_units(model, X)
    once, model.calls = model.calls, []
    QUESTIONS[name](model, (X, Y), None)
    assert model.calls == once


def test_a_cap_on_memory_bounds_how_many_samples_are_compared() -> None:
    model = network()
    units = sc.find_units(model, X)
    model.calls.clear()
    assert find_or_check(model, (X, Y), units, max_memory=4000) is units
    assert model.calls == [12]
    find_or_check(model, (X, Y), units, max_memory=1000)  # an eighth: 40 bytes of values for each sample
    assert model.calls == [12, 3]


def test_example_inputs_are_compared_on_where_there_are_some() -> None:
    model = network()
    units = sc.find_units(model, X)
    model.calls.clear()
    find_or_check(model, (X, Y), units, example_inputs=X[:5])
    assert model.calls == [5]
    assert find_or_check(model, None, None, example_inputs=X).total == 4


def test_without_units_and_data_nothing_is_known() -> None:
    with pytest.raises(DataError, match=r"^pass units=find_units\(model, example_inputs\): without data the inputs"):
        find_or_check(network(), None, None)
