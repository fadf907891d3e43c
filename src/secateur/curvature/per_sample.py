"""Each sample's derivative in a parameter, from the call that takes it: z = f(a, w), δ = ∂/∂z.

Sample n's derivative in w depends on its own input a_n and δ_n alone: of a dense layer it is δ_n a_nᵀ (Goodfellow,
Efficient per-example gradient computations, 2015), of a convolution the sum of that over all patches, of anything else
f's own pullback, mapped over the samples.

Shapes: n samples, v vectors; inputs [n, *of one sample], δ [n, v, *of one sample], derivatives [n, v, *w.shape].
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from secateur.objective.gated_graph import downstream
from secateur.structure.axis import BATCH, Axis, find, parts
from secateur.structure.capture import Captured, counts_samples, is_free, sizes
from secateur.structure.exporting.noise import steady_call
from secateur.structure.infer import infer
from secateur.structure.ops.linear import PerSample
from secateur.structure.ops.registry import arguments, linear_of

Known = Mapping[fx.Node, Any]


class Layout(NamedTuple):
    """The place of the samples in a value: its dimension `dim` is [outer, samples, inner]."""

    dim: int
    outer: int


def layouts(captured: Captured) -> dict[fx.Node, Layout]:
    """Return the layouts of the values that hold the samples along one dimension."""
    net = infer(captured)
    every = {node: _layout(net.axes(node), node.meta["val"].shape) for node in net.known if net.is_tensor(node)}
    return {node: layout for node, layout in every.items() if layout is not None}


def _layout(axes: list[Axis], shape: torch.Size) -> Layout | None:
    dims = [dim for dim, axis in enumerate(axes) if axis.size and axis.size % BATCH == 0]
    if len(dims) != 1:
        return None
    axis = find(axes[dims[0]])
    factors = parts(axis) if axis.kind == "product" else [axis]
    before = itertools.takewhile(lambda factor: factor.size % BATCH, factors)
    outer = math.prod(factor.size for factor in before)
    return None if outer > 1 and is_free(shape[dims[0]]) else Layout(dims[0], outer)


class Use(NamedTuple):
    """A call on samples, and what it takes that is made of parameters alone."""

    node: fx.Node
    source: fx.Node


class Uses:
    """The calls in which the parameters meet the samples.

    Attributes:
        layouts: The layouts of the values that hold samples.
        placeholders: The placeholders of each parameter: several where it is tied.
        of: The calls that take each parameter, or what the graph makes of it alone.
        entries: All these calls.
        kept: The values that derivatives are computed from.
        counts: The integers among them that depend on the number of samples.
    """

    def __init__(self, captured: Captured, names: Sequence[str], layouts: Mapping[fx.Node, Layout]) -> None:
        self.captured, self.layouts = captured, layouts
        placeholders = captured.graph.find_nodes(op="placeholder")
        self.placeholders = {name: [p for p in placeholders if captured.weights.get(p.name) == name] for name in names}
        data = downstream([p for p in placeholders if p.name in captured.inputs])
        self.of = {name: _meetings(nodes, data) for name, nodes in self.placeholders.items()}
        self.entries = {use.node for uses in self.of.values() for use in uses}
        self.kept = {
            *placeholders,
            *self.entries,
            *(operand for node in self.entries for operand in node.all_input_nodes),
        }
        self.counts = [n for n in self.kept & data if counts_samples(n.meta["val"])]

    def apart(self, name: str) -> bool:
        """Return whether every call that takes the parameter may hold its samples apart."""
        nodes = [use.node for use in self.of[name]]
        mixed = {n for n in self.counts if is_free(n.meta["val"])}  # with lengths, for one sample other in each batch
        return all(
            node in self.layouts and node.meta["val"].is_floating_point() and mixed.isdisjoint(node.all_input_nodes)
            for node in nodes
        )

    def dense(self, name: str) -> Use | None:
        """Return the use as the weight or bias of one dense layer with inputs [N, I]; None if it is used otherwise."""
        uses = self.of[name]
        if len(uses) != 1 or uses[0].source.op != "placeholder" or rule_of(uses[0]) is None:
            return None
        linear = linear_of(uses[0].node)
        if linear is None or not linear.is_dense:
            return None
        return uses[0] if sizes(uses[0].node.meta["val"])[:-1] == (BATCH,) else None


def _meetings(placeholders: list[fx.Node], data: set[fx.Node]) -> list[Use]:
    of_weights = {*placeholders, *downstream(placeholders)} - data
    ordered = (node for node in placeholders[0].graph.nodes if node in of_weights)
    return [Use(user, node) for node in ordered for user in node.users if user in data]


def call(node: fx.Node, known: Known) -> Any:
    """Return what a call returns for these values of its arguments."""
    args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), known.__getitem__)
    return steady_call(node)(*args, **kwargs)


def of_samples(tensor: Tensor, layout: Layout, n: int, rows: slice) -> Tensor:
    """Return these of a value's n samples, one after the other [rows, *of one sample]."""
    dim = layout.dim
    apart = torch.unflatten(tensor, dim, (layout.outer, n, tensor.shape[dim] // (layout.outer * n)))
    return apart.movedim(dim + 1, 0)[rows].flatten(dim + 1, dim + 2)


def rule_of(use: Use) -> PerSample | None:
    """Return the rule for a parameter in this place of this call; None if there is none."""
    operands, linear = arguments(use.node), linear_of(use.node)
    roles = [name for name, value in operands.items() if value is use.source]
    rule = linear.per_sample.get(roles[0]) if linear is not None and len(roles) == 1 else None
    applies = rule is not None and use.source.meta["val"].ndim in rule.dims and rule.applies(operands)
    return rule if applies else None


def derivative_of(
    use: Use, layouts: Mapping[fx.Node, Layout], known: Known, delta: Tensor, single: Known, n: int, rows: slice
) -> Tensor:
    """Return ∂/∂w [n, v, *w.shape] of what a call takes, for some samples.

    Args:
        use: The call and what it takes.
        layouts: The layouts of values that hold samples.
        known: The values of its arguments.
        delta: δ of all samples for v vectors [v, *z.shape].
        single: Integers that depend on the number of samples, for one.
        n: The number of all samples.
        rows: The samples among them.
    """
    layout = layouts[use.node]
    deltas = of_samples(delta, Layout(layout.dim + 1, layout.outer), n, rows)
    inputs = [node for node in use.node.all_input_nodes if node in layouts]
    mapped = {node: of_samples(known[node].detach(), layouts[node], n, rows) for node in inputs}
    rule, linear = rule_of(use), linear_of(use.node)
    if rule is None or linear is None:
        return _pulled_back(use, {**known, **single}, mapped, deltas)
    values = {**known, **mapped}
    operands = {name: fx.map_arg(value, values.__getitem__) for name, value in arguments(use.node).items()}
    return rule.derivatives(operands[linear.operand], deltas, known[use.source], operands)


def summed_squares(use: Use, known: Known, squares: Tensor) -> Tensor:
    """Return Σ_n (∂z_n/∂w)² s_n for a dense layer's weight or bias and s [N, O], in one product of each a_n and s_n."""
    rule, linear = rule_of(use), linear_of(use.node)
    assert rule is not None
    assert linear is not None
    inputs = {node: known[node] for node in use.node.all_input_nodes}
    operands = {name: fx.map_arg(value, inputs.__getitem__) for name, value in arguments(use.node).items()}
    a = operands[linear.operand].detach().to(squares).square()[None]
    return rule.derivatives(a, squares[None, None], known[use.source], operands)[0, 0]


def _pulled_back(use: Use, known: Known, mapped: dict[fx.Node, Tensor], delta: Tensor) -> Tensor:
    """Return derivatives by the call's own pullback for one sample, over samples and vectors."""
    nodes = list(mapped)

    def of_sample(deltas: Tensor, *values: Tensor) -> Tensor:
        at = {**known, **dict(zip(nodes, values, strict=True))}
        pull = torch.func.vjp(lambda w: call(use.node, {**at, use.source: w}), known[use.source])[1]
        derivatives: Tensor = torch.func.vmap(lambda d: pull(d)[0])(deltas)
        return derivatives

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop")  # vmap's, of slower operations
        result: Tensor = torch.func.vmap(of_sample)(delta, *mapped.values())
    return result


def through(source: fx.Node, placeholders: Sequence[fx.Node], known: Known, derivatives: Tensor) -> Tensor:
    """Return ∂/∂w [n, v, *w.shape] from derivatives in what the graph makes of w alone.

    Args:
        source: The node that the graph makes of w.
        placeholders: The placeholders of w.
        known: The values of all placeholders.
        derivatives: The derivatives in the source.
    """
    if source in placeholders:
        return derivatives
    inputs = {node: value for node, value in known.items() if node.op == "placeholder"}

    def computed(w: Tensor) -> Tensor:
        result: Tensor = _value(source, {**inputs, **dict.fromkeys(placeholders, w)})
        return result

    pull = torch.func.vjp(computed, known[placeholders[0]])[1]
    result: Tensor = torch.func.vmap(torch.func.vmap(lambda d: pull(d)[0]))(derivatives)
    return result


def _value(node: fx.Node, values: dict[fx.Node, Any]) -> Any:
    if node not in values:
        for operand in node.all_input_nodes:
            values[operand] = _value(operand, values)
        values[node] = call(node, values)
    return values[node]
