"""Operations that sum over an axis: there its units are consumed."""

from __future__ import annotations

from typing import Any

from torch import fx

from secateur.structure.axis import leaf, unify
from secateur.structure.rules.net import Axes, Net
from secateur.structure.rules.registry import rule


@rule("linear", derivative="contract")
def linear(net: Net, node: fx.Node, given: dict[str, Any]) -> Axes:
    """Dense: y[..., o] = Σ_i x[..., i] W[o, i] + b[o]."""
    x, weight = net.axes(given["input"]), net.axes(given["weight"])
    unify(x[-1], weight[1])
    out = [*x[:-1], weight[0]]
    if given["bias"] is not None:
        net.broadcast([out, net.axes(given["bias"])], "linear")
    net.consume(node, given["input"], len(x) - 1, given["weight"], 1)
    net.macs.append([*out, x[-1]])
    return out


@rule("matmul", "mm", "bmm", derivative="contract")
def matmul(net: Net, node: fx.Node, given: dict[str, Any]) -> Axes:
    """Products: y[..., n, m] = Σ_k a[..., n, k] b[..., k, m], leading dimensions broadcast, vectors without n or m."""
    return _matmul(net, node, given["self"], given["other"] if "other" in given else given["mat2"])


@rule("addmm", derivative="contract")
def addmm(net: Net, node: fx.Node, given: dict[str, Any]) -> Axes:
    """Biased: y = bias + a b."""
    out = _matmul(net, node, given["mat1"], given["mat2"])
    return net.broadcast([out, net.axes(given["self"])], "addmm")


def _matmul(net: Net, node: fx.Node, left: fx.Node, right: fx.Node) -> Axes:
    a, b = net.axes(left), net.axes(right)
    inner = max(len(b) - 2, 0)
    unify(a[-1], b[inner])
    lead = net.broadcast([a[:-2], b[:-2]], "matmul")
    out = [*lead, *(a[-2:-1] if len(a) > 1 else []), *(b[-1:] if len(b) > 1 else [])]
    if net.depends_on_inputs(left) or not net.depends_on_inputs(right):
        net.consume(node, left, len(a) - 1, right, inner)
    else:
        net.consume(node, right, inner, left, len(a) - 1)
    net.macs.append([*out, a[-1]])
    return out


@rule("sum", derivative="move")
def total(net: Net, node: fx.Node, given: dict[str, Any]) -> Axes:
    """A sum over units is exact without those removed."""
    axes = net.axes(given["self"])
    dims = _reduced(given.get("dim"), len(axes))
    for i in dims:
        net.consume(node, given["self"], i)
    return _left(axes, dims, given.get("keepdim"))


@rule("mean")
def mean(net: Net, node: fx.Node, given: dict[str, Any]) -> Axes:
    """A mean counts the units, so that none can go."""
    axes = net.axes(given["self"])
    dims = _reduced(given.get("dim"), len(axes))
    net.fix_all([[axes[i] for i in dims]], "a mean is taken over it")
    return _left(axes, dims, given.get("keepdim"))


def _reduced(dim: int | list[int] | None, n: int) -> set[int]:
    every = range(n) if dim is None or dim == [] else [dim] if isinstance(dim, int) else dim
    return {i % n for i in every}


def _left(axes: Axes, dims: set[int], keepdim: bool | None) -> Axes:
    return [leaf(1, "summed over") if i in dims else axis for i, axis in enumerate(axes) if keepdim or i not in dims]
