"""Second moments of what layers take, batch after batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from secateur.compensation.linear_layers import Layer
from secateur.compensation.targets import (
    add_curvature,
    draws_of,
    no_curvature,
    positive,
    sample_weights,
    trace_layers,
)
from secateur.least_squares.moments import Moments
from secateur.least_squares.row_ridge import RowMoments, rows_kept
from secateur.objective.data import Batch
from secateur.objective.gated_loss import GatedLoss
from secateur.objective.held_back import evenly
from secateur.phases import phase

ROWS = 20_000  # of a layer's inputs that are taken at most, samples and positions,
FEWER = 5_000  # where each output weighs them in its own way, and so has moments of its own;
EACH = 50  # or so many for each row and column of its matrix
PIECE = 2**13  # rows that are unfolded at a time
HELD_OUT = 5  # every fifth sample is held out to choose the ridge


class BatchPlace(NamedTuple):
    """The place of a batch in the data.

    Attributes:
        first: The number of its first sample.
        size: Its samples.
        samples: Those of all batches.
        mask: Which of its positions count [N, L]; None for all.
        before: Positions that count in the batches before it.
        positions: Those of all batches.
    """

    first: int
    size: int
    samples: int
    mask: Tensor | None = None
    before: int = 0
    positions: int = 0


def batch_places(batches: Sequence[Batch]) -> list[BatchPlace]:
    """Return the places of all batches."""
    sizes = [batch.size for batch in batches]
    masks = [batch.mask for batch in batches]
    counts = [0 if mask is None else int(mask.sum()) for mask in masks]
    return [
        BatchPlace(sum(sizes[:i]), size, sum(sizes), mask, sum(counts[:i]), sum(counts))
        for i, (size, mask) in enumerate(zip(sizes, masks, strict=True))
    ]


class CountedRows(NamedTuple):
    """The rows of a batch that count.

    Attributes:
        places: Their places among the batch's rows; None where all count.
        numbers: Their numbers among the rows of all batches.
        total: Rows of all batches that count.
        samples: The number of each row's sample.
    """

    places: Tensor | None
    numbers: Tensor
    total: int
    samples: Tensor

    def some(self, most: int) -> tuple[Tensor | None, Tensor]:
        """Return places and samples of rows, evenly so many that all batches have no more than is said."""
        if self.total <= most:
            return self.places, self.samples
        chosen = evenly(self.numbers, self.total, most).nonzero()[:, 0]
        return chosen if self.places is None else self.places[chosen], self.samples[chosen]


def counted_rows(layer: Layer, value: Tensor, place: BatchPlace) -> CountedRows:
    """Return the rows of a layer's input that count: where it has those of the mask, those at positions that do."""
    leading, mask = layer.leading(value), place.mask
    if mask is not None and layer.samples_first and leading in (mask.shape, (mask.numel(),)):
        places = mask.flatten().nonzero()[:, 0]
        numbers = place.before + torch.arange(len(places), device=value.device)
        return CountedRows(places, numbers, place.positions, place.first + places // mask.shape[1])
    each = max(1, leading.numel() // place.size)  # rows of a sample
    numbers = place.first * each + torch.arange(leading.numel(), device=value.device)
    return CountedRows(None, numbers, place.samples * each, numbers // each)


def rows_of_its_own(layer: Layer, samples: int) -> int | None:
    """Return how many rows of a layer are kept where it has fewer rows than inputs; None where it has moments."""
    return rows_kept(layer.height, samples * layer.positions)


def moments_for(layer: Layer, samples: int, inputs: int, outputs: int, device: torch.device) -> Moments | RowMoments:
    """Return empty moments of a layer's inputs, or where it has fewer rows than inputs empty rows.

    Args:
        layer: The layer.
        samples: Those of all data.
        inputs: How many inputs are there.
        outputs: How many outputs have targets.
        device: The device.
    """
    rows = rows_of_its_own(layer, samples)
    return Moments(inputs, outputs, device) if rows is None else RowMoments(inputs, outputs, rows)


def collect_moments(
    moments: Moments | RowMoments,
    layer: Layer,
    value: Tensor,
    place: BatchPlace,
    z: Tensor | None,
    weight: Tensor | None,
) -> None:
    """Take in a batch of a layer's input: evenly so many rows that all batches give no more than is said above.

    Args:
        moments: The sums to add to.
        layer: The layer whose input it is.
        value: The call's input.
        place: The batch's place.
        z: Targets of its rows [M, O]; None for moments without.
        weight: The weights of its rows [M, C]; None for 1.
    """
    most = rows_of_its_own(layer, place.samples) or max(ROWS if weight is None else FEWER, EACH * layer.width)
    taken, samples = counted_rows(layer, value, place).some(most)
    for piece in torch.split(torch.arange(len(samples), device=value.device), PIECE):
        places = piece if taken is None else taken[piece]
        a = layer.rows(value, places)
        moments.add(
            a,
            a[:, :0] if z is None else z[places],
            samples[piece] % HELD_OUT == HELD_OUT - 1,
            None if weight is None else weight[places],
        )


class Observation(NamedTuple):
    """What one pass over the data tells of some layers.

    Attributes:
        moments: Second moments of what each layer takes.
        curvature: B, how much the loss minds changes of what each gives [O, O]; empty where it was not asked for, and
            where samples of the loss have no curvature of their own.
    """

    moments: dict[Layer, Moments | RowMoments]
    curvature: dict[Layer, Tensor]


def observe(
    gated: GatedLoss, g: Tensor, layers: Sequence[Layer], weighted: Sequence[Layer], curved: bool = False,
    hold_out: bool = True,
) -> Observation:  # fmt: skip
    """Return what layers take in the original network, and how much the loss minds what they give.

    One forward pass, with the curvature also the backward passes of `curvature`.

    Args:
        gated: The network and its data.
        g: Gates of 1.
        layers: The layers.
        weighted: The ones among them whose outputs count by the loss's curvature.
        curved: Whether the curvature is asked for.
        hold_out: Whether rows are held out, to choose a ridge on.
    """
    if not layers:
        return Observation({}, {})
    moments = {layer: moments_for(layer, gated.samples, layer.height, 0, g.device) for layer in layers}
    for sums in moments.values():
        sums.hold_out = hold_out
    matrices = no_curvature(gated, layers if curved else (), g)
    operands = {layer: layer.operand(layer.call) for layer in layers}
    draws = draws_of(gated), draws_of(gated)
    with phase("learning moments", len(gated.batches)) as learning:
        for batch, place in learning.through(zip(gated.cached, batch_places(gated.batches), strict=True)):
            values = trace_layers(gated, batch, operands.values(), g, list(matrices) or weighted)
            weight = sample_weights(gated, batch, weighted, values, draws[0])
            for layer in layers:
                value = values[gated.graph.copies[operands[layer]]].detach()
                collect_moments(moments[layer], layer, value, place, None, weight.get(layer))
            add_curvature(matrices, gated, batch, values, draws[1])
            del values, value  # with them all that derivatives need, before the next batch makes as much
    return Observation(moments, positive(matrices))
