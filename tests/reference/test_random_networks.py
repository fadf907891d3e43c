"""Random networks of every kind, cut by random plans and held against the original with weights of zero."""

from __future__ import annotations

import copy
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import secateur as sc
from cases import Kept, random_kept
from random_networks import RandomArchitecture
from secateur.cutting.cut import cut_units
from secateur.structure.inputs import as_call
from secateur.structure.units import Include, Units, UnitSet

SEEDS = 150  # of each kind: 300 random networks


class Cut(NamedTuple):
    """A random network before and after."""

    model: RandomArchitecture
    x: Tensor
    units: Units
    kept: Kept
    small: nn.Module


def cut(model: nn.Module, units: Units, kept: Kept, x: Tensor) -> nn.Module:
    """By the public function where it takes the plan: sets of removal "sliced" are named to `cut_units` alone."""
    plan = sc.Plan.from_kept(kept, x)
    if all(unit_set.removal == "gated" for unit_set in units):
        return sc.cut(model, plan)
    return cut_units(model, units, plan, as_call(x))[0]


def made(seed: int, include: Include, samples: int = 4, one_unit: bool = False) -> Cut:
    model = RandomArchitecture(seed)
    x = model.sample(samples)
    units = sc.find_units(model, x, include)
    kept = {s.name: (s.size - 1,) for s in units} if one_unit else random_kept(units, seed)
    return Cut(model, x, units, kept, cut(model, units, kept, x) if len(units) else copy.deepcopy(model))


def difference(wanted: Tensor, got: Tensor) -> float:
    return ((wanted - got).abs().max() / wanted.abs().max()).item()


# ---------------------------------------------------------------- the original with weights of zero


class NormOfSome(nn.Module):
    """A norm whose statistics are taken over some of its channels, written out."""

    def __init__(self, norm: nn.Module, some: Tensor) -> None:
        super().__init__()
        self.norm, self.some = norm, some.double()

    def forward(self, x: Tensor) -> Tensor:
        norm, some = self.norm, self.some
        if isinstance(norm, nn.GroupNorm):
            groups = x.reshape(len(x), norm.num_groups, x.shape[1] // norm.num_groups, -1)
            some = some.reshape(1, norm.num_groups, -1, 1).expand_as(groups)
            y = _standard(groups, some, (2, 3), norm.eps).reshape(x.shape).movedim(1, -1)
            return (y * norm.weight + norm.bias).movedim(-1, 1)
        if isinstance(norm, nn.LayerNorm):
            return _standard(x, some.expand_as(x), (-1,), norm.eps) * norm.weight + norm.bias
        square = (x**2 * some).sum(-1, keepdim=True) / some.sum()
        return x * (square + torch.finfo(x.dtype).eps).rsqrt() * norm.weight


def _standard(x: Tensor, some: Tensor, dims: tuple[int, ...], eps: float) -> Tensor:
    n = some.sum(dims, keepdim=True).clamp(min=1)
    centred = x - (x * some).sum(dims, keepdim=True) / n
    return centred * ((centred**2 * some).sum(dims, keepdim=True) / n + eps).rsqrt()


def removed(unit_set: UnitSet, kept: Kept) -> list[int]:
    return sorted(set(range(unit_set.size)) - set(kept.get(unit_set.name, range(unit_set.size))))


def without(case: Cut) -> nn.Module:
    """The original in its full size, the removed units' weights zero and their values left out of every norm."""
    model = copy.deepcopy(case.model)
    parameters = dict(model.named_parameters())
    norms = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
    some = {name: torch.ones(len(m.weight)) for name, m in model.named_modules() if isinstance(m, norms)}
    with torch.no_grad():
        for unit_set in case.units:
            for part in unit_set.slices:
                gone = part.index[removed(unit_set, case.kept)].flatten()
                if part.tensor in parameters:
                    parameters[part.tensor].index_fill_(part.dim, gone, 0)
                path, _, name = part.tensor.rpartition(".")
                if path in some and name == "weight":
                    some[path][gone] = 0
    for path, mask in some.items():
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, NormOfSome(model.get_submodule(path), mask))
    return model


def computes_what_the_zeroed_original_does(case: Cut) -> None:
    x = case.model.sample(7)
    wanted = without(case)(x)
    assert difference(wanted, case.small(x)) <= 1e-9
    assert difference(wanted[:1], case.small(x[:1])) <= 1e-9


