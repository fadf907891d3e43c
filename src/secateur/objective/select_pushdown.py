"""Compute only what is read: one position selected at the end, a class token say, is selected as early as it can be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

aten = torch.ops.aten
Take = Callable[[Any, int], Any]  # a value's one position along a dimension
# Arguments of a call that makes one position along a dimension out of its inputs', None if it cannot.
Rule = Callable[[fx.Node, int, Take], "list[Any] | None"]


def push_selections(graph: fx.Graph) -> None:
    """Move each `select` before the operations that act on every position alone, as far as nothing else is read."""
    taken: dict[tuple[fx.Node, int, int], fx.Node] = {}
    for node in graph.find_nodes(op="call_function", target=aten.select.int):
        x, dim, index = node.args
        if isinstance(index, int) and index >= 0 and _rank(x):
            node.args = (_taken(graph, taken, x, dim % _rank(x), index), dim, 0)
    moved = True
    while moved:  # what could not move before may do so now
        moved = any(_push(graph, taken, *place) for place in list(taken))


def _taken(graph: fx.Graph, taken: dict[tuple[fx.Node, int, int], fx.Node], x: fx.Node, dim: int, i: int) -> fx.Node:
    if (x, dim, i) not in taken:
        before = next(n for n in graph.nodes if n.op != "placeholder") if x.op == "placeholder" else x.next
        with graph.inserting_before(before):
            taken[x, dim, i] = graph.call_function(aten.slice.Tensor, (x, dim, i, i + 1))
    return taken[x, dim, i]


def _push(graph: fx.Graph, taken: dict[tuple[fx.Node, int, int], fx.Node], x: fx.Node, dim: int, i: int) -> bool:
    """Take the position of what x is made from, if nothing else of x is read."""
    row = taken[x, dim, i]
    rule = _RULES.get(x.target) if x.op == "call_function" else None
    if rule is None or list(x.users) != [row]:
        return False
    args = rule(x, dim, lambda n, d: _taken(graph, taken, n, d, i))
    if args is None:
        return False
    with graph.inserting_before(x):
        made = graph.call_function(x.target, tuple(args), x.kwargs)  # type: ignore[arg-type]
    row.replace_all_uses_with(made)
    del taken[x, dim, i]
    graph.erase_node(row)
    graph.erase_node(x)
    return True


def _rank(x: Any) -> int:
    """Dimensions of a traced value; 0 where that is not known."""
    value = x.meta.get("val") if isinstance(x, fx.Node) else None
    return value.ndim if isinstance(value, torch.Tensor) else 0


def _pointwise(x: fx.Node, dim: int, take: Take) -> list[Any] | None:
    rank = _rank(x)
    nodes = [n for n in x.args if isinstance(n, fx.Node)]
    if not all(map(_rank, nodes)) or x.kwargs.keys() - {"alpha", "approximate", "memory_format"}:
        return None
    args: list[Any] = []
    for n in x.args:
        own = dim - rank + _rank(n)  # inputs are broadcast from the right
        whole = isinstance(n, fx.Node) and own >= 0 and n.meta["val"].shape[own] == x.meta["val"].shape[dim]
        args.append(take(n, own) if whole else n)
    return args


def _first(least: Callable[[fx.Node], int]) -> Rule:
    """Only the first input has positions, all its dimensions but so many last ones."""

    def rule(x: fx.Node, dim: int, take: Take) -> list[Any] | None:
        return [take(x.args[0], dim), *x.args[1:]] if dim < _rank(x) - least(x) else None

    return rule


def _attention(x: fx.Node, dim: int, take: Take) -> list[Any] | None:
    plain = len(x.args) == 3 and not any(x.kwargs.get(name) for name in ("attn_mask", "is_causal", "dropout_p"))
    return [take(x.args[0], dim), *x.args[1:]] if plain and dim == _rank(x) - 2 else None


def _slice(x: fx.Node, dim: int, take: Take) -> list[Any] | None:
    along = int(x.args[1]) % _rank(x) if len(x.args) > 1 else 0  # type: ignore[arg-type]
    return None if along == dim else [take(x.args[0], dim), *x.args[1:]]


def _transpose(x: fx.Node, dim: int, take: Take) -> list[Any]:
    a, b = (int(d) % _rank(x) for d in x.args[1:])  # type: ignore[arg-type]
    return [take(x.args[0], {a: b, b: a}.get(dim, dim)), a, b]


def _reshape(x: fx.Node, dim: int, take: Take) -> list[Any] | None:
    """Where this dimension and all before it stay as they are."""
    given, shape = x.args[0], list(x.args[1])  # type: ignore[arg-type]
    if not isinstance(given, fx.Node) or _rank(given) <= dim:
        return None
    same = all(given.meta["val"].shape[d] == x.meta["val"].shape[d] for d in range(dim + 1))
    return [take(given, dim), [*shape[:dim], 1, *shape[dim + 1 :]]] if same else None


_RULES: dict[Any, Rule] = {
    aten.linear.default: _first(lambda _: 1),
    aten.layer_norm.default: _first(lambda x: len(x.args[1])),  # type: ignore[arg-type]
    aten.scaled_dot_product_attention.default: _attention,
    aten.transpose.int: _transpose,
    aten.slice.Tensor: _slice,
    aten.reshape.default: _reshape,
    aten.view.default: _reshape,
} | {
    getattr(getattr(aten, name), overload): _pointwise
    for name, overload in [
        *(("add", "Tensor"), ("mul", "Tensor"), ("sub", "Tensor"), ("div", "Tensor")),
        *((name, "default") for name in ("gelu", "relu", "sigmoid", "tanh", "silu", "contiguous", "clone")),
    ]
}
