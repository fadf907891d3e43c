"""Data without targets."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from secateur.errors import ArgumentError, DataError
from secateur.objective.data import batches, first_inputs
from secateur.objective.mask import masked
from secateur.objective.unlabelled import data_for

X, Y = torch.arange(6.0).reshape(3, 2), torch.tensor([0, 1, 0])


class One(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


class Two(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a + b


class OneOrTwo(nn.Module):
    def forward(self, a: Tensor, b: Tensor | None = None) -> Tensor:
        return a if b is None else a + b


class Several(nn.Module):
    def forward(self, *tensors: Tensor) -> Tensor:
        return tensors[0]


def read(model: nn.Module, data: Any) -> list[tuple[Any, Any, Any]]:
    """Positional and keyword inputs and targets of every batch."""
    return [(*batch.call, batch.targets) for batch in batches(model, data_for(model, data, "output"))]


def same(found: Any, expected: Any) -> bool:
    if isinstance(expected, Tensor):
        return torch.equal(found, expected)
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(same(found[name], expected[name]) for name in expected)
    if isinstance(expected, list | tuple):
        return len(found) == len(expected) and all(map(same, found, expected))
    return found is expected


@pytest.mark.parametrize(
    ("model", "data", "expected"),
    [
        (One(), X, [((X,), {}, None)]),
        (One(), (X,), [((X,), {}, None)]),
        (One(), (X, Y), [((X,), {}, None)]),
        (One(), {"x": X, "labels": Y}, [((), {"x": X}, None)]),
        (One(), ({"x": X}, Y), [((), {"x": X}, None)]),
        (One(), [X, X[:2]], [((X,), {}, None), ((X[:2],), {}, None)]),
        (One(), [(X, Y), {"x": X}], [((X,), {}, None), ((), {"x": X}, None)]),
        (One(), ((X, Y), (X, Y)), [((X,), {}, None)] * 2),
        (One(), DataLoader(TensorDataset(X, Y), 2), [((X[:2],), {}, None), ((X[2:],), {}, None)]),
        (Two(), (X, X), [((X, X), {}, None)]),
        (Two(), ((X, X), Y), [((X, X), {}, None)]),
        (Two(), [(X, X), ((X, X), Y)], [((X, X), {}, None)] * 2),
        (OneOrTwo(), (X, None), [((X,), {}, None)]),
        (OneOrTwo(), ((X, X), None), [((X, X), {}, None)]),
        (Several(), (X, X, X), [((X, X, X), {}, None)]),
    ],
)
def test_inputs_alone_are_read_in_every_form(model: nn.Module, data: Any, expected: Any) -> None:
    assert same(read(model, data), expected)
    wrapped = data_for(model, data, "output")
    assert same(read(model, wrapped), expected)  # again changes nothing
    args, kwargs, _ = expected[0]
    first = first_inputs(wrapped)
    assert same(first, kwargs or args) or same((first,), args)


@pytest.mark.parametrize("model", [OneOrTwo(), Several()])
def test_two_tensors_that_may_be_inputs_or_targets_are_refused(model: nn.Module) -> None:
    least, most = ("1", "2") if isinstance(model, OneOrTwo) else ("0", "inf")
    for data in ((X, X), [(X, X)]):
        with pytest.raises(DataError) as refused:
            read(model, data)
        assert str(refused.value) == (
            f"data: two tensors may be two inputs of the model, whose forward takes {least} to {most} positional ones, "
            "or inputs and targets; give ((a, b), None) or (a, None)"
        )


def test_what_is_no_data_is_refused() -> None:
    with pytest.raises(DataError, match=r"^validation: a generator can be read only once"):
        data_for(One(), (x for x in [X]), "output", "validation")
    with pytest.raises(DataError, match=r"^data: expected .* got single samples, a TensorDataset"):
        data_for(One(), TensorDataset(X), "output")
    with pytest.raises(ArgumentError, match=r"^unknown loss 'outputs'; one of: "):
        data_for(One(), None, "outputs")


def test_data_of_another_loss_are_left_as_they_are() -> None:
    data = (X, Y)
    for loss in (None, "cross_entropy", nn.MSELoss()):
        assert data_for(One(), data, loss) is data
    assert data_for(One(), None, "output") is None


def test_a_mask_stays_with_the_data() -> None:
    found = list(batches(One(), data_for(One(), masked([X, X], lambda x: x > 1), "output")))
    assert [torch.equal(batch.mask, X > 1) for batch in found if batch.mask is not None] == [True, True]
