"""Units that the model's own code can follow.

Covers also secateur.own_code.find_units, secateur.own_code.slices, secateur.own_code.trial and
secateur.cutting.live_modules.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import secateur as sc
from secateur.cutting.captured_forward import captured_parts


class Fused(nn.Module):
    """Attention whose q, k and v have one width in its code."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.head_dim, self.scale = 3, 4, 0.5
        self.qkv, self.proj = nn.Linear(6, 36), nn.Linear(12, 6)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        each = self.heads * self.head_dim
        q, k, v = (y.view(n, t, self.heads, self.head_dim).transpose(1, 2) for y in self.qkv(x).split(each, -1))
        a = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return self.proj(a.transpose(1, 2).reshape(n, t, each))


class Rotated(nn.Module):
    """Attention whose q and k are turned, half of the width with the other half."""

    def __init__(self) -> None:
        super().__init__()
        self.head_dim = 4
        self.q, self.k, self.v, self.o = (nn.Linear(6, 8, bias=False) for _ in range(4))
        self.o = nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        shape = (*x.shape[:-1], -1, self.head_dim)
        q, k, v = (layer(x).view(shape).transpose(1, 2) for layer in (self.q, self.k, self.v))
        q, k = (torch.cat([-b, a], -1) + torch.cat([a, b], -1) for a, b in (q.chunk(2, -1), k.chunk(2, -1)))
        a = F.scaled_dot_product_attention(q, k, v, scale=0.5)
        return self.o(a.transpose(1, 2).flatten(2))


class Halves(nn.Module):
    """A map of which one half goes through a layer, and both are joined."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(6, 10), nn.Linear(5, 7), nn.Linear(17, 6)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.first(x).chunk(2, -1)
        return self.last(torch.cat([a, b, self.inner(b)], -1))


class Written(nn.Module):
    """A width that is written in the code, behind something that returns what it takes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.nothing, self.last = nn.Linear(6, 8), nn.Identity(), nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.nothing(self.first(x))).reshape(x.shape[0], -1, 8))


class Uneven(nn.Module):
    """The width of the whole, taken for that of the heads together."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 3
        self.qkv, self.proj = nn.Linear(6, 18), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        n, t, c = x.shape
        q, k, v = (y.view(n, t, self.heads, c // self.heads).transpose(1, 2) for y in self.qkv(x).split(c, 2))
        return self.proj(F.scaled_dot_product_attention(q, k, v, scale=0.5).transpose(1, 2).reshape(n, t, c))


class Cached(nn.Module):
    """A layer that keeps in eval mode what it made of its weights in its first call."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 6)
        self.kept: Tensor | None = None

    def train(self, mode: bool = True) -> Cached:
        self.kept = None
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        if self.kept is None:
            self.kept = self.first.weight.sum(1)
        return self.last(torch.relu(self.first(x)) * self.kept)


class Grouped(nn.Module):
    """Attention of two heads for four queries, whose code repeats the heads only where it is traced."""

    def __init__(self) -> None:
        super().__init__()
        self.groups, self.head_dim = 2, 4
        self.q, self.k, self.v = nn.Linear(6, 16), nn.Linear(6, 8), nn.Linear(6, 8)
        self.o = nn.Linear(16, 6)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).view(*x.shape[:2], -1, self.head_dim).transpose(1, 2) for layer in (self.q, self.k, self.v))
        if torch.compiler.is_compiling():
            k, v = k.repeat_interleave(self.groups, 1), v.repeat_interleave(self.groups, 1)
        a = F.scaled_dot_product_attention(q, k, v, scale=0.5, enable_gqa=True)
        return self.o(a.transpose(1, 2).flatten(2))


