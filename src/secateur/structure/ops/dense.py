"""Dense layers and products of matrices: y = x W + b."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from secateur.structure.axis import unify
from secateur.structure.ops.attention import state_heads
from secateur.structure.ops.linear import Linear, Operands, PerSample, Update
from secateur.structure.ops.net import Axes, Net
from secateur.structure.ops.registry import first_operand, module_sizes, name_of, rule


def dense(operand: str, weight: str, bias: str | None = None) -> Linear:
    """Return what is known of a dense layer whose call has these arguments, with a weight [O, I]."""
    per_sample = {weight: PerSample(_of_weight, (2,))} | ({bias: PerSample(_of_bias, (1,))} if bias else {})
    return Linear(operand, weight, bias, _rows, _update, per_sample, is_dense=True)


def product_with(operand: str, weight: str, bias: str | None = None) -> Linear:
    """Return what is known of a product with a weight [I, O]."""
    per_sample = {weight: PerSample(_of_transposed, (2,))} | ({bias: PerSample(_of_bias, (1,))} if bias else {})
    return Linear(operand, weight, bias, _rows, None, per_sample, inputs_first=True, is_dense=True)


def _rows(value: Tensor, kernel: Sequence[int], operands: Operands) -> tuple[Tensor, int]:
    return value, value.ndim - 1


def _update(a: Tensor, weight: Tensor, operands: Operands, z: Tensor) -> Update:
    """Return Z + o_k (δ_k w_k)ᵀ for any candidates k: an update of rank 1, or of a head's width."""
    o, w, whole = a.flatten(0, -2).t(), weight.t(), z.flatten(0, -2)
    buffer = z.new_empty(0)

    def updated(positions: Tensor, change: Tensor) -> Tensor:
        rows = o[positions].transpose(1, 2)  # [C, N ..., p]
        columns = w[positions] * change[:, None, None]  # [C, p, O]
        nonlocal buffer  # used again: fresh memory costs more than the product
        buffer = buffer.resize_(0 if change.requires_grad else len(positions), *whole.shape)
        out = None if change.requires_grad else buffer
        if positions.shape[1] == 1:
            result = torch.addcmul(whole, rows, columns, out=out)
        else:
            result = torch.baddbmm(whole.expand(len(positions), -1, -1), rows, columns, out=out)
        return result.reshape(-1, *z.shape[1:])

    return updated


def _of_weight(a: Tensor, delta: Tensor, w: Tensor, operands: Operands) -> Tensor:
    """Return δ aᵀ, summed over positions [n, v, O, I]."""
    a, d = _positions(a, 1), _positions(delta, 2)
    rows = d.mT.flatten(1, 2)  # all vectors in one product
    return torch.unflatten(rows @ a, 1, (d.shape[1], d.shape[3]))


def _of_transposed(a: Tensor, delta: Tensor, w: Tensor, operands: Operands) -> Tensor:
    """Return (δ aᵀ)ᵀ, for a weight [I, O]."""
    return _of_weight(a, delta, w, operands).mT


def _of_bias(a: Tensor, delta: Tensor, w: Tensor, operands: Operands) -> Tensor:
    """Return δ, summed over positions [n, v, O]."""
    return _positions(delta, 2).sum(2)


def _positions(values: Tensor, before: int) -> Tensor:
    """Return the values as [..., positions, features]."""
    shape = values.shape
    return values.reshape(*shape[:before], math.prod(shape[before:-1]), shape[-1])


LINEAR = dense("input", "weight", "bias")


@rule("linear", derivative="contract", linear=LINEAR, makes="width", memory="fresh", select=first_operand(lambda _: 1))
def linear(net: Net, node: fx.Node, operands: dict[str, Any]) -> Axes:
    """State y[..., o] = Σ_i x[..., i] W[o, i] + b[o]."""
    return dense_axes(net, node, operands["input"], operands["weight"], operands["bias"])


def dense_axes(net: Net, node: fx.Node, operand: fx.Node, matrix: fx.Node, bias: fx.Node | None) -> Axes:
    """Return the axes of a dense layer's output, with its weight [O, I] and bias [O], and state what it sums over."""
    x, weight = net.axes(operand), net.axes(matrix)
    unify(x[-1], weight[-1])
    out = [*x[:-1], *weight[:-1]]
    if bias is not None:
        net.broadcast([out, net.axes(bias)], name_of(node))
    net.consume(node, operand, len(x) - 1, matrix, len(weight) - 1)
    net.macs.append([*out, x[-1]])
    return out


