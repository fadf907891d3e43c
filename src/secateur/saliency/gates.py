"""E(g): the mean loss over the data as a function of one gate per unit.

The gates multiply the captured graph's values on the edges into the operations that sum over units. What
does not depend on a gate is computed once per batch and kept; only the rest, the *suffix*, runs again.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from secateur.errors import DataError, ModelError
from secateur.saliency.data import batches
from secateur.saliency.losses import LossFunction, correct, differentiable, evaluate, find_loss
from secateur.structure.axis import Axis, leaves
from secateur.structure.capture import check_finite
from secateur.structure.inputs import Call, sample_weight
from secateur.structure.left import Left
from secateur.structure.rules.net import Consumer
from secateur.structure.run import bind, compile_graph, outputs
from secateur.structure.sliced import slice_graph, slice_tensor
from secateur.structure.units import Units


class Edge(NamedTuple):
    """A gated value: the node that multiplies it, the factor, the axis of its units and their dimension."""

    node: fx.Node
    gate: fx.Node
    axis: Axis
    dim: int
    whole: Axis  # of that dimension, also of what is not summed over
    value: Tensor  # as traced

    def shape(self, vector: Tensor) -> Tensor:
        """One factor per position of the dimension, to broadcast and without changing the values' dtype."""
        return vector.to(self.value.dtype).reshape(-1, *[1] * (self.value.ndim - self.dim - 1))


class Cached(NamedTuple):
    """One batch: its share of the samples, its inputs, the values that no gate changes, its targets."""

    share: float
    call: Call
    frontier: tuple[Any, ...]
    targets: Any


class GatedGraph:
    """The captured graph with a gate on every edge into a consumer, cut where the gates begin.

    Args:
        units: The model's.
        left: Units that are sliced out of graph and weights beforehand, where not all are left.
    """

    def __init__(self, units: Units, left: Left | None = None) -> None:
        self.units, self.left = units, left or Left({})
        graph, edges = _insert_gates(units, self.left)
        gates = [edge.gate for edge in edges]
        behind = _downstream(gates)
        given = [n for n in graph.nodes if n.op == "placeholder" and n not in gates]
        before = [n for n in graph.nodes if n.op == "call_function" and n not in behind]
        frontier = [n for n in (*given, *before) if any(u in behind or u.op == "output" for u in n.users)]
        prefix, _ = _subgraph(given, before, tuple(frontier))
        calls = [n for n in graph.nodes if n in behind]
        self.suffix, copies = _subgraph([*frontier, *gates], calls, next(iter(reversed(graph.nodes))).args[0])
        self.edges = [edge._replace(node=copies[edge.node]) for edge in edges]
        self._prefix, self._suffix = compile_graph(prefix), compile_graph(self.suffix)

    def frontier(self, values: Sequence[Any]) -> tuple[Any, ...]:
        """The values that no gate changes, from those of the captured graph's placeholders."""
        captured, net = self.units.captured, self.units.net
        pairs = zip(captured.graph.find_nodes(op="placeholder"), values, strict=True)
        given = [slice_tensor(v, net.axes(n), self.left) if n.name in captured.weights else v for n, v in pairs]
        with torch.no_grad():
            return tuple(v.detach() if isinstance(v, Tensor) else v for v in self._prefix(*given))

    def vectors(self, g: Tensor) -> list[Tensor]:
        """One factor per edge from the gates of all units, shaped to broadcast."""
        return [
            edge.shape(slice_tensor(self.units.expand(edge.axis, g), [edge.whole], self.left)) for edge in self.edges
        ]

    def run(self, frontier: tuple[Any, ...], g: Tensor) -> Any:
        """The model's outputs with the gates g [units.total]."""
        return outputs(self.units.captured, self._suffix(*frontier, *self.vectors(g)))

    def trace(self, frontier: tuple[Any, ...], g: Tensor) -> dict[fx.Node, Any]:
        """Every value of the suffix."""
        given = (*frontier, *self.vectors(g))
        values: dict[fx.Node, Any] = dict(zip(self.suffix.find_nodes(op="placeholder"), given, strict=True))
        with torch.no_grad():
            for node in self.suffix.nodes:
                if node.op == "call_function":
                    args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), values.__getitem__)
                    values[node] = node.target(*args, **kwargs)
                elif node.op == "output":
                    values[node] = fx.map_arg(node.args[0], values.__getitem__)
        return values


def ones(model: nn.Module, units: Units) -> Tensor:
    """The gates of the network as trained [units.total], on its device and in its dtype."""
    return sample_weight(model).new_ones(units.total)


def per_position(values: Tensor, dim: int) -> Tensor:
    """The values as a matrix: a row for each position of one dimension."""
    return values.transpose(0, dim).reshape(values.shape[dim], -1)


def derivative(y: Tensor, x: Tensor, **options: Any) -> Tensor:
    """∂y/∂x for a number y; zero where it does not depend on x."""
    if not y.requires_grad:
        return torch.zeros_like(x)
    (found,) = torch.autograd.grad(y, x, allow_unused=True, **options)
    return torch.zeros_like(x) if found is None else found


def _insert_gates(units: Units, left: Left) -> tuple[fx.Graph, list[Edge]]:
    """A copy of the captured graph with its gates: a placeholder and a product for each gated operand."""
    sliced = slice_graph(units.captured, units.net, left)
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
            edges[key] = Edge(product, gate, consumer.axis, consumer.dim, whole, value)
        _replace(node, _place(consumer), edges[key].node)
        gated[place] = edges[key].node
    return graph, list(edges.values())


