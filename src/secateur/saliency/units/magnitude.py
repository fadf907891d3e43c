"""For comparison: criteria that look at no loss."""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.objective.gated_loss import Gated, per_position
from secateur.saliency.criterion import criterion
from secateur.structure.axis import expand


@criterion("magnitude", needs="nothing", in_loss_units=False)
def magnitude(gated: Gated, g: Tensor) -> Tensor:
    """√Σ w² over the unit's slices of all parameters, without what went with units already removed."""
    units = gated.units
    kept = {s.axis: piece != 0 for s, piece in zip(units, units.split(g).values(), strict=True)}
    squares = torch.zeros(len(g), dtype=torch.float64, device=g.device)
    for name, weight in gated.model.named_parameters():
        if name not in units.axes:
            continue
        left = weight.detach().double().square()
        masks = [expand(axis, kept, left.new_ones(1, dtype=torch.bool)) for axis in units.axes[name]]
        for dim, mask in enumerate(masks):
            left = left * mask.reshape(-1, *[1] * (left.ndim - dim - 1))
        for dim, axis in enumerate(units.axes[name]):
            squares += units.collect(axis, per_position(left, dim).sum(1))
    return squares.sqrt()


@criterion("activation", needs="data", in_loss_units=False)
def activation(gated: Gated, g: Tensor) -> Tensor:
    """Mean of |o| over the samples and over the places where the unit is consumed."""
    sums = torch.zeros(len(g), dtype=torch.float64, device=g.device)
    counts = torch.zeros_like(sums)
    for batch in gated.cached:
        values = gated.graph.trace(batch.frontier, g)
        for edge in gated.graph.edges:
            sizes = per_position(values[edge.node].abs().double(), edge.dim)
            sums += gated.units.collect(edge.axis, sizes.sum(1))
            counts += gated.units.collect(edge.axis, torch.full_like(sizes[:, 0], sizes.shape[1]))
    return sums / counts.clamp(min=1)


@criterion("random", needs="nothing", in_loss_units=False)
def random(gated: Gated, g: Tensor) -> Tensor:
    """Uniform in [0, 1), from the seed."""
    return torch.rand(len(g), generator=gated.generator, dtype=torch.float64).to(g.device)
