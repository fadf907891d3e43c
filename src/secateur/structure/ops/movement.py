"""Operations that only move values: views, permutations, concatenation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import fx

from secateur.structure.axis import Axis, fix, is_fixed, leaf, product, unify
from secateur.structure.axis import cat as cat_axes
from secateur.structure.keep_mask import KeepMask
from secateur.structure.ops.net import Axes, Net, NotCoveredError, dim_of, rank_of, require_form, same_size
from secateur.structure.ops.registry import Take, name_of, resize, rule


def select_before(x: fx.Node, dim: int, take: Take) -> list[Any] | None:
    """Take the position, where this dimension and all before it stay as they are."""
    operand, shape = x.args[0], list(x.args[1])  # type: ignore[arg-type]
    if not isinstance(operand, fx.Node) or rank_of(operand) <= dim:
        return None
    same = all(same_size(operand, d, x, d) for d in range(dim + 1))
    return [take(operand, dim), [*shape[:dim], 1, *shape[dim + 1 :]]] if same else None


@rule("view", "reshape", derivative="move", select=select_before)
@rule("_unsafe_view", "flatten", "unflatten", "unsqueeze", derivative="move")
@rule("squeeze", "view_as", "reshape_as", "ravel", "atleast_1d", "atleast_2d", "atleast_3d", derivative="move")
def view(net: Net, node: fx.Node, operands: dict[str, Any]) -> Axes:
    """State that dimensions are regrouped: the smallest groups of equal size on both sides are equal products."""
    require_form("self" in operands, "several tensors at once")
    after = [leaf(size) for size in net.shape(node)]
    left, right = net.axes(operands["self"])[::-1], after[::-1]  # the slowest dimension is popped first
    dropped = {axis for axis in left if axis.size == 1}
    while left and right:
        a, b = left.pop(), right.pop()
        if a.size == b.size == 1:
            dropped.discard(a)
        while a.size != b.size:
            if a.size < b.size:
                a = product([a, _next(left)])
            else:
                b = product([b, _next(right)])
        unify(a, b)
    for axis in dropped:  # a product does not hold it, so that no gate could
        fix(axis, f"{name_of(node)} drops it")
    if isinstance(operands.get("other"), fx.Node):
        for axis, target in zip(after, net.axes(operands["other"]), strict=True):
            unify(axis, target)
    return after


def _next(axes: Axes) -> Axis:
    """Return the next dimension.

    Raises:
        NotCoveredError: There is none: a view of another dtype, or of nothing.
    """
    if not axes:
        raise NotCoveredError
    return axes.pop()


@resize("squeeze")
def resize_squeeze(net: Net, node: fx.Node, operands: dict[str, Any], left: KeepMask) -> dict[str, Any]:
    """Return the squeeze of only the dimensions that were of size 1 before."""
    axes = net.axes(operands["self"])
    if all(left.count(axis) != 1 for axis in axes if axis.size != 1):
        return {}
    asked = range(len(axes)) if operands.get("dim") is None else operands["dim"]
    dims = [k % len(axes) for k in ([asked] if isinstance(asked, int) else asked)]
    ones = [dim for dim in dims if axes[dim].size == 1]
    return {"target": "squeeze.dims", "self": operands["self"], "dim": ones}


@resize("view", "reshape", "_unsafe_view", "expand")
def resize_shape(net: Net, node: fx.Node, operands: dict[str, Any], left: KeepMask) -> dict[str, Any]:
    """Return what is left of the shape asked for; −1 stays."""
    name = next((name for name in ("size", "shape") if name in operands), None)
    return {} if name is None else {name: shape_left(net.axes(node), operands[name], left)}  # or a view of another type


@resize("unflatten")
def resize_unflatten(net: Net, node: fx.Node, operands: dict[str, Any], left: KeepMask) -> dict[str, Any]:
    """Return what is left of the shape of one dimension."""
    start = operands["dim"] % len(net.axes(operands["self"]))
    return {"sizes": shape_left(net.axes(node)[start : start + len(operands["sizes"])], operands["sizes"], left)}


def shape_left(axes: Axes, sizes: Sequence[Any], left: KeepMask) -> list[Any]:
    """Return sizes given as arguments, for what is left of the axes they are of."""
    return [size if size == -1 else left.size(axis, size) for axis, size in zip(axes, sizes, strict=True)]


@rule("t", "numpy_T", "mT", "adjoint", derivative="move")
def t(net: Net, node: fx.Node, operands: dict[str, Any]) -> Axes:
    """Return the dimensions in reverse, or the last two of them."""
    axes = net.axes(operands["self"])
    return [*axes[:-2], *axes[-2:][::-1]] if name_of(node) in ("mT", "adjoint") else axes[::-1]


def select_exchanged(x: fx.Node, dim: int, take: Take) -> list[Any]:
    """Take the position along the dimension that it was before."""
    a, b = (int(d) % rank_of(x) for d in x.args[1:])  # type: ignore[arg-type]
    return [take(x.args[0], {a: b, b: a}.get(dim, dim)), a, b]


@rule("transpose", derivative="move", select=select_exchanged)
@rule("swapaxes", "swapdims", derivative="move")
def transpose(net: Net, node: fx.Node, operands: dict[str, Any]) -> Axes:
    """Return the axes with two dimensions exchanged."""
    axes = net.axes(operands["self"])
    i, j = (dim_of(operands, axes, f"dim{k}" if "dim0" in operands else f"axis{k}") for k in (0, 1))
    axes[i], axes[j] = axes[j], axes[i]
    return axes


@rule("permute", derivative="move")
def permute(net: Net, node: fx.Node, operands: dict[str, Any]) -> Axes:
    """Return the dimensions in another order."""
    axes = net.axes(operands["self"])
    return [axes[i] for i in operands["dims"]]


@rule("movedim", "moveaxis", derivative="move")
def movedim(net: Net, node: fx.Node, operands: dict[str, Any]) -> Axes:
    """Return some dimensions at other places, the rest in order."""
    axes = net.axes(operands["self"])
    require_form(bool(axes), "a scalar")
    places = [
        [operands[name]] if isinstance(operands[name], int) else operands[name] for name in ("source", "destination")
    ]
    moved = {to % len(axes): axes[of % len(axes)] for of, to in zip(*places, strict=True)}
    rest = iter([axis for i, axis in enumerate(axes) if i not in {of % len(axes) for of in places[0]}])
    return [moved[i] if i in moved else next(rest) for i in range(len(axes))]


@rule("cat", "concat", "concatenate", derivative="move")
def cat(net: Net, node: fx.Node, operands: dict[str, Any]) -> Axes:
    """State that the tensors lie one after the other along `dim`, and have the same axes elsewhere."""
    pieces = [net.axes(tensor) for tensor in operands["tensors"]]
    pieces = [p for p in pieces if len(p) > 1 or p[0].size] or pieces[:1]  # an empty vector may stand among matrices
    dim = operands["dim" if "dim" in operands else "axis"] % len(pieces[0])
    for piece in pieces[1:]:
        for i, axis in enumerate(piece):
            if i != dim:
                unify(pieces[0][i], axis)
    return [cat_axes([p[i] for p in pieces]) if i == dim else axis for i, axis in enumerate(pieces[0])]


@rule("stack", derivative="move")
def stack(net: Net, node: fx.Node, operands: dict[str, Any]) -> Axes:
    """Return a new dimension that counts the tensors."""
    axes = net.broadcast([net.axes(tensor) for tensor in operands["tensors"]], "stack")
    axes.insert(operands["dim"] % (len(axes) + 1), leaf(len(operands["tensors"]), "it counts stacked tensors"))
    return axes


@rule("unbind", derivative="move")
def unbind(net: Net, node: fx.Node, operands: dict[str, Any]) -> list[Axes]:
    """Return a tensor for each position, which are therefore fixed."""
    axes = net.axes(operands["self"])
    taken = axes.pop(dim_of(operands, axes))
    fix(taken, "it is unbound")
    return [list(axes) for _ in range(taken.size)]


@rule("split", "split_with_sizes", "chunk", "tensor_split", "unsafe_split", "unsafe_chunk", derivative="move")
@rule("unsafe_split_with_sizes", derivative="move")
def split(net: Net, node: fx.Node, operands: dict[str, Any]) -> list[Axes]:
    """Return the axes of each segment."""
    axes = net.axes(operands["self"])
    dim = dim_of(operands, axes)
    segments = [leaf(shape[dim].size) for shape in net.fresh_outputs(node)]
    require_form(sum(segment.size for segment in segments) == axes[dim].size, "sizes that depend on values")
    unify(axes[dim], cat_axes(segments))
    return [[*axes[:dim], segment, *axes[dim + 1 :]] for segment in segments]


@resize("split", "split_with_sizes", "chunk", "tensor_split", "unsafe_split", "unsafe_chunk", "unsafe_split_with_sizes")
def resize_split(net: Net, node: fx.Node, operands: dict[str, Any], left: KeepMask) -> dict[str, Any]:
    """Return the size of each segment: equal ones need not stay equal."""
    dim = operands["dim"] % len(net.axes(operands["self"]))
    segments = [axes[dim] for axes in net.outputs(node)]
    if all(left.count(axis) == axis.size for axis in segments):
        return {}
    sizes = [left.count(axis) for axis in segments]
    return {"target": "split_with_sizes", "self": operands["self"], "split_sizes": sizes, "dim": operands["dim"]}


def select_beside(x: fx.Node, dim: int, take: Take) -> list[Any] | None:
    """Take the position along another dimension."""
    along = int(x.args[1]) % rank_of(x) if len(x.args) > 1 else 0  # type: ignore[arg-type]
    return None if along == dim else [take(x.args[0], dim), *x.args[1:]]


@rule("slice", derivative="move", select=select_beside)
@rule("narrow", derivative="move")
def slice_(net: Net, node: fx.Node, operands: dict[str, Any]) -> Axes:
    """Return the axes of a segment; with a step, of one member of each group of so many."""
    axes = net.axes(operands["self"])
    dim = dim_of(operands, axes)
    whole, size, step = axes[dim], net.shape(node)[dim], operands.get("step") or 1
    if same_size(operands["self"], dim, node, dim):
        return axes
    start = None if isinstance(operands.get("end"), fx.Node) else start_of(operands, whole.size)
    if start is None or is_fixed(whole) or (step > 1 and (whole.size % step or size != whole.size // step)):
        fix(whole, f"{name_of(node)} takes some of it")
        axes[dim] = leaf(size, f"{name_of(node)} takes it")
    elif step > 1:
        axes[dim] = leaf(size)
        unify(whole, product([axes[dim], leaf(step, "slice takes one of each group")]))
    else:
        axes[dim] = leaf(size)
        unify(whole, cat_axes([leaf(start), axes[dim], leaf(whole.size - start - size)]))
    return axes


def start_of(operands: dict[str, Any], size: int) -> int | None:
    """Return where a segment begins; None where that depends on values."""
    start = operands["start"] or 0
    return None if not isinstance(start, int) else min(max(start + size if start < 0 else start, 0), size)


@resize("slice", "narrow")
def resize_slice(net: Net, node: fx.Node, operands: dict[str, Any], left: KeepMask) -> dict[str, Any]:
    """Return where the segment begins and ends."""
    axes = net.axes(operands["self"])
    dim = operands["dim"] % len(axes)
    whole, segment = axes[dim], net.axes(node)[dim]
    start = start_of(operands, whole.size)
    if start is None or left.count(whole) == whole.size:
        return {}
    if (operands.get("step") or 1) > 1:
        return {"start": start}
    begin, length = left.before(whole, start), left.count(segment)
    return {"start": begin, "length": length} if "length" in operands else {"start": begin, "end": begin + length}


@rule("select", derivative="move")
def select(net: Net, node: fx.Node, operands: dict[str, Any]) -> Axes:
    """State that one position of a dimension is selected, which is therefore fixed."""
    axes = net.axes(operands["self"])
    fix(axes.pop(dim_of(operands, axes)), "one position is selected")
    return axes


@rule("expand", "broadcast_to", derivative="move")
def expand(net: Net, node: fx.Node, operands: dict[str, Any]) -> Axes:
    """Return the axes with new dimensions, and those of size one repeated."""
    axes, shape = net.axes(operands["self"]), net.shape(node)
    out = [leaf(size) for size in shape[: len(shape) - len(axes)]]
    for axis, size in zip(axes, shape[len(out) :], strict=True):
        if axis.size != size:
            fix(axis, "expand repeats it")
        out.append(axis if axis.size == size else leaf(size))
    return out


@rule("repeat", "tile", derivative="move")
def repeat(net: Net, node: fx.Node, operands: dict[str, Any]) -> Axes:
    """Repeat the whole of each dimension so many times."""
    axes, shape = net.axes(operands["self"]), net.shape(node)
    axes = [leaf(1)] * (len(shape) - len(axes)) + axes
    require_form(all(axis.size for axis in axes), "a tensor without values")
    return [_repeated(axis, leaf(size // axis.size), False) for axis, size in zip(axes, shape, strict=True)]


@rule("repeat_interleave", derivative="move")
def repeat_interleave(net: Net, node: fx.Node, operands: dict[str, Any]) -> Axes:
    """Repeat each position of one dimension so many times."""
    require_form("self" in operands, "repeats alone")
    axes, shape = net.axes(operands["self"]), net.shape(node)
    dim = operands["dim"]
    if not isinstance(operands.get("repeats"), int) or dim is None or not axes[dim].size:
        net.fix_all([axes], "repeat_interleave")
        return net.fresh_outputs(node, "repeat_interleave")[0]
    axes[dim] = _repeated(axes[dim], leaf(shape[dim] // axes[dim].size), True)
    return axes


def _repeated(axis: Axis, times: Axis, inside: bool) -> Axis:
    if axis.size == 1 and times.size > 1:
        fix(axis, "it is repeated")
    return product([axis, times] if inside else [times, axis])


@resize("repeat", "tile", "repeat_interleave")
def resize_repeat(net: Net, node: fx.Node, operands: dict[str, Any], left: KeepMask) -> dict[str, Any]:
    """Return how often to repeat; the copies are units where something else makes them so."""
    before, after = net.axes(operands["self"]), net.axes(node)
    if isinstance(operands.get("repeats"), int):
        dim = operands["dim"]
        changed = {"repeats": _times(before[dim], after[dim], operands["repeats"], left)}
        return changed | (
            {} if operands["output_size"] is None else {"output_size": left.size(after[dim], operands["output_size"])}
        )
    name = "repeats" if "repeats" in operands else "dims"
    times = list(operands[name])
    for k in range(1, len(times) + 1):
        if isinstance(times[-k], int):
            times[-k] = _times(before[-k] if k <= len(before) else leaf(1), after[-k], times[-k], left)
    return {name: times}


def _times(before: Axis, after: Axis, times: int, left: KeepMask) -> int:
    """Return how often a dimension is repeated; as often as it was where it has no values."""
    size = left.count(before)
    return left.count(after) // size if size else times


@rule("flip", "roll", "rot90", "fliplr", "flipud", derivative="pick")
def reorder(net: Net, node: fx.Node, operands: dict[str, Any]) -> Axes:
    """Return positions in another order, which must all be there."""
    axes = net.axes(operands["self"])
    sides = {"fliplr": [1], "flipud": [0]}.get(name_of(node))
    dims = sides or operands.get("dims") or range(len(axes))
    net.fix_all([[axes[i] for i in dims]], f"{name_of(node)} reorders it")
    if name_of(node) == "rot90" and len(dims) == 2:
        axes[dims[0]], axes[dims[1]] = axes[dims[1]], axes[dims[0]]
    return axes


@rule("diff", "tril", "triu", "cummax")
def along(net: Net, node: fx.Node, operands: dict[str, Any]) -> Axes | list[Axes]:
    """State that each value depends on its neighbours along the dimension."""
    axes = net.axes(operands["self"])
    dims = [dim_of(operands, axes)] if "dim" in operands else [-2, -1]
    net.fix_all([[axes[i] for i in dims]], f"{name_of(node)} goes along it")
    fresh = net.fresh_outputs(node, f"{name_of(node)} goes along it")
    out = [[new if old.size != new.size else old for old, new in zip(axes, result, strict=True)] for result in fresh]
    return out if isinstance(node.meta["val"], tuple | list) else out[0]


@rule("cumsum", "cumprod", "logcumsumexp")
def cumulated(net: Net, node: fx.Node, operands: dict[str, Any]) -> Axes:
    """State that each value is taken over all before it along the dimension."""
    axes = net.axes(operands["self"])
    net.slice_all([axes[dim_of(operands, axes)]], f"{name_of(node)} goes along it")
    return axes


@rule("operator::getitem", derivative="output")
def getitem(net: Net, node: fx.Node, operands: dict[str, Any]) -> Axes:
    """Return one of several outputs."""
    axes: Axes = net.outputs(operands["0"])[operands["1"]]
    return axes
