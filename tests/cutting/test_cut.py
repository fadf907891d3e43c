"""The cut from a plan to the smaller network."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import secateur as sc
from cases import CASES, Kept, random_kept
from secateur.errors import ModelError, PlanError, VerificationError
from secateur.reference import RandomNetwork, gated_weights


def gates(sizes: dict[str, int], kept: Kept) -> dict[str, Tensor]:
    one = torch.ones((), dtype=torch.float64)
    return {
        name: torch.zeros(size, dtype=torch.float64).index_put((torch.tensor(kept[name]),), one)
        for name, size in sizes.items()
    }


def snapshot(model: nn.Module) -> dict[str, Any]:
    """All that could be changed by accident."""
    return {
        "tensors": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "objects": [id(tensor) for tensor in model.state_dict(keep_vars=True).values()],
        "modes": [module.training for module in model.modules()],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "grads": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "hooks": [(dict(m._forward_hooks), dict(m._forward_pre_hooks)) for m in model.modules()],
        "attributes": [sorted(vars(module)) for module in model.modules()],
        "text": str(model),
    }


def assert_same(before: Any, after: Any) -> None:
    if isinstance(before, Tensor):
        assert torch.equal(before, after)
    elif isinstance(before, dict):
        assert before.keys() == after.keys()
        for key in before:
            assert_same(before[key], after[key])
    elif isinstance(before, list):
        for a, b in zip(before, after, strict=True):
            assert_same(a, b)
    else:
        assert before == after


# ---------------------------------------------------------------- what is computed


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 100))
def test_a_cut_network_equals_the_gated_one(seed: int, choice: int) -> None:
    network = RandomNetwork(seed).double()
    x = network.sample(9, seed=1)
    units = sc.find_units(network, network.sample(3))
    kept = random_kept(units, choice)
    small = sc.cut(network, sc.Plan.from_kept(kept, network.sample(2)))
    wanted, out = network.gated(x, gates(network.sets, kept)), small(x)
    assert (wanted - out).abs().max() <= 1e-10 * wanted.abs().max()
    assert sum(p.numel() for p in small.parameters()) == units.params({name: len(k) for name, k in kept.items()})


@pytest.mark.parametrize("choice", range(3))
@pytest.mark.parametrize("name", CASES)
def test_a_cut_network_equals_the_one_with_gates_on_its_weights(name: str, choice: int) -> None:
    case = CASES[name]()
    units = sc.find_units(case.model, case.x)
    kept = random_kept(units, choice)
    g = gates(case.sets, kept)
    if name == "tied":  # the consumer's weight is the maker's too, so that no gate can be put on it
        encode = case.model.encode
        wanted = torch.tanh(encode(case.x)) * g["encode"] @ encode.weight  # type: ignore[operator, union-attr]
    else:
        weights = gated_weights(case.model, units, torch.cat([g[unit_set.name] for unit_set in units]))
        wanted = torch.func.functional_call(case.model, weights, (case.x,))
    out = sc.cut(case.model, sc.Plan.from_kept(kept, case.x))(case.x)
    assert (wanted - out).abs().max() <= 1e-10 * wanted.abs().max()


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 100))
def test_cutting_twice_is_cutting_once_by_both_plans(seed: int, choice: int) -> None:
    network = RandomNetwork(seed, widths=(2, 6)).double()
    x = network.sample(4)
    first = random_kept(sc.find_units(network, x), choice)
    middle = sc.cut(network, sc.Plan.from_kept(first, x))
    second = random_kept(sc.find_units(middle, x), choice + 1)
    twice = sc.cut(middle, sc.Plan.from_kept(second, x))
    both = {name: tuple(indices[i] for i in second.get(name, range(len(indices)))) for name, indices in first.items()}
    once = sc.cut(network, sc.Plan.from_kept(both, x))
    assert_same(dict(once.state_dict()), dict(twice.state_dict()))
    assert torch.equal(once(x), twice(x))


def test_keeping_everything_is_a_copy() -> None:
    case = CASES["branches"]()
    whole = sc.cut(case.model, sc.Plan.from_kept({}, case.x))
    assert_same(dict(whole.state_dict()), dict(case.model.state_dict()))
    assert whole is not case.model
    assert torch.equal(whole(case.x), case.model(case.x))


@pytest.mark.parametrize("name", ["branches", "normalised", "functional"])
def test_a_plan_from_ranking_is_cut_on_a_model_made_anew(name: str) -> None:
    case, other = CASES[name](), CASES[name]()
    plan = sc.rank(case.model, (case.x, case.y), "cross_entropy", criterion="taylor1", progress=False)
    again = sc.Plan.from_json(plan.to_json())
    assert torch.equal(sc.cut(case.model, plan)(case.x), sc.cut(other.model, again)(case.x))


# ---------------------------------------------------------------- the original


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("mode", [True, False])
def test_the_original_stays_as_it_was(name: str, mode: bool) -> None:
    case = CASES[name]()
    model = case.model.train(mode)
    next(model.modules()).extra = {"note": [1]}  # type: ignore[assignment]
    list(model.modules())[-1].training = not mode
    next(model.parameters()).requires_grad_(False)
    model(case.x).sum().backward()
    model.register_forward_hook(lambda *_: None)
    list(model.modules())[-1].register_forward_pre_hook(lambda *_: None)
    before = snapshot(model)
    sc.cut(model, sc.Plan.from_kept(random_kept(sc.find_units(model, case.x), 0), case.x))
    assert_same(before, snapshot(model))


class Merging(nn.Linear):
    """A low-rank update that eval mode adds to the weight and training mode takes away again."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.down, self.up = nn.Parameter(torch.randn(2, inputs)), nn.Parameter(torch.randn(outputs, 2))
        self.merged = False

    def train(self, mode: bool = True) -> Merging:
        super().train(mode)
        if mode == self.merged:
            self.weight.data += (1 - 2 * mode) * self.up @ self.down
            self.merged = not mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y if self.merged else y + x @ self.down.T @ self.up.T


