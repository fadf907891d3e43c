"""Normalisation, and other statistics taken over an axis.

Statistics that are stored are independent of the other units; those taken over units are taken over the
survivors once some are gone: such axes are sliced.
"""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from secateur.structure.axis import Axis, fix, leaf, product, unify
from secateur.structure.keep_mask import KeepMask
from secateur.structure.ops.net import Axes, Net, dim_of, require_form
from secateur.structure.ops.registry import StoredStatistics, first_operand, module_sizes, name_of, resize, rule

STATISTICS = StoredStatistics("input", "running_mean", "running_var")


@rule("batch_norm", derivative="pointwise", memory="fresh", statistics=STATISTICS)
def batch_norm(net: Net, node: fx.Node, given: dict[str, Any]) -> Axes:
    """Each channel (dimension 1) with its own four numbers; statistics of the batch itself mix samples."""
    return _batch_norm(net, given, given.get("training"))


@rule("instance_norm")
def instance_norm(net: Net, node: fx.Node, given: dict[str, Any]) -> Axes:
    """Each channel by its own statistics over the positions."""
    axes = _batch_norm(net, given, False)
    net.slice_all(axes[2:], "instance_norm averages over it")
    return axes


@rule("_native_batch_norm_legit_no_training", derivative="pointwise")
def functional_batch_norm(net: Net, node: fx.Node, given: dict[str, Any]) -> list[Axes]:
    """Stored statistics in a functional graph, with two more outputs that are empty in eval mode."""
    return [_batch_norm(net, given, False), *net.fresh_outputs(node)[1:]]


def _batch_norm(net: Net, given: dict[str, Any], training: bool | None) -> Axes:
    axes = net.axes(given["input"])
    require_form(len(axes) > 1, "inputs without channels")
    for name in ("weight", "bias", "running_mean", "running_var"):
        if given[name] is not None:
            unify(axes[1], net.axes(given[name])[0])
    if training and net.depends_on_inputs(given["input"]):
        net.fix_all([axes], "batch_norm takes its statistics from the batch")
    elif training:  # of a weight: its own statistics, for each channel over the rest
        net.slice_all([axis for i, axis in enumerate(axes) if i != 1], "batch_norm averages over it")
    return axes


@rule("layer_norm", memory="fresh", select=first_operand(lambda x: len(x.args[1])))  # type: ignore[arg-type]
@rule("rms_norm")
def layer_norm(net: Net, node: fx.Node, given: dict[str, Any]) -> Axes:
    """Mean and variance over the last dimensions, each with its own weight and bias."""
    axes = net.axes(given["input"])
    last = axes[-len(given["normalized_shape"]) :]
    for name in ("weight", "bias"):
        if given.get(name) is not None:
            for axis, own in zip(last, net.axes(given[name]), strict=True):
                unify(axis, own)
    net.slice_all(last, f"{name_of(node)} averages over it")
    return axes


@resize("layer_norm", "rms_norm")
def resize_layer_norm(net: Net, node: fx.Node, given: dict[str, Any], left: KeepMask) -> dict[str, Any]:
    """The shape that is normalised over."""
    last = net.axes(given["input"])[-len(given["normalized_shape"]) :]
    return {"normalized_shape": [left.count(axis) for axis in last]}


