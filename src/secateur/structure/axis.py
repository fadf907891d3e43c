"""Axes: one dimension shared by many tensors.

An axis is a union-find node that is one of

* a *leaf* of `size` units, known by their index;
* a *cat* of axes, whose sizes add: ``torch.cat``, ``chunk``, fused projections;
* a *product* of axes, whose sizes multiply, the first factor slowest: ``flatten``, heads × width.

`unify(a, b)` states that two axes are the same and refines both until they are equal. What cannot be
refined (the group that a boundary lies inside, sizes without a common factor) is *fixed*, with a reason. A leaf
that some statistic is taken over (a LayerNorm's) can lose units only with another result than a gate of zero has:
it is *sliced*, with a reason.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

BATCH = 1_000_003  # stands for the batch size: a prime, so that it equals no real size or factor

Kind = Literal["leaf", "cat", "product"]


class Axis:
    """A union-find node; make one with `leaf`, `cat` or `product`, read it through the functions below."""

    __slots__ = ("kind", "link", "parts", "reason", "size", "sliced")

    def __init__(self, kind: Kind, size: int, parts: tuple[Axis, ...] = (), reason: str | None = None) -> None:
        self.kind: Kind = kind
        self.size = size
        self.parts = parts
        self.reason = reason  # why a leaf is fixed; None where it may be cut
        self.sliced: str | None = None  # why cutting a leaf differs from gating it; None where it does not
        self.link: Axis | None = None

    def __repr__(self) -> str:
        axis = find(self)
        if axis.kind == "leaf":
            return str(axis.size)
        return "(" + (" + " if axis.kind == "cat" else " × ").join(map(repr, parts(axis))) + ")"


class SizesDifferError(AssertionError):
    """Two axes that are stated to be the same differ in size."""


class Misaligned(Exception):  # noqa: N818 - a signal inside this file, never an error of the user's
    """The error that two axes cannot be refined to be equal."""


def leaf(size: int, reason: str | None = None) -> Axis:
    """Return a new axis of its own, fixed where a reason is given."""
    return Axis("leaf", size, reason=reason)


def cat(axes: Sequence[Axis]) -> Axis:
    """Return the axes one after the other; empty ones vanish.

    >>> cat([leaf(2), leaf(3)])
    (2 + 3)
    """
    axes = [axis for axis in axes if axis.size]
    return axes[0] if len(axes) == 1 else Axis("cat", sum(axis.size for axis in axes), tuple(axes))


def product(axes: Sequence[Axis]) -> Axis:
    """Return the axes nested, the first slowest; those of size 1 vanish.

    >>> product([leaf(4), leaf(1), cat([leaf(2), leaf(3)])])
    (4 × (2 + 3))
    """
    axes = [axis for axis in axes if axis.size != 1] or [leaf(1)]
    return axes[0] if len(axes) == 1 else Axis("product", math.prod(axis.size for axis in axes), tuple(axes))


def find(axis: Axis) -> Axis:
    """Return the node that now stands for `axis`."""
    while axis.link is not None:
        if axis.link.link is not None:
            axis.link = axis.link.link  # path halving
        axis = axis.link
    return axis


def parts(axis: Axis) -> list[Axis]:
    """Return segments of a cat, factors of a product, nested ones of the same kind flattened."""
    axis = find(axis)
    flat: list[Axis] = []
    for part in map(find, axis.parts):
        flat += parts(part) if part.kind == axis.kind else [part]
    return flat


def leaves(axis: Axis) -> list[Axis]:
    """Return the leaves below, in order, repeated where they are."""
    axis = find(axis)
    return [axis] if axis.kind == "leaf" else [node for part in parts(axis) for node in leaves(part)]


def fix(axis: Axis, reason: str) -> None:
    """State that nothing of this axis can be removed; the first reason stays."""
    for node in leaves(axis):
        node.reason = node.reason or reason


def mark_sliced(axis: Axis, reason: str) -> None:
    """State that what is left of this axis decides about the values of all of it; the first reason stays."""
    for node in leaves(axis):
        node.sliced = node.sliced or reason


def is_fixed(axis: Axis) -> bool:
    """Return whether nothing of this axis can be removed."""
    return all(node.reason for node in leaves(axis))


def unify(a: Axis, b: Axis) -> None:
    """State that both are the same axis: refine until they are equal, or fix both.

    Raises:
        SizesDifferError: The sizes differ, as far as they are known before the network runs.

    >>> heads, width, flat = leaf(4), leaf(8), leaf(32)
    >>> unify(product([heads, width]), flat)
    >>> flat
    (4 × 8)
    """
    a, b = find(a), find(b)
    if a is b:
        return
    if a.size != b.size:
        raise SizesDifferError(f"a rule unified axes of sizes {a.size} and {b.size}")
    try:
        if a.kind == "leaf":
            _link(a, b)
        elif b.kind == "leaf":
            _link(b, a)
        elif "cat" in (a.kind, b.kind):
            _unify_segments(a, b)
            _link(a, b)
        else:
            _unify_factors(a, b)
            _link(a, b)
    except Misaligned:
        for axis in (a, b):
            fix(axis, f"{a!r} and {b!r} should be the same axis and cannot be aligned")


def _link(a: Axis, b: Axis) -> None:
    """Let `b` stand for both from now on."""
    a.link = b
    _inherit(a, b)


def _inherit(a: Axis, b: Axis) -> None:
    """Pass what is true of the leaf `a` on to all leaves of `b`."""
    if a.kind == "leaf" and a.reason:
        fix(b, a.reason)
    if a.kind == "leaf" and a.sliced:
        mark_sliced(b, a.sliced)


def _unify_segments(a: Axis, b: Axis) -> None:
    while True:
        n = min(parts(axis)[0].size for axis in (a, b) if find(axis).kind == "cat")
        (head_a, a), (head_b, b) = _split(a, n), _split(b, n)
        unify(head_a, head_b)
        if "cat" not in (find(a).kind, find(b).kind):
            return unify(a, b)


def _unify_factors(a: Axis, b: Axis) -> None:
    fastest = parts(a)[-1].size, parts(b)[-1].size
    n = math.gcd(*fastest)
    if n == 1:  # then whole blocks of groups of both are the same
        n = math.lcm(*fastest)
    if n == a.size:
        raise Misaligned
    (outer_a, inner_a), (outer_b, inner_b) = _factor(a, n), _factor(b, n)
    unify(inner_a, inner_b)
    unify(outer_a, outer_b)


def _split(axis: Axis, n: int) -> tuple[Axis, Axis]:
    """Return the first n positions and the rest, refining the axis to have a boundary there."""
    axis = find(axis)
    if n in (0, axis.size):
        return (leaf(0), axis) if n == 0 else (axis, leaf(0))
    if axis.kind == "leaf":
        head, tail = leaf(n), leaf(axis.size - n)
        _link(axis, cat([head, tail]))
        return head, tail
    if axis.kind == "product":
        lead, *inner = parts(axis)
        outer, rest = divmod(n, axis.size // lead.size)
        if rest:
            return _split_inside(lead, product(inner), outer, rest)
        head, tail = _split(lead, outer)
        return _grouped(head, product(inner)), _grouped(tail, product(inner))
    before: list[Axis] = []
    after = parts(axis)
    while after[0].size <= n:
        n -= after[0].size
        before.append(after.pop(0))
    if n:
        head, tail = _split(after.pop(0), n)
        before, after = [*before, head], [tail, *after]
    return cat(before), cat(after)


def _split_inside(groups: Axis, members: Axis, outer: int, rest: int) -> tuple[Axis, Axis]:
    """Return the positions before and after a boundary inside a group, which cannot be removed as a whole then."""
    before, others = _split(groups, outer)
    divided, after = _split(others, 1)
    fix(divided, "a boundary lies inside this group")
    head, tail = _split(members, rest)
    return cat([_grouped(before, members), head]), cat([tail, _grouped(after, members)])


def _grouped(groups: Axis, members: Axis) -> Axis:
    """Return the product; it does not hold a group that is alone, which no gate could remove then."""
    if groups.size == 1:
        fix(groups, "it is one group alone")
    return product([groups, members])


def _factor(axis: Axis, n: int) -> tuple[Axis, Axis]:
    """Return the outer and the inner (of size n) factor, refining the axis to be their product.

    Raises:
        Misaligned: It cannot be one.
    """
    axis = find(axis)
    if axis.size % n:
        raise Misaligned
    if axis.size == n:
        return leaf(1), axis
    if axis.kind == "leaf":
        outer, inner = leaf(axis.size // n), leaf(n)
        _link(axis, product([outer, inner]))
        return outer, inner
    if axis.kind == "cat":
        pairs = [_factor(part, n) for part in parts(axis)]
        for _, inner in pairs[1:]:
            unify(pairs[0][1], inner)
        return cat([outer for outer, _ in pairs]), pairs[0][1]
    *lead, last = parts(axis)
    if last.size % n == 0:
        outer, inner = _factor(last, n)
        return product([*lead, outer]), inner
    if n % last.size:
        raise Misaligned
    outer, inner = _factor(product(lead), n // last.size)
    return outer, product([inner, last])


def count(axis: Axis, kept: Mapping[Axis, int]) -> int:
    """Return the number of positions left when each leaf in `kept` has so many units left; the others are whole."""
    axis = find(axis)
    if axis.kind == "leaf":
        return kept.get(axis, axis.size)
    counts = [count(part, kept) for part in parts(axis)]
    return sum(counts) if axis.kind == "cat" else math.prod(counts)


def expand(axis: Axis, values: Mapping[Axis, Tensor], like: Tensor) -> Tensor:
    """Return one value per position: the product of the values of all units that the position belongs to.

    Args:
        axis: The axis, n positions in all.
        values: Per leaf a tensor [..., size]; leaves left out have ones.
        like: A tensor with the dtype and device of those ones.

    Returns:
        A tensor [..., n]; with boolean values the positions kept, with gates their gates.

    >>> channel, pixel = leaf(2), leaf(3)
    >>> expand(product([channel, pixel]), {channel: torch.tensor([5.0, 7.0])}, torch.ones(1))
    tensor([5., 5., 5., 7., 7., 7.])
    """
    axis = find(axis)
    if axis.kind == "leaf":
        factor = values.get(axis)
        return like.new_ones(axis.size) if factor is None else factor
    pieces = [expand(part, values, like) for part in parts(axis)]
    if axis.kind == "cat":
        lead = max((piece.shape[:-1] for piece in pieces), key=len)
        return torch.cat([piece.expand(*lead, -1) for piece in pieces], -1)
    whole = pieces[0]
    for piece in pieces[1:]:
        whole = (whole[..., :, None] * piece[..., None, :]).flatten(-2)
    return whole
