"""Operations on images and sequences: their positions are fixed, channels pass through."""

from __future__ import annotations

from typing import Any

from torch import fx

from secateur.structure.axis import Axis, fix, is_fixed, leaf, product, unify
from secateur.structure.axis import cat as cat_axes
from secateur.structure.keep_mask import KeepMask
from secateur.structure.ops.net import Axes, Net, require_form
from secateur.structure.ops.registry import name_of, resize, rule

_LARGEST = [f"{kind}max_pool{n}d" for kind in ("", "adaptive_") for n in "123"]
_POOLS = [f"{kind}_pool{n}d" for kind in ("lp", "fractional_max") for n in "123"]
_SAMPLERS = ["linear1d", "bilinear2d", "bicubic2d", "trilinear3d"]
_NEAREST = ["nearest1d", "nearest2d", "nearest3d", "nearest_exact2d"]


@rule("avg_pool1d", "adaptive_avg_pool1d", derivative="average", box=1)
@rule("avg_pool2d", "adaptive_avg_pool2d", derivative="average", box=2)
@rule("avg_pool3d", "adaptive_avg_pool3d", derivative="average", box=3)
@rule(*_LARGEST, *[f"max_pool{n}d_with_indices" for n in "23"], derivative="pick")
@rule(*[f"upsample_{name}" for name in _NEAREST], derivative="pick")
@rule("_upsample_nearest_exact1d", "_upsample_nearest_exact2d", derivative="pick")
@rule(*_POOLS, "grid_sampler", *[f"upsample_{name}" for name in _SAMPLERS])
@rule("_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa")
def positions(net: Net, node: fx.Node, operands: dict[str, Any]) -> Axes | list[Axes]:
    """State that each channel goes alone from some positions to others."""
    axes = net.axes(operands["self"] if "self" in operands else operands["input"])
    shapes = net.fresh_outputs(node, "a position")
    digits = [c for c in name_of(node) if c.isdigit()]
    rank = int(digits[-1]) if digits else len(axes) - 2
    net.fix_all([net.axes(operands["grid"])] if "grid" in operands else [], "where values are taken")
    net.fix_all([axes[-rank:]], "a position")
    out = [[*axes[:-rank], *shape[-rank:]] for shape in shapes]
    return out if isinstance(node.meta["val"], tuple | list) else out[0]


@rule("max_unpool2d", "max_unpool3d")
def unpool(net: Net, node: fx.Node, operands: dict[str, Any]) -> Axes:
    """State that each channel goes alone to the positions that the indices say."""
    axes = net.broadcast([net.axes(operands["self"]), net.axes(operands["indices"])], name_of(node))
    rank = int(name_of(node)[-2])
    net.fix_all([axes[-rank:]], "a position")
    return [*axes[:-rank], *net.fresh_outputs(node, "a position")[0][-rank:]]


@rule("pad", "constant_pad_nd", "reflection_pad1d", "reflection_pad2d", "replication_pad2d", derivative="pick")
def pad(net: Net, node: fx.Node, operands: dict[str, Any]) -> Axes:
    """State new positions before and after; those of a constant can go like units."""
    axes = net.axes(operands["self"])
    constant = name_of(node) == "constant_pad_nd" or operands.get("mode") == "constant"
    amounts = operands["pad" if "pad" in operands else "padding"]
    require_form(all(isinstance(amount, int) for amount in amounts), "amounts that depend on the inputs")
    for dim, before, after in _padded(amounts, len(axes)):
        size = net.shape(node)[dim]
        if not constant or is_fixed(axes[dim]) or min(before, after) < 0:
            fix(axes[dim], "a position")
            axes[dim] = leaf(size, "a position")
        else:
            axes[dim] = cat_axes([leaf(before), axes[dim], leaf(after)])
    return axes