# ---------------------------------------------------------------- what else holds of every cut network


def has_the_parameters_predicted(case: Cut) -> None:
    counts = {name: len(indices) for name, indices in case.kept.items()}
    assert sum(p.numel() for p in case.small.parameters()) == case.units.params(counts)
    shapes = case.units.shapes(counts)
    found = {name: tuple(tensor.shape) for name, tensor in case.small.state_dict().items()}
    assert {name: found[name] for name in shapes} == shapes


def _places(unit_set: UnitSet) -> set[tuple[str, int]]:
    return {(part.tensor, part.dim) for part in unit_set.slices}


def is_the_same_in_two_steps(case: Cut, include: Include, seed: int) -> None:
    """Sets that are others in the small network – one group has no groups – are left alone in the second step."""
    units = sc.find_units(case.small, case.x, include)
    first = {s.name: (len(case.kept[s.name]), _places(s)) for s in case.units}
    same = {s.name for s in units if first.get(s.name) == (s.size, _places(s))}
    second = {name: kept for name, kept in random_kept(units, seed + 1).items() if name in same}
    both = case.kept | {name: tuple(case.kept[name][i] for i in kept) for name, kept in second.items()}
    x, call = case.model.sample(5), as_call(case.x)
    twice = cut_units(case.small, units, sc.Plan.from_kept(second, case.x), call)[0]
    once = cut_units(case.model, case.units, sc.Plan.from_kept(both, case.x), call)[0]
    assert difference(once(x), twice(x)) <= 1e-9
    assert {n: p.shape for n, p in once.named_parameters()} == {n: p.shape for n, p in twice.named_parameters()}


def is_a_network_of_its_own(case: Cut) -> None:
    """Its deep copy computes the same with weights of its own."""
    wanted = case.small(case.x)
    twin = copy.deepcopy(case.small)
    assert torch.equal(twin(case.x), wanted)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert not twin(case.x).any()
    assert torch.equal(case.small(case.x), wanted)


def has_gradients(case: Cut) -> None:
    for network in (case.model, case.small):
        network.zero_grad()
        (network(case.x) ** 2).sum().backward()
    had = {name for name, p in case.model.named_parameters() if p.grad is not None}
    assert {name for name, p in case.small.named_parameters() if p.grad is not None} == had
    assert all(p.grad is None or p.grad.isfinite().all() for p in case.small.parameters())
    case.model.zero_grad()


def left_the_original_alone(case: Cut, seed: int) -> None:
    fresh, now = RandomArchitecture(seed).state_dict(), case.model.state_dict()
    assert fresh.keys() == now.keys()
    assert all(torch.equal(fresh[name], now[name]) for name in fresh)
    assert not any(module.training for module in case.model.modules())


def check(seed: int, include: Include) -> None:
    case = made(seed, include)
    if not len(case.units):
        return
    computes_what_the_zeroed_original_does(case)
    has_the_parameters_predicted(case)
    is_a_network_of_its_own(case)
    has_gradients(case)
    is_the_same_in_two_steps(case, include, seed)
    left_the_original_alone(case, seed)


# ---------------------------------------------------------------- the tests


@pytest.mark.parametrize("include", ["gated", "all"])
@settings(max_examples=30, deadline=None, derandomize=True)
@given(seed=st.integers(0, SEEDS - 1))
def test_a_cut_random_network_is_right(include: Include, seed: int) -> None:
    check(seed, include)


@pytest.mark.slow
@pytest.mark.parametrize("include", ["gated", "all"])
@settings(max_examples=SEEDS, deadline=None, derandomize=True)
@given(seed=st.integers(0, SEEDS - 1))
def test_every_cut_random_network_is_right(include: Include, seed: int) -> None:
    check(seed, include)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(seed=st.integers(0, SEEDS - 1), include=st.sampled_from(["gated", "all"]))
def test_one_unit_of_each_set_and_one_sample(seed: int, include: Include) -> None:
    case = made(seed, include, samples=1, one_unit=True)
    computes_what_the_zeroed_original_does(case)
    has_the_parameters_predicted(case)
    is_a_network_of_its_own(case)
    has_gradients(case)
