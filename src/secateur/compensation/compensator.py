"""Weights that make up for removed units: every layer that summed them up is fitted to what it gave before.

    W ← (ÃᵀÃ/N + λI)⁻¹ (ÃᵀZ/N + λW)

Layers are taken in order of execution. Ã is what the shrunk network before a layer, already fitted, delivers; Z is what
the layer gave in the original. A bias takes up the means. Labels are used for the curvature by which the last layer's
samples count alone. Nothing is kept for each sample but second moments.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from secateur.compensation.batch_norm import BatchNorm, ChannelStatistics, find_norms
from secateur.compensation.calibration import (
    BatchPlace,
    Observation,
    batch_places,
    collect_moments,
    moments_for,
    observe,
    rows_of_its_own,
)
from secateur.compensation.fitted_layer import FittedLayer
from secateur.compensation.linear_layers import Layer, find_layers, layers_of
from secateur.compensation.targets import draws_of, last_layers, sample_weights, trace_layers
from secateur.least_squares.moments import Moments
from secateur.least_squares.ridge import RidgeFit, fit
from secateur.least_squares.row_ridge import RowMoments, fit_rows
from secateur.objective.gated_graph import downstream
from secateur.objective.gated_loss import GatedLoss, masks, ones
from secateur.objective.memory import bytes_alive
from secateur.options import Compensation
from secateur.phases import phase
from secateur.structure.inputs import named_tensors
from secateur.structure.keep_mask import KeepMask
from secateur.structure.sliced_graph import slice_tensor
from secateur.text import format_bytes

DEFAULTS = Compensation()
MATRICES = 4  # of the moments' size that are held at a time


class Walk(NamedTuple):
    """One batch on its way through both networks, side by side.

    Attributes:
        steps: Halts before each layer or norm of the shrunk network, with the values so far.
        original: Halts after each layer of the original.
        weights: How much each number counts that a layer gives [M, O].
        place: The batch's place.
    """

    steps: Iterator[tuple[fx.Node, dict[fx.Node, Any]]]
    original: Iterator[tuple[fx.Node, dict[fx.Node, Any]]]
    weights: dict[Layer, Tensor]
    place: BatchPlace


class Compensator:
    """The weights that go with any gates: a function of these and the data.

    Args:
        gated: The original network and its data; its loss, if it has one.
        settings: How weights are fitted.

    Attributes:
        gated: The network with the weights of the last fit.
        weights: These by name, without those that did not change.
        fitted: All layers of the last fit, where they were asked for.
        unfitted: The weights that cannot be fitted and stay as they are, each with the reason.

    Raises:
        DataError: There is no data.
    """

    def __init__(self, gated: GatedLoss, settings: Compensation = DEFAULTS) -> None:
        gated = copy.copy(gated)
        gated.generator = torch.Generator().manual_seed(0)  # whatever else is drawn: a function of gates and data
        self.original, self.settings, self.units = gated, settings, gated.units
        self.ones, self._batches = ones(gated.model, self.units), batch_places(gated.batches)
        self.weights: dict[str, Tensor] = {}
        self._fitted_at: tuple[Tensor, bool] | None = None  # the gates of the last fit, and if it was of all layers
        self.gated = gated.with_weights(self.weights)
        self.named = {name: tensor.detach() for name, tensor in named_tensors(gated.model).items()}
        layers = find_layers(self.units) if settings.fit else []
        sets = {layer: [s for s in self.units if layers_of(s, [layer])] for layer in layers}
        gated_layers = [layer for layer in layers if any(s.removal == "gated" for s in sets[layer])]
        last = last_layers(gated_layers) if settings.weighting == "ggn" and gated.has_loss else []
        self.weighted = [layer for layer in last if not self.keeps_rows(layer)]
        layers = self._fittable(layers)
        self.layers = [layer for layer in layers if layer in gated_layers]
        self._others = {layer: sets[layer] for layer in layers if layer not in self.layers}  # behind sliced sets alone
        self.norms = [n for n in find_norms(self.units) if settings.recalibrate and n.call in gated.graph.copies]
        self.fitted: dict[Layer, FittedLayer] = {}
        self._keeps_fits = False
        self._first = {layer for layer in self.layers if self._is_first(layer)}
        self._known: dict[Layer, Moments | RowMoments] = {}  # of what layers take in the original, without targets
        self.weighted = [layer for layer in self.weighted if layer in self.layers]

    def keeps_rows(self, layer: Layer) -> bool:
        """Return whether a layer has more inputs than rows, and so is fitted by its rows."""
        return rows_of_its_own(layer, self._batches[0].samples) is not None

    def _is_first(self, layer: Layer) -> bool:
        """Return whether no gate is in front of a layer but those on its own inputs."""
        graph = self.original.graph
        operand, products = layer.operand(graph.copies[layer.call]), {edge.node for edge in graph.edges}
        while operand in products:
            operand = operand.all_input_nodes[0]
        return operand.op == "placeholder"

    def _needed(self, layer: Layer) -> int:
        """Return the bytes that a layer's fit holds at a time."""
        kept = rows_of_its_own(layer, self._batches[0].samples)
        if kept is not None:
            return 4 * kept * layer.width + MATRICES * 8 * kept**2
        return MATRICES * 8 * layer.width**2 * (layer.outputs.size if layer in self.weighted else 1)

    def _fittable(self, layers: list[Layer]) -> list[Layer]:
        """Return the layers whose fit the memory allowed holds, and note why the others stay as they are."""
        most = self.original.memory if self.original.capped else math.inf
        self.unfitted = {
            layer.weight: f"its fit takes {format_bytes(self._needed(layer))}, max_memory is {format_bytes(int(most))}"
            for layer in layers
            if self._needed(layer) > most
        }
        return [layer for layer in layers if layer.weight not in self.unfitted]

    def fit(self, g: Tensor, all_layers: bool = False) -> bool:
        """Fit the weights for the gates g [K], in one pass where what all batches hold before a layer fits into memory.

        Layers that nothing in front of them has lost a unit keep their weights as they are, bit by bit.

        Args:
            g: The gates.
            all_layers: Whether `fitted` shall hold those layers too.

        Returns:
            Whether anything was to do: the last fit may have been for these gates.
        """
        if self._fitted_at is not None and torch.equal(self._fitted_at[0], g) and self._fitted_at[1] >= all_layers:
            return False
        self.weights.clear()
        self.fitted.clear()
        self._fitted_at, self._keeps_fits = (g.clone(), all_layers), all_layers
        sliced, touched = self.gated.sliced(g), self._touched(g)
        stops = [stop for stop in self._stops(g) if stop.call in touched]
        first = [layer for layer in self.layers if layer in stops and layer in self._first]
        rest = [layer for layer in self.layers if layer not in stops and all_layers]
        with torch.no_grad(), phase("fitting layers", len({*stops, *rest})) as fitting:
            self._add_known([*first, *rest])
            for layer in fitting.through([*first, *rest]):
                ins, outs = torch.arange(layer.height).to(g.device), self._outputs(layer, g)
                fitted = self._solve(layer, self._known[layer].only(outs), ins, outs, g)
                self.weights.update(fitted if layer in first else {})
            stops = [stop for stop in stops if stop not in first]
            held = list(self._walks(sliced, g, stops)) if stops and self._fits_memory(stops) else None
            for i, stop in fitting.through(enumerate(stops)):
                walks = held or (_skip(walk, stops[:i]) for walk in self._walks(sliced, g, stops))
                self._stop(stop, walks, sliced, g)
        return True

    def change(self, tensors: dict[str, Tensor]) -> None:
        """Put other weights in place of those of the last fit."""
        self.weights.update(tensors)
        self._fitted_at = None

    def learn(self) -> None:
        """Learn the second moments of what layers take in the original: one pass over the data, once."""
        with torch.no_grad():
            self._add_known(self.layers)

    def _add_known(self, layers: Iterable[Layer]) -> None:
        new = [layer for layer in layers if layer not in self._known]
        self._known.update(
            observe(self.original, self.ones, new, [layer for layer in self.weighted if layer in new]).moments
        )

    def fork(self) -> Compensator:
        """Return a compensator for fits of its own."""
        compensator = copy.copy(self)
        compensator.weights, compensator.fitted, compensator._fitted_at = {}, {}, None
        compensator.gated = self.original.with_weights(compensator.weights)
        return compensator

    def _stops(self, g: Tensor) -> list[Layer | BatchNorm]:
        """Return what is fitted, in order of execution: of layers behind sliced sets those that have lost inputs."""
        order = {node: i for i, node in enumerate(self.units.captured.graph.nodes)}
        whole = {axis for axis, mask in masks(self.units, g).items() if bool(mask.all())}
        others = [layer for layer, sets in self._others.items() if any(s.axis not in whole for s in sets)]
        return sorted([*self.layers, *others, *self.norms], key=lambda stop: order[stop.call])

    def _touched(self, g: Tensor) -> set[fx.Node]:
        """Return the calls behind a unit that is gone."""
        graph = self.original.graph
        gone = [edge.node for edge in graph.edges if bool((graph.units.expand(edge.axis, g) == 0).any())]
        return {graph.origin[node] for node in downstream(gone) if node in graph.origin}

    def _walks(self, sliced: GatedLoss, g: Tensor, stops: list[Layer | BatchNorm]) -> Iterator[Walk]:
        layers, graph = [stop for stop in stops if isinstance(stop, Layer)], self.original.graph
        weighted, draw = [layer for layer in self.weighted if layer in layers], draws_of(self.original)
        halts, results = {sliced.graph.copies[s.call] for s in stops}, {graph.copies[layer.call] for layer in layers}
        for batch, shrunk, place in zip(self.original.cached, sliced.cached, self._batches, strict=True):
            values = trace_layers(self.original, batch, (), self.ones, weighted) if weighted else {}
            yield Walk(
                sliced.graph.walk(shrunk.frontier, g, halts, ()),
                graph.walk(batch.frontier, self.ones, (), (), results=results),
                sample_weights(self.original, batch, weighted, values, draw),
                place,
            )

    def _fits_memory(self, stops: list[Layer | BatchNorm]) -> bool:
        """Return whether all batches of both networks can halt at the same time."""
        alive = 2 * bytes_alive(self.units.captured.graph, {stop.call for stop in stops})
        return alive * self._batches[0].samples <= self.original.memory // 3

    def _stop(self, stop: Layer | BatchNorm, walks: Iterable[Walk], sliced: GatedLoss, g: Tensor) -> None:
        """Fit one layer, or estimate one norm's statistics, and let the walks go on with it."""
        call = sliced.graph.copies[stop.call]
        if isinstance(stop, BatchNorm):
            tensors, met = self._statistics(stop, call, walks, sliced)
        else:
            tensors, met = self._layer(stop, call, walks, sliced, g)
        self.weights.update(tensors)
        for values, (name, node) in itertools.product(met, stop.places(call).items()):
            if name in tensors:
                values[node] = slice_tensor(tensors[name], self.units.axes[name], sliced.graph.kept)

    def _layer(self, layer: Layer, call: fx.Node, walks: Iterable[Walk], sliced: GatedLoss, g: Tensor) -> Met:
        inputs = sliced.graph.kept.indices(layer.inputs).to(g.device)
        ins, outs = layer.rows_of(inputs), self._outputs(layer, g)
        moments = moments_for(layer, self._batches[0].samples, len(ins), len(outs), self.ones.device)
        met = list[dict[fx.Node, Any]]()
        for walk in walks:
            _, values = next(walk.steps)
            call_there, original = next(walk.original)
            z, weight = layer.targets(original[call_there]), walk.weights.pop(layer, None)
            weight = None if weight is None else weight[:, outs]
            collect_moments(moments, layer, values[layer.operand(call)], walk.place, z[:, outs], weight)
            met.append(values)
        return self._solve(layer, moments, ins, outs, g), met

    def _outputs(self, layer: Layer, g: Tensor) -> Tensor:
        """Return the columns of a layer's matrix that are left: by the gates alone, whatever is sliced out already."""
        return KeepMask(masks(self.units, g)).indices(layer.outputs).to(g.device)

    def _present(self, layer: Layer, blocks: int, ins: Tensor, outs: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the original's weights [C, D, o] and bias [C, o]: zero if a norm takes the mean up, None without."""
        weight = layer.matrix(self.named[layer.weight]).double()[ins][:, outs]
        if layer.bias is not None:
            bias = self.named[layer.bias].double()[outs]
        elif any(norm.follows(layer) for norm in self.norms):
            bias = torch.zeros_like(weight[0])
        else:
            bias = None
        return torch.stack(weight.chunk(blocks, 1)), None if bias is None else bias.reshape(blocks, -1)

    def _solve(
        self, layer: Layer, moments: Moments | RowMoments, ins: Tensor, outs: Tensor, g: Tensor
    ) -> dict[str, Tensor]:
        kept = layer.rows_kept(KeepMask(masks(self.units, g))).to(g.device)[ins]
        solution = self._fit(moments, *self._present(layer, moments.blocks, ins, outs), kept)
        fitted = FittedLayer(layer, solution, ins[kept], outs)
        if self._keeps_fits:
            self.fitted[layer] = fitted
        return fitted.tensors(self.named, solution.weight)

    def _fit(self, moments: Moments | RowMoments, weight: Tensor, bias: Tensor | None, kept: Tensor) -> RidgeFit:
        if isinstance(moments, RowMoments):
            return fit_rows(moments, weight, bias, self.settings.ridge, kept)
        return fit(moments, weight, bias, self.settings.ridge, kept)

    def observe(self, layers: list[Layer], curved: bool) -> Observation:
        """Return what some layers take in the original, and with it how much the loss minds what they give."""
        weighted = [layer for layer in self.weighted if layer in layers]
        curved = curved and self.settings.weighting == "ggn"
        return observe(self.original, self.ones, layers, weighted, curved, hold_out=False)

    def bytes_of_moments(self, layer: Layer) -> int:
        """Return what is held of a layer by `observe`."""
        kept, inputs = rows_of_its_own(layer, self._batches[0].samples), layer.height
        blocks = 1 + (layer.outputs.size if layer in self.weighted else 0)
        return 8 * layer.outputs.size**2 + (4 * kept * inputs if kept is not None else 8 * blocks * inputs**2)

    def optimum(self, layer: Layer, moments: Moments | RowMoments) -> FittedLayer:
        """Return a layer of the original network, whose weights are the best there are; a function of the moments."""
        ins, outs = torch.arange(layer.height), torch.arange(layer.outputs.size)
        ins, outs = ins.to(self.ones.device), outs.to(self.ones.device)
        present = self._present(layer, moments.blocks, ins, outs)
        return FittedLayer(layer, self._fit(moments, *present, torch.ones_like(ins, dtype=torch.bool)), ins, outs)

    def _statistics(self, norm: BatchNorm, call: fx.Node, walks: Iterable[Walk], sliced: GatedLoss) -> Met:
        statistics, met = ChannelStatistics(), []
        for walk in walks:
            _, values = next(walk.steps)
            statistics.add(values[norm.operand(call)])
            met.append(values)
        return norm.tensors(statistics, self.named, sliced.graph.kept.indices(norm.channels).to(self.ones.device)), met


Met = tuple[dict[str, Tensor], list[dict[fx.Node, Any]]]  # what was found, and the values of the walks that wait there


def compensated(gated: GatedLoss, g: Tensor, settings: Compensation) -> dict[str, Tensor]:
    """Return the parameters and buffers that change when the gates are g [K], by name.

    Raises:
        ArgumentError: As `Compensator`.
        DataError: There is no data, or activations are not finite.
    """
    compensator = Compensator(gated, settings)
    compensator.fit(g)
    return compensator.weights


def _skip(walk: Walk, stops: list[Layer | BatchNorm]) -> Walk:
    """Go on until these halts are behind."""
    for stop in stops:
        next(walk.steps)
        if isinstance(stop, Layer):
            next(walk.original)
    return walk
