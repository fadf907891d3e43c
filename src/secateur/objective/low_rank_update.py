"""What a unit's gate changes in the layer that sums it up: Z + (γ − g_k) o_k w_k, without the layer's other inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from secateur.structure.rules.registry import arguments

# The layer's results [C N, ...] for C candidates, from the positions [C, p] of their units and each one's γ − g_k.
Update = Callable[[Tensor, Tensor], Tensor]
# An update, from the layer's arguments by name, the input without gates, and its results Z [N, ...].
Layer = Callable[[dict[str, Any], Tensor], Update]


def update_of(node: fx.Node, operand: fx.Node) -> Layer | None:
    """How this layer is updated where `operand` is its input, None if by no rule."""
    if len(node.args) < 2 or node.args[0] is not operand or operand in node.args[1:]:
        return None
    if node.target is torch.ops.aten.linear.default:
        return dense
    if node.target in CONVOLUTIONS and arguments(node)["groups"] == 1:
        return convolution
    return None


def dense(given: dict[str, Any], z: Tensor) -> Update:
    """Z + o_k (δ_k w_k)ᵀ: rank 1, or a head's width."""
    o, w, whole = given["input"].flatten(0, -2).t(), given["weight"].t(), z.flatten(0, -2)
    made = z.new_empty(0)

    def updated(positions: Tensor, change: Tensor) -> Tensor:
        rows = o[positions].transpose(1, 2)  # [C, N ..., p]
        columns = w[positions] * change[:, None, None]  # [C, p, O]
        nonlocal made  # used again: fresh memory costs more than the product
        made = made.resize_(0 if change.requires_grad else len(positions), *whole.shape)
        out = None if change.requires_grad else made
        if positions.shape[1] == 1:
            result = torch.addcmul(whole, rows, columns, out=out)
        else:
            result = torch.baddbmm(whole.expand(len(positions), -1, -1), rows, columns, out=out)
        return result.reshape(-1, *z.shape[1:])

    return updated


def convolution(given: dict[str, Any], z: Tensor) -> Update:
    """Z + conv(o_k, δ_k w_k): each candidate a group of one convolution."""
    o, w = given["input"], given["weight"].transpose(0, 1)
    options = {name: given[name] for name in ("stride", "padding", "dilation")}

    def updated(positions: Tensor, change: Tensor) -> Tensor:
        count = len(positions)
        weight = w[positions].transpose(1, 2) * change.reshape(-1, *[1] * w.ndim)  # [C, O, p, ...]
        delta = _CONVOLVE[z.ndim](o[:, positions.flatten()], weight.flatten(0, 1), groups=count, **options)
        of_each = delta.reshape(len(z), count, *z.shape[1:])
        return (z[:, None] + of_each).transpose(0, 1).flatten(0, 1)

    return updated


_CONVOLVE: dict[int, Callable[..., Tensor]] = {3: torch.conv1d, 4: torch.conv2d, 5: torch.conv3d}
CONVOLUTIONS = {
    getattr(getattr(torch.ops.aten, f"conv{n}d"), overload) for n in (1, 2, 3) for overload in ("default", "padding")
}

# What never returns its input's memory, and what may then overwrite it.
_FRESH = CONVOLUTIONS | {getattr(torch.ops.aten, name).default for name in ("linear", "batch_norm", "layer_norm")}
_IN_PLACE = {
    getattr(torch.ops.aten, name).default: getattr(torch.ops.aten, f"{name}_").default
    for name in ("relu", "sigmoid", "tanh", "silu", "hardtanh", "hardswish", "leaky_relu")
}


def overwrite(graph: fx.Graph, fresh: set[fx.Node]) -> bool:
    """Let activations overwrite what they alone take: of calls, and of placeholders whose memory is given away.

    Returns:
        Whether what the graph returns may be overwritten, too.
    """
    for node in graph.nodes:
        if node.target in _IN_PLACE and len(node.args[0].users) == 1 and _is_fresh(node.args[0], fresh):
            node.target = _IN_PLACE[node.target]
    return all(_is_fresh(node, fresh) for node in graph.output_node().all_input_nodes)


def _is_fresh(node: fx.Node, fresh: set[fx.Node]) -> bool:
    return node in fresh or node.target in _FRESH or node.target in _IN_PLACE.values()
