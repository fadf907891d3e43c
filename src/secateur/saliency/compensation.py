"""Weights that make up for removed units: every layer that summed them up is fitted to what it gave before.

    W ← (ÃᵀÃ/N + λI)⁻¹ (ÃᵀZ/N + λW)

Layers are taken in order of execution. Ã is what the shrunk network before a layer, already fitted, delivers; Z is what
the layer gave in the original. A bias takes up the means. No label is used but for the curvature by which the last
layer's samples count, and nothing is kept for each sample but second moments.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from secateur.errors import ArgumentError, choose
from secateur.saliency.gated_graph import downstream
from secateur.saliency.gates import Gated, masks, ones
from secateur.saliency.layers import Layer, find_layers, layers_of
from secateur.saliency.memory import bytes_of
from secateur.saliency.norms import Norm, Statistics, find_norms
from secateur.saliency.original import Targets, curvature, last_layers, targets
from secateur.saliency.regression import Fit, Moments, fit
from secateur.structure.inputs import named_tensors
from secateur.structure.left import Left
from secateur.structure.sliced import slice_tensor
from secateur.text import format_bytes

MATRICES = 4  # of the moments' size that are held at a time
ROWS = 20_000  # of a layer's inputs that are taken at most, samples and positions,
EACH = 50  # or so many for each row and column of its matrix
HELD = 5  # every fifth sample is held out to choose the ridge


class Walk(NamedTuple):
    """One batch on its way through the shrunk network.

    Attributes:
        steps: Halts before each layer, with the values so far.
        targets: What the layers gave in the original.
        first: The number of its first sample.
        size: Its samples.
    """

    steps: Iterator[tuple[fx.Node, dict[fx.Node, Any]]]
    targets: Targets
    first: int
    size: int


class Fitted(NamedTuple):
    """A layer's fit, the numbers of the inputs and outputs that it is about, and which of the inputs are kept."""

    fit: Fit
    inputs: Tensor  # kept
    outputs: Tensor


@dataclass(frozen=True)
class Settings:
    """How weights make up for removed units.

    Attributes:
        ridge: λ relative to the mean square of a layer's inputs; None to choose it on every fifth sample, held out.
        weighting: "ggn": samples count by the loss's curvature in the last layers, and units by it in all; "none".
        recalibrate: Whether BatchNorm's statistics are estimated again.
        weights: Whether weights change at all, and not BatchNorm alone.

    Raises:
        ArgumentError: One of them is none.
    """

    ridge: float | None = None
    weighting: str = "ggn"
    recalibrate: bool = False
    weights: bool = True

    def __post_init__(self) -> None:
        choose("weighting", self.weighting, {"ggn": True, "none": False})
        number = isinstance(self.ridge, int | float) and not isinstance(self.ridge, bool)
        if self.ridge is not None and not (number and 0 < self.ridge < math.inf):
            raise ArgumentError(f"ridge: expected a number above 0, or None to choose it, got {self.ridge!r}")


