"""Operations that choose among units by their values, as a router does among experts, and that count what is chosen."""

from __future__ import annotations

from typing import Any

from torch import fx

from secateur.structure.axis import fix, leaf
from secateur.structure.keep_mask import KeepMask
from secateur.structure.ops.net import Axes, Net, dim_of, require_form
from secateur.structure.ops.places import choose, look_up
from secateur.structure.ops.registry import resize, rule


@rule("topk")
def topk(net: Net, node: fx.Node, operands: dict[str, Any]) -> list[Axes]:
    """State that the k largest or smallest values along one dimension are chosen, with their places."""
    axes, k = net.axes(operands["self"]), operands["k"]
    dim = dim_of(operands, axes)
    require_form(isinstance(k, int), "as many values as the inputs say")
    choose(net, node, operands["self"], dim, k, output=1)
    return [[*axes[:dim], leaf(k, "topk orders it"), *axes[dim + 1 :]] for _ in range(2)]


@rule("one_hot")
def one_hot(net: Net, node: fx.Node, operands: dict[str, Any]) -> Axes:
    """State a new last dimension, with a one at the position that each number tells."""
    classes = leaf(net.shape(node)[-1])
    look_up(net, node, operands["self"], classes, "it is indexed")
    return [*net.axes(operands["self"]), classes]


@resize("one_hot")
def resize_one_hot(net: Net, node: fx.Node, operands: dict[str, Any], left: KeepMask) -> dict[str, Any]:
    """Return the number of positions left."""
    return {"num_classes": left.size(net.axes(node)[-1], operands["num_classes"])}


@rule("histc")
def histc(net: Net, node: fx.Node, operands: dict[str, Any]) -> Axes:
    """State how many numbers lie in each bin; where a bin is one whole number, how often each position is there."""
    bins, of = leaf(operands["bins"]), operands["self"]
    if (operands["min"], operands["max"]) == (0, bins.size - 1):
        look_up(net, node, of, bins, "values are counted")
    else:
        fix(bins, "values are counted")
    net.fix_all([net.axes(of)], "values are counted")
    return [bins]


@resize("histc")
def resize_histc(net: Net, node: fx.Node, operands: dict[str, Any], left: KeepMask) -> dict[str, Any]:
    """Return as many bins as positions are left."""
    bins = net.axes(node)[0]
    return {"bins": left.count(bins), "max": left.count(bins) - 1} if left.count(bins) != bins.size else {}
