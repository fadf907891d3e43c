"""The captured graph with a gate on every edge into a consumer."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from secateur.structure.axis import BATCH, Axis, find, leaves, parts
from secateur.structure.capture import is_free, sizes
from secateur.structure.exporting.noise import steady_call
from secateur.structure.graph_run import compile_graph, outputs
from secateur.structure.keep_mask import KeepMask
from secateur.structure.ops.net import Consumer
from secateur.structure.sliced_graph import slice_graph, slice_tensor
from secateur.structure.unit_set import UnitSet
from secateur.structure.units import Units


class NotStackableError(Exception):
    """A graph that cannot take several batches, or a gate for each sample, as one."""


class Edge(NamedTuple):
    """A gated value: the node that multiplies it, the factor, the axis of its units and their dimension."""

    node: fx.Node
    gate: fx.Node
    operand: fx.Node  # in the captured graph
    axis: Axis
    dim: int
    whole: Axis  # of that dimension, also of what is not summed over
    value: Tensor  # as traced

    def shape(self, vector: Tensor) -> Tensor:
        """Return one factor per position of the dimension, shaped to broadcast, in the values' dtype."""
        return vector.to(self.value.dtype).reshape(-1, *[1] * (self.value.ndim - self.dim - 1))


class GatedGraph:
    """The captured graph with a gate on every edge into a consumer, cut where the gates begin.

    Args:
        units: The model's.
        kept: Units that are sliced out of graph and weights beforehand, where not all are left.
    """

    def __init__(self, units: Units, kept: KeepMask | None = None) -> None:
        self.units, self.kept = units, kept or KeepMask({})
        graph, edges, copied = _insert_gates(units, self.kept)
        gates = [edge.gate for edge in edges]
        behind = downstream(gates)
        inputs = [n for n in graph.nodes if n.op == "placeholder" and n not in gates]
        before = [n for n in graph.nodes if n.op == "call_function" and n not in behind]
        frontier = [n for n in (*inputs, *before) if any(u in behind or u.op == "output" for u in n.users)]
        prefix, _ = subgraph(inputs, before, tuple(frontier))
        calls = [n for n in graph.nodes if n in behind]
        self.suffix, copies = subgraph([*frontier, *gates], calls, next(iter(reversed(graph.nodes))).args[0])
        self.edges = [edge._replace(node=copies[edge.node], gate=copies[edge.gate]) for edge in edges]
        self.copies = {node: copies[copy] for node, copy in copied.items() if copy in copies}
        self.origin = {copy: node for node, copy in self.copies.items()}
        originals = {copy: node for node, copy in copied.items()}
        weights = {n for n in inputs if n in originals and originals[n].name in units.captured.weights}
        self._weights = [(i, originals[n]) for i, n in enumerate(frontier) if n in weights]
        self._prefix, self._suffix = compile_graph(prefix), compile_graph(self.suffix)
        self._last = _last_used(self.suffix)
        self._slices: dict[fx.Node, tuple[Tensor, int | None, Tensor]] = {}

    @property
    def count(self) -> int:
        """The number of units that are left."""
        return sum(self.kept.count(unit_set.axis) for unit_set in self.units)

    def holds(self, g: Tensor) -> bool:
        """Return whether it is exact at these gates: all that is sliced out is gone, and all gone of sliced sets."""
        for unit_set, piece in zip(self.units, self.units.split(g).values(), strict=True):
            present, kept = (piece != 0).cpu(), self.kept.mask(unit_set.axis)
            if bool((present > kept).any()) or (unit_set.removal == "sliced" and bool((present < kept).any())):
                return False
        return True

    def positions(self, edge: Edge, unit_set: UnitSet) -> Tensor:
        """Return where each unit of a set lies among what is left of the edge's dimension [size, positions]."""
        whole = unit_set.positions(edge.axis)
        if not self.kept.masks:
            return whole
        others = KeepMask({axis: mask for axis, mask in self.kept.masks.items() if axis is not unit_set.axis})
        present = others.mask(edge.whole)[whole]
        return (self.kept.mask(edge.whole).cumsum(0) - 1)[whole][present].reshape(unit_set.size, -1)

    def frontier(self, values: Sequence[Any]) -> tuple[Any, ...]:
        """Return the values that no gate changes, from those of the captured graph's placeholders."""
        captured = self.units.captured
        pairs = zip(captured.graph.find_nodes(op="placeholder"), values, strict=True)
        inputs = [self._sliced(n, v) if n.name in captured.weights else v for n, v in pairs]
        with torch.no_grad():
            return tuple(v.detach() if isinstance(v, Tensor) else v for v in self._prefix(*inputs))

    def factors(self, edge: Edge, g: Tensor) -> Tensor:
        """Return the gates [..., K] at each position that is left of the edge's dimension [..., n]."""
        factors = self.units.expand(edge.axis, g)
        return factors[..., self.kept.indices(edge.whole).to(g.device)] if self.kept.masks else factors

    def vectors(self, g: Tensor) -> list[Tensor]:
        """Return one factor per edge from the gates of all units, shaped to broadcast."""
        return [edge.shape(self.factors(edge, g)) for edge in self.edges]

    def samples_dim(self, edge: Edge) -> int:
        """Return the dimension that holds the samples of a gated value.

        Raises:
            NotStackableError: It has none, or behind the units.
        """
        dim = batch_dim(self.units.net.axes(edge.operand))
        if dim is None or dim >= edge.dim:
            raise NotStackableError
        return dim

    def spread(self, edge: Edge, dim: int, g: Tensor, repeats: int) -> Tensor:
        """Return an edge's factors from gates [M, K], each row's for so many positions of dimension `dim`."""
        vectors = self.factors(edge, g).to(edge.value.dtype)
        shape = [1] * edge.value.ndim
        shape[dim], shape[edge.dim] = len(g) * repeats, vectors.shape[1]
        return vectors.repeat_interleave(repeats, 0).reshape(shape)

    def run_each(self, frontier: tuple[Any, ...], g: Tensor) -> Any:
        """Return the model's outputs with gates for each sample [N, K].

        Raises:
            NotStackableError: A gated value does not hold the samples along one dimension, slowest.
        """
        dims = [self.samples_dim(edge) for edge in self.edges]
        if any(is_free(edge.value.shape[dim]) for edge, dim in zip(self.edges, dims, strict=True)):
            raise NotStackableError  # as many places for each sample as the inputs have
        vectors = [
            self.spread(edge, dim, g, sizes(edge.value, len(g))[dim] // len(g))
            for edge, dim in zip(self.edges, dims, strict=True)
        ]
        return outputs(self.units.captured, self._suffix(*frontier, *vectors))

    def run(self, frontier: tuple[Any, ...], g: Tensor) -> Any:
        """Return the model's outputs with the gates g [units.total]."""
        return outputs(self.units.captured, self._suffix(*frontier, *self.vectors(g)))

    def with_weights(self, frontier: tuple[Any, ...], weights: Mapping[str, Tensor]) -> tuple[Any, ...]:
        """Return a frontier with new values of parameters and buffers that are used behind the gates."""
        values = list(frontier)
        for i, node in self._weights:
            name = self.units.captured.weights[node.name]
            if name in weights:
                values[i] = self._sliced(node, weights[name])
        return tuple(values)

    def _sliced(self, node: fx.Node, weight: Tensor) -> Tensor:
        """Return what is left of a weight; the slice is kept for all batches, until the weight is another."""
        version = None if weight.is_inference() else weight._version
        known, then, left = self._slices.get(node, (None, None, weight))
        if known is not weight or version is None or then != version:
            left = slice_tensor(weight, self.units.net.axes(node), self.kept)
            self._slices[node] = weight, version, left
        return left

    def trace(
        self, frontier: tuple[Any, ...], g: Tensor, keep: Collection[fx.Node] | None = None,
        variables: Collection[fx.Node] = (),
    ) -> dict[fx.Node, Any]:  # fmt: skip
        """Return every value of the suffix, or those of `keep`, and what it returns.

        Differentiable in the gates if they are, and in the values of `variables`.
        """
        with torch.set_grad_enabled(g.requires_grad or bool(variables)):
            *_, (_, values) = self.walk(frontier, g, (), keep, variables)
        return values

    def walk(
        self, frontier: tuple[Any, ...], g: Tensor, stops: Collection[fx.Node],
        keep: Collection[fx.Node] | None = None, variables: Collection[fx.Node] = (),
        results: Collection[fx.Node] = (),
    ) -> Iterator[tuple[fx.Node, dict[fx.Node, Any]]]:  # fmt: skip
        """Yield the values of the suffix so far, before or after each of some calls is made and at the end.

        Args:
            frontier: The values that no gate changes.
            g: The gates.
            stops: The calls before which there is a halt; what they take may be changed then.
            keep: Values that are not deleted when nothing needs them any more; None for all.
            variables: Values in which what comes after them can be differentiated.
            results: The calls after which there is a halt.

        Yields:
            The call, or the output node, and the values.
        """
        inputs = (*frontier, *self.vectors(g))
        values: dict[fx.Node, Any] = dict(zip(self.suffix.find_nodes(op="placeholder"), inputs, strict=True))
        for node in self.suffix.nodes:
            if node.op == "call_function":
                if node in stops:
                    yield node, values
                args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), values.__getitem__)
                values[node] = steady_call(node)(*args, **kwargs)
                if node in variables:
                    values[node].requires_grad_()
                if node in results:
                    yield node, values
                for done in () if keep is None else self._last[node].difference(keep):
                    del values[done]
            elif node.op == "output":
                values[node] = fx.map_arg(node.args[0], values.__getitem__)
                yield node, values