class Network(nn.Module):
    """Two modules of a kind in residual branches, and a hidden layer between."""

    def __init__(self, inner: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.one, self.two = inner(), inner()
        self.up, self.down = nn.Linear(6, 5), nn.Linear(5, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.one(x)
        x = x + self.down(torch.tanh(self.up(x)))
        return x + self.two(x)


X = torch.randn(3, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
KINDS = {
    "fused": Fused, "rotated": Rotated, "halves": Halves, "written": Written, "uneven": Uneven, "cached": Cached,
    "grouped": Grouped,
}  # fmt: skip


def network(kind: str) -> nn.Module:
    torch.manual_seed(0)
    return Network(KINDS[kind]).double().eval()


def sizes(units: sc.Units) -> dict[str, int]:
    return {unit_set.name: unit_set.size for unit_set in units}


def zeroed(model: nn.Module, units: sc.Units, gone: dict[str, list[int]]) -> nn.Module:
    """The original with all parameters of some units zero."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for name, indices in gone.items():
            for part in units[name].slices:
                model.get_parameter(part.tensor).index_fill_(part.dim, part.index[indices].flatten(), 0)
    return model.train().eval()  # without what it keeps of its weights


# ---------------------------------------------------------------- what is found

TIED = {
    "fused": {"qkv[0]": 3, "qkv[1]+qkv[2]": 4},
    "rotated": {"q[0]": 2, "q[1]+v": 2},
    "halves": {"first[0]+first[1]": 5, "inner": 7},
    "written": {},
    "uneven": {},
    "cached": {"first": 8},
    "grouped": {"q[0]": 2, "q[1]": 2, "q[2]+v": 4},
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_code_ties_together_is_one_set_and_what_it_cannot_follow_is_none(kind: str) -> None:
    model = network(kind)
    found = sizes(sc.find_units(model, X))
    wanted = {f"{at}.{name}": n for at in ("one", "two") for name, n in TIED[kind].items()}
    assert found == wanted | {"up": 5}


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("written", "return self.last(torch.relu(self.nothing(self.first(x))).res..."),
        ("uneven", "q, k, v = (y.view(n, t, self.heads, c // self.heads).transpo..."),
    ],
)
def test_a_fixed_set_says_the_line_of_code_and_what_removes_it_yet(kind: str, line: str) -> None:
    reasons = {fixed.reason for fixed in sc.find_units(network(kind), X).fixed if "one" in fixed.name}
    reason = f"the model's own code cannot follow: `{line}` in 'one'; include='all' removes it through a captured part"
    assert reason in reasons


def test_all_units_are_found_where_they_are_asked_for() -> None:
    assert sizes(sc.find_units(network("fused"), X, "all")) == {
        "one.qkv[0]": 3, "one.qkv[1]": 4, "one.qkv[2]": 4, "up": 5, "two.qkv[0]": 3, "two.qkv[1]": 4, "two.qkv[2]": 4,
    }  # fmt: skip


def test_finding_leaves_the_model_as_it_was() -> None:
    model = network("fused").train()
    before = copy.deepcopy(model.state_dict())
    sc.find_units(model, X)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert (model.one.heads, model.one.head_dim) == (3, 4)
    assert not any("forward" in vars(module) for module in model.modules())


# ---------------------------------------------------------------- what is cut


@settings(max_examples=12, deadline=None)
@given(kind=st.sampled_from([kind for kind in KINDS if TIED[kind]]), data=st.data())
def test_any_units_of_these_go_and_the_code_stays_the_models_own(kind: str, data: st.DataObject) -> None:
    model = network(kind)
    units = sc.find_units(model, X)
    kept = {s.name: sorted(data.draw(st.sets(st.integers(0, s.size - 1), min_size=1), label=s.name)) for s in units}
    small = sc.cut(model, sc.Plan.from_kept(kept, X))
    assert captured_parts(small) == ()
    gone = {s.name: [i for i in range(s.size) if i not in kept[s.name]] for s in units}
    longer = torch.randn(2, 9, 6, dtype=torch.float64)
    for x in (X, longer):
        torch.testing.assert_close(small(x), zeroed(model, units, gone)(x), rtol=1e-10, atol=1e-10)
    assert sum(p.numel() for p in small.parameters()) == units.params({name: len(k) for name, k in kept.items()})


def test_a_number_that_only_traced_code_uses_is_set_and_the_result_is_cut_again() -> None:
    model = network("grouped")
    small = sc.cut(model, sc.Plan.from_kept({"one.q[1]": [0]}, X))
    assert (small.one.groups, small.two.groups) == (1, 2)
    assert sizes(sc.find_units(small, X)) == {
        "one.q[0]": 2, "one.q[1]+v": 4, "two.q[0]": 2, "two.q[1]": 2, "two.q[2]+v": 4, "up": 5,
    }  # fmt: skip


def test_what_a_module_keeps_of_its_weights_is_that_of_its_own_after_a_cut() -> None:
    model = network("cached")
    before = model(X)
    sc.cut(model, sc.Plan.from_kept({"one.first": [0, 3]}, X))
    assert torch.equal(model(X), before)


def test_a_plan_of_tied_sets_is_written_read_and_cut() -> None:
    model = network("rotated")
    plan = sc.rank(
        model, None, None, budget=sc.Budget(remove_units=3), criterion="magnitude", units=sc.find_units(model, X)
    )
    again = sc.Plan.from_json(plan.to_json())
    small = sc.cut(model, again)
    assert captured_parts(small) == ()
    assert sum(p.numel() for p in small.parameters()) == plan.steps[-1].params


def test_a_set_named_alone_goes_through_a_captured_part() -> None:
    model = network("fused")
    small = sc.cut(model, sc.Plan.from_kept({"one.qkv[2]": [0, 3]}, X))
    assert captured_parts(small) == ("one",)
    units = sc.find_units(model, X, "all")
    torch.testing.assert_close(small(X), zeroed(model, units, {"one.qkv[2]": [1, 2]})(X), rtol=1e-10, atol=1e-10)
