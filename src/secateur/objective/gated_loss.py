"""E(g): the mean loss over the data as a function of one gate per unit.

The gates multiply the captured graph's values on the edges into the operations that sum over units. What
does not depend on a gate is computed once per batch and kept where memory allows; only the rest, the *suffix*,
runs again.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from secateur.errors import DataError, ModelError
from secateur.objective.data import Batch, batches
from secateur.objective.gated_graph import GatedGraph
from secateur.objective.loss_checks import batches_for_loss
from secateur.objective.losses import (
    LossFunction,
    check_start,
    differentiable,
    find_loss,
    loss_of_batch,
    require_loss,
)
from secateur.objective.memory import bytes_held, memory_cap, samples_at_once
from secateur.objective.quality.metric import Metric, Run
from secateur.objective.quality.quality import Quality, quality_of
from secateur.objective.unlabelled import with_predictions
from secateur.phases import phase
from secateur.structure.axis import Axis
from secateur.structure.capture import check_finite
from secateur.structure.graph_run import bind, run
from secateur.structure.inputs import Call, sample_weight, tensors
from secateur.structure.keep_mask import KeepMask
from secateur.structure.units import Units

RESLICE = 0.75  # of the units left that it was made for, a graph with fewer pays


class CachedBatch(NamedTuple):
    """One batch: its samples and their share of all, its inputs, the values that no gate changes, its targets."""

    size: int
    share: float
    call: Call
    frontier: tuple[Any, ...]
    targets: Any


def ones(model: nn.Module, units: Units) -> Tensor:
    """Return the gates of the network as trained [units.total], on its device and in its dtype."""
    return sample_weight(model).new_ones(units.total)


def masks(units: Units, g: Tensor) -> dict[Axis, Tensor]:
    """Return which units of each set have a gate that is not zero."""
    pieces = units.split(g.cpu() != 0).values()
    return {unit_set.axis: piece for unit_set, piece in zip(units, pieces, strict=True)}


def per_position(values: Tensor, dim: int) -> Tensor:
    """Return the values as a matrix with a row for each position of one dimension."""
    return values.transpose(0, dim).reshape(values.shape[dim], -1)


def derivative(y: Tensor, x: Tensor, **options: Any) -> Tensor:
    """Return ∂y/∂x for a number y; zero where it does not depend on x."""
    if not y.requires_grad:
        return torch.zeros_like(x)
    (slope,) = torch.autograd.grad(y, x, allow_unused=True, **options)
    return torch.zeros_like(x) if slope is None else slope


class GatedLoss:
    """The function E(g) for a model and its data: its value, its gradient, and the values behind it.

    Args:
        model: The network, in whatever mode; evaluated as in eval mode.
        units: The model's units, K in all; vectors of gates are ordered as they are.
        data: As `batches` takes it; None where no samples are needed.
        loss: A name or a function; None where no loss is needed.
        seed: The seed of criteria that draw random numbers.
        max_memory: Bytes that may be held beside model and data: a third for the values that no gate changes, if they
            fit, an eighth each for a batch and for what is run on it; None for a quarter of what is free.
        name: What an error calls the data.
        metric: A function of all outputs and targets that `measure` calls; None for none.

    Raises:
        ArgumentError: `max_memory` is no size.
        DataError: The data is unusable, or the loss.
        ModelError: The model's weights are not finite, the units are another model's, or inference mode is on.
    """

    def __init__(
        self, model: nn.Module, units: Units, data: Any = None, loss: Any = None, seed: int = 0,
        max_memory: int | str | None = None, name: str = "data", metric: Metric | None = None,
    ) -> None:  # fmt: skip
        if torch.is_inference_mode_enabled():
            raise ModelError("torch.inference_mode() takes derivatives away for good; use torch.no_grad() instead")
        units.check_model(model)
        check_finite(model)
        self.model = model
        self.units = units
        self.graph = GatedGraph(units)
        self.generator = torch.Generator().manual_seed(seed)
        self._loss: LossFunction | None = None if loss is None else find_loss(loss)
        self._metric = metric
        self.memory, self.capped = memory_cap(max_memory, sample_weight(model).device), max_memory is not None
        self.weights: Mapping[str, Tensor] = {}
        self._sliced: GatedLoss | None = None
        self.stacks: dict[str, Any] = {}  # what criteria compile once for each unit set
        self.samples_independent: bool | None = None  # whether each sample can have gates of its own; None until tried
        self._batches = None if data is None else self._checked(data, name)
        self._frontiers: list[tuple[Any, ...]] | None = None if data is None else self._hold()

    def sliced(self, g: Tensor) -> GatedLoss:
        """Return the same E(g) with units that are gone sliced out, if many are, or any of a sliced set."""
        present = g != 0
        if bool(present.all()) or not all(bool(piece.any()) for piece in self.units.split(present).values()):
            return self
        for known in (self._sliced, self):
            if known is not None and known.graph.holds(g) and present.sum() > RESLICE * known.graph.count:
                return known.with_weights(self.weights)
        self._sliced = copy.copy(self)
        self._sliced.graph, self._sliced.stacks = GatedGraph(self.units, KeepMask(masks(self.units, g))), {}
        self._sliced._frontiers = self._sliced._hold()
        return self._sliced

    def _checked(self, data: Any, name: str) -> list[Batch]:
        captured = self.units.captured
        checked = batches(self.model, data, samples_at_once(captured, self.memory), captured, name)
        return batches_for_loss(self._loss, captured, self.model, checked)

    def on_data(self, data: Any, name: str) -> GatedLoss:
        """Return E(g) on other data, which errors call by this name, with the same captured graph."""
        return self.on_batches(self._checked(data, name))

    def on_batches(self, checked: list[Batch]) -> GatedLoss:
        """Return E(g) over batches that were checked before, with the same captured graph."""
        gated = copy.copy(self)
        gated._batches, gated._sliced, gated.stacks = checked, None, {}
        gated._frontiers = gated._hold()
        return gated

    def with_inputs(self, data: Any, name: str) -> GatedLoss:
        """Return E(g) on more samples, without targets but the predictions; errors call them by this name."""
        captured, model = self.units.captured, self.model
        more = list(batches(model, data, samples_at_once(captured, self.memory), captured, name))
        with torch.no_grad():
            made = [with_predictions(self._loss, batch, run(captured, model, batch.call)) for batch in more]
        return self.on_batches([*self.batches, *made])

    def with_weights(self, weights: Mapping[str, Tensor]) -> GatedLoss:
        """Return E(g) with new values of parameters and buffers that are used behind the gates alone."""
        if weights is self.weights:
            return self
        gated = copy.copy(self)
        gated.weights = weights
        return gated

    def _hold(self) -> list[tuple[Any, ...]] | None:
        """Return the frontier of every batch, None if they do not fit into a third of the memory."""
        held, size = [], 0
        for batch in self._batches or ():
            held.append(self._frontier(batch))
            size += bytes_held(held[-1], [*self.model.parameters(), *self.model.buffers(), *tensors(batch.call)])
            if size > self.memory // 3:
                return None
        return held

    def _frontier(self, batch: Batch) -> tuple[Any, ...]:
        return self.graph.frontier(bind(self.units.captured, self.model, batch.call))

    @property
    def has_data(self) -> bool:
        """Whether there are samples."""
        return self._batches is not None

    @property
    def has_loss(self) -> bool:
        """Whether there is a loss."""
        return self._loss is not None

    @property
    def batches(self) -> list[Batch]:
        """The batches as the caller gave them, or cut, without anything computed of them.

        Raises:
            DataError: No data was given.
        """
        if self._batches is None:
            raise DataError("this needs data: (inputs, targets) or an iterable of such pairs; None was given")
        return self._batches

    @property
    def samples(self) -> int:
        """The number of samples of all batches.

        Raises:
            DataError: No data was given.
        """
        return sum(batch.size for batch in self.batches)

    @property
    def cached(self) -> Iterator[CachedBatch]:
        """The batches, with the values that no gate changes.

        Raises:
            DataError: No data was given.
        """
        n = self.samples
        for i, batch in enumerate(self.batches):
            frontier = self._frontier(batch) if self._frontiers is None else self._frontiers[i]
            held = self.graph.with_weights(frontier, self.weights)
            yield CachedBatch(batch.size, batch.size / n, batch.call, held, batch.targets)

    def few_samples(self, most: int = 3) -> tuple[Any, ...]:
        """Return the frontier of the first samples, at most so many."""
        call = self.units.captured.spec.take((self._batches or [])[0].call, slice(most))
        frontier = self.graph.frontier(bind(self.units.captured, self.model, call))
        return self.graph.with_weights(frontier, self.weights)

    @property
    def loss_function(self) -> LossFunction:
        """The loss of one batch.

        Raises:
            DataError: No loss was given.
        """
        return require_loss(self._loss)

    def losses(self, g: Tensor) -> Iterator[Tensor]:
        """Yield E(g) in pieces that add up, one per batch, differentiable in g.

        Where a norm is taken over units its statistics do not see their gates: in units of sliced sets this is
        an approximation, unlike `loss` and `measure`.
        """
        for batch in self.cached:
            out = self.graph.run(batch.frontier, g)
            yield batch.share * differentiable(self.loss_function, out, batch.targets)

    def loss(self, g: Tensor) -> float:
        """Return E(g); units gone from sliced sets are sliced out."""
        with torch.no_grad():
            losses = ((b.share, loss_of_batch(self.loss_function, out, b.targets)) for b, out in self.outputs(g))
            return self.checked(g, sum(share * loss.double().item() for share, loss in losses))

    def measure(self, g: Tensor) -> Quality:
        """Return E(g), the accuracy and the metric, each None where there is none."""
        with torch.no_grad(), phase("measuring", len(self.batches)) as measuring:
            outputs = measuring.through(self.sliced(g).outputs(g))
            runs = (Run(batch.size, batch.share, out, batch.targets) for batch, out in outputs)
            quality = quality_of(self.loss_function, self._metric, runs)
            self._check(g, quality.loss)
            return quality

    def checked(self, g: Tensor, loss: float) -> float:
        """Return E(g).

        Raises:
            DataError: It is infinite, and that of the network as trained.
        """
        self._check(g, loss)
        return loss

    def _check(self, g: Tensor, loss: float | None) -> None:
        if bool((g == 1).all()):
            check_start(loss)

    def outputs(self, g: Tensor) -> Iterator[tuple[CachedBatch, Any]]:
        """Yield each batch and what the network returns for it."""
        if self.graph.holds(g):
            yield from ((batch, self.graph.run(batch.frontier, g)) for batch in self.cached)
            return
        left = masks(self.units, g)
        graph = GatedGraph(self.units, KeepMask({s.axis: left[s.axis] for s in self.units if s.removal == "sliced"}))
        for batch in self.cached:
            frontier = graph.frontier(bind(self.units.captured, self.model, batch.call))
            yield batch, graph.run(graph.with_weights(frontier, self.weights), g)

    def gradient(self, g: Tensor) -> Tensor:
        """Return ∂E/∂g [K], float64."""
        g = g.detach().requires_grad_()
        return sum((derivative(piece, g).double() for piece in self.losses(g)), torch.zeros_like(g).double())
