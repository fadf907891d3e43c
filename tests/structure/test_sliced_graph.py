"""The graph for the sizes that are left, with sliced weights, beside the whole one with gates of zero.

Covers also secateur.structure.keep_mask.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from cases import Kept, random_kept, randomise
from rounding import assert_close_ulps
from secateur import Units, find_units
from secateur.cutting.verify import truth
from secateur.own_code.slices import keep_mask_of, sliced_copy
from secateur.structure.graph_run import bind, compile_graph, outputs
from secateur.structure.inputs import as_call
from secateur.structure.ops.registry import arguments, name_of
from secateur.structure.sliced_graph import Sliced, slice_graph


class Network(nn.Module):
    """Any function of (model, x) with the modules it uses."""

    def __init__(self, function: Callable[..., Tensor], parts: dict[str, Callable[[], nn.Module]]) -> None:
        super().__init__()
        self.function = function
        for name, make in parts.items():
            self.add_module(name, make())

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


@dataclass(frozen=True)
class Example:
    """A network with its unit sets, and for some kept units the calls whose numbers are then others."""

    function: Callable[..., Tensor]
    shape: tuple[int, ...]
    sets: dict[str, int]
    kept: Kept
    changed: list[tuple[str, dict[str, Any]]]
    parts: dict[str, Callable[[], nn.Module]] = field(default_factory=dict)

    def build(self) -> nn.Module:
        torch.manual_seed(0)
        return randomise(Network(self.function, self.parts).double().eval())

    def input(self, n: int) -> Tensor:
        return torch.randn(n, *self.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(n))


@cache
def found(name: str) -> tuple[nn.Module, Units]:
    """The example's model and units, found once for all tests."""
    model = EXAMPLES[name].build()
    units = find_units(model, EXAMPLES[name].input(4), include="all")
    return model, Units(units.captured, units.net, model)  # also what its own code cannot follow


def dense(*sizes: int) -> Callable[[], nn.Module]:
    return lambda: nn.Linear(*sizes)


def conv(*sizes: int, **options: Any) -> Callable[[], nn.Module]:
    return lambda: nn.Conv2d(*sizes, **options)


def attend(m: Any, x: Tensor) -> Tensor:
    """Sizes of heads all written."""
    q, k, v = m.qkv(x).chunk(3, -1)
    q, k, v = (one.view(-1, 5, 2, 3).transpose(1, 2) for one in (q, k, v))
    return m.b(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(-1, 5, 6))


def attend_folded(m: Any, x: Tensor) -> Tensor:
    """Heads beside the samples in one dimension."""
    n, t, _ = x.shape
    q, k, v = (f(x).view(n, t, 2, 3).transpose(1, 2).reshape(n * 2, t, 3) for f in (m.q, m.k, m.v))
    y = torch.bmm((torch.bmm(q, k.transpose(1, 2)) * 3**-0.5).softmax(-1), v)
    return m.b(y.view(n, 2, t, 3).transpose(1, 2).reshape(n, t, 6))


