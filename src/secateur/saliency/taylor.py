"""First- and second-order Taylor estimates, the second by second-derivative back-propagation (003, appendix A)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from secateur.errors import ModelError
from secateur.saliency.criterion import criterion
from secateur.saliency.gates import Cached, Gated, derivative, per_position
from secateur.saliency.losses import differentiable
from secateur.structure.rules.registry import find_rule, name_of
from secateur.structure.run import outputs

Pair = tuple[Tensor, Tensor]  # ∂E/∂v and the diagonal of ∂²E/∂v², both of v's shape


@criterion("taylor1")
def taylor1(gated: Gated, g: Tensor) -> Tensor:
    """ΔE_k ≈ −g_k ∂E/∂g_k = −Σ o ∂E/∂o (003 eq. 3). One backward pass."""
    return -gated.gradient(g)


@criterion("taylor2")
def taylor2(gated: Gated, g: Tensor) -> Tensor:
    """ΔE_k ≈ −Σ o ∂E/∂o + ½ Σ o² ∂²E/∂o² (003 eq. 4), the sums over samples and consumers.

    The recursion (003 eq. 73-79) passes both derivatives from the outputs back through each operation:

        o = f(x)       ∂E/∂x = f' ∂E/∂o        ∂²E/∂x² = f'² ∂²E/∂o² + f'' ∂E/∂o
        x_i = Σ w o    ∂E/∂o = Σ w ∂E/∂x       ∂²E/∂o² = Σ w² ∂²E/∂x²

    It drops ∂²E/∂x_i∂x_j between different values. So it equals `hessian` for the last hidden layer where
    loss and output act on each output alone, and is an approximation elsewhere. One forward and a few
    backward passes, and one through the loss per output.

    Raises:
        ModelError: The network has an operation that the recursion does not apply to.
    """
    saliency = torch.zeros(len(g), dtype=torch.float64, device=g.device)
    for batch in gated.cached:
        values = gated.graph.trace(batch.frontier, g)
        derivatives = _back_propagate(gated, batch, values)
        for edge in gated.graph.edges:
            if edge.node in derivatives:
                o, (first, second) = values[edge.node], derivatives[edge.node]
                terms = (-o * first + 0.5 * o.square() * second).double()
                saliency += gated.units.collect(edge.axis, per_position(terms, edge.dim).sum(1))
    return saliency


def _back_propagate(gated: Gated, batch: Cached, values: dict[fx.Node, Any]) -> dict[fx.Node, Pair]:
    """Both derivatives at every value that depends on a gate and is summed over, moved or returned.

    Backward through the suffix, from each value that a sum made over all pointwise operations at once to the
    values they give: an activation written in several operations is one function of its input.
    """
    values = {node: value[0] if isinstance(value, tuple) else value for node, value in values.items()}
    *nodes, returned = gated.graph.suffix.nodes
    derivatives = _at_outputs(gated, batch, returned, values)
    calls = {node for node in nodes if node.op == "call_function" and isinstance(values[node], Tensor)}
    for node in reversed(nodes):
        if node not in calls or _is_pointwise(node):
            continue
        for made in _pointwise_from(node, calls):
            if made in derivatives:
                _add(derivatives, node, _pointwise(node, made, values, derivatives[made]))
        for operand in node.all_input_nodes if node in derivatives else ():
            if operand in calls:
                _add(derivatives, operand, _through(node, operand, values, derivatives[node]))
    return derivatives


def _add(derivatives: dict[fx.Node, Pair], node: fx.Node, pair: Pair) -> None:
    before = derivatives.get(node)
    derivatives[node] = pair if before is None else (before[0] + pair[0], before[1] + pair[1])


def _is_pointwise(node: fx.Node) -> bool:
    found = find_rule(node)
    return found is not None and found.derivative in ("pointwise", "output")


def _pointwise_from(node: fx.Node, calls: set[fx.Node]) -> list[fx.Node]:
    """What pointwise operations alone make of a value, in order."""
    found = {node: None}
    for later in node.graph.nodes:
        if later in calls and _is_pointwise(later) and any(operand in found for operand in later.all_input_nodes):
            found[later] = None
    return list(found)[1:]


def _at_outputs(gated: Gated, batch: Cached, returned: fx.Node, values: dict[fx.Node, Any]) -> dict[fx.Node, Pair]:
    """∂E/∂o and ∂²E/∂o² of the loss itself: the samples are independent, so one backward pass per output of one."""
    nodes = [node for node in returned.all_input_nodes if isinstance(values[node], Tensor)]
    leaves = {n: values[n].detach().requires_grad_() for n in nodes if values[n].is_floating_point()}
    given: Any = fx.map_arg(returned.args[0], lambda n: leaves.get(n, values[n]))
    loss = batch.share * differentiable(gated.loss_function, outputs(gated.units.captured, given), batch.targets)
    firsts = torch.autograd.grad(loss, list(leaves.values()), create_graph=True, allow_unused=True)
    return {
        node: (first.detach(), _diagonal(first, leaf))
        for (node, leaf), first in zip(leaves.items(), firsts, strict=True)
        if first is not None
    }


def _diagonal(first: Tensor, leaf: Tensor) -> Tensor:
    second = torch.zeros_like(leaf).flatten(1) if leaf.ndim > 1 else torch.zeros_like(leaf)[:, None]
    columns = first.reshape(second.shape)
    for i in range(second.shape[1] if first.requires_grad else 0):
        (row,) = torch.autograd.grad(columns[:, i].sum(), leaf, retain_graph=True, allow_unused=True)
        if row is not None:
            second[:, i] = row.reshape(second.shape)[:, i]
    return second.reshape(leaf.shape)


def _through(node: fx.Node, operand: fx.Node, values: dict[fx.Node, Any], pair: Pair) -> Pair:
    """Both derivatives at one operand of an operation that moves or sums, from those at its result.

    Raises:
        ModelError: The recursion does not apply to the operation.
    """
    found = find_rule(node)
    if found is None or found.derivative is None:
        known = "pointwise operations, sums with weights, and operations that move values"
        raise ModelError(
            f"taylor2: second-derivative back-propagation does not apply to {name_of(node)} ({node.name}), "
            f"only to {known}; use criterion='hessian'"
        )
    x = values[operand].detach().requires_grad_()
    first, second = (
        torch.autograd.grad(_call(node, {operand: x}, values, square), x, d)[0]
        for square, d in zip((False, found.derivative == "contract"), pair, strict=True)
    )
    return first, second


def _pointwise(node: fx.Node, made: fx.Node, values: dict[fx.Node, Any], pair: Pair) -> Pair:
    """Both derivatives at a value, from those at what pointwise operations make of it."""
    first, second = pair
    x = values[node].detach().expand_as(values[made]).requires_grad_()
    behind = _pointwise_from(node, set(values))
    needed = {made}
    for later in reversed(behind):
        needed.update(later.all_input_nodes if later in needed else ())
    replaced = {node: x}
    for later in behind:
        if later in needed:
            replaced[later] = _call(later, replaced, values)
    slope = derivative(replaced[made].sum(), x, create_graph=True)
    curve = derivative(slope.sum(), x)
    slope, shape = slope.detach(), values[node].shape
    return (slope * first).sum_to_size(shape), (slope.square() * second + curve * first).sum_to_size(shape)


def _call(node: fx.Node, replaced: dict[fx.Node, Tensor], values: dict[fx.Node, Any], square: bool = False) -> Tensor:
    """The node's result with some operands replaced; the other tensors as they are, or squared."""
    if name_of(node) == "getitem":
        return replaced[node.all_input_nodes[0]]  # the first output already

    def value(n: fx.Node) -> Any:
        if n in replaced:
            return replaced[n]
        return values[n].square() if square and isinstance(values[n], Tensor) else values[n]

    result = node.target(*fx.map_arg(node.args, value), **fx.map_arg(node.kwargs, value))  # type: ignore[operator]
    first: Tensor = result[0] if isinstance(result, tuple) else result
    return first