@rule("group_norm")
def group_norm(net: Net, node: fx.Node, given: dict[str, Any]) -> Axes:
    """Mean and variance over each group of channels; whole groups do not depend on each other."""
    axes = net.axes(given["input"])
    require_form(isinstance(given["num_groups"], int), "as many groups as there are samples")
    groups = leaf(given["num_groups"])
    members = leaf(axes[1].size // given["num_groups"])
    unify(axes[1], product([groups, members]))
    for name in ("weight", "bias"):
        if given[name] is not None:
            unify(axes[1], net.axes(given[name])[0])
    net.slice_all([members, *axes[2:]], "group_norm averages over it")
    net.groups[node] = groups
    return axes


@resize("group_norm")
def resize_group_norm(net: Net, node: fx.Node, given: dict[str, Any], left: KeepMask) -> dict[str, Any]:
    """The number of groups."""
    return {"num_groups": left.count(net.groups[node])}


@module_sizes(nn.LayerNorm, nn.RMSNorm)
def layer_attributes(module: nn.Module, shape: tuple[int, ...], groups: int | None) -> dict[str, Any]:
    """The shape that is normalised over, where it is that of weights."""
    return {"normalized_shape": shape} if shape else {}


@module_sizes(nn.GroupNorm)
def group_attributes(module: nn.Module, shape: tuple[int, ...], groups: int | None) -> dict[str, Any]:
    """Channels, where there are weights, and groups, where the graph has them."""
    return ({"num_channels": shape[0]} if shape else {}) | ({"num_groups": groups} if groups else {})


@module_sizes(nn.modules.batchnorm._NormBase)
def batch_attributes(module: Any, shape: tuple[int, ...], groups: int | None) -> dict[str, Any]:
    """Channels."""
    vector = module.running_mean if module.weight is None else module.weight
    return {} if vector is None else {"num_features": len(vector)}


@rule("_weight_norm")
def weight_norm(net: Net, node: fx.Node, given: dict[str, Any]) -> Axes:
    """W = g v / ‖v‖, the norm over all dimensions but one: those are sliced."""
    axes, scale = net.axes(given["v"]), net.axes(given["g"])
    require_form(len(axes) == len(scale), "one norm over all dimensions")
    for i, axis in enumerate(axes):
        if axis.size == scale[i].size:
            unify(axis, scale[i])
        else:
            net.slice_all([axis], "weight norm is taken over it")
            fix(scale[i], "weight norm broadcasts it")
    return axes


@rule("mean", derivative="average")
def mean(net: Net, node: fx.Node, given: dict[str, Any]) -> Axes:
    """A mean counts the units."""
    return _statistic(net, given, "a mean is taken over it")


@rule("amax", "amin", "max", "min", "var", "std", "logsumexp", "prod", "any", "all", "var_mean", "std_mean")
def statistic(net: Net, node: fx.Node, given: dict[str, Any]) -> Axes | list[Axes]:
    """So do these: without a unit they are not what they are with a unit of zero."""
    if given.get("other") is not None:  # the larger or smaller of two tensors
        return net.broadcast([net.axes(given["self"]), net.axes(given["other"])], name_of(node))
    axes = _statistic(net, given, f"{name_of(node)} is taken over it")
    if not isinstance(node.meta["val"], tuple | list):
        return axes
    if name_of(node) in ("max", "min") and any(user.args[1] == 1 and user.users for user in node.users):
        argmax(net, node, given)  # its second output is the place
    return [axes, list(axes)]


@rule("argmax", "argmin")
def argmax(net: Net, node: fx.Node, given: dict[str, Any]) -> Axes:
    """A place counts the units before it."""
    axes = net.axes(given["self"])
    dims = reduced(given.get("dim"), len(axes))
    net.fix_all([[axes[i] for i in dims]], f"{name_of(node)} counts along it")
    return without(axes, dims, given.get("keepdim"))


def _statistic(net: Net, given: dict[str, Any], reason: str) -> Axes:
    axes = net.axes(given["self"])
    dims = reduced(given.get("dim"), len(axes))
    net.slice_all([axes[i] for i in dims], reason)
    return without(axes, dims, given.get("keepdim"))


@rule("softmax", "_softmax", "log_softmax", "_log_softmax")
def softmax(net: Net, node: fx.Node, given: dict[str, Any]) -> Axes:
    """Each value depends on all along the axis, which is therefore fixed."""
    axes = net.axes(given["self"])
    fix(axes[dim_of(given, axes)], f"{name_of(node)} normalises over it")
    return axes


def reduced(dim: int | list[int] | None, n: int) -> set[int]:
    """The dimensions that a reduction is taken over."""
    every = range(n) if dim is None or dim == [] else [dim] if isinstance(dim, int) else dim
    return {i % n for i in every} if n else set()


def without(axes: Axes, dims: set[int], keepdim: bool | None) -> Axes:
    """The axes that a reduction leaves."""

    def one() -> Axis:
        return leaf(1, "reduced over")

    return [one() if i in dims else axis for i, axis in enumerate(axes) if keepdim or i not in dims]
