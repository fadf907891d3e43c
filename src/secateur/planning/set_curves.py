"""The curve of each unit set: its own order of removals, and the rise of the loss along it, measured at a few sizes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from secateur.compensation.calibration import Observation
from secateur.compensation.compensator import Compensator
from secateur.compensation.fitted_layer import FittedLayer
from secateur.compensation.linear_layers import Layer, compensable, layers_of
from secateur.compensation.removal_path import Point, removal_path
from secateur.objective.gated_loss import GatedLoss
from secateur.objective.held_back import some_samples
from secateur.objective.losses import NAMED
from secateur.objective.question import Question
from secateur.phases import phase
from secateur.planning.curves import Curve
from secateur.saliency.criterion import Criterion
from secateur.saliency.score import find_criterion, saliency_of
from secateur.structure.unit_set import UnitSet

SHARES = (0.2, 0.4, 0.6, 0.8, 0.9, 0.97)  # of a set's units: where its curve is measured
PASSES = 2  # over the data, at most, that all measurements together take, where they are not cheap
CHEAP = 5 * 10**11  # multiplications with addition of all measurements together; counted, so that no clock decides
SUBSTITUTE = "fisher"  # the order of units that nothing makes up for, where the loss has a name;
SLOPE = "taylor1"  # and by a loss of the user's own, which no targets are drawn for


class Path(NamedTuple):
    """The removals of one set, and the layers that make up for them."""

    points: Iterator[Point]
    layers: list[FittedLayer]


def set_curves(
    question: Question, criterion: Criterion, compensator: Compensator | None, limits: Mapping[str, int]
) -> list[Curve]:
    """Return the curve of each set that may lose units; each is a function of its layers, their moments and settings.

    One pass over the data for the moments of what layers take and for the curvature of the loss in what they give; then
    for each set one removal order in closed form, and the loss at six sizes on some of the samples.

    Args:
        question: The model, its units and the data.
        criterion: ``obs`` for the order that compensation makes; another one for the order of its saliencies.
        compensator: Fits the weights that stay; None to leave them as they are.
        limits: The number of units that each set may lose.
    """
    sets = [unit_set for unit_set in question.units if limits[unit_set.name]]
    paths = _Paths(question, criterion, compensator, sets)
    paths.learn()
    probe = _Probe(question, len(sets) * len(SHARES))
    with phase("ordering removals", sum(limits.values())) as ordering:
        found = ((unit_set, paths.of(unit_set, limits[unit_set.name])) for unit_set in sets)
        return [_curve(s, path._replace(points=ordering.through(path.points)), paths, probe) for s, path in found]


def probed(size: int, limit: int) -> set[int]:
    """Return the numbers of removals after which a set's curve is measured.

    >>> sorted(probed(50, 30)), sorted(probed(2, 1))
    ([10, 20, 30], [1])
    """
    return {min(limit, max(1, round(share * size))) for share in SHARES}


def _curve(unit_set: UnitSet, path: Path, paths: _Paths, probe: _Probe) -> Curve:
    order, rises, measured, numbers = list[int](), [0.0], dict[int, float](), paths.numbers[unit_set.name]
    for point in path.points:
        order.append(point.unit)
        rises.append(rises[-1] + point.cost)
        if point.weights is not None and probe.possible:
            measured[len(order)] = probe.rise(numbers[order], paths.tensors(path.layers, point.weights))
    of_loss = bool(path.layers) or paths.criterion.in_loss_units
    return Curve(unit_set.name, tuple(order), tuple(rises), of_loss).scaled(measured)


class _Paths:
    """The removal order of any set, from one pass over the data for all of them."""

    def __init__(
        self, question: Question, criterion: Criterion, compensator: Compensator | None, sets: Sequence[UnitSet]
    ) -> None:
        self.question, self.criterion, self.compensator, self.sets = question, criterion, compensator, sets
        self.numbers = question.units.split(torch.arange(question.units.total, device=question.ones.device))
        self.layers = [] if compensator is None else compensator.layers
        self.fitted = {s.name for s in sets if compensator is not None and compensable(s, self.layers)}
        self.observation = Observation({}, {})
        self._saliency: Tensor | None = None

    def learn(self) -> None:
        """Learn of the first layers that make up for units."""
        for unit_set in self.sets:
            if unit_set.name in self.fitted:
                self._observe(unit_set)
                return

    def _observe(self, unit_set: UnitSet) -> None:
        """Learn of the layers of a set, and with them of those of the next sets, as many as memory holds."""
        compensator = self.compensator
        assert compensator is not None
        waiting = [s for s in self.sets[self.sets.index(unit_set) :] if s.name in self.fitted]
        needed = dict.fromkeys(layers_of(unit_set, self.layers))
        for other in waiting:
            more = needed | dict.fromkeys(layers_of(other, self.layers))
            if sum(map(compensator.bytes_of_moments, more)) > self.question.gated.memory // 3:
                break
            needed = more
        self.observation = Observation({}, {})  # frees what is not needed any more
        self.observation = compensator.observe(list(needed), self.criterion.name == "obs")

    def of(self, unit_set: UnitSet, removals: int) -> Path:
        """Return the path of one set, with the weights at the points where it is measured."""
        points = probed(unit_set.size, removals)
        order = None if self.criterion.name == "obs" and unit_set.name in self.fitted else self._order(unit_set)
        if unit_set.name not in self.fitted:
            return Path(self._alone(unit_set, removals, points), [])
        if any(layer not in self.observation.moments for layer in layers_of(unit_set, self.layers)):
            self._observe(unit_set)
        layers = [self._layer(layer, unit_set) for layer in layers_of(unit_set, self.layers)]
        summations = [
            fitted.summation(
                fitted.layer.rows_of_units(unit_set).to(self.question.ones.device),
                self.observation.curvature.get(fitted.layer),
            )
            for fitted in layers
        ]
        path = removal_path(summations, removals, points, order)
        return Path(path, [layer.without_moments() for layer in layers])

    def _layer(self, layer: Layer, unit_set: UnitSet) -> FittedLayer:
        """Return a layer at its optimum; its moments are let go with the last set that it sums up."""
        assert self.compensator is not None
        fitted = self.compensator.optimum(layer, self.observation.moments[layer])
        if not any(layer in layers_of(later, [layer]) for later in self.sets[self.sets.index(unit_set) + 1 :]):
            del self.observation.moments[layer]
        return fitted

    def _order(self, unit_set: UnitSet) -> list[int]:
        order: list[int] = self.saliency[self.numbers[unit_set.name].cpu()].argsort(stable=True).tolist()
        return order

    @property
    def saliency(self) -> Tensor:
        """The saliencies by which units go that have no order in closed form [K]."""
        if self._saliency is None:
            gated = self.question.gated
            drawn = gated.has_loss and gated.loss_function in NAMED.values()
            substitute = SUBSTITUTE if drawn else SLOPE
            criterion = find_criterion(substitute if self.criterion.name == "obs" else self.criterion, gated)
            with phase(f"scoring by {criterion.name}"):
                self._saliency = saliency_of(criterion, gated, self.question.ones).cpu()
        return self._saliency

    def _alone(self, unit_set: UnitSet, removals: int, points: set[int]) -> Iterator[Point]:
        """Yield removals that nothing makes up for, each at the cost of its saliency."""
        saliency = self.saliency[self.numbers[unit_set.name].cpu()]
        for n, unit in enumerate(self._order(unit_set)[:removals], 1):
            cost = max(saliency[unit].item(), 0.0)
            yield Point(unit, cost if math.isfinite(cost) else 0.0, [] if n in points else None)

    def tensors(self, layers: list[FittedLayer], weights: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        """Return the parameters of a path's layers at one of its points."""
        tensors: dict[str, Tensor] = {}
        for fitted, (inputs, weight) in zip(layers, weights, strict=True):
            assert self.compensator is not None
            tensors |= fitted.tensors(self.compensator.named, weight, fitted.inputs[inputs])
        return tensors


