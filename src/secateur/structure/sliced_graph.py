"""The captured graph for a network whose units are gone: the same calls with the sizes of what is left.

With sliced weights this is the truth that a cut network is held against.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from secateur.structure.capture import Captured, counts_samples
from secateur.structure.keep_mask import KeepMask, Part
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
    for node in captured.graph.nodes:
        if node.op == "output":
            graph.output(fx.map_arg(node.args[0], copies.__getitem__))
            continue
        changed = _resized(node, net, left)
        changed = {name: _computed(graph, copies, value) for name, value in changed.items()}
        copies[node] = graph.node_copy(node, copies.__getitem__)
        if changed:
            _apply(copies[node], changed, copies)
        if node.target is torch.ops.aten.sym_size.int:
            copies[node] = _before(graph, node, copies, net, left)
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
        name, _, overload = target.partition(".")
        copy.target = getattr(getattr(torch.ops.aten, name), overload or "default")
        copy.args, copy.kwargs = (), fx.map_arg(changed, lambda n: copies.get(n, n))
        return
    for name, value in changed.items():
        set_argument(copy, name, fx.map_arg(value, lambda n: copies.get(n, n)))


def _computed(graph: fx.Graph, copies: dict[fx.Node, fx.Node], value: Any) -> Any:
    """Return an argument with calls that compute the sizes which are parts of others."""
    if isinstance(value, list):
        return [_computed(graph, copies, item) for item in value]
    if not isinstance(value, Part):
        return value
    return _scaled(graph, copies[value.whole], value, counts_samples(value.whole.meta["val"]))


def _before(graph: fx.Graph, node: fx.Node, copies: dict[fx.Node, fx.Node], net: Net, left: KeepMask) -> fx.Node:
    """Return the size that a dimension had before units were gone, which is what other sizes are computed from."""
    axis = net.axes(node.args[0])[node.args[1]]  # type: ignore[arg-type, index]
    part = left.size(axis, node)
    if not isinstance(part, Part) or not part.times:
        return copies[node]
    return _scaled(graph, copies[node], Part(node, part.over, part.times), counts_samples(node.meta["val"]))


def _scaled(graph: fx.Graph, size: fx.Node, part: Part, samples: bool) -> fx.Node:
    times = graph.call_function(operator.mul, (size, part.times))
    scaled = times if part.over == 1 else graph.call_function(operator.floordiv, (times, part.over))
    for node in (times, scaled):  # numbers that grow with that of the samples, for who runs several batches as one
        node.meta["samples"] = samples
    return scaled


def slice_tensor(tensor: Tensor, axes: Axes, left: KeepMask) -> Tensor:
    """Return the positions left along each dimension."""
    for dim, axis in enumerate(axes):
        if left.count(axis) != axis.size:
            tensor = tensor.index_select(dim, left.indices(axis).to(tensor.device))
    return tensor