@resize("pad", "constant_pad_nd")
def resize_pad(net: Net, node: fx.Node, operands: dict[str, Any], left: KeepMask) -> dict[str, Any]:
    """Return how many positions are added before and after those that are left."""
    amounts = list(operands["pad"])
    inputs, axes = net.axes(operands["self"]), net.axes(node)
    for dim, before, _ in _padded(amounts, len(axes)):
        if not is_fixed(axes[dim]):
            k = 2 * (len(axes) - 1 - dim)
            amounts[k] = left.before(axes[dim], before)
            amounts[k + 1] = left.count(axes[dim]) - left.count(inputs[dim]) - amounts[k]
    return {"pad": amounts}


def _padded(amounts: list[int], rank: int) -> list[tuple[int, int, int]]:
    """Return dimension, number before and after, for each that is padded; the last comes first."""
    pairs = [(rank - 1 - i, amounts[2 * i], amounts[2 * i + 1]) for i in range(len(amounts) // 2)]
    return [(dim, before, after) for dim, before, after in pairs if (before, after) != (0, 0)]


@rule("pixel_shuffle", derivative="move")
def pixel_shuffle(net: Net, node: fx.Node, operands: dict[str, Any]) -> Axes:
    """State [..., C r², H, W] to [..., C, H r, W r]."""
    axes = net.axes(operands["self"])
    net.fix_all([axes[-2:]], "a position")
    channels = _grouped(axes[-3], operands["upscale_factor"] ** 2)
    return [*axes[:-3], channels, *net.fresh_outputs(node, "a position")[0][-2:]]


@rule("pixel_unshuffle", derivative="move")
def pixel_unshuffle(net: Net, node: fx.Node, operands: dict[str, Any]) -> Axes:
    """State [..., C, H r, W r] to [..., C r², H, W]."""
    axes = net.axes(operands["self"])
    net.fix_all([axes[-2:]], "a position")
    inner = leaf(operands["downscale_factor"] ** 2, "a position")
    return [*axes[:-3], product([axes[-3], inner]), *net.fresh_outputs(node, "a position")[0][-2:]]


@rule("channel_shuffle", "native_channel_shuffle", derivative="move")
def channel_shuffle(net: Net, node: fx.Node, operands: dict[str, Any]) -> Axes:
    """Turn groups × members of the channels to members × groups."""
    axes = net.axes(operands["self"])
    require_form(isinstance(operands["groups"], int), "as many groups as there are samples")
    groups, members = leaf(operands["groups"]), leaf(axes[1].size // operands["groups"])
    unify(axes[1], product([groups, members]))
    net.groups[node] = groups
    axes[1] = product([members, groups])
    return axes


@resize("channel_shuffle", "native_channel_shuffle")
def resize_shuffle(net: Net, node: fx.Node, operands: dict[str, Any], left: KeepMask) -> dict[str, Any]:
    """Return the number of groups left."""
    return {"groups": left.count(net.groups[node])}


@rule("im2col", derivative="move")
def im2col(net: Net, node: fx.Node, operands: dict[str, Any]) -> Axes:
    """State windows [N, C, H, W] to columns [N, C k, L]."""
    axes = net.axes(operands["self"])
    net.fix_all([axes[-2:]], "a position")
    columns = net.fresh_outputs(node, "a position")[0]
    require_form(axes[-3].size > 0, "images without channels")
    window = leaf(columns[-2].size // axes[-3].size, "a position")
    return [*axes[:-3], product([axes[-3], window]), columns[-1]]


@rule("col2im")
def col2im(net: Net, node: fx.Node, operands: dict[str, Any]) -> Axes:
    """State columns [N, C k, L] summed to an image [N, C, H, W]."""
    axes = net.axes(operands["self"])
    window = 1
    for size in operands["kernel_size"]:
        window *= size
    fix(axes[-1], "a position")
    return [*axes[:-2], _grouped(axes[-2], window), *net.fresh_outputs(node, "a position")[0][-2:]]


def _grouped(axis: Axis, inner: int) -> Axis:
    """Return the outer factor of an axis whose inner one counts positions."""
    outer = leaf(axis.size // inner)
    unify(axis, product([outer, leaf(inner, "a position")]))
    return outer
