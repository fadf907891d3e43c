"""The captured graph, run so that each sample's derivatives in the parameters can be told.

All in one backward pass or, slow and always right, each by a backward pass of its own.
"""

from __future__ import annotations

import math
from collections import ChainMap
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from secateur.curvature.loss_factors import Factor, backward, float_outputs, only
from secateur.curvature.per_sample import Uses, call, derivative_of, through
from secateur.objective.memory import bytes_held
from secateur.structure.capture import Captured
from secateur.structure.graph_run import bind, outputs
from secateur.structure.inputs import Call


def run_graph(
    captured: Captured,
    values: Sequence[Any],
    kept: Collection[fx.Node] | None = None,
    entries: Collection[fx.Node] = (),
) -> tuple[dict[fx.Node, Any], Any]:
    """Return the values of the nodes kept, None for all, and the model's outputs, from the placeholders' values.

    What `entries` return asks for a derivative.
    """
    graph, known, inputs = captured.graph, dict[fx.Node, Any](), iter(values)
    last = {used: node for node in graph.nodes for used in node.all_input_nodes}
    for node in graph.nodes:
        if node.op == "placeholder":
            known[node] = next(inputs)
        elif node.op == "call_function":
            known[node] = _asking(call(node, known)) if node in entries else call(node, known)
        if kept is not None and node.op == "call_function":
            for used in node.all_input_nodes:
                if last[used] is node and used not in kept:
                    del known[used]
    return known, outputs(captured, _returned(graph, known))


def _returned(graph: fx.Graph, known: Mapping[fx.Node, Any]) -> Any:
    result: Any = graph.output_node().args[0]
    return fx.map_arg(result, known.__getitem__)


def _asking(value: Any) -> Any:
    if isinstance(value, Tensor) and value.is_floating_point() and not value.requires_grad:
        return value.detach().requires_grad_()
    return value


def values_of(captured: Captured, model: nn.Module, call: Call) -> list[Any]:
    """Return the values of the graph's placeholders, without derivatives."""
    return [v.detach() if isinstance(v, Tensor) else v for v in bind(captured, model, call)]


def leaves_of(model: nn.Module, names: Collection[str]) -> dict[str, Tensor]:
    """Return these parameters, to be differentiated in."""
    named = dict(model.named_parameters())
    return {name: named[name].detach().requires_grad_() for name in names}


def run_from(captured: Captured, model: nn.Module, call: Call, leaves: Mapping[str, Tensor]) -> Any:
    """Return the model's outputs, computed from these parameters."""
    names = [captured.weights.get(p.name, "") for p in captured.graph.find_nodes(op="placeholder")]
    values = zip(names, values_of(captured, model, call), strict=True)
    return run_graph(captured, [leaves.get(name, value) for name, value in values], ())[1]


