"""Operations on each value alone: the output has the inputs' axes."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx, nn

from secateur.structure.axis import leaf, product, unify
from secateur.structure.ops.net import Axes, Net, dim_of, rank_of, require_form, same_size
from secateur.structure.ops.registry import Take, module_sizes, name_of, rule


def select_each(x: fx.Node, dim: int, take: Take) -> list[Any] | None:
    """Take the position of every operand that has it."""
    rank = rank_of(x)
    nodes = [n for n in x.args if isinstance(n, fx.Node)]
    if not all(map(rank_of, nodes)) or x.kwargs.keys() - {"alpha", "approximate", "memory_format"}:
        return None
    args: list[Any] = []
    for n in x.args:
        own = dim - rank + rank_of(n)  # inputs are broadcast from the right
        whole = isinstance(n, fx.Node) and own >= 0 and same_size(n, own, x, dim)
        args.append(take(n, own) if whole else n)
    return args


@rule("pointwise", "dropout", "feature_dropout", "alpha_dropout", derivative="pointwise")
@rule("add", derivative="pointwise", adds=True, select=select_each)
@rule("mul", "sub", "div", "gelu", "clone", "contiguous", derivative="pointwise", select=select_each)
@rule("relu", "sigmoid", "tanh", "silu", derivative="pointwise", select=select_each, memory="reusable")
@rule("hardtanh", "hardswish", "leaky_relu", derivative="pointwise", memory="reusable")
@rule("_to_copy", "to", "alias", "detach", "copy", derivative="pointwise")
@rule("log_sigmoid", "softmin", "floor_divide", derivative="pointwise")  # not tagged by PyTorch
@rule("lift_fresh", "lift_fresh_copy", "expand_as", derivative="pointwise")
@rule("rand_like", "randn_like", "bernoulli", "native_dropout", derivative="pointwise")
@rule("normal", "normal_functional", "uniform", derivative="pointwise")
@rule("where", "zeros_like", "ones_like", "empty_like", "full_like", "fill", derivative="pointwise")
def pointwise(net: Net, node: fx.Node, operands: dict[str, Any]) -> Axes | list[Axes]:
    """Return the inputs' axes, broadcast; of each output where there are several."""
    inputs = [net.axes(argument) for argument in node.all_input_nodes if net.is_tensor(argument)]
    require_form(bool(inputs), "numbers alone")
    out, value = net.broadcast(inputs, name_of(node)), node.meta["val"]
    return out if isinstance(value, Tensor) else [list(out) for _ in value]


@rule("type_as", derivative="pointwise")
def type_as(net: Net, node: fx.Node, operands: dict[str, Any]) -> Axes:
    """State another dtype: nothing else of the other tensor counts."""
    return net.axes(operands["self"])


@rule("prelu", derivative="pointwise")
def prelu(net: Net, node: fx.Node, operands: dict[str, Any]) -> Axes:
    """State one slope for each channel (dimension 1), or one for all."""
    axes, slope = net.axes(operands["self"]), net.axes(operands["weight"])
    channels = axes[1:2] or axes
    net.broadcast([channels, slope], "prelu")
    return axes


@module_sizes(nn.PReLU)
def prelu_attributes(module: nn.PReLU, shape: tuple[int, ...], groups: int | None) -> dict[str, Any]:
    """Return the number of slopes."""
    return {"num_parameters": shape[0]}


@rule("glu")
def glu(net: Net, node: fx.Node, operands: dict[str, Any]) -> Axes:
    """State a σ(b) of the two halves of one dimension: both lose the same units."""
    axes = net.axes(operands["self"])
    dim = dim_of(operands, axes)
    require_form(axes[dim].size % 2 == 0, "halves of the samples")
    half = leaf(axes[dim].size // 2)
    unify(axes[dim], product([leaf(2, "the halves of glu"), half]))
    axes[dim] = half
    return axes


@rule("masked_fill", derivative="pointwise")
def masked_fill(net: Net, node: fx.Node, operands: dict[str, Any]) -> Axes:
    """State that the mask is broadcast to the values."""
    return net.broadcast([net.axes(operands["self"]), net.axes(operands["mask"])], "masked_fill")
