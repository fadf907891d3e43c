"""Normalisation, and other statistics taken over an axis.

Statistics that are stored are independent of the other units; those taken over units are taken over the
survivors once some are gone: such axes are sliced.
"""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from secateur.structure.axis import Axis, fix, leaf, product, unify
from secateur.structure.keep_mask import KeepMask
from secateur.structure.ops.movement import shape_left
from secateur.structure.ops.net import Axes, Net, dim_of, require_form
from secateur.structure.ops.registry import StoredStatistics, first_operand, module_sizes, name_of, resize, rule

STATISTICS = StoredStatistics("input", "running_mean", "running_var")


@rule("batch_norm", derivative="pointwise", memory="fresh", statistics=STATISTICS)
def batch_norm(net: Net, node: fx.Node, operands: dict[str, Any]) -> Axes:
    """State that each channel (dimension 1) has its own four numbers; statistics of the batch itself mix samples."""
    return _batch_norm(net, operands, operands.get("training"))


@rule("instance_norm")
def instance_norm(net: Net, node: fx.Node, operands: dict[str, Any]) -> Axes:
    """State that each channel is normalised by its own statistics over the positions."""
    axes = _batch_norm(net, operands, False)
    net.slice_all(axes[2:], "instance_norm averages over it")
    return axes


@rule("_native_batch_norm_legit_no_training", derivative="pointwise")
def functional_batch_norm(net: Net, node: fx.Node, operands: dict[str, Any]) -> list[Axes]:
    """State stored statistics in a functional graph, with two more outputs that are empty in eval mode."""
    return [_batch_norm(net, operands, False), *net.fresh_outputs(node)[1:]]


def _batch_norm(net: Net, operands: dict[str, Any], training: bool | None) -> Axes:
    axes = net.axes(operands["input"])
    require_form(len(axes) > 1, "inputs without channels")
    for name in ("weight", "bias", "running_mean", "running_var"):
        if operands[name] is not None:
            unify(axes[1], net.axes(operands[name])[0])
    if training and net.depends_on_inputs(operands["input"]):
        net.fix_all([axes], "batch_norm takes its statistics from the batch")
    elif training:  # of a weight: its own statistics, for each channel over the rest
        net.slice_all([axis for i, axis in enumerate(axes) if i != 1], "batch_norm averages over it")
    return axes


@rule("layer_norm", memory="fresh", select=first_operand(lambda x: len(x.args[1])))  # type: ignore[arg-type]
@rule("rms_norm")
def layer_norm(net: Net, node: fx.Node, operands: dict[str, Any]) -> Axes:
    """State mean and variance over the last dimensions, each with its own weight and bias."""
    axes = net.axes(operands["input"])
    last = axes[-len(operands["normalized_shape"]) :]
    for name in ("weight", "bias"):
        if operands.get(name) is not None:
            for axis, own in zip(last, net.axes(operands[name]), strict=True):
                unify(axis, own)
    net.slice_all(last, f"{name_of(node)} averages over it")
    return axes


@resize("layer_norm", "rms_norm")
def resize_layer_norm(net: Net, node: fx.Node, operands: dict[str, Any], left: KeepMask) -> dict[str, Any]:
    """Return what is left of the shape that is normalised over."""
    last = net.axes(operands["input"])[-len(operands["normalized_shape"]) :]
    return {"normalized_shape": shape_left(last, operands["normalized_shape"], left)}