@pytest.mark.parametrize("inner", [True, False])
@pytest.mark.parametrize("outer", [True, False])
def test_modules_that_merge_weights_in_eval_mode_are_exactly_as_they_were(outer: bool, inner: bool) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(Merging(3, 5), nn.Tanh(), Merging(5, 2)), torch.randn(4, 3)
    model.train(outer)
    model[0].train(inner)
    before, flags, wanted = snapshot(model), [model[0].merged, model[2].merged], model(x)
    assert flags == [not inner, not outer]
    for _ in range(2):
        assert {s.name: s.size for s in sc.find_units(model, x)} == {"0": 5}
        assert_same(before, snapshot(model))
        assert [model[0].merged, model[2].merged] == flags
        assert torch.equal(model(x), wanted)


class Fused(nn.Sequential):
    """A network whose own eval() puts a scale into the first layer."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__(*layers)
        self.scaled = False

    def eval(self) -> Fused:
        if not self.scaled:
            self[0].weight.data *= 3
            self.scaled = True
        return super().eval()

    def train(self, mode: bool = True) -> Fused:
        if mode and self.scaled:
            self[0].weight.data /= 3
            self.scaled = False
        return super().train(mode)


@pytest.mark.parametrize("mode", [True, False])
def test_a_network_with_an_eval_of_its_own_is_exactly_as_it_was(mode: bool) -> None:
    torch.manual_seed(0)
    model, x = Fused(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)), torch.randn(4, 3)
    model.train() if mode else model.eval()
    before = snapshot(model)
    assert {s.name: s.size for s in sc.find_units(model, x)} == {"0": 5}
    assert_same(before, snapshot(model))
    assert model.scaled == (not mode)
    if not mode:
        gate = torch.tensor([1.0, 0, 1, 0, 0])
        small = sc.cut(model, sc.Plan.from_kept({"0": [0, 2]}, x))
        torch.testing.assert_close(small(x), model[2](torch.tanh(model[0](x)) * gate), rtol=1e-5, atol=1e-5)
        assert_same(before, snapshot(model))


class InPlace(nn.Module):
    """Works on its input itself."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor, shift: Tensor) -> Tensor:
        shift.mul_(2)
        x.sub_(0.5).add_(shift)
        return self.b(torch.tanh(self.a(x)))


def test_inputs_are_never_changed() -> None:
    torch.manual_seed(0)
    model = InPlace().double()
    x, shift, y = torch.randn(4, 3).double(), torch.randn(4, 1).double(), torch.tensor([0, 1, 1, 0])
    before = x.clone(), shift.clone()
    units = sc.find_units(model, (x, shift))
    assert {s.name: s.size for s in units} == {"a": 6}
    plan = sc.rank(model, ((x, shift), y), "cross_entropy", criterion="taylor1", progress=False)
    sc.cut(model, plan)
    small = sc.cut(model, sc.Plan.from_kept({"a": [0, 2]}, (x, shift)))
    assert torch.equal(x, before[0])
    assert torch.equal(shift, before[1])
    hidden = torch.tanh(model.a(x - 0.5 + 2 * shift))[:, [0, 2]]
    wanted = hidden @ model.b.weight[:, [0, 2]].T + model.b.bias
    torch.testing.assert_close(small(x, shift), wanted, rtol=1e-12, atol=1e-12)


