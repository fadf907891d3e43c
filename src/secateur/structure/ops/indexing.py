"""Operations that look values up, or choose them: what is counted by an index is fixed, the rest passes through."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

from secateur.structure.axis import cat, fix, is_fixed, leaf, product, unify
from secateur.structure.keep_mask import KeepMask
from secateur.structure.ops.movement import start_of
from secateur.structure.ops.net import Axes, Net, dim_of, require_form
from secateur.structure.ops.registry import module_sizes, name_of, resize, rule


@rule("embedding")
def embedding(net: Net, node: fx.Node, operands: dict[str, Any]) -> Axes:
    """State y[..., c] = W[i[...], c]."""
    rows, width = net.axes(operands["weight"])
    net.look_up(node, operands["indices"], rows, "rows are looked up by index")
    return [*net.axes(operands["indices"]), width]


@module_sizes(nn.Embedding, nn.EmbeddingBag)
def attributes(module: nn.Module, shape: tuple[int, ...], groups: int | None) -> dict[str, Any]:
    """Return the number of rows, and their width."""
    return {"num_embeddings": shape[0], "embedding_dim": shape[1]}


@rule("index", "_unsafe_index", derivative="pick")
def index(net: Net, node: fx.Node, operands: dict[str, Any]) -> Axes:
    """Replace dimensions with an index by those of the indices, at the place of the first, or in front."""
    axes, indices = net.axes(operands["self"]), operands["indices"]
    at, taken = _indexed(net, node, axes, indices)
    rest = [axis for i, axis in enumerate(axes) if i >= len(indices) or indices[i] is None]
    out = [*rest[:at], *taken, *rest[at:]]
    if [axis.size for axis in out] == list(net.shape(node)):
        return out
    net.fix_all([axes], "it is indexed")  # by a mask: how many there are depends on the values
    return net.fresh_outputs(node, "it is indexed")[0]


def _indexed(net: Net, node: fx.Node, axes: Axes, indices: list[fx.Node | None]) -> tuple[int, Axes]:
    """Return where the indices' own dimensions come, and their axes."""
    indexed = [(i, node) for i, node in enumerate(indices) if node is not None]
    require_form(bool(indexed), "no index")
    for i, positions in indexed:
        net.look_up(node, positions, axes[i], "it is indexed")
    taken = net.broadcast([net.axes(node) for _, node in indexed], "index")
    net.fix_all([taken], "an index")
    adjacent = indexed[-1][0] - indexed[0][0] == len(indexed) - 1
    return (indexed[0][0] if adjacent else 0), taken


@rule("index_put")
def index_put(net: Net, node: fx.Node, operands: dict[str, Any]) -> Axes:
    """State that values are written, or added, at some places of the indexed dimensions."""
    axes, indices = net.axes(operands["self"]), operands["indices"]
    if any(node is not None and node.meta["val"].dtype == torch.bool for node in indices):
        net.fix_all(
            [axes, net.axes(operands["values"]), *(net.axes(n) for n in indices if n is not None)], "it is indexed"
        )
        return axes
    at, taken = _indexed(net, node, axes, indices)
    rest = [axis for i, axis in enumerate(axes) if i >= len(indices) or indices[i] is None]
    values = net.axes(operands["values"])
    where = [*rest[:at], *taken, *rest[at:]]
    if all(a.size in (1, b.size) for a, b in zip(values[::-1], where[::-1], strict=False)):
        net.broadcast([where, values], "index_put")
    else:
        net.fix_all([axes, values], "it is indexed")
    return axes


@rule("index_select", derivative="pick")
def index_select(net: Net, node: fx.Node, operands: dict[str, Any]) -> Axes:
    """State that positions of one dimension are chosen by an index."""
    axes = net.axes(operands["self"])
    dim = dim_of(operands, axes)
    net.look_up(node, operands["index"], axes[dim], "it is indexed")
    axes[dim] = leaf(net.shape(node)[dim], "an index")
    return axes


@rule("scatter_add", "scatter_reduce", "scatter")
def scatter(net: Net, node: fx.Node, operands: dict[str, Any]) -> Axes:
    """State that values are added or written at one position of a dimension each, by an index of the same rank."""
    axes, taken = net.axes(operands["self"]), net.axes(operands["index"])
    source = net.axes(operands["src"]) if isinstance(operands.get("src"), fx.Node) else taken
    dim = dim_of(operands, axes)
    require_form(len(axes) == len(taken) == len(source), "an index of another rank")
    net.look_up(node, operands["index"], axes[dim], "it is indexed")
    net.fix_all([[taken[dim], source[dim]]], "it is indexed")
    for i, aligned in enumerate(zip(axes, taken, source, strict=True)):
        if i != dim and len({axis.size for axis in aligned}) > 1:
            net.fix_all([list(aligned)], f"{name_of(node)} writes over some of it")
        elif i != dim:
            net.broadcast([[axis] for axis in aligned], name_of(node))
    return axes


@rule("index_add", "index_copy")
def index_add(net: Net, node: fx.Node, operands: dict[str, Any]) -> Axes:
    """State that slices are added or written at the positions of an index."""
    axes, source = net.axes(operands["self"]), net.axes(operands["source"])
    dim = dim_of(operands, axes)
    require_form(len(axes) == len(source), "a source of another rank")
    net.fix_all([[axes[dim], source[dim]], net.axes(operands["index"])], "it is indexed")
    for i, (axis, added) in enumerate(zip(axes, source, strict=True)):
        if i != dim:
            unify(axis, added)
    return axes


