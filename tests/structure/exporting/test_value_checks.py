"""Branches on the values of tensors: checks are left out, choices are refused."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.errors import ModelError
from secateur.structure.exporting.value_checks import Place, find_truths, first_choice

X = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
HERE = Path(__file__).name


class Checking(nn.Module):
    """Two dense layers, and a look at the values between them."""

    def __init__(self, look: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last, self.look = nn.Linear(4, 6), nn.Linear(6, 2), look

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.look(self.first(x).relu()))


def raises_on_nan(h: Tensor) -> Tensor:
    if torch.isnan(h).any():
        raise ValueError("NaN")
    return h


def asserts(h: Tensor) -> Tensor:
    assert h.min() >= 0
    assert not torch.allclose(h, h + 1)
    return h


def reads_a_bool(h: Tensor) -> Tensor:
    if not torch.isfinite(h).all().item():
        raise RuntimeError("not finite")
    return h


def in_a_loop(h: Tensor) -> Tensor:
    for power in (1, 2, 3):
        if (h**power).sum() < 0:
            raise ValueError("negative")
    return h


def chooses(h: Tensor) -> Tensor:
    if h.sum() > 0:
        h = 2 * h
    return h


def chooses_after_a_check(h: Tensor) -> Tensor:
    return chooses(raises_on_nan(h))


def compares_a_number(h: Tensor) -> Tensor:
    return h if float(h.mean()) > 0 else 2 * h


CHECKS = {
    raises_on_nan: ["if torch.isnan(h).any():"],
    asserts: ["assert h.min() >= 0", "assert not torch.allclose(h, h + 1)"],
    reads_a_bool: ["if not torch.isfinite(h).all().item():"],
    in_a_loop: ["if (h**power).sum() < 0:"],  # once, though asked three times
}


@pytest.mark.parametrize("look", CHECKS)
def test_checks_are_left_out_and_said(look: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    model = Checking(look)
    units = sc.find_units(model, X)
    lines = "; ".join(rf"'{re.escape(line)}' \({HERE}:\d+\)" for line in CHECKS[look])
    assert len(units.notes) == 1
    assert re.fullmatch(rf"Checks of values in the model's code are not followed: {lines}\.", units.notes[0])
    small = sc.cut(model, sc.Plan.from_kept({"first": [0, 2]}, X))
    assert small.first.out_features == 2
    if look is raises_on_nan:
        with pytest.raises(ValueError, match="NaN"):
            small(X * float("nan"))  # the cut network still looks


@pytest.mark.parametrize("look", [chooses, chooses_after_a_check])
def test_a_choice_by_values_is_refused_with_its_line(look: Callable[[Tensor], Tensor]) -> None:
    line = r"'if h\.sum\(\) > 0:' \(test_value_checks\.py:\d+\)"
    why = rf"^Checking chooses by the values of tensors what it computes, at {line}; torch\.where chooses without"
    with pytest.raises(ModelError, match=why):
        sc.find_units(Checking(look), X)


def test_a_number_that_decides_is_refused_with_its_line() -> None:
    line = r"'return h if float\(h\.mean\(\)\) > 0 else 2 \* h' \(test_value_checks\.py:\d+\)"
    with pytest.raises(ModelError, match=rf"^Checking needs the values of tensors to go on, at {line}: Could not"):
        sc.find_units(Checking(compares_a_number), X)


def test_truths_are_found_by_place_and_told_apart() -> None:
    model = Checking(in_a_loop)
    truths = find_truths(model, ((X,), {}))
    assert [place.n for place in truths] == [1, 2, 3]
    assert not any(truths.values())
    assert first_choice(model, ((X,), {}), truths) is None
    both = find_truths(Checking(chooses_after_a_check), ((X,), {}))
    choice = first_choice(Checking(chooses_after_a_check), ((X,), {}), both)
    assert isinstance(choice, Place)
    assert str(choice).startswith("'if h.sum() > 0:'")


@dataclass
class Scaled:
    """Samples, and a scale that all have in common."""

    x: Tensor
    more: dict[str, Tensor]


class OfObjects(Checking):
    """Takes its inputs from an object, returns one, and draws noise."""

    def forward(self, inputs: Scaled) -> Scaled:
        assert bool(inputs.more["scale"].isfinite().all())
        noise = 0.1 * torch.randn_like(inputs.x)
        y = super().forward(inputs.x * inputs.more["scale"] + noise)
        return Scaled(y, {"sum": y.sum(1)})


def test_checks_noise_and_objects_go_together() -> None:
    model = OfObjects(raises_on_nan).double()
    example = Scaled(X.double(), {"scale": torch.full((1,), 2.0).double()})
    units = sc.find_units(model, (example,))
    assert len(units.captured.checks) == 2
    assert units.captured.noisy
    assert [path for path, tensor in units.captured.spec.tensors.items() if tensor.shared] == ["[0].more['scale']"]
    small = sc.cut(model, sc.Plan.from_kept({"first": [0, 2]}, example_inputs=(example,)))
    returned = small(Scaled(X[:3].double(), example.more))
    assert type(returned) is Scaled
    assert returned.x.shape == (3, 2)


def test_hooks_of_the_whole_see_objects() -> None:
    model, seen = OfObjects(raises_on_nan), []
    model.register_forward_pre_hook(lambda _, args: seen.append(type(args[0])))
    model.register_forward_hook(lambda *call: seen.append(type(call[2])))
    sc.find_units(model, (Scaled(X, {"scale": torch.ones(1)}),))
    assert set(seen) == {Scaled}
    assert len(model._forward_hooks) == len(model._forward_pre_hooks) == 1
