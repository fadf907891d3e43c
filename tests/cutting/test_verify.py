"""The proof of a cut: wrong networks are found, right ones are not refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from cases import CASES, Kept
from rounding import assert_close_ulps
from secateur.cutting.verify import Truth, exact_truths, truth
from secateur.errors import ModelError, VerificationError
from secateur.own_code.module_attributes import update_attributes
from secateur.own_code.probe_weights import probe_weights
from secateur.own_code.slices import keep_mask_of, sliced_copy
from secateur.structure.axis import Axis
from secateur.structure.inputs import as_call
from secateur.structure.keep_mask import KeepMask

KEPT = {"two_hidden": {"0": (0, 2, 5), "2": (1, 2)}, "branches": {"left": (0, 2, 5), "right": (1, 2)}}
DIFFERS = (
    r"^the cut network differs from the gated one by \d\.\d\de[+-]\d\d, \d\.\de[+-]\d\d of the largest output; "
    r"rounding explains 1e-09\. Nothing was made\.$"
)
X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).double()


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

    def wrong(keep_mask: KeepMask, axis: Axis) -> Tensor:
        count[0] += 1
        mask = keep_mask.mask(axis)
        return (change(mask) if which in (None, count[0] - 1) else mask).nonzero()[:, 0]

    monkeypatch.setattr(KeepMask, "indices", wrong)
    return count


# ---------------------------------------------------------------- wrong indices


@pytest.mark.parametrize(
    ("name", "which"), [*(("two_hidden", i) for i in range(12)), *(("branches", i) for i in range(22))]
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
    assert count[0] >= 2 * slices_in_all  # of the copy and of the weights to prove with: the test above shifts each


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
    units = sc.find_units(case.model, case.x)
    shifting(monkeypatch, 0, lambda mask: mask.roll(1))  # of the cut: without compensation nothing is indexed before
    data, budget = (case.x, case.y), sc.Budget(remove_units=1)
    with pytest.raises(VerificationError, match=DIFFERS):
        sc.shrink(case.model, data, "cross_entropy", budget, units=units, progress=False, compensate=False)
    assert same()


def test_another_number_of_parameters_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES["one_hidden"]()
    shifting(monkeypatch, None, lambda mask: mask.index_fill(0, torch.tensor([6]), True))
    with pytest.raises(VerificationError) as caught:
        sc.cut(case.model, sc.Plan.from_kept({"0": (0, 2, 5)}, case.x))
    assert str(caught.value) == "the cut network has 39 parameters, the plan predicts 30"


# ---------------------------------------------------------------- what is compared


class Proof(NamedTuple):
    """A sliced copy and what it is held against: with its own weights, and in float64 with others that hide nothing."""

    small: nn.Module
    truth: Truth
    exact: Truth


def proof(model: nn.Module, x: Tensor, kept: Kept) -> Proof:
    units, call = sc.find_units(model, x, "all"), as_call(x)
    keep_mask = keep_mask_of(units, kept)
    small = sliced_copy(model, units, keep_mask)
    expected, exact = truth(model, units, kept, call), exact_truths(model, units, kept, [call])[0]
    update_attributes(small, units.net, units.axes, keep_mask)
    return Proof(small, expected, exact)


def varied(model: nn.Module) -> nn.Module:
    """The model in float64 with the weights of the exact truth."""
    weights, twin = probe_weights(model), copy.deepcopy(model).double()
    with torch.no_grad():
        for name, tensor in (*twin.named_parameters(), *twin.named_buffers()):
            tensor.copy_(weights[name])
    return twin


def one_hidden(dtype: torch.dtype = torch.float64) -> Proof:
    case = CASES["one_hidden"]()
    return proof(case.model.to(dtype), case.x.to(dtype), {"0": (0, 2, 5)})


@torch.no_grad()
def move(small: nn.Module, name: str, by: float, expected: Truth | None = None) -> float:
    """Add to one value of a parameter, or of what it holds for a truth; what was added after rounding."""
    held = expected and expected.weights
    flat = (held[name] if held else small.get_parameter(name)).view(-1)
    before = flat[-1].item()
    flat[-1] += by
    return abs(flat[-1].item() - before)


def differs(expected: Truth, absolute: float) -> str:
    relative = absolute / expected.outputs.abs().max().item()
    return (
        f"the cut network differs from the gated one by {absolute:.2e}, {relative:.1e} of the largest output; "
        f"rounding explains {expected.allowed:.0e}. Nothing was made."
    )


def test_a_correct_cut_has_nearly_no_difference() -> None:
    small, *expected = one_hidden()
    assert max(one.check(small) for one in expected) < 1e-14


def test_the_largest_difference_is_returned() -> None:
    case = CASES["flattened_units"]()
    small, *expected = proof(case.model, case.x, {"0": (1,)})
    for one in expected:
        move(small, "3.bias", 1e-11, one)
        assert one.check(small) == pytest.approx(1e-11, rel=1e-3)


def test_the_truth_is_the_gated_original() -> None:
    case = CASES["one_hidden"]()
    gate = torch.tensor([1, 0, 1, 0, 0, 1, 0]).double()
    for model, expected in zip((case.model, varied(case.model)), one_hidden()[1:], strict=True):
        first, second = model[0], model[2]  # type: ignore[index]
        wanted = torch.sigmoid(second(torch.sigmoid(first(case.x)) * gate))
        torch.testing.assert_close(expected.outputs, wanted, rtol=1e-14, atol=1e-14)
        assert expected.params == 3 * (5 + 1) + 3 * 3 + 3
        assert expected.allowed == 1e-9


def test_a_difference_that_rounding_does_not_explain_is_an_error() -> None:
    case = CASES["flattened_units"]()
    small, *expected = proof(case.model, case.x, {"0": (1,)})
    for one in expected:
        by = move(small, "3.bias", 1e-6, one)
        with pytest.raises(VerificationError) as caught:
            one.check(small)
        assert str(caught.value) == differs(one, by)
        assert f"{by:.2e}" == "1.00e-06"


@pytest.mark.parametrize("name", ["0.weight", "0.bias", "2.weight", "2.bias"])
def test_what_hides_in_the_rounding_of_float32_is_found_in_float64(name: str) -> None:
    small, expected, exact = one_hidden(torch.float32)
    assert exact.check(small) < 1e-14
    assert expected.check(small) < 1e-6
    move(small, name, 1e-6)
    assert expected.check(small) < 1e-5
    move(small, name, 1e-6, exact)
    with pytest.raises(VerificationError, match=DIFFERS):
        exact.check(small)


def test_another_number_that_hides_in_the_rounding_of_float32_is_found_in_float64() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 6), nn.Softplus(beta=2), nn.Linear(6, 2))
    small, expected, exact = proof(model, torch.randn(4, 3), {"0": (1, 2, 5)})
    small[1].beta = 2 + 1e-6  # type: ignore[index, union-attr, operator]
    assert expected.check(small) < 1e-5
    with pytest.raises(VerificationError, match=DIFFERS):
        exact.check(small)


@pytest.mark.parametrize("zero", ["0.weight", "2.weight"])
def test_another_number_that_hides_behind_weights_of_zero_is_found(zero: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 6, bias=False), nn.ELU(), nn.Linear(6, 2)).double()
    nn.init.zeros_(model.get_parameter(zero))
    small, expected, exact = proof(model, X, {"0": (1, 2, 5)})
    small[1].alpha = 3.0  # type: ignore[index, union-attr, operator]
    assert expected.check(small) < 1e-14
    with pytest.raises(VerificationError, match=DIFFERS):
        exact.check(small)


def test_float32_is_given_more_room_than_float64() -> None:
    small, expected, _ = one_hidden(torch.float32)
    assert move(small, "2.bias", 1e-5) > 0
    assert 1e-7 < expected.check(small) < 1e-5
    move(small, "2.bias", 0.01)
    with pytest.raises(VerificationError, match="rounding explains 1e-04"):
        expected.check(small)


@pytest.mark.parametrize(
    ("dtype", "allowed"),
    [(torch.float64, 1e-9), (torch.float32, 1e-4), (torch.bfloat16, 5e-2), (torch.float16, 1e-2)],
)
def test_the_room_is_that_of_the_dtype_and_in_float64_always_little(dtype: torch.dtype, allowed: float) -> None:
    small, expected, exact = one_hidden(dtype)
    assert (expected.allowed, expected.weights, expected.outputs.dtype) == (allowed, None, dtype)
    assert (exact.allowed, exact.outputs.dtype, exact.call[0][0].dtype) == (1e-9, torch.float64, torch.float64)
    assert exact.weights is not None
    assert {name: (tuple(held.shape), held.dtype) for name, held in exact.weights.items()} == {
        name: (tuple(p.shape), torch.float64) for name, p in small.named_parameters()
    }


@pytest.mark.parametrize("training", [True, False])
def test_the_proof_leaves_the_cut_network_as_it_was(training: bool) -> None:
    case = CASES["normalised"]()
    small, *expected = proof(case.model.float(), case.x.float(), {"0": (0, 3)})
    small.train(training)
    weights, same = dict(small.state_dict(keep_vars=True)), unchanged(small)
    for one in expected:
        one.check(small)
    assert same()
    small[6].bias.data += 1  # type: ignore[index, union-attr, operator]
    same = unchanged(small)
    with pytest.raises(VerificationError):
        expected[0].check(small)
    small[5] = nn.Identity().train(training)  # type: ignore[operator]
    with pytest.raises(VerificationError):
        expected[1].check(small)
    assert same()
    assert {name: id(tensor) for name, tensor in small.state_dict(keep_vars=True).items()} == {
        name: id(tensor) for name, tensor in weights.items()
    }
    assert {p.dtype for p in small.parameters()} == {torch.float32}


def test_outputs_that_become_nan_are_an_error() -> None:
    small, *expected = one_hidden()
    for one in expected:
        move(small, "2.bias", torch.nan, one)
        with pytest.raises(VerificationError, match=r"differs from the gated one by inf, inf of the largest output"):
            one.check(small)


def test_a_network_of_another_size_is_no_cut_network() -> None:
    case = CASES["one_hidden"]()
    for one in one_hidden()[1:]:
        with pytest.raises(VerificationError) as caught:
            one.check(case.model)
        assert str(caught.value) == "the cut network has 66 parameters, the plan predicts 30"


def test_thousands_of_parameters_are_written_with_commas() -> None:
    model = nn.Sequential(nn.Linear(30, 40), nn.Tanh(), nn.Linear(40, 2)).double()
    for one in proof(model, torch.randn(2, 30).double(), {"0": tuple(range(39))})[1:]:
        with pytest.raises(VerificationError) as caught:
            one.check(model)
        assert str(caught.value) == "the cut network has 1,322 parameters, the plan predicts 1,289"


class Lower(nn.Module):
    """A part in float32, or weights that must be of it."""

    def __init__(self, strict: bool) -> None:
        super().__init__()
        self.strict, self.a, self.b = strict, nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        low = torch.sigmoid(h.to(torch.float32))
        return self.b(low if self.strict else h * low)


def test_a_graph_that_names_a_lower_dtype_has_more_room_in_float64() -> None:
    small, expected, exact = proof(Lower(False).double(), X, {"a": (0, 2)})
    assert (expected.allowed, exact.allowed) == (3e-6, 3e-6)
    assert exact.check(small) < 1e-6
    move(small, "b.bias", 1e-3, exact)
    with pytest.raises(VerificationError, match="rounding explains 3e-06"):
        exact.check(small)


def test_a_network_that_runs_in_its_own_dtype_alone_is_proven_in_that() -> None:
    small, expected, exact = proof(Lower(True), torch.randn(4, 3), {"a": (0, 2)})
    for one in (expected, exact):
        assert (one.allowed, one.outputs.dtype) == (1e-4, torch.float32)
        assert one.check(small) < 1e-6
    assert exact.weights is not None
    assert {held.dtype for held in exact.weights.values()} == {torch.float32}
    move(small, "b.bias", 0.1, exact)
    with pytest.raises(VerificationError, match="rounding explains 1e-04"):
        exact.check(small)
    cut = sc.cut(Lower(True), sc.Plan.from_kept({"a": (0, 2)}, torch.randn(4, 3)))
    assert cut.a.weight.shape == (2, 3)  # type: ignore[union-attr]


# ---------------------------------------------------------------- units that a norm is taken over


def normed() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 6), nn.LayerNorm(6), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 2)).double(), (
        torch.randn(5, 3).double()
    )


def test_the_truth_of_a_norm_is_the_norm_of_what_is_left() -> None:
    model, x = normed()
    kept = [1, 2, 5]
    small, *expected = proof(model, x, {"0": tuple(kept)})
    for one, (a, norm, b, _, c) in zip(expected, (model, varied(model)), strict=True):  # type: ignore[misc]
        h = nn.functional.layer_norm(a(x)[:, kept], [3], norm.weight[kept], norm.bias[kept])
        wanted = c(torch.tanh(h @ b.weight[:, kept].T + b.bias))
        torch.testing.assert_close(one.outputs, wanted, rtol=1e-13, atol=1e-13)
        assert one.check(small) < 1e-14


def test_a_norm_of_what_is_left_is_told_from_the_norm_of_all() -> None:
    model, x = normed()
    small, *expected = proof(model, x, {"0": (1, 2, 5)})
    small[1] = nn.Identity()  # type: ignore[operator]
    for one in expected:
        with pytest.raises(VerificationError, match=r"^the cut network has 38 parameters, the plan predicts 44$"):
            one.check(small)
    small[1] = nn.LayerNorm(3, eps=0.1).double()  # type: ignore[operator]
    for one in expected:
        with pytest.raises(VerificationError, match=DIFFERS):
            one.check(small)


@pytest.mark.parametrize("kept", [{"2": (0, 3)}, {"0": tuple(range(6)), "2": (0, 3)}])
def test_where_the_norm_keeps_all_its_units_the_truth_is_the_gated_original(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = normed()
    wanted = [
        c(torch.tanh(b(norm(a(x)))) * torch.tensor([1, 0, 0, 1]).double())
        for a, norm, b, _, c in (model, varied(model))  # type: ignore[misc]
    ]
    small, *expected = proof(model, x, kept)
    for one, right in zip(expected, wanted, strict=True):
        torch.testing.assert_close(one.outputs, right, rtol=1e-13, atol=1e-13)
        assert one.check(small) < 1e-14
    shifting(monkeypatch, None, lambda mask: mask.roll(1))
    small, *expected = proof(model, x, kept)
    for one, right in zip(expected, wanted, strict=True):
        torch.testing.assert_close(one.outputs, right, rtol=1e-13, atol=1e-13)
        with pytest.raises(VerificationError, match=DIFFERS):
            one.check(small)


BOTH = {"0": (1, 2, 5), "2": (0, 3)}  # of the norm's units and of those behind


def test_the_truth_of_both_is_the_norm_of_what_is_left_and_gates_behind_it() -> None:
    model, x = normed()
    kept, gate = list(BOTH["0"]), torch.tensor([1, 0, 0, 1]).double()
    small, *expected = proof(model, x, BOTH)
    for one, (a, norm, b, _, c) in zip(expected, (model, varied(model)), strict=True):  # type: ignore[misc]
        h = nn.functional.layer_norm(a(x)[:, kept], [3], norm.weight[kept], norm.bias[kept])
        wanted = c(torch.tanh(h @ b.weight[:, kept].T + b.bias) * gate)
        torch.testing.assert_close(one.outputs, wanted, rtol=1e-13, atol=1e-13)
        assert one.check(small) < 1e-14


@pytest.mark.parametrize("which", [None, 0, 1, 2])
def test_other_gated_units_are_found_beside_removed_sliced_ones(
    which: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = normed()
    count, own = [0], KeepMask.indices

    def wrong(keep_mask: KeepMask, axis: Axis) -> Tensor:
        if axis.size != 4:
            return own(keep_mask, axis)
        count[0] += 1
        return keep_mask.mask(axis).roll(1 if which in (None, count[0] - 1) else 0).nonzero()[:, 0]

    monkeypatch.setattr(KeepMask, "indices", wrong)
    with pytest.raises(VerificationError, match=DIFFERS):
        sc.cut(model, sc.Plan.from_kept(BOTH, x))
    assert count[0] >= 3  # 2.weight, 2.bias, 4.weight


def test_gated_units_taken_along_another_axis_are_found_beside_removed_sliced_ones() -> None:
    torch.manual_seed(0)
    a, norm, c = nn.Linear(3, 6), nn.LayerNorm(6), nn.Linear(4, 2)
    model, x = nn.Sequential(a, norm, nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), c).double(), X
    units = sc.find_units(model, x, "all")
    assert [(s.name, s.removal) for s in units] == [("0", "sliced"), ("2", "gated"), ("4", "gated")]
    units.axes["4.weight"].reverse()  # as many units, but of inputs for outputs
    kept = {"0": (1, 2, 5), "2": (0, 3), "4": (1, 2)}
    keep_mask = keep_mask_of(units, kept)
    small = sliced_copy(model, units, keep_mask)
    update_attributes(small, units.net, units.axes, keep_mask)
    with pytest.raises(VerificationError, match=DIFFERS):
        truth(model, units, kept, as_call(x)).check(small)


# ---------------------------------------------------------------- outputs that prove nothing


class Logarithm(nn.Module):
    """Not a number, of finite weights and inputs; or minus infinity in some places, as of masked scores."""

    def __init__(self, infinite: tuple[bool, ...] | None) -> None:
        super().__init__()
        self.a, self.b, self.infinite = nn.Linear(3, 4), nn.Linear(4, 2), infinite

    def forward(self, x: Tensor) -> Tensor:
        h = self.b(torch.sigmoid(self.a(x)))
        if self.infinite is None:
            return torch.log(-1 - h * h)
        return h.masked_fill(torch.tensor(self.infinite), -torch.inf)


def test_outputs_that_are_nan_in_both_prove_nothing() -> None:
    model = Logarithm(None).double()
    with pytest.raises((VerificationError, ModelError)):
        sc.cut(model, sc.Plan.from_kept({"a": (0, 1)}))


def test_outputs_that_are_infinite_are_so_in_both_at_the_same_places() -> None:
    torch.manual_seed(0)
    model = Logarithm((True, False)).double()
    small = sc.cut(model, sc.Plan.from_kept({"a": (0, 1)}))
    out = small(X)
    assert out[:, 0].tolist() == [-torch.inf] * 4
    gate = torch.tensor([1, 1, 0, 0]).double()
    torch.testing.assert_close(out[:, 1], model.b(torch.sigmoid(model.a(X)) * gate)[:, 1], rtol=1e-12, atol=1e-12)
    small, *expected = proof(model, X, {"a": (0, 1)})
    for wrong in ((False, True), (False, False), (True, True)):
        small.infinite = wrong  # type: ignore[assignment]
        for one in expected:
            with pytest.raises(VerificationError, match=r"differs from the gated one by inf, inf of the largest"):
                one.check(small)


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

    def gated(self, x: Tensor, gates: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x)) * gates)


@pytest.mark.parametrize("form", ["reshape", "view"])
def test_a_sliced_copy_that_does_not_run_proves_nothing(form: str) -> None:
    model = Written(form).double()
    small, *expected = proof(model, X, {"a": (0, 5)})
    for one in expected:
        with pytest.raises(VerificationError) as caught:
            one.check(small)
        text = str(caught.value)
        assert text.startswith("the cut network does not run (RuntimeError: ")
        assert text.endswith("); its forward uses sizes that are written in its code")


@pytest.mark.parametrize("form", ["reshape", "view"])
@pytest.mark.parametrize("left", range(1, 8))
def test_a_width_written_in_forward_is_replaced_and_the_original_left_alone(form: str, left: int) -> None:
    model = Written(form).double().train()
    same = unchanged(model)
    small = sc.cut(model, sc.Plan.from_kept({"a": range(left)}))
    torch.testing.assert_close(small(X), model.gated(X, (torch.arange(8) < left).double()), rtol=1e-12, atol=1e-12)
    assert (small.a.out_features, small.b.in_features) == (left, left)  # type: ignore[union-attr]
    assert sum(p.numel() for p in small.parameters()) == 4 * left + 2 * left + 2
    assert small.training
    assert same()
    assert (model.a.out_features, model.b.in_features) == (8, 8)


def test_groups_written_in_forward_are_replaced_too() -> None:
    model = Written("heads").double()
    sets = {unit_set.name: unit_set.size for unit_set in sc.find_units(model, X, "all")}
    assert sets == {"a[0]": 2, "a[1]": 4}
    for kept in ({"a[0]": [1]}, {"a[1]": [0, 2, 3]}, {"a[0]": [0], "a[1]": [1, 2]}):
        outer, inner = (torch.tensor([i in kept.get(s, range(n)) for i in range(n)]).double() for s, n in sets.items())
        small = sc.cut(model, sc.Plan.from_kept(kept, X))
        wanted = model.gated(X, torch.outer(outer, inner).flatten())
        torch.testing.assert_close(small(X), wanted, rtol=1e-12, atol=1e-12)
        assert len(small.a.weight) == outer.sum() * inner.sum()  # type: ignore[union-attr, arg-type]


def test_a_width_written_in_forward_is_no_harm_where_it_is_not_cut() -> None:
    model = Written("reshape").double()
    small = sc.cut(model, sc.Plan.from_kept({"a": range(8)}))
    assert_close_ulps(small(X), model(X))
    assert type(small) is Written


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


class OwnNumbers(nn.Module):
    """Code that makes numbers in float32, whatever the model's dtype is."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.q(x), self.k(x), self.v(x)
        scale = torch.sqrt(torch.tensor(3.0) * torch.tensor(q.size(-1), dtype=torch.float32))
        weights = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]).exp()
        return self.out((q @ k.mT / scale).softmax(-1) @ v) * weights


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_network_whose_code_makes_numbers_of_its_own_dtype_is_proven(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model, x = OwnNumbers().to(dtype), torch.randn(3, 5, 8, dtype=dtype)
    units = sc.find_units(model, x, include="all")
    assert {unit_set.name for unit_set in units} == {"q", "v"}
    small = sc.cut(model, sc.Plan.from_kept({"q": range(4), "v": range(4)}, x))
    assert small.q.out_features == small.v.out_features == 4
