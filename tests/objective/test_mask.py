"""Positions that do not count."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur import Budget, Plan, SecateurError, cut, rank, shrink
from secateur.errors import ArgumentError, DataError
from secateur.objective.data import Batch, batches, first_inputs
from secateur.objective.held_back import hold_back
from secateur.objective.mask import Masked, find_mask, masked

X = torch.arange(6.0).reshape(2, 3)
MASK = torch.tensor([[True, True, False], [True, False, False]])


def read(data: Any) -> list[Batch]:
    return list(batches(nn.Identity(), data))


def assert_masks(data: Any, *expected: Tensor | None) -> None:
    found = [batch.mask for batch in read(data)]
    assert len(found) == len(expected)
    for mask, wanted in zip(found, expected, strict=True):
        if wanted is None or mask is None:
            assert mask is wanted
        else:
            assert mask.dtype == torch.bool
            assert torch.equal(mask, wanted)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
def test_an_attention_mask_counts_by_itself(dtype: torch.dtype) -> None:
    assert_masks([({"x": X, "attention_mask": MASK.to(dtype)}, None)], MASK)
    assert_masks(({"x": X, "attention_mask": MASK.to(dtype)}, torch.zeros(2)), MASK)
    assert_masks([{"x": X, "attention_mask": MASK.to(dtype), "labels": torch.zeros(2)}], MASK)


def test_without_one_all_positions_count() -> None:
    assert_masks((X, None), None)
    assert_masks([({"x": X, "attention_mask": MASK[:, None, None]}, None)], None)  # of heads and queries
    assert_masks([({"x": X, "padding": MASK}, None)], None)


def test_a_mask_is_an_input_by_name_or_a_function_of_the_inputs() -> None:
    both = {"x": X, "attention_mask": torch.ones(2, 3), "counts": MASK}
    assert_masks(masked([(both, None)], "counts"), MASK)
    assert_masks(masked([((X, X), None), ((X[:1], X[:1]), None)], lambda a, b: a + b < 3), X < 1.5, X[:1] < 1.5)
    assert_masks(masked([({"x": X}, None)], lambda x: (x < 2).float()), X < 2)
    assert first_inputs(masked((X, None), lambda x: x < 2)) is X


def test_samples_that_are_held_back_take_their_masks_along() -> None:
    x = torch.arange(20.0).reshape(10, 2)
    fitted, held = hold_back(read(masked((x, None), lambda x: x % 3 > 0)), whole=False)
    for part in (fitted, held):
        for batch in part:
            assert batch.mask is not None
            assert torch.equal(batch.mask, batch.call[0][0] % 3 > 0)
    assert hold_back(read((x, None)), whole=False)[0][0].mask is None


@pytest.mark.parametrize(
    ("mask", "text"),
    [
        ("padding", "mask: there is no keyword input 'padding'; those of this batch: x, y"),
        ("n", "mask: there is no keyword input 'n'; those of this batch: x, y"),
        ("x", "mask 'x': expected True or 1 where a position counts and False or 0 where it does not"),
        ("y", "mask 'y': expected a tensor of 2 samples and their positions, got shape (2, 3, 1)"),
        (lambda **_: MASK[0], "mask: expected a tensor of 2 samples and their positions, got shape (3,)"),
        (lambda **_: MASK[:1], "mask: expected a tensor of 2 samples and their positions, got shape (1, 3)"),
        (lambda **_: None, "mask: expected a tensor of 2 samples and their positions, got None"),
        (lambda **_: MASK & False, "mask: no position counts"),
        (lambda x: x, "mask: the function fails (TypeError: "),
    ],
)
def test_what_is_no_mask_is_refused(mask: Any, text: str) -> None:
    with pytest.raises(DataError) as refused:
        read(masked([({"x": X, "y": X[..., None], "n": 3}, None)], mask))
    assert str(refused.value).startswith(f"data: batch 0: {text}")


def test_an_attention_mask_of_other_numbers_is_refused() -> None:
    with pytest.raises(DataError) as refused:
        find_mask(((), {"x": X, "attention_mask": MASK * -1e9}), 2, None, "")
    assert str(refused.value).startswith("attention_mask: expected True or 1 where a position counts")


def test_without_a_mask_data_are_as_they_are() -> None:
    data = (X, None)
    assert masked(data, None) is data
    assert isinstance(masked(data, "x"), Masked)


# ---------------------------------------------------------------- asked for by the public functions


class Tagger(nn.Module):
    """A class for each position."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 3))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.inner(x)}


def model() -> nn.Module:
    torch.manual_seed(0)
    return Tagger().double()


DATA = torch.randn(12, 4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("mask", [3, nn.Linear, ("x",)])
def test_every_function_refuses_what_is_no_mask(mask: Any) -> None:
    calls = (
        lambda: rank(model(), DATA, "output", mask=mask, progress=False),
        lambda: shrink(model(), DATA, "output", Budget(remove_units=1), mask=mask, progress=False),
        lambda: cut(model(), Plan.from_kept({"inner.0": [0]}), DATA, "output", mask=mask),
    )
    for call in calls:
        with pytest.raises(ArgumentError, match=r"^mask: expected the name of a keyword input or a function of"):
            call()


def test_a_mask_without_data_is_refused() -> None:
    with pytest.raises(SecateurError, match=r"^mask: says which positions of the data count, and there are no data"):
        cut(model(), Plan.from_kept({"inner.0": [0]}), mask="x")


@pytest.mark.parametrize("loss", ["output", "distribution"])
def test_positions_that_do_not_count_change_neither_order_nor_loss_nor_weights(loss: str) -> None:
    def shrunk(data: Tensor) -> Any:
        return shrink(
            model(), data, loss, Budget(remove_units=4), validation=data[::2], progress=False,
            mask=lambda x: x.abs().sum(2) < 50,
        )  # fmt: skip

    other = DATA.clone()
    other[::3, 2:] = 99.0
    padded = other.clone()
    padded[::3, 2:] = -77.0
    a, b, c = shrunk(other), shrunk(padded), shrunk(DATA)
    assert a.plan.kept == b.plan.kept
    assert a.after.loss == pytest.approx(b.after.loss, rel=1e-9)
    assert a.after.loss != pytest.approx(c.after.loss, rel=1e-3)
    for one, two in zip(a.model.parameters(), b.model.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-12)
    fitted = [cut(model(), a.plan, data, loss, mask=lambda x: x.abs().sum(2) < 50) for data in (other, padded)]
    for one, two in zip(*(network.parameters() for network in fitted), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-12)
