"""The values that a network holds while it runs, and how many bytes they take for any units kept.

Each value lives from its call to its last use; views, and values that are written over, take nothing of their own.
Inputs live until their last use, outputs to the end. The network needs as many bytes as are alive at its worst call.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch import Tensor, fx

from secateur.planning.details.dimensions import Dimensions, Sum, Term, merged
from secateur.structure.capture import sizes
from secateur.structure.units import Units


def sums_alive(units: Units, dims: Dimensions) -> tuple[Sum, ...]:
    """Return for each call that may be the worst one the bytes of the values alive, for one sample.

    Calls at which no value takes more than at another one are left out: they are never the worst.

    Args:
        units: The network's units.
        dims: The dimensions that units reach; completed.
    """
    alive: dict[fx.Node, Sequence[Term]] = {}
    calls: set[Sum] = set()
    nodes = list(units.captured.graph.nodes)
    last_use = {_owner(operand): n for n, node in enumerate(nodes) for operand in node.all_input_nodes}
    for n, node in enumerate(nodes):
        if _owner(node) is node and node.op != "output" and node.name not in units.captured.weights:
            alive[node] = value_terms(units, dims, node)
        calls.add(merged([term for terms in alive.values() for term in terms]))
        alive = {value: terms for value, terms in alive.items() if last_use.get(value, n) > n}
    return _worst(sorted(calls))


def value_terms(units: Units, dims: Dimensions, node: fx.Node) -> list[Term]:
    """Return the bytes of each tensor that a call returns, for one sample."""
    value, net = node.meta.get("val"), units.net
    results = list(value) if isinstance(value, tuple | list) else [value]
    axes = net.outputs_of(node) if node in net.known else [[] for _ in results]
    return [
        dims.product(own, result.element_size(), sizes(result, batch=1)) if own else _whole(result)
        for result, own in zip(results, axes, strict=False)
        if isinstance(result, Tensor)
    ]


def _whole(result: Tensor) -> Term:
    """Return the bytes of a tensor whose axes are not known."""
    return torch.Size(sizes(result, batch=1)).numel() * result.element_size(), ()


def _owner(node: fx.Node) -> fx.Node:
    """Return the call in whose memory a result lies: a view's, or that of a value which is written over."""
    while _shares_memory(node) and node.all_input_nodes:
        node = node.all_input_nodes[0]
    return node


def _shares_memory(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    view = getattr(node.target, "is_view", False) or node.target is operator.getitem
    return bool(view or getattr(schema, "is_mutable", False))


def _worst(calls: list[Sum]) -> tuple[Sum, ...]:
    """Return the sums that are not at most another one term by term."""
    columns = {places: n for n, places in enumerate(dict.fromkeys(places for call in calls for _, places in call))}
    table = torch.zeros(len(calls), len(columns), dtype=torch.long)
    for n, call in enumerate(calls):
        for times, places in call:
            table[n, columns[places]] = times
    kept: list[int] = []
    for n in table.sum(1).argsort(descending=True, stable=True).tolist():
        if not kept or not (table[kept] >= table[n]).all(1).any():
            kept.append(n)
    return tuple(calls[n] for n in sorted(kept))
