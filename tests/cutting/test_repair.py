"""Modules whose forward computes with whole numbers that are no size of a parameter."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import secateur as sc
from secateur.cutting.captured_forward import CapturedForward, GraphNetwork, captured_parts
from secateur.errors import DataError
from secateur.structure.run import difference


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


def cut(model: nn.Module, **kept: list[int]) -> nn.Module:
    return sc.cut(model, sc.Plan.from_kept({name.replace("__", "."): k for name, k in kept.items()}, X))


def zeroed(model: nn.Module, units: sc.Units, name: str, gone: list[int]) -> Tensor:
    """The original with all parameters of some units zero."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for part in units[name].slices:
            model.get_parameter(part.tensor).index_fill_(part.dim, part.index[gone].flatten(), 0)
    return model(X)


def test_whole_numbers_are_found_and_adapted() -> None:
    model = network(Attention(6, 3, scaled=True))
    units = sc.find_units(model, X)
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
    units = sc.find_units(model, X)
    width = next(s.name for s in units if s.kind == "head width")
    small = sc.cut(model, sc.Plan.from_kept({width: [1]}, X))
    assert type(small) is Network
    assert type(small.inner) is Attention
    assert captured_parts(small) == ("inner",)
    assert torch.allclose(small(X), zeroed(model, units, width, [0]), rtol=0, atol=1e-12)
    assert small(X[:1]).shape == (1, 4, 2)
    assert small(X.repeat(5, 1, 1)).shape == (15, 4, 2)


def test_a_network_whose_own_code_cannot_be_adapted_is_its_graph() -> None:
    class Whole(Network):
        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x).reshape(x.shape[0], 4, 2, 3).transpose(2, 3).reshape(x.shape[0], 4, 6)
            return self.last(h)

    torch.manual_seed(0)
    model = Whole(nn.Identity()).double()
    units = sc.find_units(model, X)
    names = [s.name for s in units]
    assert [s.size for s in units] == [2, 3]
    small = sc.cut(model, sc.Plan.from_kept({names[1]: [0, 2]}, X))
    assert isinstance(small, GraphNetwork)
    assert captured_parts(small) == ("",)
    assert small.training
    assert torch.allclose(small(X), zeroed(model, units, names[1], [1]), rtol=0, atol=1e-12)
    assert {name: tuple(p.shape) for name, p in small.named_parameters()} == {
        "first.weight": (4, 5), "first.bias": (4,), "last.weight": (2, 4), "last.bias": (2,)
    }  # fmt: skip
    with pytest.raises(DataError, match=r"^inputs: expected 1 positional, keywords \[\], got 2 positional, keywords"):
        small(X, X)
    again = sc.cut(small, sc.Plan.from_kept({names[0]: [1]}, X))
    both = sc.cut(model, sc.Plan.from_kept({names[0]: [1], names[1]: [0, 2]}, X))
    assert difference(both(X), again(X))[1] < 1e-12


def parts_of(small: nn.Module) -> CapturedForward:
    forward = vars(small.inner)["forward"]
    assert isinstance(forward, CapturedForward)
    return forward


def with_a_captured_part() -> nn.Module:
    model = network(Attention(6, 3, scaled=False))
    width = next(s.name for s in sc.find_units(model, X) if s.kind == "head width")
    return sc.cut(model, sc.Plan.from_kept({width: [1]}, X))


def test_a_copy_of_a_captured_part_has_weights_of_its_own() -> None:
    small = with_a_captured_part()
    wanted = small(X)
    twin = copy.deepcopy(small)
    assert parts_of(twin).module is twin.inner
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
    units = sc.find_units(small, X)
    heads = next(s.name for s in units if s.kind == "head")
    smaller = sc.cut(small, sc.Plan.from_kept({heads: [2]}, X))
    assert torch.allclose(smaller(X), zeroed(small, units, heads, [0, 1]), rtol=0, atol=1e-12)
    assert torch.export.export(small, (X,)).module()(X).shape == (3, 4, 2)


def test_hooks_ties_modes_and_frozen_weights_stay() -> None:
    model = network(Attention(6, 3, scaled=True)).train()
    model.inner.eval()
    model.first.bias.requires_grad_(False)
    model.again = model.first
    seen: list[tuple[int, ...]] = []
    model.first.register_forward_hook(lambda *given: seen.append(tuple(given[2].shape)))
    heads = next(s.name for s in sc.find_units(model, X) if s.kind == "head")
    seen.clear()
    small = sc.cut(model, sc.Plan.from_kept({heads: [0]}, X))
    assert small.again is small.first
    assert small.again is not model.first
    assert (small.training, small.inner.training, small.first.training) == (True, False, True)
    assert [name for name, p in small.named_parameters() if not p.requires_grad] == ["first.bias"]
    seen.clear()
    small(X)
    assert seen == [(3, 4, 6)]
