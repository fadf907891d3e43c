"""Modules whose forward computes with whole numbers that are no size of a parameter.

Also covers secateur.cutting.captured_forward.

Covers also secateur.own_code.module_calls, whose calls it searches through.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import secateur as sc
from secateur.cutting.captured_forward import CapturedForward, captured_parts
from secateur.errors import DataError
from secateur.structure.graph_run import difference

LIKE = " as in the example"


class Attention(nn.Module):
    """Fused projections; the scale written out, or left to PyTorch, which takes it from the width."""

    def __init__(self, width: int, heads: int, scaled: bool) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.scale = heads, width // heads, (width // heads) ** -0.5
        self.qkv, self.proj, self.scaled = nn.Linear(width, 3 * width), nn.Linear(width, width), scaled

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        scale = self.scale if self.scaled else None
        a = F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2).reshape(n, t, -1)
        return self.proj(F.dropout(a, 0.5, self.training))


class Network(nn.Module):
    """Something between two layers and a residual add, at every position of a sequence."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(5, 6), inner, nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        return self.last(h + self.inner(h))


def network(inner: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return Network(inner).double().eval()


X = torch.randn(3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def zeroed(model: nn.Module, units: sc.Units, name: str, gone: list[int], x: Tensor = X) -> Tensor:
    """What the original gives with all parameters of some units zero."""
    return zeroed_copy(model, units, name, gone)(x)


def zeroed_copy(model: nn.Module, units: sc.Units, name: str, gone: list[int]) -> nn.Module:
    model = copy.deepcopy(model)
    with torch.no_grad():
        for part in units[name].slices:
            model.get_parameter(part.tensor).index_fill_(part.dim, part.index[gone].flatten(), 0)
    return model


def test_whole_numbers_are_found_and_adapted() -> None:
    model = network(Attention(6, 3, scaled=True))
    units = sc.find_units(model, X, "all")
    heads, width = (s.name for s in units if s.kind in ("head", "head width"))
    small = sc.cut(model, sc.Plan.from_kept({heads: [0, 2]}, X))
    assert (small.inner.num_heads, small.inner.head_dim) == (2, 2)
    assert captured_parts(small) == ()
    assert torch.allclose(small(X), zeroed(model, units, heads, [1]), rtol=0, atol=1e-12)
    both = sc.cut(model, sc.Plan.from_kept({heads: [1], width: [1]}, X))
    assert (both.inner.num_heads, both.inner.head_dim, both.inner.qkv.weight.shape) == (1, 1, (3, 6))
    assert (model.inner.num_heads, model.inner.head_dim) == (3, 2)


def test_a_module_whose_code_cannot_be_adapted_computes_by_its_part_of_the_graph() -> None:
    model = network(Attention(6, 3, scaled=False))
    units = sc.find_units(model, X, "all")
    width = next(s.name for s in units if s.kind == "head width")
    small = sc.cut(model, sc.Plan.from_kept({width: [1]}, X))
    assert type(small) is Network
    assert type(small.inner) is Attention
    assert captured_parts(small) == ("inner",)
    assert torch.allclose(small(X), zeroed(model, units, width, [0]), rtol=0, atol=1e-12)
    assert small(X[:1]).shape == (1, 4, 2)
    assert small(X.repeat(5, 1, 1)).shape == (15, 4, 2)


# ---------------------------------------------------------------- a network whose own code cannot be adapted


class Whole(nn.Module):
    """Groups of a width written in its code, and something between."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(5, 6), inner, nn.Linear(6, 2)
        self.config = {"width": 6}

    def forward(self, x: Tensor, flag: bool = True, mask: Tensor | None = None) -> Tensor:
        h = torch.tanh(self.first(x))
        h = h.reshape(x.shape[0], x.shape[1], 2, 3).transpose(2, 3).reshape(x.shape[0], x.shape[1], 6)
        h = self.inner(h if mask is None else h * mask)
        return self.last(h if flag else h * 2)


def whole(inner: nn.Module | None = None) -> tuple[Whole, sc.Units]:
    torch.manual_seed(0)
    model = Whole(inner or nn.Identity()).double()
    return model, sc.find_units(model, X, "all")


def cut_whole(inputs: object = X) -> Whole:
    return sc.cut(whole()[0], sc.Plan.from_kept({"first[1]": [0, 2]}, inputs))


def test_a_network_whose_own_code_cannot_be_adapted_computes_by_its_graph() -> None:
    model, units = whole()
    assert {s.name: s.size for s in units} == {"first[0]": 2, "first[1]": 3}
    small = sc.cut(model, sc.Plan.from_kept({"first[1]": [0, 2]}, X))
    assert type(small) is Whole
    assert captured_parts(small) == ("",)
    assert isinstance(vars(small)["forward"].__self__, CapturedForward)
    assert vars(small)["forward"].__self__.module is small
    assert small.training
    assert torch.allclose(small(X), zeroed(model, units, "first[1]", [1]), rtol=0, atol=1e-12)
    assert small(X[:1]).shape == (1, 4, 2)
    assert {name: tuple(p.shape) for name, p in small.named_parameters()} == {
        "first.weight": (4, 5), "first.bias": (4,), "last.weight": (2, 4), "last.bias": (2,)
    }  # fmt: skip
    assert "forward" not in vars(model)
    again = sc.cut(small, sc.Plan.from_kept({"first[0]": [1]}, X))
    both = sc.cut(model, sc.Plan.from_kept({"first[0]": [1], "first[1]": [0, 2]}, X))
    assert difference(both(X), again(X))[1] < 1e-12


def test_nothing_is_replaced_where_the_code_can_compute_with_the_sizes_left() -> None:
    model = whole()[0]
    small = sc.cut(model, sc.Plan.from_kept({"first[1]": [0, 1, 2]}, X))
    assert captured_parts(small) == ()
    assert "forward" not in vars(small)


def test_the_whole_takes_the_place_of_its_captured_parts() -> None:
    model, units = whole(Attention(6, 3, scaled=False))
    width = next(s.name for s in units if s.kind == "head width")
    kept = {"first[1]": [0, 2], width: [1]}
    small = sc.cut(model, sc.Plan.from_kept(kept, X))
    assert captured_parts(small) == ("",)
    assert "forward" not in vars(small.inner)
    part = sc.cut(model, sc.Plan.from_kept({width: [1]}, X))
    assert captured_parts(part) == ("inner",)
    wanted = zeroed(part, sc.find_units(part, X, "all"), "first[1]", [1])
    assert torch.allclose(small(X), wanted, rtol=0, atol=1e-12)


def test_hooks_and_attributes_of_the_whole_stay() -> None:
    model = whole()[0]
    seen: list[tuple[int, ...]] = []
    model.register_forward_hook(lambda *given: seen.append(tuple(given[2].shape)))
    model.register_forward_pre_hook(lambda *given: seen.append(tuple(given[1][0].shape)))
    small = sc.cut(model, sc.Plan.from_kept({"first[1]": [0, 2]}, X))
    seen.clear()
    small(X)
    assert seen == [(3, 4, 5), (3, 4, 2)]
    assert small.config == {"width": 6}
    assert small.config is not model.config
    assert [name for name, _ in small.named_modules()] == [name for name, _ in model.named_modules()]
    assert small.state_dict().keys() == model.state_dict().keys()


@pytest.mark.filterwarnings("ignore")  # PyTorch's own, of its export
def test_the_whole_is_trained_exported_and_loaded() -> None:
    small = cut_whole()
    small(X).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in small.parameters())
    program = torch.export.export(small, (X,))
    assert torch.allclose(program.module()(X), small(X), rtol=0, atol=1e-12)
    assert {name for name, _ in program.named_parameters()} == {name for name, _ in small.named_parameters()}
    twin = cut_whole()
    with torch.no_grad():
        twin.first.weight.mul_(2)
    assert difference(small(X), twin(X))[1] > 1e-3
    twin.load_state_dict(small.state_dict())
    assert torch.equal(small(X), twin(X))


def test_a_copy_of_the_whole_has_weights_of_its_own() -> None:
    small = cut_whole()
    wanted = small(X)
    twin = copy.deepcopy(small)
    assert vars(twin)["forward"].__self__.module is twin
    assert vars(small)["forward"].__self__.module is small
    with torch.no_grad():
        twin.first.weight.mul_(3)
    assert torch.equal(small(X), wanted)
    assert difference(wanted, twin(X))[1] > 1e-3
    with torch.no_grad():
        small.first.weight.zero_()
    assert difference(wanted, small(X))[1] > 1e-3


def test_plain_inputs_are_those_it_was_captured_with() -> None:
    small = cut_whole({"x": X, "flag": True, "mask": None})
    wanted = cut_whole()(X)
    assert torch.equal(small(x=X, flag=True, mask=None), wanted)
    assert torch.equal(small(mask=None, x=X, flag=True), wanted)
    small = cut_whole((X, True, None))
    assert torch.equal(small(X, True, None), wanted)
    assert torch.allclose(cut_whole((X, False))(X, False), wanted * 2 - small.last.bias, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("example", "given", "text"),
    [
        ({}, ((X, X), {}), f"inputs: expected 1 positional, keywords []{LIKE}, got 2 positional, keywords []"),
        (
            {}, ((X,), {"flag": True}),
            f"inputs: expected 1 positional, keywords []{LIKE}, got 1 positional, keywords ['flag']",
        ),
        (
            {"flag": True, "mask": None}, ((), {"x": X}),
            f"inputs: expected 0 positional, keywords ['flag', 'mask', 'x']{LIKE}, got 0 positional, keywords ['x']",
        ),
        ({"flag": True}, ((), {"x": X, "flag": False}), "inputs: captured with True, got False"),
        ({"flag": False}, ((), {"x": X, "flag": None}), "inputs: captured with False, got None"),
        ({"mask": None}, ((), {"x": X, "mask": X[..., :1]}), "inputs: captured with None, got a tensor"),
        ({"mask": X[..., :1]}, ((), {"x": X, "mask": None}), "inputs: captured with a tensor, got None"),
        ({}, ((X[..., :4],), {}), "inputs: captured for (samples, 4, 5), got (3, 4, 4)"),
        ({}, ((X[0],), {}), "inputs: captured for (samples, any, 5), got (4, 5)"),
        ({"mask": X[..., :1]}, ((), {"x": X, "mask": X}), "inputs: captured for (samples, 4, 1), got (3, 4, 5)"),
        (
            {"mask": X[..., :1]}, ((), {"x": X, "mask": X[:, :3, :1]}),
            "inputs: captured for (samples, 4, 1), got (3, 3, 1)",
        ),
    ],
)  # fmt: skip
def test_other_inputs_than_it_was_captured_with_are_refused(example: dict, given: tuple, text: str) -> None:
    small = cut_whole({"x": X} | example if example else X)
    assert captured_parts(small) == ("",)
    with pytest.raises(DataError) as caught:
        small(*given[0], **given[1])
    assert str(caught.value) == text


def test_the_captured_whole_takes_sequences_of_any_length() -> None:
    class Shuffled(nn.Module):
        """For any length, but for one width."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(6, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x).unflatten(-1, (2, 3)).mT.flatten(-2)
            return self.last(h.reshape(-1, x.shape[1], 6))

    torch.manual_seed(0)
    model, x = Shuffled().double(), torch.randn(3, 5, 6).double()
    small = sc.cut(model, sc.Plan.from_kept({"first[1]": [0, 2]}, x))
    assert captured_parts(small) == ("",)
    assert small(x[:2]).shape == (2, 5, 2)
    units, longer = sc.find_units(model, x, "all"), torch.randn(3, 7, 6).double()
    assert torch.allclose(small(longer), zeroed(model, units, "first[1]", [1], longer), rtol=0, atol=1e-12)


# ---------------------------------------------------------------- a captured part


def parts_of(small: nn.Module) -> CapturedForward:
    forward = vars(small.inner)["forward"].__self__
    assert isinstance(forward, CapturedForward)
    return forward


def with_a_captured_part() -> nn.Module:
    model = network(Attention(6, 3, scaled=False))
    width = next(s.name for s in sc.find_units(model, X, "all") if s.kind == "head width")
    return sc.cut(model, sc.Plan.from_kept({width: [1]}, X))


def test_a_copy_of_a_captured_part_has_weights_of_its_own() -> None:
    small = with_a_captured_part()
    wanted = small(X)
    twin = copy.deepcopy(small)
    assert parts_of(twin).module is twin.inner
    assert parts_of(small).module is small.inner
    with torch.no_grad():
        twin.inner.qkv.weight.mul_(3)
    assert torch.equal(small(X), wanted)
    assert difference(wanted, twin(X))[1] > 1e-3


def test_a_captured_part_is_trained_exported_and_cut_again() -> None:
    small = with_a_captured_part().train()
    small(X).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in small.inner.parameters() if p.ndim > 1)
    with torch.no_grad():
        small.inner.proj.weight.mul_(2)
    units = sc.find_units(small, X, "all")
    heads = next(s.name for s in units if s.kind == "head")
    smaller = sc.cut(small, sc.Plan.from_kept({heads: [2]}, X))
    assert torch.allclose(smaller(X), zeroed(small, units, heads, [0, 1]), rtol=0, atol=1e-12)
    assert torch.export.export(small, (X,)).module()(X).shape == (3, 4, 2)


def test_a_part_says_how_it_may_be_called() -> None:
    small = with_a_captured_part()
    shorter = small(X[:, :3])
    assert shorter.shape == (3, 3, 2)
    with pytest.raises(DataError) as caught:
        small.inner(torch.zeros(3, 4, 5).double())
    assert str(caught.value) == "inner: captured for (samples, 4, 6), got (3, 4, 5)"
    with pytest.raises(DataError, match=r"^inner: must be called as when it was captured, with "):
        small.inner(X, X)


# ---------------------------------------------------------------- numbers that only look like sizes


class Limited(nn.Module):
    """No more time steps than a limit, and a width of the same value."""

    def __init__(self) -> None:
        super().__init__()
        self.limit, self.width = 8, 8
        self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, : self.limit]
        return self.down(torch.tanh(self.up(x)).reshape(*x.shape[:2], self.width))