@rule("group_norm")
def group_norm(net: Net, node: fx.Node, operands: dict[str, Any]) -> Axes:
    """State mean and variance over each group of channels; whole groups do not depend on each other."""
    axes = net.axes(operands["input"])
    require_form(isinstance(operands["num_groups"], int), "as many groups as there are samples")
    groups = leaf(operands["num_groups"])
    members = leaf(axes[1].size // operands["num_groups"])
    unify(axes[1], product([groups, members]))
    for name in ("weight", "bias"):
        if operands[name] is not None:
            unify(axes[1], net.axes(operands[name])[0])
    net.slice_all([members, *axes[2:]], "group_norm averages over it")
    net.groups[node] = groups
    return axes


@resize("group_norm")
def resize_group_norm(net: Net, node: fx.Node, operands: dict[str, Any], left: KeepMask) -> dict[str, Any]:
    """Return the number of groups left."""
    return {"num_groups": left.count(net.groups[node])}


@module_sizes(nn.LayerNorm, nn.RMSNorm)
def layer_attributes(module: nn.Module, shape: tuple[int, ...], groups: int | None) -> dict[str, Any]:
    """Return the shape that is normalised over, where it is that of weights."""
    return {"normalized_shape": shape} if shape else {}


@module_sizes(nn.GroupNorm)
def group_attributes(module: nn.Module, shape: tuple[int, ...], groups: int | None) -> dict[str, Any]:
    """Return the channels, where there are weights, and the groups, where the graph has them."""
    return ({"num_channels": shape[0]} if shape else {}) | ({"num_groups": groups} if groups else {})


@module_sizes(nn.modules.batchnorm._NormBase)
def batch_attributes(module: Any, shape: tuple[int, ...], groups: int | None) -> dict[str, Any]:
    """Return the number of channels."""
    vector = module.running_mean if module.weight is None else module.weight
    return {} if vector is None else {"num_features": len(vector)}


@rule("_weight_norm")
def weight_norm(net: Net, node: fx.Node, operands: dict[str, Any]) -> Axes:
    """State W = g v / ‖v‖, the norm over all dimensions but one: those are sliced."""
    axes, scale = net.axes(operands["v"]), net.axes(operands["g"])
    require_form(len(axes) == len(scale), "one norm over all dimensions")
    for i, axis in enumerate(axes):
        if axis.size == scale[i].size:
            unify(axis, scale[i])
        else:
            net.slice_all([axis], "weight norm is taken over it")
            fix(scale[i], "weight norm broadcasts it")
    return axes


@rule("mean", derivative="average")
def mean(net: Net, node: fx.Node, operands: dict[str, Any]) -> Axes:
    """State that a mean counts the units."""
    return _statistic(net, operands, "a mean is taken over it")


@rule("amax", "amin", "max", "min", "var", "std", "logsumexp", "prod", "any", "all", "var_mean", "std_mean")
def statistic(net: Net, node: fx.Node, operands: dict[str, Any]) -> Axes | list[Axes]:
    """State that these count the units: without a unit they are not what they are with a unit of zero."""
    if operands.get("other") is not None:  # the larger or smaller of two tensors
        return net.broadcast([net.axes(operands["self"]), net.axes(operands["other"])], name_of(node))
    axes = _statistic(net, operands, f"{name_of(node)} is taken over it")
    if not isinstance(node.meta["val"], tuple | list):
        return axes
    if name_of(node) in ("max", "min") and any(user.args[1] == 1 and user.users for user in node.users):
        argmax(net, node, operands)  # its second output is the place
    return [axes, list(axes)]


@rule("argmax", "argmin")
def argmax(net: Net, node: fx.Node, operands: dict[str, Any]) -> Axes:
    """State the place of one value; over several dimensions at once it counts the units before it."""
    axes = net.axes(operands["self"])
    dims = reduced(operands.get("dim"), len(axes))
    if isinstance(operands.get("dim"), int) and axes:
        reason, output = f"{name_of(node)} chooses along it", int(not net.is_tensor(node))
        net.choose(node, operands["self"], operands["dim"] % len(axes), reason, output=output)
    else:
        net.fix_all([[axes[i] for i in dims]], f"{name_of(node)} counts along it")
    return without(axes, dims, operands.get("keepdim"))


def _statistic(net: Net, operands: dict[str, Any], reason: str) -> Axes:
    axes = net.axes(operands["self"])
    dims = reduced(operands.get("dim"), len(axes))
    net.slice_all([axes[i] for i in dims], reason)
    return without(axes, dims, operands.get("keepdim"))


@rule("softmax", "_softmax", "log_softmax", "_log_softmax")
def softmax(net: Net, node: fx.Node, operands: dict[str, Any]) -> Axes:
    """State that each value depends on all along the axis."""
    axes = net.axes(operands["self"])
    net.slice_all([axes[dim_of(operands, axes)]], f"{name_of(node)} normalises over it")
    return axes


def reduced(dim: int | list[int] | None, n: int) -> set[int]:
    """Return the dimensions that a reduction is taken over."""
    every = range(n) if dim is None or dim == [] else [dim] if isinstance(dim, int) else dim
    return {i % n for i in every} if n else set()


def without(axes: Axes, dims: set[int], keepdim: bool | None) -> Axes:
    """Return the axes that a reduction leaves."""

    def reduced_axis() -> Axis:
        return leaf(1, "reduced over")

    return [reduced_axis() if i in dims else axis for i, axis in enumerate(axes) if keepdim or i not in dims]