def _insert_gates(units: Units, kept: KeepMask) -> tuple[fx.Graph, list[Edge], dict[fx.Node, fx.Node]]:
    """Return a copy of the captured graph with a placeholder and a product for each gated operand; the copies."""
    sliced = slice_graph(units.captured, units.net, kept)
    graph, copies = sliced.graph, sliced.copies
    edges: dict[tuple[Any, ...], Edge] = {}
    gated: dict[tuple[fx.Node, fx.Node, int], fx.Node] = {}  # an operand of a node, with the gates it has so far
    for consumer in dict.fromkeys(consumer for unit_set in units for consumer in unit_set.consumers):
        node = copies[consumer.node]
        place = (node, copies[consumer.operand], consumer.occurrence)
        operand = gated.get(place, place[1])
        key = (operand, consumer.dim, *leaves(consumer.axis))
        if key not in edges:
            with graph.inserting_before(next(iter(graph.nodes))):
                gate = graph.placeholder(f"gate_{len(edges)}")
            with graph.inserting_before(node):
                product = graph.call_function(torch.ops.aten.mul.Tensor, (operand, gate))
            whole = units.net.axes(consumer.operand)[consumer.dim]
            value = consumer.operand.meta["val"]
            edges[key] = Edge(product, gate, consumer.operand, consumer.axis, consumer.dim, whole, value)
        _replace(node, _place(consumer), edges[key].node)
        gated[place] = edges[key].node
    return graph, list(edges.values()), copies