@pytest.mark.parametrize("left", [3, 4, 5])
def test_a_number_that_means_something_else_stays_where_either_would_do(left: int) -> None:
    class Summed(Network):
        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.inner(torch.tanh(self.first(x))))

    torch.manual_seed(0)
    model = Summed(Limited()).double()
    units = sc.find_units(model, X, "all")
    small = sc.cut(model, sc.Plan.from_kept({"inner.up": list(range(left))}, X))
    assert (small.inner.limit, small.inner.width) == (8, left)
    assert captured_parts(small) == ()
    longer = X.repeat(1, 5, 1)
    assert small(longer).shape == (3, 8, 2)
    wanted = zeroed(model, units, "inner.up", list(range(left, 8)), longer)
    assert torch.allclose(small(longer), wanted, rtol=0, atol=1e-12)


class Heads(nn.Module):
    """As many heads as each is wide, with a scale of its own."""

    def __init__(self, order: tuple[str, str]) -> None:
        super().__init__()
        for name in order:
            setattr(self, name, 4)
        self.qkv, self.proj = nn.Linear(6, 48), nn.Linear(16, 6)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        a = F.scaled_dot_product_attention(q, k, v, scale=0.5).transpose(1, 2).reshape(n, t, -1)
        return self.proj(a)


@pytest.mark.parametrize("zero", [True, False])
@pytest.mark.parametrize("order", [("num_heads", "head_dim"), ("head_dim", "num_heads")])
@pytest.mark.parametrize(("kind", "sizes"), [("head width", (4, 2)), ("head", (2, 4))])
def test_a_projection_of_zero_lets_no_wrong_number_through(
    kind: str, sizes: tuple[int, int], order: tuple[str, str], zero: bool
) -> None:
    model = network(Heads(order))
    trained = copy.deepcopy(model)
    if zero:
        nn.init.zeros_(model.inner.proj.weight)
        nn.init.zeros_(model.inner.proj.bias)
    units = sc.find_units(model, X, "all")
    names = [s.name for s in units if s.kind == kind]
    kept = {name: [1, 3] for name in names}
    small, other = (sc.cut(one, sc.Plan.from_kept(kept, X)) for one in (model, trained))
    assert (small.inner.num_heads, small.inner.head_dim) == sizes
    assert captured_parts(small) == ()
    small.load_state_dict(other.state_dict())  # as if it had been trained
    gone = copy.deepcopy(trained)
    for name in names:
        gone = zeroed_copy(gone, units, name, [0, 2])
    assert torch.allclose(small(X), gone(X), rtol=0, atol=1e-12)


def test_hooks_ties_modes_and_frozen_weights_stay() -> None:
    model = network(Attention(6, 3, scaled=True)).train()
    model.inner.eval()
    model.first.bias.requires_grad_(False)
    model.again = model.first
    seen: list[tuple[int, ...]] = []
    model.first.register_forward_hook(lambda *given: seen.append(tuple(given[2].shape)))
    heads = next(s.name for s in sc.find_units(model, X, "all") if s.kind == "head")
    seen.clear()
    small = sc.cut(model, sc.Plan.from_kept({heads: [0]}, X))
    assert small.again is small.first
    assert small.again is not model.first
    assert (small.training, small.inner.training, small.first.training) == (True, False, True)
    assert [name for name, p in small.named_parameters() if not p.requires_grad] == ["first.bias"]
    seen.clear()
    small(X)
    assert seen == [(3, 4, 6)]