class _Probe:
    """The loss on some of the samples with one set smaller than it was."""

    def __init__(self, question: Question, times: int) -> None:
        self.ones, gated = question.ones, question.gated
        self.possible = gated.has_data and gated.has_loss
        if self.possible:
            self.gated = _few(question, gated, times)
            self.start = self.gated.loss(self.ones)

    def rise(self, gone: Tensor, weights: Mapping[str, Any]) -> float:
        """Return the rise of the loss without some units."""
        g = self.ones.index_fill(0, gone, 0)
        return self.gated.with_weights(weights).sliced(g).loss(g) - self.start


def _few(question: Question, gated: GatedLoss, times: int) -> GatedLoss:
    """Return E(g) on so many samples that measuring it so many times is cheap, or a few passes over the data."""
    most = probe_samples(gated.samples, times, question.units.macs({}))
    some = most < gated.samples
    return gated.on_batches(some_samples(gated.batches, most, question.whole_batches)) if some else gated


def probe_samples(samples: int, times: int, macs: int) -> int:
    """Return on how many of the samples curves are measured.

    Args:
        samples: All samples.
        times: How often the loss is measured.
        macs: The multiplications with addition for one sample.
    """
    return min(samples, max(CHEAP // max(1, times * macs), PASSES * samples // max(1, times), 1))
