"""For comparison: how large the weights of a unit are."""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.objective.gated_loss import GatedLoss, per_position
from secateur.saliency.criterion import criterion
from secateur.structure.axis import expand


@criterion("magnitude", needs="nothing", in_loss_units=False)
def magnitude(gated: GatedLoss, g: Tensor) -> Tensor:
    """Return √Σ w² over the unit's slices of all parameters, without what went with units already removed."""
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
