"""E(g) with one gate changed, for many gates at once: candidates are stacked along with the samples.

Changing unit k's gate to γ changes what its consumers sum up by (γ − g_k) o_k w_k alone. So a layer's result is
updated for all candidates in one product, and only what follows it is run again, C candidates of N samples as a batch
of C N.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx

from secateur.errors import DataError
from secateur.objective.gated_graph import Edge, NotStackableError, batch_dim, downstream, subgraph
from secateur.objective.gated_loss import CachedBatch, GatedLoss
from secateur.objective.loss_inputs import tensors_of
from secateur.objective.losses import loss_of_batch, stacked
from secateur.objective.low_rank_update import overwrite, updated_layer, weight_of
from secateur.objective.memory import bytes_of
from secateur.objective.select_pushdown import push_selections
from secateur.structure.axis import BATCH, leaves
from secateur.structure.capture import counts_samples, sizes
from secateur.structure.graph_run import compile_graph, difference, outputs, tolerance
from secateur.structure.ops.registry import arguments, set_argument
from secateur.structure.unit_set import UnitSet

STACK = 2**23  # bytes of values that are run at a time: what caches hold, and few calls


def change_one(gated: GatedLoss, g: Tensor, units: Tensor, gates: Tensor) -> tuple[float, Tensor]:
    """Return E(g), and E(g + (γ − g_k) e_k) for each of M units k and its γ.

    Args:
        gated: The network and its data.
        g: Gates of all units [K].
        units: Indices k [M].
        gates: Values γ [M].

    Returns:
        A number and a float64 tensor [M], as `GatedLoss.loss` gives them one by one but for rounding.

    Raises:
        DataError: One of them is NaN.
    """
    losses = torch.zeros(len(units), dtype=torch.float64, device=g.device)
    present = g.clone()
    present[units] = 1
    sliced = gated.sliced(present)
    stacks, rest = split_candidates(sliced, g, units)
    loss = 0.0
    with torch.no_grad():
        keep = {node for stack, _ in stacks for node in stack.needed}
        for batch in sliced.cached if stacks else ():
            values = sliced.graph.trace(batch.frontier, g, keep)
            loss += batch.share * _loss(sliced, batch, values).item()
            for stack, places in stacks:
                losses[places] += batch.share * stack.losses(batch, values, g, units[places], gates[places])
    for i in rest:
        changed = g.clone()
        changed[units[i]] = gates[i]
        losses[i] = gated.loss(changed)
    if bool(losses.isnan().any()):
        raise DataError("loss: it is NaN on this data")
    return gated.checked(g, loss) if stacks else gated.loss(g), losses


def rises(gated: GatedLoss, g: Tensor, units: Tensor) -> Tensor:
    """Return ΔE_k of these units [K], infinite for all others."""
    loss, without = change_one(gated, g, units, torch.zeros_like(units, dtype=g.dtype))
    rise = torch.full((len(g),), torch.inf, dtype=torch.float64, device=g.device)
    rise[units] = without - loss
    return rise


def _loss(gated: GatedLoss, batch: CachedBatch, values: dict[fx.Node, Any]) -> Tensor:
    """Return the loss computed as that of one candidate, so that a unit that does nothing has a rise of exactly 0."""
    out = outputs(gated.units.captured, values[gated.graph.suffix.output_node()])
    loss_of_batch(gated.loss_function, out, batch.targets)
    return stacked(gated.loss_function, out, batch.targets)(out, 1)


def split_candidates(gated: GatedLoss, g: Tensor, units: Tensor) -> tuple[list[tuple[LeaveOneOut, Tensor]], list[int]]:
    """Return the candidates by unit set with their places among `units`, and the places of those run one by one."""
    stacks, rest, start = [], [], 0
    whole = gated.graph.holds(g)
    for unit_set in gated.units:
        places = ((units >= start) & (units < start + unit_set.size)).nonzero()[:, 0]
        start += unit_set.size
        stack = _stack(gated, unit_set, g, units[places]) if whole and len(places) else None
        if stack is not None:
            stacks.append((stack, places))
        else:
            rest += places.tolist()
    return stacks, rest


def _nodes(returned: Any) -> set[fx.Node]:
    nodes: set[fx.Node] = set()
    fx.map_arg(returned, nodes.add)
    return nodes


def _stack(gated: GatedLoss, unit_set: UnitSet, g: Tensor, units: Tensor) -> LeaveOneOut | None:
    if unit_set.name not in gated.stacks:
        try:
            stack = LeaveOneOut(gated, unit_set)
            gated.stacks[unit_set.name] = stack if stack.candidates_independent(g, units) else None
        except NotStackableError:
            gated.stacks[unit_set.name] = None
    known: LeaveOneOut | None = gated.stacks[unit_set.name]
    return known


class LeaveOneOut:
    """The part of the graph behind the units of one set, run for several candidates at a time.

    Args:
        gated: The network and its data.
        unit_set: The set whose units are the candidates, of removal "gated".

    Raises:
        NotStackableError: A value behind the units does not hold the samples along one dimension, slowest.
    """

    def __init__(self, gated: GatedLoss, unit_set: UnitSet) -> None:
        self.gated, self.unit_set = gated, unit_set
        self.start = next(i for i, (name, _) in enumerate(gated.units.places) if name == unit_set.name)
        graph = gated.graph
        if gated.units.captured.spec.fixed is not None or unit_set.removal != "gated":
            raise NotStackableError
        self.edges = [edge for edge in graph.edges if unit_set.axis in leaves(edge.axis)]
        first = [edge.node for edge in self.edges]
        behind = set(first) | downstream(first)
        self.updates = self._updates(behind)
        self.calls = [n for n in graph.suffix.nodes if n in behind and n not in self.updates]
        self.calls = [n for n in self.calls if n not in first or any(user not in self.updates for user in n.users)]
        own = {edge.gate for edge in self.edges}
        returned = graph.suffix.output_node().args[0]
        used = {operand for n in self.calls for operand in n.all_input_nodes} | _nodes(returned)
        self.inputs = [n for n in graph.suffix.nodes if n in used and n not in self.calls and n not in own]
        self.gates = [(edge, graph.samples_dim(edge)) for edge in self.edges if edge.node in self.calls]
        self.folded = {user: edge for edge in graph.edges if edge.node not in first for user in self._folded(edge)}
        layers = {**self.updates, **self.folded}
        self.linear = {n: found for n, edge in layers.items() if (found := updated_layer(n, edge.node))}
        self.code, self.own = self._compile(returned)
        self.dims = {node: self._batch_dim(node) for node in self.inputs}
        self.positions = {edge.node: graph.positions(edge, unit_set) for edge in self.edges}
        self.bytes = bytes_of([*self.calls, *self.updates])

    @property
    def needed(self) -> set[fx.Node]:
        """The values of the suffix that the candidates start from."""
        operands = {edge.node.all_input_nodes[0] for edge in self.edges}
        layers = [*self.updates, *self.folded]
        return {*self.inputs, *operands, *(n for layer in layers for n in layer.all_input_nodes)} | {
            edge.gate for edge in self.folded.values()
        }

    def losses(self, batch: CachedBatch, values: dict[fx.Node, Any], g: Tensor, units: Tensor, gates: Tensor) -> Tensor:
        """Return the loss of the batch [M] for each of M units of the set and its gate, from the values at g."""
        out = outputs(self.gated.units.captured, values[self.gated.graph.suffix.output_node()])
        loss = stacked(self.gated.loss_function, out, batch.targets, self.own and not gates.requires_grad)
        return torch.cat([loss(out, n) for n, out in self._outputs(values, g, units, gates, self.at_once(batch))])

    @property
    def layer(self) -> fx.Node | None:
        """The one dense layer that takes the units, each as one input, if it has fewer sums than there are units."""
        if len(self.updates) != 1 or self.gates:
            return None
        ((layer, edge),) = self.updates.items()
        one_each = edge.value.ndim == 2 and self.positions[edge.node].shape[1] == 1
        if not one_each or not self.linear[layer].is_dense:
            return None
        return layer if layer.meta["val"].shape[1] < self.unit_set.size else None

    def loss_of_sums(self, batch: CachedBatch, values: dict[fx.Node, Any]) -> Tensor:
        """Return the loss of the batch from the values behind the units."""
        folded = [self._fold(user, edge, values) for user, edge in self.folded.items()]
        inputs = [values[node].clone() if node in self.updates else values[node] for node in self.inputs]
        return self.gated.loss_function(outputs(self.gated.units.captured, self.code(*inputs, *folded)), batch.targets)

    def summed(self, layer: fx.Node, values: dict[fx.Node, Any], g: Tensor, units: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the layer takes of M units, [N, M], and the weights that it multiplies this by [O, M]."""
        edge = self.updates[layer]
        places = self.positions[edge.node].to(units.device)[units - self.start, 0]
        weight: Tensor = values[weight_of(layer, self.linear[layer])]
        return self._operand(edge, values, g)[:, places], weight[:, places]

    def candidates_independent(self, g: Tensor, units: Tensor) -> bool:
        """Return whether candidates run together give what each gives alone, tried on a few samples.

        It takes two at a time, until the outputs of one tell that there is something to be found. A sum over samples
        would tie them.
        """
        values, rounding = self.gated.graph.trace(self.gated.few_samples(), g, self.needed), tolerance(self.gated.model)
        base = tensors_of(outputs(self.gated.units.captured, values[self.gated.graph.suffix.output_node()]))
        for part in torch.split(units, 2):
            two, gates = part[[0, -1]], g.new_tensor([-1.0, 2.0])
            together = [o.clone() for _, out in self._outputs(values, g, two, gates, 2) for o in tensors_of(out)]
            alone = [[o.clone() for o in tensors_of(out)] for _, out in self._outputs(values, g, two, gates, 1)]
            if any(o.shape[:1] != (2 * len(b),) if b.ndim else True for o, b in zip(together, base, strict=True)):
                return False
            pieces, each = (
                [tensor for o in together for tensor in o.chunk(2)],
                itertools.chain(*zip(*alone, strict=True)),
            )
            if not difference(pieces, list(each))[1] <= rounding:
                return False
            if any(difference(base, out)[1] > 10 * rounding for out in alone):
                break
        return True

    def _outputs(
        self, values: dict[fx.Node, Any], g: Tensor, units: Tensor, gates: Tensor, count: int
    ) -> Iterator[tuple[int, Any]]:
        """Yield how many candidates run at a time, and the outputs of their batches as one."""
        folded = [self._fold(user, edge, values) for user, edge in self.folded.items()]
        updates = {layer: self._update(layer, values, g, units, gates - g[units]) for layer in self.updates}
        for part in torch.split(torch.arange(len(units), device=g.device), count):
            inputs = [
                updates[node](part) if node in updates else self._stacked(node, values[node], len(part))
                for node in self.inputs
            ]
            factors = [self._gate(edge, dim, values, g, units[part], gates[part]) for edge, dim in self.gates]
            yield len(part), outputs(self.gated.units.captured, self.code(*inputs, *factors, *folded))

    def at_once(self, batch: CachedBatch) -> int:
        """Return how many candidates fit into memory and caches."""
        return max(1, min(STACK, self.gated.memory // 8) // max(1, self.bytes * batch.size))

    # ------------------------------------------------------------ what a gate changes first

    def _updates(self, behind: set[fx.Node]) -> dict[fx.Node, Edge]:
        """Return the layers that sum the units up, and whose other operands no candidate changes."""
        layers = {}
        for edge in self.edges:
            operand = edge.node.all_input_nodes[0]
            for user in edge.node.users:
                others = {n for n in user.all_input_nodes if n is not edge.node}
                known = not behind & {operand, *others} and sizes(edge.value)[0] == BATCH
                if known and user.op == "call_function" and updated_layer(user, edge.node):
                    layers[user] = edge
        return layers

    def _update(
        self, layer: fx.Node, values: dict[fx.Node, Any], g: Tensor, units: Tensor, change: Tensor
    ) -> Callable[[Tensor], Tensor]:
        """Return a function that gives the layer's results for some of the candidates."""
        edge = self.updates[layer]
        operand = self._operand(edge, values, g)
        linear, given = self.linear[layer], fx.map_arg(arguments(layer), values.get)
        assert linear.update is not None
        update = linear.update(operand, given[linear.weight], given, values[layer])
        change = change.to(operand.dtype)
        positions = self.positions[edge.node].to(units.device)[units - self.start]
        return lambda part: update(positions[part], change[part])

    def _operand(self, edge: Edge, values: dict[fx.Node, Any], g: Tensor) -> Tensor:
        """Return what an edge's layer takes, without these units' gates but with the others' along its dimension."""
        operand: Tensor = values[edge.node.all_input_nodes[0]]
        others = g.clone()
        others[self.start : self.start + self.unit_set.size] = 1
        factors = self.gated.graph.factors(edge, others)
        return operand if bool((factors == 1).all()) else operand * edge.shape(factors)

    def _gate(
        self, edge: Edge, dim: int, values: dict[fx.Node, Any], g: Tensor, units: Tensor, gates: Tensor
    ) -> Tensor:
        """Return the gates of an edge for each candidate and sample."""
        value = values[edge.node.all_input_nodes[0]]
        gates_of_all = g.repeat(len(units), 1)
        gates_of_all[torch.arange(len(units), device=g.device), units] = gates
        return self.gated.graph.spread(edge, dim, gates_of_all, value.shape[dim])

    # ------------------------------------------------------------ gates of other sets, as factors on weights

    def _folded(self, edge: Edge) -> list[fx.Node]:
        """Return the layers that alone take these gated values, where factors on their weights are cheaper."""
        users = list(edge.node.users)
        layers = [(user, updated_layer(user, edge.node)) for user in users if edge.node in self.calls]
        weights = [weight_of(user, linear) for user, linear in layers if linear]
        return users if len(weights) == len(users) and not {*weights} & {*self.calls} else []

    def _fold(self, user: fx.Node, edge: Edge, values: dict[fx.Node, Any]) -> Tensor:
        weight: Tensor = values[weight_of(user, self.linear[user])]
        gate: Tensor = values[edge.gate]
        return weight * gate.reshape(-1, *[1] * (weight.ndim - 2))

    def _compile(self, returned: Any) -> tuple[Callable[..., Any], bool]:
        """Return the calls as a function of inputs, gates and folded weights, and whether its memory is free."""
        inputs = [*self.inputs, *(edge.gate for edge, _ in self.gates)]
        graph, copies = subgraph(inputs, self.calls, returned)
        last = copies[inputs[-1]]
        for user, edge in self.folded.items():
            with graph.inserting_after(last):
                last = graph.placeholder(f"folded_{last.name}")
            operand = copies[edge.node].all_input_nodes[0]
            set_argument(copies[user], self.linear[user].operand, operand)
            set_argument(copies[user], self.linear[user].weight, last)
        graph.eliminate_dead_code()
        push_selections(graph)
        own = overwrite(graph, {copies[layer] for layer in self.updates if layer in self.inputs})
        return compile_graph(graph), own

    # ------------------------------------------------------------ samples of several candidates as one batch

    def _stacked(self, node: fx.Node, value: Any, count: int) -> Any:
        dim = self.dims[node]
        if dim is None or count == 1:
            return value
        if not isinstance(value, Tensor):
            return value * count
        return value.unsqueeze(dim).expand(*value.shape[:dim], count, *value.shape[dim:]).flatten(dim, dim + 1)

    def _batch_dim(self, node: fx.Node) -> int | None:
        """Return the dimension that holds the samples; 0 of a number that is a multiple of theirs, None without.

        Raises:
            NotStackableError: The value is of another kind.
        """
        products = {edge.node: edge.operand for edge in self.gated.graph.edges}
        origin = products.get(node) or self.gated.graph.origin.get(node)
        if node.meta.get("samples"):
            return 0
        if node in [edge.gate for edge in self.gated.graph.edges]:
            return None
        if origin is None:
            raise NotStackableError
        value = origin.meta.get("val")
        if isinstance(value, Tensor):
            return batch_dim(self.gated.units.net.axes(origin))
        if isinstance(value, torch.SymInt):
            return 0 if counts_samples(value) else None
        if value is None or isinstance(value, int | float):
            return None
        raise NotStackableError
