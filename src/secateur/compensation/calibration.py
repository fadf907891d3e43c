"""Second moments of what layers take, batch after batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from secateur.compensation.linear_layers import Layer
from secateur.compensation.ridge import Moments
from secateur.compensation.targets import draws_of, sample_weights, trace_layers
from secateur.objective.gated_loss import GatedLoss

ROWS = 20_000  # of a layer's inputs that are taken at most, samples and positions,
FEWER = 5_000  # where each output weighs them in its own way, and so has moments of its own;
EACH = 50  # or so many for each row and column of its matrix
HELD_OUT = 5  # every fifth sample is held out to choose the ridge


class BatchPlace(NamedTuple):
    """The place of a batch in the data: the number of its first sample, its samples, and those of all batches."""

    first: int
    size: int
    samples: int


def batch_places(gated: GatedLoss) -> list[BatchPlace]:
    """Return the places of all batches."""
    sizes = [batch.size for batch in gated.batches]
    return [BatchPlace(sum(sizes[:i]), size, sum(sizes)) for i, size in enumerate(sizes)]


def collect_moments(
    moments: Moments, layer: Layer, value: Tensor, place: BatchPlace, z: Tensor | None, weight: Tensor | None
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
    count = layer.count(value)
    each = max(1, count // place.size)  # rows of a sample
    numbers = place.first * each + torch.arange(count, device=value.device)
    total, most = place.samples * each, max(ROWS if weight is None else FEWER, EACH * layer.width)
    taken = None
    if total > most:
        taken = ((numbers + 1) * most // total > numbers * most // total).nonzero()[:, 0]
        numbers, z, weight = numbers[taken], _some(z, taken), _some(weight, taken)
    a = layer.rows(value, taken)
    moments.add(a, a[:, :0] if z is None else z, numbers // each % HELD_OUT == HELD_OUT - 1, weight)


def _some(rows: Tensor | None, taken: Tensor) -> Tensor | None:
    return None if rows is None else rows[taken]


def original_moments(
    gated: GatedLoss, g: Tensor, layers: Sequence[Layer], weighted: Sequence[Layer]
) -> dict[Layer, Moments]:
    """Return the moments of what layers take in the original network, without targets: one forward pass.

    Args:
        gated: The network and its data.
        g: Gates of 1.
        layers: The layers.
        weighted: The ones among them whose outputs count by the loss's curvature.
    """
    moments = {layer: Moments(layer.inputs.size * layer.kernel, 0, g.device) for layer in layers}
    operands = {layer: layer.operand(layer.call) for layer in layers}
    draw = draws_of(gated)
    for batch, place in zip(gated.cached, batch_places(gated), strict=True) if layers else ():
        values = trace_layers(gated, batch, operands.values(), g, weighted)
        weight = sample_weights(gated, batch, weighted, values, draw)
        for layer in layers:
            value = values[gated.graph.copies[operands[layer]]].detach()
            collect_moments(moments[layer], layer, value, place, None, weight.get(layer))
    return moments
