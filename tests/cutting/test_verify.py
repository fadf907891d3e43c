from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from cases import CASES, Case
from secateur.cutting import slices
from secateur.cutting.slices import gates, sliced_copy
from secateur.cutting.verify import verify
from secateur.errors import ModelError, VerificationError
from secateur.structure.axis import expand

KEPT = {"two_hidden": {"0": (0, 2, 5), "2": (1, 2)}, "branches": {"left": (0, 2, 5), "right": (1, 2)}}
DIFFERS = (
    r"^the cut network differs from the gated one by \d\.\d\de[+-]\d\d, \d\.\de[+-]\d\d of the largest output; "
    r"rounding explains 1e-09\. Nothing was made\.$"
)


def unchanged(model: nn.Module) -> Callable[[], bool]:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    return lambda: (
        before.keys() == model.state_dict().keys()
        and all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
        and modes == [module.training for module in model.modules()]
    )


def shifting(monkeypatch: pytest.MonkeyPatch, which: int | None, change: Callable[[Tensor], Tensor]) -> list[int]:
    """Change the mask of one slice, or of all; returns where it counts the masks that remove something."""
    count = [0]

    def wrong(axis: Any, left: Mapping[Any, Tensor], one: Tensor) -> Tensor:
        mask = expand(axis, left, one)
        if bool(mask.all()):
            return mask
        count[0] += 1
        return change(mask) if which in (None, count[0] - 1) else mask

    monkeypatch.setattr(slices, "expand", wrong)
    return count


# ---------------------------------------------------------------- wrong indices


