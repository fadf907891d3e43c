"""The captured graph for a network whose units are gone: the same calls with the sizes of what is left.

With sliced weights this is the truth that a cut network is held against.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from secateur.structure.capture import Captured
from secateur.structure.keep_mask import KeepMask, Samples
from secateur.structure.ops.net import Axes, Net
from secateur.structure.ops.registry import arguments, blamed, find_resize, set_argument


@dataclass(frozen=True)
class Sliced:
    """A sliced graph, with the copy of each node of the captured one."""

    graph: fx.Graph
    copies: dict[fx.Node, fx.Node]
    net: Net
    left: KeepMask


def slice_graph(captured: Captured, net: Net, left: KeepMask) -> Sliced:
    """Return a copy of the graph with every size among its arguments brought in line with what is left.

    Args:
        captured: The original.
        net: The axes of its values.
        left: The units that stay.
    """
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    batch: fx.Node | None = None
    for node in captured.graph.nodes:
        if node.op == "output":
            graph.output(fx.map_arg(node.args[0], copies.__getitem__))
            continue
        changed = _resized(node, net, left)
        if changed and _has_samples(changed):
            batch = batch or _batch_size(graph, captured, copies)
            changed = {name: _with_batch(graph, batch, value) for name, value in changed.items()}
        copies[node] = graph.node_copy(node, copies.__getitem__)
        if changed:
            _apply(copies[node], changed, copies)
    return Sliced(graph, copies, net, left)


def _resized(node: fx.Node, net: Net, left: KeepMask) -> dict[str, Any]:
    adapt = find_resize(node) if node.op == "call_function" and left.masks else None
    if adapt is None:
        return {}
    with blamed(adapt, node):
        return adapt(net, node, arguments(node), left)


def _apply(copy: fx.Node, changed: dict[str, Any], copies: dict[fx.Node, fx.Node]) -> None:
    """Write the changed arguments into the copy, by their position in the schema where they have one there."""
    target = changed.pop("target", None)
    if target is not None:
        copy.target = getattr(torch.ops.aten, target).default
        copy.args, copy.kwargs = (), fx.map_arg(changed, lambda n: copies.get(n, n))
        return
    for name, value in changed.items():
        set_argument(copy, name, fx.map_arg(value, lambda n: copies.get(n, n)))


def _has_samples(changed: dict[str, Any]) -> bool:
    return any(isinstance(item, Samples) for value in changed.values() if isinstance(value, list) for item in value)


def _with_batch(graph: fx.Graph, batch: fx.Node, value: Any) -> Any:
    if not isinstance(value, list):
        return value
    return [_number(graph, batch, item.times) if isinstance(item, Samples) else item for item in value]


def _number(graph: fx.Graph, batch: fx.Node, times: int) -> fx.Node:
    return batch if times == 1 else _of_samples(graph.call_function(operator.mul, (batch, times)))


def _of_samples(node: fx.Node) -> fx.Node:
    """Mark a size as a number that grows with that of the samples, for those who run several batches as one."""
    node.meta["samples"] = True
    return node


def _batch_size(graph: fx.Graph, captured: Captured, copies: dict[fx.Node, fx.Node]) -> fx.Node:
    sample = next(n for n in copies if n.name in captured.inputs and n.meta["val"].ndim)
    return _of_samples(graph.call_function(torch.ops.aten.sym_size.int, (copies[sample], 0)))


def slice_tensor(tensor: Tensor, axes: Axes, left: KeepMask) -> Tensor:
    """Return the positions left along each dimension."""
    for dim, axis in enumerate(axes):
        if left.count(axis) != axis.size:
            tensor = tensor.index_select(dim, left.indices(axis).to(tensor.device))
    return tensor
