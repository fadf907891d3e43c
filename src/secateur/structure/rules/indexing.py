"""Operations that look values up: what is counted by an index is fixed, the rest passes through."""

from __future__ import annotations

from typing import Any

from torch import fx

from secateur.structure.axis import fix, leaf
from secateur.structure.rules.net import Axes, Net
from secateur.structure.rules.registry import name_of, rule


@rule("embedding")
def embedding(net: Net, node: fx.Node, given: dict[str, Any]) -> Axes:
    """y[..., c] = W[i[...], c]."""
    rows, width = net.axes(given["weight"])
    fix(rows, "rows are looked up by index")
    return [*net.axes(given["indices"]), width]


@rule("index", "_unsafe_index")
def index(net: Net, node: fx.Node, given: dict[str, Any]) -> Axes:
    """Dimensions with an index are replaced by those of the indices, at the place of the first, or in front."""
    axes, indices = net.axes(given["self"]), given["indices"]
    at, taken = _indexed(net, axes, indices)
    rest = [axis for i, axis in enumerate(axes) if i >= len(indices) or indices[i] is None]
    out = [*rest[:at], *taken, *rest[at:]]
    if [axis.size for axis in out] == list(net.shape(node)):
        return out
    net.fix_all([axes], "it is indexed")  # by a mask: how many there are depends on the values
    return net.fresh_outputs(node, "it is indexed")[0]


def _indexed(net: Net, axes: Axes, indices: list[fx.Node | None]) -> tuple[int, Axes]:
    """Where the indices' own dimensions come, and their axes."""
    given = [(i, node) for i, node in enumerate(indices) if node is not None]
    net.fix_all([[axes[i]] for i, _ in given], "it is indexed")
    taken = net.broadcast([net.axes(node) for _, node in given], "index")
    net.fix_all([taken], "an index")
    adjacent = given[-1][0] - given[0][0] == len(given) - 1
    return (given[0][0] if adjacent else 0), taken


@rule("index_put")
def index_put(net: Net, node: fx.Node, given: dict[str, Any]) -> Axes:
    """Values written, or added, at some places of the indexed dimensions."""
    axes, indices = net.axes(given["self"]), given["indices"]
    at, taken = _indexed(net, axes, indices)
    rest = [axis for i, axis in enumerate(axes) if i >= len(indices) or indices[i] is None]
    values = net.axes(given["values"])
    where = [*rest[:at], *taken, *rest[at:]]
    if all(a.size in (1, b.size) for a, b in zip(values[::-1], where[::-1], strict=False)):
        net.broadcast([where, values], "index_put")
    else:
        net.fix_all([axes, values], "it is indexed")
    return axes


@rule("index_select")
def index_select(net: Net, node: fx.Node, given: dict[str, Any]) -> Axes:
    """One dimension by an index."""
    axes = net.axes(given["self"])
    fix(axes[given["dim"]], "it is indexed")
    axes[given["dim"]] = leaf(net.shape(node)[given["dim"]], "an index")
    return axes


@rule("gather", "take_along_dim")
def gather(net: Net, node: fx.Node, given: dict[str, Any]) -> Axes:
    """One position of a dimension for each value of an index of the same rank."""
    axes, taken = net.axes(given["self"]), net.axes(given["index" if "index" in given else "indices"])
    dim = given["dim"] % len(axes)
    fix(axes[dim], "it is indexed")
    fix(taken[dim], "an index")
    for i, (axis, own) in enumerate(zip(axes, taken, strict=True)):
        if i != dim:
            net.broadcast([[axis], [own]], name_of(node))
    return (
        [
            max(pair, key=lambda axis: axis.size) if i != dim else taken[i]
            for i, pair in enumerate(zip(axes, taken, strict=True))
        ]
        if name_of(node) == "take_along_dim"
        else taken
    )


@rule("topk", "sort", "argsort", "kthvalue")
def order(net: Net, node: fx.Node, given: dict[str, Any]) -> Axes | list[Axes]:
    """Positions of one dimension chosen or reordered by value."""
    axes = net.axes(given["self"])
    reason = f"{name_of(node)} orders it"
    fix(axes[given["dim"]], reason)
    outputs = []
    for fresh in net.fresh_outputs(node, reason):
        kept = [
            new if i == given["dim"] % len(axes) else old for i, (old, new) in enumerate(zip(axes, fresh, strict=True))
        ]
        outputs.append(kept)
    return outputs if isinstance(node.meta["val"], tuple | list) else outputs[0]
