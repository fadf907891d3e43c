"""For comparison: how large the outputs of a unit are."""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.objective.gated_loss import GatedLoss, per_position
from secateur.saliency.criterion import criterion


@criterion("activation", needs="data", in_loss_units=False)
def activation(gated: GatedLoss, g: Tensor) -> Tensor:
    """Return the mean of |o| over the samples and over the places where the unit is consumed."""
    sums = torch.zeros(len(g), dtype=torch.float64, device=g.device)
    counts = torch.zeros_like(sums)
    for batch in gated.cached:
        values = gated.graph.trace(batch.frontier, g)
        for edge in gated.graph.edges:
            sizes = per_position(values[edge.node].abs().double(), edge.dim)
            sums += gated.units.collect(edge.axis, sizes.sum(1))
            counts += gated.units.collect(edge.axis, torch.full_like(sizes[:, 0], sizes.shape[1]))
    return sums / counts.clamp(min=1)