def _place(consumer: Consumer) -> int:
    """Return which of all values among the node's arguments is the operand."""
    operands: list[fx.Node] = []
    fx.map_arg((consumer.node.args, consumer.node.kwargs), operands.append)
    return [i for i, operand in enumerate(operands) if operand is consumer.operand][consumer.occurrence]


def _replace(node: fx.Node, place: int, by: fx.Node) -> None:
    """Put another value in that place among the node's arguments."""
    places = itertools.count()

    def replaced(operand: fx.Node) -> fx.Node:
        return by if next(places) == place else operand

    node.args, node.kwargs = fx.map_arg(node.args, replaced), fx.map_arg(node.kwargs, replaced)


def batch_dim(axes: list[Axis]) -> int | None:
    """Return the dimension that holds the samples, None if none does.

    Raises:
        NotStackableError: Several do, or they are not its slowest factor.
    """
    dims = [dim for dim, axis in enumerate(axes) if axis.size % BATCH == 0]
    if not dims:
        return None
    axis = find(axes[dims[0]])
    slowest = axis if axis.kind == "leaf" else parts(axis)[0]
    if len(dims) > 1 or axis.kind == "cat" or slowest.size % BATCH:
        raise NotStackableError
    return dims[0]


def downstream(nodes: list[fx.Node]) -> set[fx.Node]:
    """Return all calls that depend on these nodes."""
    calls: set[fx.Node] = set()
    waiting = list(nodes)
    while waiting:
        new = [user for user in waiting.pop().users if user not in calls and user.op == "call_function"]
        calls.update(new)
        waiting += new
    return calls


def _last_used(graph: fx.Graph) -> dict[fx.Node, set[fx.Node]]:
    """Return the values that each node is the last to use."""
    user = {used: node for node in graph.nodes for used in node.all_input_nodes}
    last: dict[fx.Node, set[fx.Node]] = {node: set() for node in graph.nodes}
    for used, node in user.items():
        last[node].add(used)
    return last


def subgraph(inputs: list[fx.Node], calls: list[fx.Node], result: Any) -> tuple[fx.Graph, dict[fx.Node, fx.Node]]:
    """Return some calls as a graph with the inputs as placeholders, and the copy of each node."""
    graph = fx.Graph()
    copies = {node: graph.placeholder(node.name) for node in inputs}
    for node, placeholder in copies.items():
        placeholder.meta = dict(node.meta)
    for node in calls:
        copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(fx.map_arg(result, copies.__getitem__))
    return graph, copies
