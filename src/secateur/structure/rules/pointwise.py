"""Operations on each value alone: the output has the inputs' axes."""

from __future__ import annotations

from typing import Any

from torch import fx

from secateur.structure.axis import fix
from secateur.structure.rules.net import Axes, Net
from secateur.structure.rules.registry import name_of, rule


@rule("pointwise", "dropout", "_to_copy", "to", "clone", "contiguous", "alias", "detach", derivative="pointwise")
@rule(
    "hardswish", "log_sigmoid", "lift_fresh", "lift_fresh_copy", derivative="pointwise"
)  # which PyTorch does not tag as pointwise
def pointwise(net: Net, node: fx.Node, given: dict[str, Any]) -> Axes:
    """The inputs' axes, broadcast."""
    inputs = [net.axes(argument) for argument in node.all_input_nodes if net.is_tensor(argument)]
    if given.get("train") is True:
        net.fix_all(inputs, f"{name_of(node)} is random")
    return net.broadcast(inputs, name_of(node))


@rule("prelu", derivative="pointwise")
def prelu(net: Net, node: fx.Node, given: dict[str, Any]) -> Axes:
    """One slope for each channel (dimension 1), or one for all."""
    axes, slope = net.axes(given["self"]), net.axes(given["weight"])
    channels = axes[1:2] or axes
    net.broadcast([channels, slope], "prelu")
    return axes


@rule("softmax", "_softmax", "log_softmax", "_log_softmax")
def softmax(net: Net, node: fx.Node, given: dict[str, Any]) -> Axes:
    """Each value depends on all along the axis, which is therefore fixed."""
    axes = net.axes(given["self"])
    fix(axes[given["dim"]], f"{name_of(node)} normalises over it")
    return axes
