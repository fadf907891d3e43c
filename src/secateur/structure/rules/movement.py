"""Operations that only move values: views, permutations, concatenation."""

from __future__ import annotations

from typing import Any

from torch import fx

from secateur.structure.axis import cat as cat_axes
from secateur.structure.axis import fix, leaf, product, unify
from secateur.structure.rules.net import Axes, Net
from secateur.structure.rules.registry import name_of, rule


@rule("view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze", derivative="move")
def view(net: Net, node: fx.Node, given: dict[str, Any]) -> Axes:
    """Dimensions regrouped: the smallest groups of equal size on both sides are equal products."""
    after = [leaf(size) for size in net.shape(node)]
    left, right = net.axes(given["self"])[::-1], after[::-1]  # the slowest dimension is popped first
    dropped = {axis for axis in left if axis.size == 1}
    while left and right:
        a, b = left.pop(), right.pop()
        if a.size == b.size == 1:
            dropped.discard(a)
        while a.size != b.size:
            if a.size < b.size:
                a = product([a, left.pop()])
            else:
                b = product([b, right.pop()])
        unify(a, b)
    for axis in dropped:  # a product does not hold it, so that no gate could
        fix(axis, f"{name_of(node)} drops it")
    return after


@rule("t", "numpy_T", derivative="move")
def t(net: Net, node: fx.Node, given: dict[str, Any]) -> Axes:
    """The dimensions in reverse."""
    return net.axes(given["self"])[::-1]


@rule("transpose", derivative="move")
def transpose(net: Net, node: fx.Node, given: dict[str, Any]) -> Axes:
    """Two dimensions exchanged."""
    axes = list(net.axes(given["self"]))
    i, j = given["dim0"], given["dim1"]
    axes[i], axes[j] = axes[j], axes[i]
    return axes


@rule("permute", derivative="move")
def permute(net: Net, node: fx.Node, given: dict[str, Any]) -> Axes:
    """The dimensions in another order."""
    axes = net.axes(given["self"])
    return [axes[i] for i in given["dims"]]


@rule("cat", derivative="move")
def cat(net: Net, node: fx.Node, given: dict[str, Any]) -> Axes:
    """One after the other along `dim`, the same elsewhere."""
    pieces = [net.axes(tensor) for tensor in given["tensors"]]
    dim = given["dim"] % len(pieces[0])
    for piece in pieces[1:]:
        for i, axis in enumerate(piece):
            if i != dim:
                unify(pieces[0][i], axis)
    return [cat_axes([p[i] for p in pieces]) if i == dim else axis for i, axis in enumerate(pieces[0])]


@rule("getitem", derivative="output")
def getitem(net: Net, node: fx.Node, given: dict[str, Any]) -> Axes:
    """One of several outputs."""
    axes: Axes = net.outputs(given["0"])[given["1"]]
    return axes