@rule("embedding_bag", "_embedding_bag", "_embedding_bag_forward_only")
def embedding_bag(net: Net, node: fx.Node, operands: dict[str, Any]) -> list[Axes]:
    """State that rows are looked up by index and summed within each bag."""
    rows, width = net.axes(operands["weight"])
    fix(rows, "rows are looked up by index")
    first, *others = net.fresh_outputs(node, "a bag")
    return [[first[0], width], *others]


@rule("gather", "take_along_dim", derivative="pick")
def gather(net: Net, node: fx.Node, operands: dict[str, Any]) -> Axes:
    """State one position of a dimension for each value of an index of the same rank."""
    index = operands["index" if "index" in operands else "indices"]
    axes, taken = net.axes(operands["self"]), net.axes(index)
    dim = dim_of(operands, axes)
    require_form(len(axes) == len(taken), "an index of another rank")
    net.look_up(node, index, axes[dim], "it is indexed")
    fix(taken[dim], "an index")
    for i, (axis, own) in enumerate(zip(axes, taken, strict=True)):
        if i != dim and axis.size != own.size and name_of(node) == "gather":
            net.fix_all([[axis, own]], "gather takes some of it")
        elif i != dim:
            net.broadcast([[axis], [own]], name_of(node))
    return (
        [
            max(pair, key=lambda axis: axis.size) if i != dim else taken[i]
            for i, pair in enumerate(zip(axes, taken, strict=True))
        ]
        if name_of(node) == "take_along_dim"
        else taken
    )


@rule("sort", "argsort", "kthvalue")
def order(net: Net, node: fx.Node, operands: dict[str, Any]) -> Axes | list[Axes]:
    """State that positions of one dimension are chosen or reordered by value."""
    axes = net.axes(operands["self"])
    reason = f"{name_of(node)} orders it"
    dim = dim_of(operands, axes)
    fix(axes[dim], reason)
    if name_of(node) == "sort" and (operands["self"], 0) in net.places:
        net.places[node, 0] = net.places[operands["self"], 0]
        net.looked_up.add((node, operands["self"]))
    outputs = []
    for fresh in net.fresh_outputs(node, reason):
        own = fresh[dim : dim + 1] if len(fresh) == len(axes) else []  # or without the dimension
        outputs.append([*axes[:dim], *own, *axes[dim + 1 :]])
    return outputs if isinstance(node.meta["val"], tuple | list) else outputs[0]


@rule("slice_scatter", derivative="move")
def slice_scatter(net: Net, node: fx.Node, operands: dict[str, Any]) -> Axes:
    """State that a segment is written over; with a step, one member of each group of so many."""
    axes, source = net.axes(operands["self"]), net.axes(operands["src"])
    dim, step = dim_of(operands, axes), operands.get("step") or 1
    whole, written, start = axes[dim], source[dim], start_of(operands, axes[dim].size)
    if start is None or (step > 1 and written.size * step != whole.size):
        net.fix_all([[whole, written]], "slice_scatter writes over some of it")
    elif step > 1:
        unify(whole, product([written, leaf(step, "slice_scatter writes over one of each group")]))
    else:
        unify(whole, cat([leaf(start), written, leaf(whole.size - start - written.size)]))
    net.broadcast([axes[:dim] + axes[dim + 1 :], source[:dim] + source[dim + 1 :]], "slice_scatter")
    return axes


@resize("slice_scatter")
def resize_slice_scatter(net: Net, node: fx.Node, operands: dict[str, Any], left: KeepMask) -> dict[str, Any]:
    """Return where the segment begins and ends."""
    dim = operands["dim"] % len(net.axes(node))
    whole, source = net.axes(operands["self"])[dim], net.axes(operands["src"])[dim]
    start = start_of(operands, whole.size)
    if start is None or is_fixed(whole):
        return {}
    if (operands.get("step") or 1) > 1:
        return {"start": start, "end": left.count(whole)}
    begin = left.before(whole, start)
    return {"start": begin, "end": begin + left.count(source)}


@rule("select_scatter", derivative="move")
def select_scatter(net: Net, node: fx.Node, operands: dict[str, Any]) -> Axes:
    """State that another tensor is written over one position of a dimension, which is therefore fixed."""
    axes = net.axes(operands["self"])
    dim = dim_of(operands, axes)
    fix(axes[dim], "select_scatter writes over one of it")
    rest = axes[:dim] + axes[dim + 1 :]
    if rest:
        net.broadcast([rest, net.axes(operands["src"])], "select_scatter")
    return axes


@rule("topk")
def topk(net: Net, node: fx.Node, operands: dict[str, Any]) -> list[Axes]:
    """State that the k largest or smallest values along one dimension are chosen, with their places."""
    axes, k = net.axes(operands["self"]), operands["k"]
    dim = dim_of(operands, axes)
    require_form(isinstance(k, int), "as many values as the inputs say")
    net.choose(node, operands["self"], dim, "topk chooses along it", k, output=1)
    return [[*axes[:dim], leaf(k, "topk orders it"), *axes[dim + 1 :]] for _ in range(2)]


@rule("one_hot")
def one_hot(net: Net, node: fx.Node, operands: dict[str, Any]) -> Axes:
    """State a new last dimension, with a one at the position that each number tells."""
    classes = leaf(net.shape(node)[-1])
    net.look_up(node, operands["self"], classes, "it is indexed")
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
        net.look_up(node, of, bins, "values are counted")
    else:
        fix(bins, "values are counted")
    net.fix_all([net.axes(of)], "values are counted")
    return [bins]


@resize("histc")
def resize_histc(net: Net, node: fx.Node, operands: dict[str, Any], left: KeepMask) -> dict[str, Any]:
    """Return as many bins as positions are left."""
    bins = net.axes(node)[0]
    return {"bins": left.count(bins), "max": left.count(bins) - 1} if left.count(bins) != bins.size else {}