class BatchVJP:
    """The derivatives of all samples by one backward pass.

    Args:
        uses: The uses of the parameters.
        values: The values of the placeholders.
        n: Number of samples.
        single: The integers that depend on the number of samples, for one.

    Attributes:
        known: The values that derivatives are computed from.
        outputs: The model's.
        delta: At each call that takes a parameter, the vectors pulled back last [v, ...].
    """

    def __init__(self, uses: Uses, values: Sequence[Any], n: int, single: Mapping[fx.Node, Any]) -> None:
        self._uses, self._n, self._single = uses, n, single
        self.known, self.outputs = run_graph(uses.captured, values, uses.kept, uses.entries)
        self.delta: dict[fx.Node, Tensor] = {}

    def pull(self, factors: Sequence[Factor]) -> None:
        """Pull v vectors at the outputs back to where parameters are used."""
        nodes = list(self._uses.entries)
        rows = [backward(f.tensors, f.vectors, [self.known[node] for node in nodes]) for f in factors]
        self.delta = {node: torch.stack([row[i] for row in rows]) for i, node in enumerate(nodes)}

    def vectors(self, memory: int) -> int:
        """Return how many vectors may be pulled back at a time for all that they leave to fit."""
        return max(1, memory // max(1, sum(bytes_held([self.known[node]], []) for node in self._uses.entries)))

    def floats(self, names: Sequence[str]) -> int:
        """Return about how many numbers `gradients` holds at a time for one sample."""
        total = 0
        for name in names:
            nodes = {use.node for use in self._uses.of[name]}
            inputs = sum(
                self.known[i].numel() for node in nodes for i in node.all_input_nodes if i in self._uses.layouts
            )
            w, deltas = self.known[self._uses.placeholders[name][0]], [self.delta[node] for node in nodes]
            numbers = inputs * math.prod(w.shape[2:]) + sum(delta.numel() for delta in deltas)
            total += 3 * len(deltas[0]) * w.numel() + numbers // self._n
        return total

    def gradients(self, names: Sequence[str], rows: slice) -> list[Tensor]:
        """Return these samples' derivatives in each of these parameters [n, v, *shape], for the vectors pulled back."""
        return [self._gradient(name, rows) for name in names]

    def _gradient(self, name: str, rows: slice) -> Tensor:
        placeholders, gradients = self._uses.placeholders[name], list[Tensor]()
        for use in self._uses.of[name]:
            delta = self.delta[use.node]
            own = derivative_of(use, self._uses.layouts, self.known, delta, self._single, self._n, rows)
            gradients.append(through(use.source, placeholders, self.known, own))
        return torch.stack(gradients).sum(0) if len(gradients) > 1 else gradients[0]


class SampleVJP:
    """The derivatives of each sample by its own backward pass, through its own forward pass or that of all.

    Args:
        whole: The outputs of all samples.
        returned: The outputs of each sample alone, or of all, computed from the leaves.
        leaves: The parameters by name.
    """

    def __init__(self, whole: Any, returned: Sequence[Any], leaves: Mapping[str, Tensor]) -> None:
        self._places = {id(tensor): place for place, tensor in enumerate(float_outputs(whole))}
        self._returned, self._leaves = [float_outputs(out) for out in returned], leaves
        self._factors: Sequence[Factor] = ()

    def pull(self, factors: Sequence[Factor]) -> None:
        """Remember factors whose tensors are among the outputs of all samples."""
        self._factors = factors

    def floats(self, names: Sequence[str]) -> int:
        """Return how many numbers `gradients` holds at a time for one sample."""
        return 3 * len(self._factors) * sum(self._leaves[name].numel() for name in names)

    def gradients(self, names: Sequence[str], rows: slice) -> list[Tensor]:
        """Return these samples' derivatives in each of these parameters [n, v, *shape], for the factors remembered."""
        samples = range(*rows.indices(len(self._factors[0].weight))) if names else ()
        rows_of_samples = [[self._of(names, factor, i) for factor in self._factors] for i in samples]
        return [
            torch.stack([torch.stack([row[k] for row in sample]) for sample in rows_of_samples])
            for k in range(len(names))
        ]

    def _of(self, names: Sequence[str], factor: Factor, i: int) -> list[Tensor]:
        together = len(self._returned) == 1
        outs = self._returned[0 if together else i]
        vectors = only(factor.vectors, i) if together else [u[i : i + 1] for u in factor.vectors]
        return backward([outs[self._places[id(t)]] for t in factor.tensors], vectors, [self._leaves[k] for k in names])


def recompute(captured: Captured, known: Mapping[fx.Node, Any], changed: Mapping[fx.Node, Any]) -> Any:
    """Return the model's outputs with new values of some nodes, where all those of the rest are known."""
    new = dict(changed)
    values = ChainMap(new, dict(known))
    for node in captured.graph.nodes:
        if node.op == "call_function" and node not in new and any(used in new for used in node.all_input_nodes):
            new[node] = call(node, values)
    return outputs(captured, _returned(captured.graph, values))
