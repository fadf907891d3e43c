"""Convolutions: a dense layer at every place, with its weights for what lies around."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from secateur.structure.axis import Axis, leaf, product, unify
from secateur.structure.keep_mask import KeepMask
from secateur.structure.ops.linear import Linear, Operands, PerSample, Update
from secateur.structure.ops.net import Axes, Net
from secateur.structure.ops.registry import module_sizes, resize, rule

_CONVOLVE: dict[int, Callable[..., Tensor]] = {3: torch.conv1d, 4: torch.conv2d, 5: torch.conv3d}


def patches(value: Tensor, kernel: Sequence[int], operands: Operands) -> tuple[Tensor, int]:
    """Return a view [N, places ..., channels, kernel ...] of all that the kernel is multiplied with."""
    n = len(kernel)
    stride, dilation = (_each(operands[name], n) for name in ("stride", "dilation"))
    padding = operands["padding"]
    reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    if isinstance(padding, str):
        sides = [(r // 2, r - r // 2) if padding == "same" else (0, 0) for r in reach]
    else:
        sides = [(p, p) for p in _each(padding, n)]
    value = F.pad(value, list(itertools.chain(*reversed(sides))))
    for dim in range(n):
        value = value.unfold(dim + 2, reach[dim] + 1, stride[dim])[..., :: dilation[dim]]
    return value.movedim(1, n + 1), n + 1


def _each(numbers: Any, n: int) -> list[int]:
    values = [numbers] if isinstance(numbers, int) else list(numbers)
    return values * n if len(values) == 1 else values


def _update(a: Tensor, weight: Tensor, operands: Operands, z: Tensor) -> Update:
    """Return Z + conv(o_k, δ_k w_k) for any candidates k, each a group of one convolution."""
    w = weight.transpose(0, 1)
    options = {name: operands[name] for name in ("stride", "padding", "dilation")}

    def updated(positions: Tensor, change: Tensor) -> Tensor:
        count = len(positions)
        weight = w[positions].transpose(1, 2) * change.reshape(-1, *[1] * w.ndim)  # [C, O, p, ...]
        delta = _CONVOLVE[z.ndim](a[:, positions.flatten()], weight.flatten(0, 1), groups=count, **options)
        of_each = delta.reshape(len(z), count, *z.shape[1:])
        return (z[:, None] + of_each).transpose(0, 1).flatten(0, 1)

    return updated


def _of_weight(a: Tensor, delta: Tensor, w: Tensor, operands: Operands) -> Tensor:
    """Return δ times all patches, group by group [n, v, *w.shape]."""
    images, (n, v, k), groups = a.flatten(0, 1), delta.shape[:3], operands["groups"]
    options: dict[str, Any] = {name: list(operands[name]) for name in ("stride", "padding", "dilation")}
    kernel = tuple(w.shape[2:])
    if len(kernel) == 1:  # an image one pixel high
        images, kernel = images[:, :, None], (1, *kernel)
        options = {name: [int(name != "padding"), *values] for name, values in options.items()}
    patches = torch.unflatten(F.unfold(images, kernel, **options), 1, (groups, -1))  # [n k, groups, inputs, positions]
    rows = torch.unflatten(delta.flatten(4), 3, (groups, -1)).permute(
        0, 2, 3, 1, 4, 5
    )  # [n, k, groups, v, O, positions]
    products = rows.flatten(0, 1).flatten(2, 3) @ patches.mT
    return products.reshape(n, k, groups, v, -1).sum(1).transpose(1, 2).reshape(n, v, *w.shape)


def _of_bias(a: Tensor, delta: Tensor, w: Tensor, operands: Operands) -> Tensor:
    """Return δ, summed over positions [n, v, O]."""
    return delta.flatten(4).sum((2, 4))


def _pads_by_numbers(operands: Operands) -> bool:
    return not isinstance(operands["padding"], str)


def convolution(operand: str, weight: str, bias: str) -> Linear:
    """Return what is known of a convolution whose call has these arguments, and stride, padding, dilation, groups."""
    per_sample = {
        weight: PerSample(_of_weight, (3, 4), _pads_by_numbers),
        bias: PerSample(_of_bias, (1,), _pads_by_numbers),
    }
    return Linear(operand, weight, bias, patches, _update, per_sample, channels_first=True)


CONVOLUTION = convolution("input", "weight", "bias")
VOLUMES = replace(CONVOLUTION, per_sample={})  # F.unfold takes images alone


@rule("conv1d", "conv2d", derivative="contract", linear=CONVOLUTION, makes="channel", memory="fresh")
@rule("conv3d", derivative="contract", linear=VOLUMES, makes="channel", memory="fresh")
def convolved(net: Net, node: fx.Node, operands: dict[str, Any]) -> Axes:
    """State y[n, o] = Σ_i W[o, i] * x[n, i] + b[o] within each of G groups: channels are groups × members."""
    weight = net.axes(operands["weight"])
    return _convolve(net, node, operands, [weight[0], weight[1]])


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d", derivative="contract", makes="channel")
def transposed(net: Net, node: fx.Node, operands: dict[str, Any]) -> Axes:
    """State a transposed convolution, with the weight as [i, o]: groups × inputs, outputs of one group."""
    weight = net.axes(operands["weight"])
    outputs = leaf(net.shape(node)[len(net.shape(node)) - len(weight) + 1])
    return _convolve(net, node, operands, [outputs, weight[0]])


def _convolve(net: Net, node: fx.Node, operands: dict[str, Any], channels: Axes) -> Axes:
    """State which axes are one, from those of outputs and inputs as the weight has them: of one group, or of all."""
    x, weight = net.axes(operands["input"]), net.axes(operands["weight"])
    if not isinstance(operands["groups"], int):
        reason = "convolved in as many groups as there are samples"
        net.fix_all([x, weight], reason)
        return net.fresh_outputs(node, reason)[0]
    at = len(x) - len(weight) + 1  # without a batch dimension it is the first
    inside, outside = _groups(net, node, x[at], channels, weight, operands["groups"])
    if operands["bias"] is not None:
        unify(outside, net.axes(operands["bias"])[0])
    net.fix_all([weight[2:]], "a kernel position")
    net.fix_all([x[at + 1 :]], "a position")
    partner_dim = 1 if channels[1] is weight[1] else 0
    if inside[-1].size > 1 or operands["groups"] == 1:
        net.consume(node, operands["input"], at, operands["weight"], partner_dim, product(inside))
    out = [*x[:at], outside, *net.fresh_outputs(node, "a position")[0][at + 1 :]]
    net.macs.append([*out, *weight[1:]] if channels[0] is weight[0] else [*x, *weight[1:]])
    return out


def _groups(net: Net, node: fx.Node, x: Axis, channels: Axes, weight: Axes, groups: int) -> tuple[Axes, Axis]:
    """Return the axes that are summed over, groups with a leaf of their own, and that of the outputs."""
    outputs, inputs = channels
    if groups == 1:
        unify(x, inputs)
        if outputs is not weight[0]:
            unify(outputs, weight[1])
        return [inputs], outputs
    group, members = leaf(groups), leaf(x.size // groups)
    group_outputs = leaf(outputs.size // groups)
    unify(x, product([group, members]))
    unify(outputs, product([group, group_outputs]))
    unify(inputs, members if inputs is weight[1] else x)
    if outputs is not weight[0]:
        unify(weight[1], group_outputs)
    net.groups[node] = group
    return [leaf(groups), members], outputs


@resize("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def resize_convolution(net: Net, node: fx.Node, operands: dict[str, Any], left: KeepMask) -> dict[str, Any]:
    """Return the number of groups left."""
    return {"groups": left.count(net.groups[node])} if node in net.groups else {}


@module_sizes(nn.modules.conv._ConvNd)
@module_sizes(nn.Conv1d, nn.Conv2d, nn.Conv3d, bias="out_channels")
def attributes(module: nn.modules.conv._ConvNd, shape: tuple[int, ...], groups: int | None) -> dict[str, Any]:
    """Return the groups, and the channels of all of them."""
    groups = groups or module.groups
    of_group, all_of_them = ("out_channels", "in_channels") if module.transposed else ("in_channels", "out_channels")
    return {of_group: shape[1] * groups, all_of_them: shape[0], "groups": groups}