def attend_shared(m: Any, x: Tensor) -> Tensor:
    """Four heads for two of keys and values, repeated."""
    q, k, v = (f(x).unflatten(-1, (w, 3)).transpose(1, 2) for f, w in ((m.q, 4), (m.k, 2), (m.v, 2)))
    k, v = (one.repeat_interleave(2, 1) for one in (k, v))
    return m.b(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


AB = {"a": dense(4, 8), "b": dense(8, 2)}
IMAGE = {"a": conv(3, 8, 1), "b": conv(8, 2, 1)}
QKV = {"q": dense(4, 6), "k": dense(4, 6), "v": dense(4, 6), "b": dense(6, 2)}
EXAMPLES = {
    "nothing written": Example(
        lambda m, x: m.b(torch.tanh(m.a(x))), (4,), {"a": 8}, {"a": (1, 4, 6)}, [], AB
    ),
    "view": Example(
        lambda m, x: m.b(torch.tanh(m.a(x)).view(x.shape[0], 8)), (4,), {"a": 8}, {"a": (1, 4, 6)},
        [("reshape", {"shape": ["n", 3]})], AB,
    ),
    "view of factors": Example(
        lambda m, x: m.b(torch.tanh(m.a(x)).view(-1, 2, 4).transpose(1, 2).reshape(x.shape[0], 8)), (4,),
        {"a[0]": 2, "a[1]": 4}, {"a[0]": (1,), "a[1]": (0, 2, 3)},
        [("reshape", {"shape": [-1, 1, 3]}), ("reshape", {"shape": ["n", 3]})], AB,
    ),
    "view of samples and units together": Example(
        lambda m, x: m.b(torch.tanh(m.a(x).view(x.shape[0] * 2, 4)).view(x.shape[0], 8)), (4,),
        {"a[0]": 2, "a[1]": 4}, {"a[0]": (0,), "a[1]": (1, 2, 3)},
        [("reshape", {"shape": ["n", 3]}), ("reshape", {"shape": ["n", 3]})], AB,
    ),
    "view of samples and positions together": Example(
        lambda m, x: m.b(torch.tanh(m.a(x).reshape(3 * x.shape[0], 8)).view(x.shape[0], 3, 8).sum(1)), (3, 4),
        {"a": 8}, {"a": (1, 4, 6)}, [("reshape", {"shape": ["n", 3]}), ("reshape", {"shape": ["n", 3, 3]})], AB,
    ),
    "unflatten": Example(
        lambda m, x: m.b(torch.tanh(m.a(x)).unflatten(-1, (2, 4)).transpose(1, 2).flatten(1)), (4,),
        {"a[0]": 2, "a[1]": 4}, {"a[1]": (0, 2, 3)}, [("unflatten", {"sizes": [2, 3]})], AB,
    ),
    "expand": Example(
        lambda m, x: m.b(m.a(x)[:, None].expand(-1, 3, 8) * m.c(x.unsqueeze(1).expand(-1, 3, 4))).sum(1), (4,),
        {"a": 8}, {"a": (1, 4, 6)}, [("expand", {"size": [-1, 3, 3]})], AB | {"c": dense(4, 8)},
    ),
    "split into equal parts": Example(
        lambda m, x: m.b(torch.cat([torch.tanh(p) if i else p for i, p in enumerate(m.a(x).split(3, -1))], -1)), (4,),
        {"a[0]": 3, "a[1]": 3, "a[2]": 2}, {"a[0]": (0, 2), "a[2]": (1,)},
        [("split_with_sizes", {"split_sizes": [2, 3, 1]})], AB,
    ),
    "split by sizes": Example(
        lambda m, x: m.b(torch.cat(m.a(x).tanh().split([5, 3], 1)[::-1], 1)), (4,), {"a[0]": 5, "a[1]": 3},
        {"a[0]": (4,), "a[1]": (0, 2)}, [("split_with_sizes", {"split_sizes": [1, 2]})], AB,
    ),
    "chunk": Example(
        lambda m, x: m.b(torch.mul(*m.a(x).chunk(2, -1))), (4,), {"a": 4}, {"a": (0, 1, 3)},
        [("split_with_sizes", {"split_sizes": [3, 3]})], {"a": dense(4, 8), "b": dense(4, 2)},
    ),
    "slices": Example(
        lambda m, x: m.b(torch.cat([m.a(x)[:, 6:], m.a(x).tanh()[:, :-2]], -1)), (4,), {"a[0]": 6, "a[1]": 2},
        {"a[0]": (0, 2), "a[1]": (1,)}, [("slice", {"start": 2, "end": 3}), ("slice", {"end": 2})], AB,
    ),
    "narrow": Example(
        lambda m, x: m.b(m.a(x).narrow(1, 2, 5)), (4,), {"a[0]": 2, "a[1]": 5, "a[2]": 1},
        {"a[0]": (1,), "a[1]": (0, 3, 4)},
        [("narrow", {"start": 1, "length": 3})], {"a": dense(4, 8), "b": dense(5, 2)},
    ),
    "repeat": Example(
        lambda m, x: m.b(m.a(x).repeat(1, 2)), (4,), {"a": 8, "b.weight[1]": 2}, {"a": (1, 4), "b.weight[1]": (1,)},
        [("repeat", {"repeats": [1, 1]})], {"a": dense(4, 8), "b": dense(16, 2)},
    ),
    "repeat of nothing": Example(
        lambda m, x: m.b(torch.cat([(h := m.a(x)), h[:, :0].repeat(1, 2), h[:, :0].repeat_interleave(2, 1)], 1)), (4,),
        {"a": 8}, {"a": (1, 4)}, [], AB,
    ),
    "repeat as units of another layer": Example(
        lambda m, x: m.b(m.a(x).repeat(1, 2) * m.c(x)), (4,), {"a": 8, "c": 2}, {"a": (1, 4), "c": (1,)},
        [("repeat", {"repeats": [1, 1]})], {"a": dense(4, 8), "c": dense(4, 16), "b": dense(16, 2)},
    ),
    "zeros made in forward": Example(
        lambda m, x: m.b(torch.tanh(m.a(x) + torch.ones(x.shape[0], 8, dtype=x.dtype))), (4,), {"a": 8},
        {"a": (1, 4, 6)}, [("ones", {"size": ["n", 3]})], AB,
    ),
    "padded channels": Example(
        lambda m, x: m.b(F.pad(m.a(x), (0, 0, 0, 0, 2, 3)) + m.c(x)), (3, 4, 4), {"c[0]": 2, "a": 5, "c[1]": 3},
        {"c[0]": (1,), "a": (0, 3, 4), "c[1]": (0, 2)}, [("pad", {"pad": [0, 0, 0, 0, 1, 2]})],
        {"a": conv(3, 5, 1), "c": conv(3, 10, 1), "b": conv(10, 2, 1)},
    ),
    "grouped convolution": Example(
        lambda m, x: m.b(torch.tanh(m.c(m.a(x)))), (3, 4, 4), {"a[0]": 4, "a[1]": 2, "c": 3},
        {"a[0]": (0, 2, 3), "a[1]": (1,), "c": (0, 2)}, [("conv2d", {"groups": 3})],
        {"a": conv(3, 8, 1), "c": conv(8, 12, 3, groups=4), "b": conv(12, 2, 1)},
    ),
    "grouped transposed convolution": Example(
        lambda m, x: m.b(torch.tanh(m.c(m.a(x)))), (3, 4, 4), {"a[0]": 4, "a[1]": 2, "c": 3},
        {"a[0]": (1, 2), "c": (0, 2)},
        [("conv_transpose2d", {"groups": 2})],
        {"a": conv(3, 8, 1), "c": lambda: nn.ConvTranspose2d(8, 12, 3, groups=4), "b": conv(12, 2, 1)},
    ),
    "group norm": Example(
        lambda m, x: m.b(torch.tanh(m.c(m.a(x)))), (3, 4, 4), {"a[0]": 4}, {"a[0]": (0, 2, 3)},
        [("group_norm", {"num_groups": 3})], IMAGE | {"c": lambda: nn.GroupNorm(4, 8)},
    ),
    "channel shuffle": Example(
        lambda m, x: m.b(F.channel_shuffle(m.a(x), 4)), (3, 4, 4), {"a[0]": 4, "a[1]": 2},
        {"a[0]": (0, 2, 3), "a[1]": (0,)}, [("channel_shuffle", {"groups": 3})], IMAGE,
    ),
    "attention": Example(
        attend, (5, 4), {"qkv[0]": 2, "qkv[1]": 3, "qkv[2]": 3}, {"qkv[0]": (1,), "qkv[1]": (0, 2), "qkv[2]": (2,)},
        [
            ("split_with_sizes", {"split_sizes": [2, 2, 1]}), ("reshape", {"shape": [-1, 5, 1, 2]}),
            ("reshape", {"shape": [-1, 5, 1, 2]}), ("reshape", {"shape": [-1, 5, 1, 1]}),
            ("scaled_dot_product_attention", {"scale": 3**-0.5}),
            ("reshape", {"shape": [-1, 5, 1]}),
        ],
        {"qkv": dense(4, 18), "b": dense(6, 2)},
    ),
    "attention with heads beside the samples": Example(
        attend_folded, (5, 4), {"q[0]": 2, "q[1]": 3, "v": 3}, {"q[0]": (1,), "q[1]": (0, 2), "v": (2,)},
        [
            ("reshape", {"shape": ["n", "n", 1, 2]}), ("reshape", {"shape": ["n", "n", 2]}),
            ("reshape", {"shape": ["n", "n", 1, 2]}), ("reshape", {"shape": ["n", "n", 2]}),
            ("reshape", {"shape": ["n", "n", 1, 1]}), ("reshape", {"shape": ["n", "n", 1]}),
            ("reshape", {"shape": ["n", 1, "n", 1]}), ("reshape", {"shape": ["n", "n", 1]}),
        ], QKV,
    ),
    "attention with shared heads": Example(
        attend_shared, (5, 4), {"q[0]": 2, "q[1]": 2, "q[2]": 3, "v": 3},
        {"q[0]": (1,), "q[1]": (0,), "q[2]": (0, 2)},
        [
            ("unflatten", {"sizes": [1, 2]}), ("unflatten", {"sizes": [1, 2]}), ("unflatten", {"sizes": [1, 3]}),
            ("repeat_interleave", {"repeats": 1}), ("repeat_interleave", {"repeats": 1}),
            ("scaled_dot_product_attention", {"scale": 3**-0.5}),
        ],
        {"q": dense(4, 12), "k": dense(4, 6), "v": dense(4, 6), "b": dense(12, 2)},
    ),
}  # fmt: skip


def run(sliced: Sliced, units: Units, small: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        returned = compile_graph(sliced.graph)(*bind(units.captured, small, as_call(x)))
    out: Tensor = outputs(units.captured, returned)
    return out


def difference(name: str, kept: Kept, n: int) -> float:
    """Largest difference of the sliced graph on sliced weights from the gated graph, for n samples."""
    model, units = found(name)
    left, x = keep_mask_of(units, kept), EXAMPLES[name].input(n)
    small, sliced = sliced_copy(model, units, left), slice_graph(units.captured, units.net, left)
    wanted = truth(model, units, kept, as_call(x)).outputs
    assert wanted.abs().max() > 0.1
    return float((run(sliced, units, small, x) - wanted).abs().max() / wanted.abs().max())


def changes(sliced: Sliced) -> list[tuple[str, dict[str, Any]]]:
    """The calls with other numbers than in the captured graph, and those; sizes known when it runs are "n"."""
    found = []
    for node, copy in sliced.copies.items():
        before, after = (
            fx.map_arg(arguments(n), lambda _: "n") if n.op == "call_function" else {} for n in (node, copy)
        )
        if name_of(node) == "view":
            before = before | {"shape": before["size"]}  # views are reshapes
        changed = {name: value for name, value in after.items() if name not in before or before[name] != value}
        if changed:
            found.append((name_of(copy), changed))
    return found


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_sets_are_gated_so_that_gates_are_the_truth(name: str) -> None:
    _, units = found(name)
    assert {s.name: s.size for s in units} == EXAMPLES[name].sets
    assert {s.removal for s in units} == {"gated"}


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.parametrize("n", [1, 4, 7])
def test_the_sliced_graph_is_the_gated_graph(name: str, n: int) -> None:
    assert difference(name, EXAMPLES[name].kept, n) < 1e-12


@pytest.mark.parametrize("name", EXAMPLES)
def test_it_is_that_for_any_units(name: str) -> None:
    _, units = found(name)
    for seed in range(6):
        assert difference(name, random_kept(units, seed), 2) < 1e-12
    for one in units:
        assert difference(name, {one.name: (one.size - 1,)}, 2) < 1e-12


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_numbers_that_change_are_these(name: str) -> None:
    _, units = found(name)
    sliced = slice_graph(units.captured, units.net, keep_mask_of(units, EXAMPLES[name].kept))
    assert changes(sliced) == EXAMPLES[name].changed


@pytest.mark.parametrize("name", EXAMPLES)
def test_with_everything_left_the_graph_is_the_same(name: str) -> None:
    model, units = found(name)
    before = str(units.captured.graph)
    sliced = slice_graph(units.captured, units.net, keep_mask_of(units, {s.name: tuple(range(s.size)) for s in units}))
    assert changes(sliced) == []
    x = EXAMPLES[name].input(3)
    with torch.no_grad():
        assert_close_ulps(run(sliced, units, model, x), model(x))
    slice_graph(units.captured, units.net, keep_mask_of(units, EXAMPLES[name].kept))
    assert str(units.captured.graph) == before


def test_a_graph_of_other_units_differs() -> None:
    model, units = found("view of factors")
    left = keep_mask_of(units, {"a[0]": (1,)})
    sliced = slice_graph(units.captured, units.net, left)
    x = EXAMPLES["view of factors"].input(4)
    with pytest.raises(RuntimeError):
        run(sliced, units, model, x)
    right, wrong = (sliced_copy(model, units, keep_mask_of(units, {"a[0]": (i,)})) for i in (1, 0))
    assert (run(sliced, units, right, x) - run(sliced, units, wrong, x)).abs().max() > 0.1


def attend(model: Any, x: Tensor) -> Tensor:
    """Attention as nanoGPT has it: where all widths are equal it comes out as its view wants it, and is not copied."""
    q, k, v = (part.view(*part.shape[:2], 3, 4).transpose(1, 2) for part in model.a(x).split(12, 2))
    values = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
    return model.b(values.contiguous().view(*x.shape[:2], 12))  # type: ignore[no-any-return]


def test_values_may_lie_otherwise_in_memory_than_a_view_wants() -> None:
    model = randomise(Network(attend, {"a": dense(12, 36), "b": dense(12, 12)}).double().eval())
    x = torch.randn(4, 5, 12, dtype=torch.float64)
    units = find_units(model, x, include="all")
    kept = {"a[1]": (0, 2)}  # the width of queries and keys alone
    left = keep_mask_of(units, kept)
    sliced = slice_graph(units.captured, units.net, left)
    got = run(sliced, units, sliced_copy(model, units, left), x)
    torch.testing.assert_close(got, truth(model, units, kept, as_call(x)).outputs, rtol=0, atol=1e-9)
