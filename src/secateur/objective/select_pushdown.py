"""Compute only what is read: one position selected at the end, a class token say, is selected as early as it can be."""

from __future__ import annotations

import torch
from torch import fx

from secateur.structure.ops.net import rank_of
from secateur.structure.ops.registry import find_op

aten = torch.ops.aten


def push_selections(graph: fx.Graph) -> None:
    """Move each `select` before the operations that act on every position alone, as far as nothing else is read."""
    taken: dict[tuple[fx.Node, int, int], fx.Node] = {}
    for node in graph.find_nodes(op="call_function", target=aten.select.int):
        x, dim, index = node.args
        if isinstance(index, int) and index >= 0 and rank_of(x):
            node.args = (_taken(graph, taken, x, dim % rank_of(x), index), dim, 0)
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
    op = find_op(x)
    if op is None or op.select is None or list(x.users) != [row]:
        return False
    args = op.select(x, dim, lambda n, d: _taken(graph, taken, n, d, i))
    if args is None:
        return False
    with graph.inserting_before(x):
        moved = graph.call_function(x.target, tuple(args), x.kwargs)  # type: ignore[arg-type]
    row.replace_all_uses_with(moved)
    del taken[x, dim, i]
    graph.erase_node(row)
    graph.erase_node(x)
    return True