class Compensation:
    """The weights that go with any gates: a function of these and the data.

    Args:
        gated: The original network and its data; its loss, if it has one.
        settings: How.

    Attributes:
        gated: The network with the weights of the last fit.
        weights: These by name, without those that did not change.
        fitted: All layers of the last fit.

    Raises:
        ArgumentError: A layer has more inputs than memory holds a matrix for.
        DataError: There is no data.
    """

    def __init__(self, gated: Gated, settings: Settings = Settings()) -> None:
        gated = copy.copy(gated)
        gated.generator = torch.Generator().manual_seed(0)  # whatever else is drawn: a function of gates and data
        self.original, self.settings, self.units = gated, settings, gated.units
        self.ones = ones(gated.model, self.units)
        self.weights: dict[str, Tensor] = {}
        self.gated = gated.holding(self.weights)
        self.named = {name: tensor.detach() for name, tensor in named_tensors(gated.model).items()}
        found = find_layers(self.units) if settings.weights else []
        sets = {layer: [s for s in self.units if layers_of(s, [layer])] for layer in found}
        self.layers = [layer for layer in found if any(s.removal == "gated" for s in sets[layer])]
        self._others = {layer: sets[layer] for layer in found if layer not in self.layers}  # behind sliced sets alone
        self.norms = [n for n in find_norms(self.units) if settings.recalibrate and n.call in gated.graph.copies]
        self.fitted: dict[Layer, Fitted] = {}
        self._first = {layer for layer in self.layers if self._is_first(layer)}
        self._known: dict[Layer, Moments] = {}  # of first layers, whose inputs never change
        for layer in found:
            self._check_memory(layer)
        self.weighted = settings.weighting == "ggn" and gated.has_loss
        self._mean = curvature(gated, last_layers(self.layers), self.ones) if self.weighted else {}

    def _is_first(self, layer: Layer) -> bool:
        """Whether no gate is in front of a layer but those on its own inputs."""
        graph = self.original.graph
        operand, products = layer.operand(graph.copies[layer.call]), {edge.node for edge in graph.edges}
        while operand in products:
            operand = operand.all_input_nodes[0]
        return operand.op == "placeholder"

    def _check_memory(self, layer: Layer) -> None:
        needed = MATRICES * 8 * layer.width**2
        if needed > self.original.memory:
            raise ArgumentError(
                f"compensation: second moments of the {layer.inputs.size * layer.kernel:,} inputs of {layer.weight} "
                f"take {format_bytes(needed)}, max_memory is {format_bytes(self.original.memory)}; use compensate=False"
            )

    def fit(self, g: Tensor) -> None:
        """Weights for the gates g [K]: in one pass where what all batches hold before a layer fits into memory.

        Layers that nothing in front of them has lost a unit keep their weights as they are, bit by bit.
        """
        self.weights.clear()
        self.fitted.clear()
        narrow, stops, touched = self.gated.narrowed(g), self._stops(g), self._touched(g)
        with torch.no_grad():
            for layer, moments in self._known.items():
                found = self._solve(layer, moments.only(*self._places(layer, narrow)), narrow, g)
                self.weights.update(found if layer.call in touched else {})
            stops = [stop for stop in stops if stop not in self._known]
            held = list(self._walks(narrow, g, stops)) if stops and self._fits_memory(stops) else None
            for i, stop in enumerate(stops):
                walks = held if held is not None else (_skip(walk, i) for walk in self._walks(narrow, g, stops))
                self._stop(stop, walks, narrow, g, stop.call in touched)

    def other(self) -> Compensation:
        """One for fits of its own."""
        other = copy.copy(self)
        other.weights, other.fitted = {}, {}
        other.gated = self.original.holding(other.weights)
        return other

    def _stops(self, g: Tensor) -> list[Layer | Norm]:
        """What is fitted, in order of execution: of layers behind sliced sets those that have lost inputs."""
        order = {node: i for i, node in enumerate(self.units.captured.graph.nodes)}
        whole = {axis for axis, there in masks(self.units, g).items() if bool(there.all())}
        others = [layer for layer, sets in self._others.items() if any(s.axis not in whole for s in sets)]
        return sorted([*self.layers, *others, *self.norms], key=lambda stop: order[stop.call])

    def _touched(self, g: Tensor) -> set[fx.Node]:
        """The calls behind a unit that is gone."""
        graph = self.original.graph
        gone = [edge.node for edge in graph.edges if bool((graph.units.expand(edge.axis, g) == 0).any())]
        return {graph.origin[node] for node in downstream(gone) if node in graph.origin}

    def _walks(self, narrow: Gated, g: Tensor, stops: list[Layer | Norm]) -> Iterator[Walk]:
        first, layers = 0, [stop for stop in stops if isinstance(stop, Layer)]
        halts = {narrow.graph.copies[stop.call] for stop in stops}
        for batch, shrunk in zip(self.original.cached, narrow.cached, strict=True):
            steps = narrow.graph.walk(shrunk.frontier, g, halts, ())
            yield Walk(steps, targets(self.original, batch, layers, self.ones, self._mean), first, batch.size)
            first += batch.size

    def _fits_memory(self, stops: list[Layer | Norm]) -> bool:
        """Whether all batches can halt before a layer at the same time."""
        nodes = [node for node in self.units.captured.graph.nodes if node.op == "call_function"]
        each = bytes_of(stop.call for stop in stops) + 4 * max(bytes_of([node]) for node in nodes)
        return each * sum(batch.size for batch in self.original.cached) <= self.original.memory // 3

    def _stop(self, stop: Layer | Norm, walks: Iterable[Walk], narrow: Gated, g: Tensor, touched: bool) -> None:
        """Fit one layer, or estimate one norm's statistics, and let the walks go on with it."""
        call = narrow.graph.copies[stop.call]
        if isinstance(stop, Norm):
            found, met = self._statistics(stop, call, walks, narrow)
        else:
            found, met = self._layer(stop, call, walks, narrow, g)
        if not touched:
            return
        self.weights.update(found)
        for values, (name, node) in itertools.product(met, stop.places(call).items()):
            if name in found:
                values[node] = slice_tensor(found[name], self.units.axes[name], narrow.graph.left)

    def _layer(self, layer: Layer, call: fx.Node, walks: Iterable[Walk], narrow: Gated, g: Tensor) -> Met:
        ins, outs = self._places(layer, narrow)
        moments, met = Moments(len(outs) if layer in self._mean else 1, len(ins), len(outs), g.device), []
        for walk in walks:
            _, values = next(walk.steps)
            z, weight = walk.targets.pop(layer)
            chosen, held = self._chosen(walk, len(z), max(ROWS, EACH * layer.width))
            a = layer.rows(values[layer.operand(call)], chosen)
            moments.add(a, z[chosen][:, outs], held, None if weight is None else weight[chosen][:, outs])
            met.append(values)
        if layer in self._first and bool((g == 1).all()):
            self._known[layer] = moments
        return self._solve(layer, moments, narrow, g), met

    def _chosen(self, walk: Walk, rows: int, most: int) -> tuple[Tensor, Tensor]:
        """Which of a batch's rows are taken, evenly, so that all batches give so many at most; which are held out."""
        each = max(1, rows // walk.size)
        total = each * sum(batch.size for batch in self.original.cached)
        numbers = walk.first * each + torch.arange(rows, device=self.ones.device)
        taken = numbers if total <= most else numbers[(numbers + 1) * most // total > numbers * most // total]
        return taken - walk.first * each, taken // each % HELD == HELD - 1

    def _places(self, layer: Layer, narrow: Gated) -> tuple[Tensor, Tensor]:
        """The rows and columns of a layer's matrix that are not sliced out."""
        device = self.ones.device
        inputs, outputs = (narrow.graph.left.indices(axis).to(device) for axis in (layer.inputs, layer.outputs))
        return layer.rows_of(inputs), outputs

    def _solve(self, layer: Layer, moments: Moments, narrow: Gated, g: Tensor) -> dict[str, Tensor]:
        ins, outs = self._places(layer, narrow)
        present = layer.matrix(self.named[layer.weight]).double()[ins][:, outs]
        blocks = torch.stack(present.chunk(len(moments.sums[0]), 1))
        kept = layer.rows_kept(Left(masks(self.units, g))).to(g.device)[ins]
        free = layer.bias is not None or any(norm.follows(layer) for norm in self.norms)
        found = fit(moments, blocks, free, self.settings.ridge, kept)
        self.fitted[layer] = Fitted(found, ins[kept], outs)
        return self.tensors(layer, found.weight)

    def tensors(self, layer: Layer, weight: Tensor) -> dict[str, Tensor]:
        """The parameters of a fitted layer with these weights [C, D', o] of the inputs that it was fitted with."""
        found = self.fitted[layer]
        old = self.named[layer.weight]
        places = found.inputs[:, None], found.outputs
        matrix = layer.matrix(old).double().index_put(places, torch.cat([*weight], 1))
        tensors, bias = {layer.weight: layer.tensor(matrix, old)}, found.fit.bias_for(weight)
        if layer.bias is not None and bias is not None:
            old = self.named[layer.bias]
            tensors[layer.bias] = old.index_put((found.outputs,), bias.flatten().to(old))
        return tensors

    def _statistics(self, norm: Norm, call: fx.Node, walks: Iterable[Walk], narrow: Gated) -> Met:
        statistics, met = Statistics(), []
        for walk in walks:
            _, values = next(walk.steps)
            statistics.add(values[norm.operand(call)])
            met.append(values)
        return norm.tensors(statistics, self.named, narrow.graph.left.indices(norm.channels).to(self.ones.device)), met


Met = tuple[dict[str, Tensor], list[dict[fx.Node, Any]]]  # what was found, and the values of the walks that wait there


def compensated(gated: Gated, g: Tensor, settings: Settings) -> dict[str, Tensor]:
    """The parameters and buffers that change when the gates are g [K], by name.

    Raises:
        ArgumentError: As `Compensation`.
        DataError: There is no data, or activations are not finite.
    """
    compensation = Compensation(gated, settings)
    compensation.fit(g)
    return compensation.weights


def _skip(walk: Walk, n: int) -> Walk:
    """Go on until n halts are behind."""
    for _ in itertools.islice(walk.steps, n):
        pass
    return walk
