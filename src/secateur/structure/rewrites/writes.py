"""What writing into a tensor becomes in a functional graph, in operations that have derivatives.

y[:, :8] = v     copy(y[:, :8], v)           becomes v itself, expanded, in the dtype of y
y[mask] = v      index_put(y, [mask], v)     becomes where(mask, v, y)
empty_like(x)    where it is written into    becomes a tensor of the sizes of x: its axes are its own
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.symbolic_shapes import statically_known_true

aten: Any = torch.ops.aten
SCATTERS = (aten.slice_scatter, aten.select_scatter, aten.diagonal_scatter, aten.as_strided_scatter, aten.index_put)
INTO_CANVAS = (*SCATTERS, aten.slice, aten.select, aten.copy, aten.where)  # done with what parts of are written over


def rewrite_writes(graph: fx.Graph) -> None:
    """Put operations that have derivatives in place of those that writing into a tensor becomes."""
    for node in list(graph.nodes):
        rewrite = _REWRITES.get(_operation(node))
        if rewrite is not None:
            rewrite(node, *node.args, **node.kwargs)


def has_writes(graph: fx.Graph) -> bool:
    """Return whether parts of a tensor are written over."""
    return any(map(_is_write, graph.nodes))


def _is_write(node: fx.Node) -> bool:
    return bool(node.meta.get("is_write")) or _operation(node) in SCATTERS


def _operation(node: fx.Node) -> Any:
    """Return the operation that a node calls, whatever its overload."""
    return getattr(node.target, "overloadpacket", None)


def _before(node: fx.Node, target: Any, *args: Any) -> fx.Node:
    """Insert a call before a node, as if its module made it."""
    with node.graph.inserting_before(node):
        new = node.graph.call_function(target, args)
    new.meta = {**node.meta, "val": target(*fx.map_arg(args, lambda n: n.meta["val"]))}
    return new


def _become(node: fx.Node, target: Any, *args: Any, **kwargs: Any) -> None:
    node.target, node.args, node.kwargs = target, args, kwargs


def _copied(node: fx.Node, canvas: fx.Node, src: fx.Node, *_: Any, **__: Any) -> None:
    """Write what is copied over another tensor as a value with its shape and dtype, and none of its values."""
    if not _same_shape(src, canvas):
        src = _before(node, aten.expand_as.default, src, canvas)
    _become(node, aten.type_as.default, src, canvas)
    node.meta["is_write"] = True


def _segment(
    node: fx.Node, canvas: fx.Node, src: fx.Node, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> None:
    """Write a complex tensor of which a segment is replaced as a cat: only that has derivatives."""
    if canvas.meta["val"].is_complex() and step == 1:
        before = [_before(node, aten.slice.Tensor, canvas, dim, 0, start)] if start else []
        after = [_before(node, aten.slice.Tensor, canvas, dim, end)] if end not in (None, sys.maxsize) else []
        _become(node, aten.cat.default, [*before, src, *after], dim)
        node.meta["is_write"] = True


def _position(node: fx.Node, canvas: fx.Node, src: fx.Node, dim: int, index: Any) -> None:
    """Write a complex tensor of which one position is replaced as a cat."""
    if canvas.meta["val"].is_complex():
        segment = _before(node, aten.unsqueeze.default, src, dim)
        _segment(node, canvas, segment, dim, index, None if index == -1 else index + 1)


def _masked(
    node: fx.Node, canvas: fx.Node, indices: list[fx.Node | None], values: fx.Node, accumulate: bool = False
) -> None:
    """Write what is put where one mask is true as a choice; not where values are counted by place."""
    at = [i for i, index in enumerate(indices) if index is not None]
    mask = indices[at[0]] if len(at) == 1 else None
    if accumulate or mask is None or mask.meta["val"].dtype != torch.bool:
        return
    read, values = values, _read_from(values, canvas, indices)
    behind = canvas.meta["val"].ndim - at[0] - mask.meta["val"].ndim
    one = statically_known_true(values.meta["val"].numel() == 1)
    if one or values.meta["val"].ndim <= behind or _same_shape(values, canvas):
        for _ in range(behind):
            mask = _before(node, aten.unsqueeze.default, mask, -1)
        _become(node, aten.where.self, mask, values, canvas)
        node.meta["is_write"] = True
        _erase_unused(read)


def _read_from(values: fx.Node, canvas: fx.Node, indices: list[fx.Node | None]) -> fx.Node:
    """Return the tensor of the canvas's shape that the values are read from at the same places, or the values."""
    if _operation(values) is not aten.index or list(values.args[1]) != list(indices):  # type: ignore[arg-type]
        return values
    read: Any = values.args[0]
    return read if _same_shape(read, canvas) else values


def _erase_unused(node: fx.Node) -> None:
    """Erase a tensor that nothing is computed from any more, with the checks of its sizes."""
    behind = {node: None}
    for reached in node.graph.nodes:
        if not behind.keys().isdisjoint(reached.all_input_nodes):
            behind[reached] = None
    checks = [reached for reached in behind if reached is not node]
    if not any(reached.op == "output" or isinstance(reached.meta.get("val"), Tensor) for reached in checks):
        for reached in reversed(behind):
            node.graph.erase_node(reached)


def _same_shape(a: fx.Node, b: fx.Node) -> bool:
    one, other = a.meta["val"].shape, b.meta["val"].shape
    return len(one) == len(other) and all(map(statically_known_true, map(operator.eq, one, other)))


def _canvas(target: Any) -> Callable[..., None]:
    """Return how to make a tensor like another one by its sizes, where parts of it are written over."""

    def rewrite(node: fx.Node, like: fx.Node, *filled: Any, **options: Any) -> None:
        options.pop("memory_format", None)
        if any(_operation(user) in INTO_CANVAS for user in node.users):
            shape = enumerate(node.meta["val"].shape)
            sizes = [n if isinstance(n, int) else _before(node, aten.sym_size.int, like, dim) for dim, n in shape]
            _become(node, target, like, sizes, *filled, **options)

    return rewrite


_REWRITES: dict[Any, Callable[..., None]] = {
    aten.copy: _copied,
    aten.slice_scatter: _segment,
    aten.select_scatter: _position,
    aten.index_put: _masked,
    aten.empty_like: _canvas(aten.new_empty.default),
    aten.zeros_like: _canvas(aten.new_zeros.default),
    aten.ones_like: _canvas(aten.new_ones.default),
    aten.full_like: _canvas(aten.new_full.default),
}