def _place(consumer: Consumer) -> int:
    """Which of all values among the node's arguments is the operand."""
    given: list[fx.Node] = []
    fx.map_arg((consumer.node.args, consumer.node.kwargs), given.append)
    return [i for i, one in enumerate(given) if one is consumer.operand][consumer.occurrence]


def _replace(node: fx.Node, place: int, by: fx.Node) -> None:
    """Another value in that place."""
    places = itertools.count()

    def one(given: fx.Node) -> fx.Node:
        return by if next(places) == place else given

    node.args, node.kwargs = fx.map_arg(node.args, one), fx.map_arg(node.kwargs, one)


def _downstream(nodes: list[fx.Node]) -> set[fx.Node]:
    found: set[fx.Node] = set()
    rest = list(nodes)
    while rest:
        new = [user for user in rest.pop().users if user not in found and user.op == "call_function"]
        found.update(new)
        rest += new
    return found


def _subgraph(given: list[fx.Node], calls: list[fx.Node], result: Any) -> tuple[fx.Graph, dict[fx.Node, fx.Node]]:
    graph = fx.Graph()
    copies = {node: graph.placeholder(node.name) for node in given}
    for node in calls:
        copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(fx.map_arg(result, copies.__getitem__))
    return graph, copies


class Gated:
    """E(g) for a model and its data; what is asked of it is one number, its gradient, or the values behind it.

    Args:
        model: In whatever mode; evaluated as in eval mode.
        units: The model's units, K in all; vectors of gates are ordered as they are.
        data: As `batches` takes it; None where no samples are needed.
        loss: A name or a function; None where no loss is needed.
        seed: For criteria that draw random numbers.

    Raises:
        ModelError: The model's weights are not finite, the units are another model's, or inference mode is on.
    """

    def __init__(self, model: nn.Module, units: Units, data: Any = None, loss: Any = None, seed: int = 0) -> None:
        if torch.is_inference_mode_enabled():
            raise ModelError("torch.inference_mode() takes derivatives away for good; use torch.no_grad() instead")
        units.check_model(model)
        check_finite(model)
        self.model = model
        self.units = units
        self.graph = GatedGraph(units)
        self.generator = torch.Generator().manual_seed(seed)
        self._loss: LossFunction | None = None if loss is None else find_loss(loss)
        self._cached: list[Cached] | None = None if data is None else self._cache(data)

    def _cache(self, data: Any) -> list[Cached]:
        captured = self.units.captured
        kept = [
            (batch, self.graph.frontier(bind(captured, self.model, batch.call))) for batch in batches(self.model, data)
        ]
        n = sum(batch.size for batch, _ in kept)
        return [Cached(batch.size / n, batch.call, frontier, batch.targets) for batch, frontier in kept]

    @property
    def has_data(self) -> bool:
        """Whether there are samples."""
        return self._cached is not None

    @property
    def has_loss(self) -> bool:
        """Whether there is a loss."""
        return self._loss is not None

    @property
    def cached(self) -> list[Cached]:
        """The batches.

        Raises:
            DataError: No data was given.
        """
        if self._cached is None:
            raise DataError("this needs data: (inputs, targets) or an iterable of such pairs; None was given")
        return self._cached

    @property
    def loss_function(self) -> LossFunction:
        """The loss of one batch.

        Raises:
            DataError: No loss was given.
        """
        if self._loss is None:
            raise DataError("this needs a loss: a function(outputs, targets) or its name; None was given")
        return self._loss

    def losses(self, g: Tensor) -> Iterator[Tensor]:
        """E(g) in pieces that add up, one per batch; differentiable in g.

        Where a norm is taken over units its statistics do not see their gates: in units of sliced sets this is
        an approximation, unlike `loss` and `evaluate`.
        """
        for batch in self.cached:
            out = self.graph.run(batch.frontier, g)
            yield batch.share * differentiable(self.loss_function, out, batch.targets)

    def loss(self, g: Tensor) -> float:
        """E(g); units gone from sliced sets are sliced out."""
        with torch.no_grad():
            return sum(
                batch.share * differentiable(self.loss_function, out, batch.targets).double().item()
                for batch, out in self._outputs(g)
            )

    def evaluate(self, g: Tensor) -> tuple[float, float | None]:
        """E(g) and the accuracy, None where there are no classes."""
        total, right, predictions = 0.0, 0, 0
        with torch.no_grad():
            for batch, out in self._outputs(g):
                total += batch.share * evaluate(self.loss_function, out, batch.targets).double().item()
                hits = correct(self.loss_function, out, batch.targets)
                if hits is not None:
                    right, predictions = right + int(hits.sum()), predictions + hits.numel()
        return total, right / predictions if predictions else None

    def _outputs(self, g: Tensor) -> Iterator[tuple[Cached, Any]]:
        """What the network returns for each batch."""
        pieces = self.units.split(g)
        left = {s.axis: (pieces[s.name] != 0).cpu() for s in self.units if s.removal == "sliced"}
        if all(bool(mask.all()) for mask in left.values()):
            yield from ((batch, self.graph.run(batch.frontier, g)) for batch in self.cached)
            return
        graph = GatedGraph(self.units, Left(left))
        for batch in self.cached:
            values = bind(self.units.captured, self.model, batch.call)
            yield batch, graph.run(graph.frontier(values), g)

    def gradient(self, g: Tensor) -> Tensor:
        """∂E/∂g [K], float64."""
        g = g.detach().requires_grad_()
        return sum((derivative(piece, g).double() for piece in self.losses(g)), torch.zeros_like(g).double())