def test_changing_either_network_leaves_the_other() -> None:
    case = CASES["normalised"]()
    small = sc.cut(case.model, sc.Plan.from_kept({"0": (0, 3)}, case.x))
    before, was = snapshot(case.model), snapshot(small)
    with torch.no_grad():
        for tensor in (*small.parameters(), *small.buffers()):
            tensor.add_(1)
    assert_same(before, snapshot(case.model))
    small = sc.cut(case.model, sc.Plan.from_kept({"0": (0, 3)}, case.x))
    with torch.no_grad():
        for tensor in (*case.model.parameters(), *case.model.buffers()):
            tensor.mul_(2)
    assert_same(was["tensors"], snapshot(small)["tensors"])


# ---------------------------------------------------------------- what stays


class Counter:
    """A hook that counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, *_: object) -> None:
        self.calls += 1


def test_dtype_requires_grad_modes_hooks_and_attributes_stay() -> None:
    case = CASES["normalised"]()
    model = case.model.train()
    model[1].eval()  # type: ignore[index]
    model[4].weight.requires_grad_(False)  # type: ignore[index, union-attr]
    model[0].bias.requires_grad_(False)  # type: ignore[index, union-attr]
    hook = Counter()
    model[4].register_forward_hook(lambda *_: hook())  # type: ignore[index]
    model.note, model[0].tag = {"a": [1, 2]}, "first"  # type: ignore[assignment, index]
    small = sc.cut(model, sc.Plan.from_kept({"0": (0, 3, 4)}, case.x))
    assert [m.training for m in small.modules()] == [m.training for m in model.modules()]
    assert [m.training for m in small.modules()] == [True, True, False, True, True, True, True, True]
    assert {n: p.requires_grad for n, p in small.named_parameters()} == {
        n: n not in ("0.bias", "4.weight") for n, _ in model.named_parameters()
    }
    assert {t.dtype for t in small.parameters()} == {torch.float64}
    assert small[1].num_batches_tracked.dtype == torch.int64  # type: ignore[index, union-attr]
    assert (small.note, small[0].tag) == ({"a": [1, 2]}, "first")  # type: ignore[index, union-attr]
    hook.calls = 0
    small.eval()(case.x)
    assert hook.calls == 1
    assert all(p.grad is None for p in small.parameters())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_every_floating_point_dtype_is_cut(dtype: torch.dtype) -> None:
    case = CASES["branches"]()
    case.model.to(dtype)
    small = sc.cut(case.model, sc.Plan.from_kept({"left": (1, 2), "right": (0, 3)}, case.x))
    assert {t.dtype for t in small.parameters()} == {dtype}
    assert small(case.x.to(dtype)).dtype == dtype


class Shared(nn.Module):
    """One parameter under two names, and one module twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(4, 6, bias=False), nn.Linear(6, 6)
        self.b.weight = self.a.weight
        self.d, self.last = self.c, nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.d(torch.tanh(self.c(torch.tanh(self.a(x) + self.b(x)))))))


def test_ties_between_parameters_and_between_modules_stay() -> None:
    model = Shared().double()
    x = torch.randn(3, 4).double()
    units = sc.find_units(model, x)
    (unit_set,) = units
    kept = {unit_set.name: (0, 2, 5)}
    small = sc.cut(model, sc.Plan.from_kept(kept, x))
    assert small.a.weight is small.b.weight
    assert small.c is small.d
    assert small.a.weight is not model.a.weight
    assert small.a.weight.shape == (3, 4)
    assert small.c.weight.shape == (3, 3)
    assert len(list(small.parameters())) == len(list(model.parameters())) == 6
    assert sum(p.numel() for p in small.parameters()) == 3 * 4 + 3 + 3 * 3 + 3 + 3 * 2 + 2


# ---------------------------------------------------------------- what can be done with it


