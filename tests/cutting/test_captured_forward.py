"""Cut networks of code that fixes widths but no lengths, at lengths that they were not captured with."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.cutting.captured_forward import captured_parts
from secateur.errors import DataError


def regrouped(h: Tensor) -> Tensor:
    """Two groups of three, exchanged: widths that are written in the code."""
    return h.unflatten(-1, (2, 3)).mT.flatten(-2)


class Inner(nn.Module):
    """Regrouped widths, and a width that it makes itself."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor, length: int | None = None) -> Tensor:
        h = regrouped(self.first(x))
        return self.last(torch.tanh(h).reshape(-1, x.shape[1] if length is None else length, 6))


class Outer(nn.Module):
    """An inner network, used by any code."""

    def __init__(self, use: Callable[..., Tensor]) -> None:
        super().__init__()
        self.inner, self.use = Inner(), use
        self.convolution, self.up, self.down = nn.Conv1d(4, 4, 3), nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.use(self, *inputs)


def whole(m: Outer, x: Tensor) -> Tensor:
    if x.shape[1] > 4:
        return m.inner.last(regrouped(m.inner.first(x)).reshape(-1, x.shape[1], 6)).sum(1)
    return m.inner.last(regrouped(m.inner.first(x)).reshape(-1, x.shape[1], 6)).amax(1)


def paired(m: Outer, x: Tensor, y: Tensor) -> Tensor:
    return m.inner.last(regrouped(m.inner.first(x) + y.mean(-1, keepdim=True)).reshape(-1, x.shape[1], 6))


USES = {
    "the part has its own length": lambda m, x: m.inner(x).tanh(),
    "the part gets its length as a number": lambda m, x: m.inner(x, x.shape[1]).tanh(),
    "the part sees another length than the whole": lambda m, x: m.inner(m.convolution(x.mT).mT).tanh(),
    "the part sees several positions as one": lambda m, x: m.inner(x.repeat(1, 2, 1)).tanh(),
}


def made(use: Callable[..., Tensor]) -> Outer:
    torch.manual_seed(0)
    return Outer(use).double()


def sequence(n: int, length: int) -> Tensor:
    return torch.randn(n, length, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(length))


def zeroed(model: nn.Module, x: Tensor, name: str, gone: list[int]) -> nn.Module:
    """The model with all parameters of some units zero."""
    units, model = sc.find_units(model, x, "all"), copy.deepcopy(model)
    with torch.no_grad():
        for part in units[name].slices:
            model.get_parameter(part.tensor).index_fill_(part.dim, part.index[gone].flatten(), 0)
    return model


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize(("name", "kept", "gone"), [("inner.first[0]", [1], [0]), ("inner.first[1]", [0, 2], [1])])
def test_a_cut_part_computes_what_it_did_at_any_length(use: str, name: str, kept: list[int], gone: list[int]) -> None:
    model, x = made(USES[use]), sequence(3, 7)
    small = sc.cut(model, sc.Plan.from_kept({name: kept}, x))
    assert captured_parts(small)
    expected = zeroed(model, x, name, gone)
    for n, length in ((3, 7), (2, 5), (1, 12)):
        x = sequence(n, length)
        assert torch.allclose(small(x), expected(x), rtol=0, atol=1e-12)


def test_a_captured_part_is_taken_where_it_is_enough() -> None:
    model, x = made(USES["the part has its own length"]), sequence(3, 7)
    assert captured_parts(sc.cut(model, sc.Plan.from_kept({"inner.first[0]": [1]}, x))) == ("inner",)


def test_numbers_that_are_right_at_one_length_alone_are_not_taken() -> None:
    def rolled(m: Outer, x: Tensor) -> Tensor:
        return m.down(torch.tanh(m.up(x))) + x.roll(m.up.out_features, 1)

    model, x = made(rolled), sequence(3, 4)
    small = sc.cut(model, sc.Plan.from_kept({"up": [0, 2, 3, 6]}, x))  # by 8 or by 4 is the same at length 4
    expected = zeroed(model, x, "up", [1, 4, 5, 7])
    for length in (4, 5, 7):
        x = sequence(2, length)
        assert torch.allclose(small(x), expected(x), rtol=0, atol=1e-12)


def test_lengths_at_which_the_code_takes_another_way_are_refused() -> None:
    model, x = made(whole), sequence(3, 7)
    small = sc.cut(model, sc.Plan.from_kept({"inner.first[0]": [1]}, x))
    assert captured_parts(small) == ("",)
    assert small(sequence(2, 5)).shape == (2, 4)
    with pytest.raises(DataError) as caught:
        small(sequence(2, 4))
    assert str(caught.value) == "inputs: captured for sizes with n1 > 4, got {'samples': 2, 'n1': 4}"


def test_lengths_that_must_be_the_same_are_the_same() -> None:
    model, x = made(paired), sequence(3, 7)
    small = sc.cut(model, sc.Plan.from_kept({"inner.first[0]": [1]}, (x, x)))
    assert captured_parts(small) == ("",)
    assert small(sequence(2, 5), sequence(2, 5)).shape == (2, 5, 4)
    with pytest.raises(DataError) as caught:
        small(sequence(2, 5), sequence(2, 6))
    assert str(caught.value) == "inputs: captured for (samples, 5, any), got (2, 6, 4)"