@rule("bilinear")
def bilinear(net: Net, node: fx.Node, operands: dict[str, Any]) -> Axes:
    """State y[..., o] = Σ_ij a[..., i] W[o, i, j] b[..., j] + c[o]; either input carries its own gates."""
    weight = net.axes(operands["weight"])
    first, second = net.axes(operands["input1"]), net.axes(operands["input2"])
    lead = net.broadcast([first[:-1], second[:-1]], "bilinear") if len(first) > 1 else []
    for name, axes, dim in (("input1", first, 1), ("input2", second, 2)):
        unify(axes[-1], weight[dim])
        again = name == "input2" and operands["input1"] is operands["input2"]
        net.consume(node, operands[name], len(axes) - 1, operands["weight"], dim, occurrence=int(again))
    if operands["bias"] is not None:
        unify(weight[0], net.axes(operands["bias"])[0])
    net.macs.append([*lead, *weight])
    return [*lead, weight[0]]


@rule("matmul", derivative="contract", linear=product_with("self", "other"), makes="width")
@rule("mm", derivative="contract", linear=product_with("self", "mat2"))
@rule("bmm", "mv", "dot", "vdot", derivative="contract")
def matmul(net: Net, node: fx.Node, operands: dict[str, Any]) -> Axes:
    """State y[..., n, m] = Σ_k a[..., n, k] b[..., k, m], leading dimensions broadcast, vectors without n or m."""
    return _matmul(net, node, *factors_of(node))


def factors_of(node: fx.Node) -> list[fx.Node]:
    """Return both operands, also where they are the same one."""
    return node.all_input_nodes if len(node.all_input_nodes) == 2 else node.all_input_nodes * 2


@rule("addmm", derivative="contract", linear=product_with("mat1", "mat2", "self"), makes="width")
def addmm(net: Net, node: fx.Node, operands: dict[str, Any]) -> Axes:
    """State a biased product: y = bias + a b."""
    out = _matmul(net, node, operands["mat1"], operands["mat2"])
    return net.broadcast([out, net.axes(operands["self"])], "addmm")


@rule("baddbmm", derivative="contract")
def baddbmm(net: Net, node: fx.Node, operands: dict[str, Any]) -> Axes:
    """State a biased product for a stack of matrices: y = bias + a b."""
    out = _matmul(net, node, operands["batch1"], operands["batch2"])
    return net.broadcast([out, net.axes(operands["self"])], "baddbmm")


def _matmul(net: Net, node: fx.Node, left: fx.Node, right: fx.Node) -> Axes:
    a, b = net.axes(left), net.axes(right)
    inner = max(len(b) - 2, 0)
    unify(a[-1], b[inner])
    lead = net.broadcast([a[:-2], b[:-2]], "matmul") if max(len(a), len(b)) > 2 else []
    out = [*lead, *(a[-2:-1] if len(a) > 1 else []), *(b[-1:] if len(b) > 1 else [])]
    net.macs.append([*out, a[-1]])
    if net.is_activation(left) and net.is_activation(right):
        state_heads(net, lead, [a[-1], *out[len(lead) :]])
    if net.is_activation(left) or not net.is_activation(right):
        net.consume(node, left, len(a) - 1, right, inner)
    else:
        net.consume(node, right, inner, left, len(a) - 1, occurrence=int(left is right))
    return out


@module_sizes(nn.Linear, bias="out_features")
def linear_attributes(module: nn.Linear, shape: tuple[int, ...], groups: int | None) -> dict[str, Any]:
    """Return the numbers of inputs and outputs."""
    return {"out_features": shape[0], "in_features": shape[1]}


@module_sizes(nn.Bilinear)
def bilinear_attributes(module: nn.Bilinear, shape: tuple[int, ...], groups: int | None) -> dict[str, Any]:
    """Return the numbers of both inputs, and of outputs."""
    return {"out_features": shape[0], "in1_features": shape[1], "in2_features": shape[2]}
