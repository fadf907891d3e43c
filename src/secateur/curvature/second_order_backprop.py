"""Second-derivative back-propagation (003 eq. 73-79) over a captured graph, to activations and to weights.

    o = f(x)       ∂E/∂x = f' ∂E/∂o        ∂²E/∂x² = f'² ∂²E/∂o² + f'' ∂E/∂o
    z = A x        ∂E/∂x = Aᵀ ∂E/∂z        ∂²E/∂x² = (A∘A)ᵀ ∂²E/∂z²

∂²E/∂z_i∂z_j between different values is dropped, also between two paths from one value that meet in a sum.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from secateur.errors import ModelError
from secateur.structure.exporting.noise import steady_call
from secateur.structure.ops.registry import arguments, find_op, name_of

Pair = tuple[Tensor, Tensor]  # ∂E/∂v and the diagonal of ∂²E/∂v², both of v's shape
Values = Mapping[fx.Node, Any]
Active = dict[fx.Node, list[fx.Node]]  # in the graph's order; the operands through which each depends on a wanted one


@torch.enable_grad()
def second_derivatives(
    graph: fx.Graph, values: Values, at_outputs: Mapping[fx.Node, Pair], wanted: Collection[fx.Node]
) -> dict[fx.Node, Pair]:
    """Return ∂E/∂v and ∂²E/∂v² of the values v that are asked for, activations and weights (003 eq. 73-79).

    The derivatives are carried into operands that are wanted or depend on what is, never into others. What several
    nodes use gets the sum. An activation written in several pointwise operations is one function of its input; such
    functions end at wanted values. Of z_i = Σ_j w_ij a_j + b_i, a weight gets Σ a_j² ∂²E/∂z_i² and a bias Σ ∂²E/∂z_i²,
    over samples and positions.

    Args:
        graph: A graph of ATen operations.
        values: The values of its placeholders and calls.
        at_outputs: The derivatives of what it returns, by the function `at_outputs`.
        wanted: Placeholders or calls with one tensor as value.

    Returns:
        The derivatives for each wanted node that E depends on, of its value's shape.

    Cost: each operation twice and two backward passes of it; a function of pointwise operations once, and three
    backward passes for each value that it is a function of.

    Raises:
        ModelError: There is an operation on the way that the recursion does not apply to, or a complex value.
    """
    active = _active(graph, values, wanted)
    ends = _ends(active).union(wanted)
    pairs = {node: pair for node, pair in at_outputs.items() if node in active}
    for node in reversed(active):
        if node not in pairs or not active[node]:
            continue
        if _kind(node) == "pointwise":
            passed = _through_pointwise(node, active, ends, values, pairs[node])
        else:
            passed = _through_linear(node, active[node], values, pairs[node])
        for operand, pair in passed:
            before = pairs.get(operand)
            pairs[operand] = pair if before is None else (before[0] + pair[0], before[1] + pair[1])
    return {node: pairs[node] for node in wanted if node in pairs}


@torch.enable_grad()
def at_outputs(returned: fx.Node, values: Values, loss: Callable[[Any], Tensor]) -> dict[fx.Node, Pair]:
    """Return ∂E/∂o and ∂²E/∂o² of the loss itself (003 eq. 49): where the recursion begins.

    The samples are independent, so that it takes one backward pass for each output of one sample.

    Args:
        returned: The graph's output node.
        values: The values of the graph's nodes.
        loss: A number, from what the graph returns.
    """
    nodes = [node for node in returned.all_input_nodes if isinstance(values[node], Tensor)]
    leaves = {n: _leaf(values[n]) for n in nodes if values[n].is_floating_point()}
    error = loss(fx.map_arg(returned.args[0], lambda n: leaves.get(n, values[n])))
    firsts = torch.autograd.grad(error, list(leaves.values()), create_graph=True, allow_unused=True)
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


def _active(graph: fx.Graph, values: Values, wanted: Collection[fx.Node]) -> Active:
    """Return the tensors that are wanted or depend on what is.

    Raises:
        ModelError: One is complex.
    """
    active: Active = {}
    for node in graph.nodes:
        operands = [operand for operand in _call(node).all_input_nodes if operand in active]
        if node.op == "output" or not (operands or node in wanted) or not isinstance(values[node], Tensor):
            continue
        if values[node].is_complex():
            raise ModelError(_refusal(node))
        if values[node].is_floating_point():
            active[node] = operands
    return active


def _ends(active: Active) -> set[fx.Node]:
    """Return where functions made of pointwise operations end: at the values that they are functions of.

    Those are values of other operations, and pointwise ones that no operand passes by on its way to a later
    pointwise one: what depends on anything before then depends on it through them alone. So a chain of residual adds
    is many functions of few operations each.
    """
    last = {operand: i for i, node in enumerate(active) if _kind(node) == "pointwise" for operand in active[node]}
    ends, furthest = set(), -1
    for i, node in enumerate(active):
        if _kind(node) != "pointwise" or not active[node]:
            ends.add(node)  # nothing comes before it, so that it counts as an operand when it is first used
            continue
        furthest = max(furthest, *(last[operand] for operand in active[node]))
        if furthest <= i:
            ends.add(node)
        furthest = max(furthest, last.get(node, -1))
    return ends


def _through_pointwise(
    value: fx.Node, active: Active, ends: set[fx.Node], values: Values, pair: Pair
) -> Iterator[tuple[fx.Node, Pair]]:
    """Return both derivatives at each value that pointwise operations alone make this one of."""
    at: dict[fx.Node, Tensor] = {}
    for call in _pointwise_calls(value, active, ends):
        at |= {operand: _leaf(values[operand]) for operand in active[call] if operand in ends and operand not in at}
        at[call] = _run(call, at, values)
    for node in at:
        if node in ends and node is not value:
            yield node, _of_function(at[value], at[node], pair)


def _pointwise_calls(value: fx.Node, active: Active, ends: set[fx.Node]) -> list[fx.Node]:
    """Return the calls that make a value of those where functions end, in order."""
    calls, rest = {value}, [value]
    while rest:
        new = {operand for operand in active[rest.pop()] if operand not in ends} - calls
        calls |= new
        rest += new
    return sorted(calls)


def _of_function(y: Tensor, x: Tensor, pair: Pair) -> Pair:
    """Return both derivatives at x where each value of y is a function of one of x (003 eq. 73, 78)."""
    v = _leaf(pair[0])
    first = _vjp(y, x, v)  # linear in v: its derivative is the slope, of y's shape
    slope, curvature = _vjp(first.sum(), v), _vjp(first.sum(), x)
    return first.detach(), (_vjp(y, x, slope * pair[1]) + curvature).detach()


def _vjp(y: Tensor, x: Tensor, v: Tensor | None = None) -> Tensor:
    """Return (∂y/∂x)ᵀ v, zero where y does not depend on x."""
    if not y.requires_grad:
        return torch.zeros_like(x)
    return torch.autograd.grad(y, x, v, create_graph=True, materialize_grads=True)[0]


def _through_linear(
    node: fx.Node, operands: Sequence[fx.Node], values: Values, pair: Pair
) -> Iterator[tuple[fx.Node, Pair]]:
    """Return both derivatives at operands that an operation is linear in (003 eq. 77).

    Raises:
        ModelError: The recursion does not apply to the operation.
    """
    first, second = pair
    kind = _kind(node)
    if kind is None or (kind == "contract" and not _has_single_terms(node)):
        raise ModelError(_refusal(node))
    if kind == "average":
        second = second * _coefficients(node, operands[0], values)
    firsts = _transposed(node, operands, values, first)
    seconds = _transposed(node, operands, values, second, square=kind == "contract")
    yield from zip(operands, zip(firsts, seconds, strict=True), strict=True)


def _refusal(node: fx.Node) -> str:
    call = _call(node)
    known = "pointwise operations, sums with weights, averages, and operations that move values"
    return (
        f"second-derivative back-propagation does not apply to {name_of(call)} ({call.name}), only to {known}; "
        "criterion='hessian', of weights 'obd', takes any"
    )


def _transposed(
    node: fx.Node, operands: Sequence[fx.Node], values: Values, d: Tensor, square: bool = False
) -> list[Tensor]:
    """Return Aᵀ d for each operand, or (A∘A)ᵀ d by squaring all that A holds."""
    at = {operand: _leaf(values[operand]) for operand in operands}
    if square:
        at = {n: _leaf(values[n].square()) for n in node.all_input_nodes if isinstance(values[n], Tensor)}
    z = _run(node, at, values, square)
    return [_vjp(z, at[operand], d).detach() for operand in operands]


def _coefficients(node: fx.Node, operand: fx.Node, values: Values) -> Tensor | float:
    """Return the one coefficient c of each average: (A∘A)ᵀ d = Aᵀ(c d).

    The average of ones is c × how many positions are within, a box: along each dimension those count that, on their
    own, the average sees.
    """
    x, op = values[operand], find_op(node)
    rank = None if op is None else op.box
    if rank is None:
        return float(values[node].numel() / x.numel())
    ones = torch.ones_like(x[(slice(1),) * (x.ndim - rank)])  # samples and channels are all alike
    c = _run(node, {operand: ones}, values)
    for dim in range(-rank, 0):
        n = x.shape[dim]
        basis = torch.eye(n).to(x).reshape(n, *(n if d == dim else 1 for d in range(1 - x.ndim, 0)))
        c = c / (_run(node, {operand: basis * ones}, values) != 0).sum(0, keepdim=True)
    return c


def _has_single_terms(node: fx.Node) -> bool:
    """Return whether each result holds each value of an operand in one term, so that the terms' squares are A∘A."""
    nodes: list[fx.Node] = []
    fx.map_arg((node.args, node.kwargs), nodes.append)
    op = find_op(node)
    told = op is None or op.has_single_terms is None or op.has_single_terms(arguments(node))
    return told and len(nodes) == len(set(nodes))


def _kind(node: fx.Node) -> str | None:
    """Return how derivatives pass through; None also where a norm takes its statistics from the batch."""
    op = find_op(_call(node))
    return None if op is None or arguments(_call(node)).get("training") else op.derivative


def _call(node: fx.Node) -> fx.Node:
    """Return the operation that gives a value, also where it is one of several."""
    op = find_op(node)
    return node.all_input_nodes[0] if op is not None and op.derivative == "output" else node


def _run(node: fx.Node, at: Mapping[fx.Node, Tensor], values: Values, square: bool = False) -> Tensor:
    """Compute a value with other operands; also with the squares of alpha and beta, which scale products and biases."""
    call = _call(node)
    mapped: Any = fx.map_arg((call.args, dict(call.kwargs)), lambda n: at[n] if n in at else values[n])
    args, kwargs = mapped
    if square:
        kwargs = {name: number**2 if name in ("alpha", "beta") else number for name, number in kwargs.items()}
    result = steady_call(call)(*args, **kwargs)
    value: Tensor = result if call is node else result[node.args[1]]
    return value


def _leaf(value: Tensor) -> Tensor:
    return value.detach().requires_grad_()