@pytest.mark.parametrize(
    ("name", "which"), [*(("two_hidden", i) for i in range(6)), *(("branches", i) for i in range(11))]
)
def test_one_tensor_sliced_at_other_units_is_found(name: str, which: int, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES[name]()
    plan = sc.Plan.from_kept(KEPT[name], case.x)
    same = unchanged(case.model)
    count = shifting(monkeypatch, which, lambda mask: mask.roll(1))
    with pytest.raises(VerificationError, match=DIFFERS):
        sc.cut(case.model, plan)
    assert which < count[0]
    assert same()
    monkeypatch.undo()
    sc.cut(case.model, plan)


@pytest.mark.parametrize(("name", "slices_in_all"), [("two_hidden", 6), ("branches", 11)])
def test_other_units_taken_everywhere_alike_are_found(
    name: str, slices_in_all: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES[name]()
    count = shifting(monkeypatch, None, lambda mask: mask.roll(1))
    with pytest.raises(VerificationError, match=DIFFERS):
        sc.cut(case.model, sc.Plan.from_kept(KEPT[name], case.x))
    assert count == [slices_in_all]  # so that the test above has shifted each


def test_units_taken_in_another_order_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES["one_hidden"]()
    select = Tensor.index_select

    def backwards(tensor: Tensor, dim: int, index: Tensor) -> Tensor:
        return select(tensor, dim, index.flip(0) if tensor.ndim == 1 and len(index) == 3 and dim == 0 else index)

    plan = sc.Plan.from_kept({"0": (0, 2, 5)}, case.x)
    monkeypatch.setattr(Tensor, "index_select", backwards)
    with pytest.raises(VerificationError, match=DIFFERS):
        sc.cut(case.model, plan)


def test_shrink_returns_nothing_either(monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES["branches"]()
    same = unchanged(case.model)
    shifting(monkeypatch, 0, lambda mask: mask.roll(1))
    with pytest.raises(VerificationError, match=DIFFERS):
        sc.shrink(case.model, (case.x, case.y), "cross_entropy", sc.Budget(remove_units=3), progress=False)
    assert same()


def test_another_number_of_parameters_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES["one_hidden"]()
    shifting(monkeypatch, None, lambda mask: mask.index_fill(0, torch.tensor([6]), True))
    with pytest.raises(VerificationError) as caught:
        sc.cut(case.model, sc.Plan.from_kept({"0": (0, 2, 5)}, case.x))
    assert str(caught.value) == "the cut network has 39 parameters, the plan predicts 30"


# ---------------------------------------------------------------- what is compared


def beside(case: Case, change: Callable[[nn.Module], object]) -> float:
    units = sc.find_units(case.model, case.x)
    kept = {"0": (0, 2, 5)}
    small = sliced_copy(case.model, units, kept)
    with torch.no_grad():
        change(small)
    return verify(case.model, small, units, gates(case.model, units, kept), ((case.x,), {}))


def test_the_largest_difference_is_returned_and_a_correct_cut_has_nearly_none() -> None:
    case = CASES["one_hidden"]()
    assert beside(case, lambda _: None) < 1e-15
    case = CASES["flattened_units"]()
    units = sc.find_units(case.model, case.x)
    small = sliced_copy(case.model, units, {"0": (1,)})
    with torch.no_grad():
        small[3].bias[1] += 1e-11  # type: ignore[index, operator]
    difference = verify(case.model, small, units, gates(case.model, units, {"0": (1,)}), ((case.x,), {}))
    assert difference == pytest.approx(1e-11, rel=1e-3)


def test_a_difference_that_rounding_does_not_explain_is_an_error() -> None:
    with pytest.raises(VerificationError, match=DIFFERS):
        beside(CASES["one_hidden"](), lambda small: small[2].bias.add_(1e-6))  # type: ignore[index, union-attr, operator]


def test_float32_is_given_more_room_than_float64() -> None:
    case = CASES["one_hidden"]()
    case.model.float()
    wide = case._replace(x=case.x.float())
    assert 1e-7 < beside(wide, lambda small: small[2].bias.add_(1e-6)) < 1e-5  # type: ignore[index, union-attr, operator]
    with pytest.raises(VerificationError, match="rounding explains 1e-04"):
        beside(wide, lambda small: small[2].bias.add_(0.01))  # type: ignore[index, union-attr, operator]


def test_outputs_that_become_nan_are_an_error() -> None:
    with pytest.raises(VerificationError, match=r"differs from the gated one by inf, inf of the largest output"):
        beside(CASES["one_hidden"](), lambda small: small[2].bias.fill_(torch.nan))  # type: ignore[index, union-attr, operator]


class Logarithm(nn.Module):
    """Not a number, of finite weights and inputs."""

    def __init__(self, infinite: bool) -> None:
        super().__init__()
        self.a, self.b, self.infinite = nn.Linear(3, 4), nn.Linear(4, 2), infinite

    def forward(self, x: Tensor) -> Tensor:
        h = self.b(torch.sigmoid(self.a(x)))
        return torch.log(h * 0) if self.infinite else torch.log(-1 - h * h)


@pytest.mark.parametrize("infinite", [False, True])
def test_outputs_that_are_nan_or_infinite_in_both_prove_nothing(infinite: bool) -> None:
    model = Logarithm(infinite).double()
    with pytest.raises((VerificationError, ModelError)):
        sc.cut(model, sc.Plan.from_kept({"a": (0, 1)}))


# ---------------------------------------------------------------- sizes written in the code of forward


class Written(nn.Module):
    """The hidden width 8 in its forward."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form, self.a, self.b = form, nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.a(x))
        if self.form == "reshape":
            h = h.reshape(-1, 8)
        elif self.form == "view":
            h = h.view(x.shape[0], 8)
        elif self.form == "heads":
            h = h.view(-1, 2, 4).reshape(-1, 8)
        return self.b(h)


@pytest.mark.parametrize("form", ["reshape", "view"])
@pytest.mark.parametrize("left", range(1, 8))
def test_a_width_written_in_forward_is_refused_with_nothing_half_done(form: str, left: int) -> None:
    model = Written(form).double().train()
    same = unchanged(model)
    with pytest.raises(VerificationError) as caught:
        sc.cut(model, sc.Plan.from_kept({"a": range(left)}))
    text = str(caught.value)
    assert text.startswith("the cut network does not run (RuntimeError: ")
    assert text.endswith("); its forward uses sizes that are written in its code")
    assert same()
    assert (model.a.out_features, model.b.in_features) == (8, 8)


def test_groups_written_in_forward_are_refused_too() -> None:
    model = Written("heads").double()
    units = sc.find_units(model, torch.zeros(2, 3))
    assert sorted(unit_set.size for unit_set in units) == [2, 4]
    for unit_set in units:
        with pytest.raises(VerificationError, match="its forward uses sizes that are written in its code"):
            sc.cut(model, sc.Plan.from_kept({unit_set.name: [0]}))


def test_a_width_written_in_forward_is_no_harm_where_it_is_not_cut() -> None:
    model = Written("reshape").double()
    x = torch.randn(4, 3).double()
    assert torch.equal(sc.cut(model, sc.Plan.from_kept({"a": range(8)}))(x), model(x))


# ---------------------------------------------------------------- dtypes


@pytest.mark.parametrize(
    ("dtype", "kept"),
    [
        (torch.float64, 301),
        (torch.float32, 301),
        (torch.bfloat16, 256),
        (torch.bfloat16, 301),
        (torch.float16, 2047),
        (torch.float16, 2051),
    ],
)
def test_units_are_counted_exactly_in_any_dtype(dtype: torch.dtype, kept: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2100), nn.Tanh(), nn.Linear(2100, 2)).to(dtype)
    small = sc.cut(model, sc.Plan.from_kept({"0": range(kept)}))
    assert small[0].weight.shape == (kept, 3)  # type: ignore[index]
    assert {p.dtype for p in small.parameters()} == {dtype}
