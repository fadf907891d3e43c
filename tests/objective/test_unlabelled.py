"""Data without targets."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from secateur.errors import ArgumentError, DataError
from secateur.objective.data import Batch, batches, first_inputs
from secateur.objective.losses import LOSSES, cross_entropy, squared_error
from secateur.objective.mask import masked
from secateur.objective.unlabelled import MoreInputs, data_for, with_predictions
from secateur.options import Compensation
from secateur.structure.inputs import InputSpec

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


# ---------------------------------------------------------------- beside data with targets


def predicted(loss: Any, outputs: Any, batch: Batch | None = None) -> Any:
    return with_predictions(loss, batch or Batch(((X,), {}), None, 3), outputs).targets


def test_predictions_are_where_a_loss_is_least() -> None:
    logits = torch.tensor([[0.0, 1.0, -2.0], [3.0, 0.5, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    for loss in LOSSES.values():
        value = loss(logits, predicted(loss, logits.detach()))
        assert torch.autograd.grad(value, logits)[0].abs().max() < 1e-15
    assert predicted(cross_entropy, torch.ones(2, 7).bfloat16()).dtype == torch.float32


def test_without_a_loss_that_has_a_name_there_are_none() -> None:
    assert predicted(None, X) is None
    assert predicted(nn.MSELoss(), X) is None


def test_what_cannot_be_divided_is_counted_by_its_outputs() -> None:
    call = (X, torch.zeros(2, 5)), {}
    whole, rows = (Batch(call, None, 1, None, InputSpec.of(call, paths)) for paths in ((), ("[0]",)))
    sizes = [with_predictions(squared_error, batch, X).size for batch in (whole, rows)]
    assert sizes == [3, 1]


@pytest.mark.parametrize(
    ("augment", "got"), [(3, "3"), (One, "the class One"), ("shift", "'shift'")], ids=["number", "class", "name"]
)
def test_what_is_no_function_is_refused(augment: Any, got: str) -> None:
    with pytest.raises(ArgumentError) as refused:
        MoreInputs(augment=augment)
    assert str(refused.value) == f"augment: expected a function of inputs and a torch.Generator, got {got}"


def test_inputs_that_nothing_would_use_are_refused() -> None:
    def same_inputs(inputs: Any, _: torch.Generator) -> Any:
        return inputs

    MoreInputs().check_use(None)
    MoreInputs(X).check_use(Compensation())
    MoreInputs(X, same_inputs).check_use(Compensation(refine=2))
    with pytest.raises(ArgumentError, match=r"^unlabelled: is for weights that are fitted, beside the data$"):
        MoreInputs(X).check_use(None)
    for compensation in (None, Compensation()):
        with pytest.raises(ArgumentError, match=r"^augment: is for refine="):
            MoreInputs(augment=same_inputs).check_use(compensation)
