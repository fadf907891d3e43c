"""The captured graph for a network whose units are gone: the same calls with the sizes of what is left.

With sliced weights this is the truth that a cut network is held against.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterable, Sequence
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


def slice_graph(
    captured: Captured, net: Net, left: KeepMask, handed: Collection[fx.Node] = (),
    wanted: Sequence[fx.Node] | None = None,
) -> Sliced:  # fmt: skip
    """Return a copy of the graph with every size among its arguments brought in line with what is left.

    Args:
        captured: The original.
        net: The axes of its values.
        left: The units that stay.
        handed: The nodes whose values are given: placeholders of the copy.
        wanted: The nodes whose values the copy returns; None for those of the original.
    """
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    returned = captured.graph.output_node().args[0] if wanted is None else list(wanted)
    needed = None if wanted is None else needed_between(handed, wanted)
    for node in captured.graph.nodes:
        if node.op == "output" or (needed is not None and node not in needed):
            continue
        if node in handed:
            copies[node] = graph.placeholder(node.name)
            continue
        changed = _resized(node, net, left)
        changed = {name: _computed(graph, copies, value) for name, value in changed.items()}
        copies[node] = graph.node_copy(node, copies.__getitem__)
        if changed:
            _apply(copies[node], changed, copies)
        if copies[node].target is torch.ops.aten.view.default:
            copies[node].target = torch.ops.aten.reshape.default  # values that are left may lie otherwise in memory
    graph.output(fx.map_arg(returned, copies.__getitem__))
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
    times = graph.call_function(operator.mul, (copies[value.whole], value.times))
    size = times if value.over == 1 else graph.call_function(operator.floordiv, (times, value.over))
    for node in (times, size):  # numbers that grow with that of the samples, for those who run several batches as one
        node.meta["samples"] = counts_samples(value.whole.meta["val"])
    return size


def slice_tensor(tensor: Tensor, axes: Axes, left: KeepMask) -> Tensor:
    """Return the positions left along each dimension, in the tensor's memory format."""
    piece = tensor
    for dim, axis in enumerate(axes):
        if left.count(axis) != axis.size:
            piece = piece.index_select(dim, left.indices(axis).to(tensor.device))
    return in_format_of(tensor, piece)


def unslice_tensor(tensor: Tensor, piece: Tensor, axes: Axes, left: KeepMask) -> Tensor:
    """Return a copy of a tensor with a piece's values at the positions that are left: `slice_tensor` gives it back."""
    whole = tensor.detach().clone()
    there = torch.ones((), dtype=torch.bool, device=whole.device)
    for dim, axis in enumerate(axes):
        there = there & left.mask(axis).to(whole.device).reshape(-1, *[1] * (whole.ndim - dim - 1))
    whole[there.expand(whole.shape)] = piece.detach().to(whole).flatten()
    return whole


def needed_between(inputs: Collection[fx.Node], wanted: Iterable[fx.Node]) -> set[fx.Node]:
    """Return the nodes that must be computed for some values when others are known, with both."""
    needed: set[fx.Node] = set()
    rest = list(wanted)
    while rest:
        node = rest.pop()
        if node not in needed:
            needed.add(node)
            rest += [] if node in inputs else node.all_input_nodes
    return needed


def in_format_of(tensor: Tensor, values: Tensor) -> Tensor:
    """Return values in the memory format of another tensor: channels last where that is."""
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(tensor.ndim)
    if last is None or tensor.ndim != values.ndim or tensor.stride() == _strides(tensor, torch.contiguous_format):
        return values
    is_last = tensor.stride() == _strides(tensor, last) != values.stride()
    return torch.empty_like(values, memory_format=last).copy_(values) if is_last else values


def _strides(tensor: Tensor, memory_format: torch.memory_format) -> tuple[int, ...]:
    return torch.empty_like(tensor, device="meta", memory_format=memory_format).stride()
