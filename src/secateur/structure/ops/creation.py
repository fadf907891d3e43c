"""Tensors made in forward from sizes alone."""

from __future__ import annotations

from typing import Any

from torch import fx

from secateur.structure.keep_mask import KeepMask
from secateur.structure.ops.movement import shape_left
from secateur.structure.ops.net import Axes, Net
from secateur.structure.ops.registry import resize, rule


@rule("zeros", "ones", "full", "empty", "new_zeros", "new_ones", "new_full", "new_empty", "rand", "randn")
def constant(net: Net, node: fx.Node, operands: dict[str, Any]) -> Axes:
    """State one value everywhere, or noise: any number of units."""
    return net.fresh_outputs(node)[0]


@resize("zeros", "ones", "full", "empty", "new_zeros", "new_ones", "new_full", "new_empty", "rand", "randn")
def resize_constant(net: Net, node: fx.Node, operands: dict[str, Any], left: KeepMask) -> dict[str, Any]:
    """Return the shape that is left."""
    return {"size": shape_left(net.axes(node), operands["size"], left)}


@rule("arange", "linspace", "eye", "scalar_tensor")
def counted(net: Net, node: fx.Node, operands: dict[str, Any]) -> Axes:
    """State that each position has a value of its own."""
    return net.fresh_outputs(node, "its positions are counted in forward")[0]