@pytest.mark.filterwarnings("ignore")  # PyTorch's own, of its export
def test_the_result_is_trained_copied_exported_and_cut_again() -> None:
    case = CASES["branches"]()
    small = sc.cut(case.model, sc.Plan.from_kept({"left": (0, 2, 5), "right": (1, 3)}, case.x))
    before = snapshot(case.model)
    optimiser = torch.optim.SGD(small.parameters(), lr=0.1)
    losses = []
    for _ in range(2):
        loss = nn.functional.cross_entropy(small(case.x), case.y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[1] < losses[0]
    assert_same(before, snapshot(case.model))
    twin = copy.deepcopy(small)
    assert torch.equal(twin(case.x), small(case.x))
    exported = torch.export.export(small, (case.x,)).module()
    assert torch.allclose(exported(case.x), small(case.x), rtol=0, atol=1e-12)
    again = sc.cut(small, sc.Plan.from_kept({"left": (1,)}, case.x))
    assert again.left.weight.equal(small.left.weight[1:2])  # type: ignore[union-attr, index, operator]
    result = sc.shrink(small, (case.x, case.y), "cross_entropy", sc.Budget(remove_units=2), progress=False)
    assert len(result.plan.steps) == 2


# ---------------------------------------------------------------- plans written by hand


@pytest.mark.parametrize("name", ["one_hidden", "two_hidden", "normalised", "branches", "tied"])
def test_a_plan_by_hand_needs_no_inputs_where_a_dense_layer_comes_first(name: str) -> None:
    case = CASES[name]()
    kept = random_kept(sc.find_units(case.model, case.x), 0)
    guessed, told = (sc.cut(case.model, sc.Plan.from_kept(kept, inputs)) for inputs in (None, case.x))
    assert_same(dict(guessed.state_dict()), dict(told.state_dict()))


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x) + self.a(y)))


class Optional(TwoInputs):
    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:  # type: ignore[override]
        return super().forward(x, x if y is None else y)


@pytest.mark.parametrize(
    "model",
    [
        CASES["functional"]().model,
        TwoInputs(),
        nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)),
        nn.ReLU(),
    ],
    ids=["parameters of its own", "two inputs", "another layer first", "no parameters"],
)
def test_inputs_that_cannot_be_guessed_must_be_given(model: nn.Module) -> None:
    with pytest.raises(ModelError) as caught:
        sc.cut(model, sc.Plan.from_kept({"a": [0]}))
    assert str(caught.value) == "the model's inputs are not known: give example inputs, to Plan.from_kept or as --data"


def test_inputs_with_defaults_are_left_out_of_the_guess() -> None:
    assert sc.cut(Optional(), sc.Plan.from_kept({"a": [0, 3]})).a.out_features == 2  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        (None, "Sequential does not run on the inputs given, of shape (8, 2): "),
        (torch.zeros(2, 5), "Sequential does not run on the inputs given, of shape (2, 5): "),
    ],
)
def test_inputs_that_do_not_fit_are_refused(inputs: Tensor | None, text: str) -> None:
    model = CASES["flattened_units"]().model
    with pytest.raises(ModelError) as caught:
        sc.cut(model, sc.Plan.from_kept({"0": [0]}, inputs))
    assert str(caught.value).startswith(text)


@pytest.mark.parametrize(
    ("kept", "text"),
    [
        ({"nope": [0]}, "the plan keeps units of 'nope'; the model's unit sets are: 0, 2"),
        ({"0": [1, 9]}, "the plan keeps [1, 9] of '0', which has units 0 to 5"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(kept: dict[str, list[int]], text: str) -> None:
    model = CASES["two_hidden"]().model
    before = snapshot(model)
    with pytest.raises(PlanError) as caught:
        sc.cut(model, sc.Plan.from_kept(kept))
    assert str(caught.value) == text
    assert_same(before, snapshot(model))


def test_a_model_with_nothing_to_remove_is_refused() -> None:
    with pytest.raises(ModelError) as caught:
        sc.cut(nn.Sequential(nn.Linear(3, 2)), sc.Plan.from_kept({}))
    assert str(caught.value) == (
        "the model has no removable units: 0.weight[0] (2): a model output; 0.weight[1] (3): a model input"
    )


def test_a_model_that_holds_nan_is_refused() -> None:
    model = CASES["two_hidden"]().model
    with torch.no_grad():
        model[2].weight[1, 2] = torch.nan  # type: ignore[index, operator]
    with pytest.raises(ModelError) as caught:
        sc.cut(model, sc.Plan.from_kept({"0": [0]}))
    assert str(caught.value) == "2.weight: 1 of 24 values are NaN or infinite"


def test_a_module_that_cannot_change_its_mode_any_more_is_refused() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Merging(3, 5), nn.Tanh(), nn.Linear(5, 2))
    text = r"^the cut network does not run \(RuntimeError: The size of tensor a \(2\) must match"
    with pytest.raises(VerificationError, match=text):
        sc.cut(model, sc.Plan.from_kept({"0": [0, 1]}, torch.randn(4, 3)))
