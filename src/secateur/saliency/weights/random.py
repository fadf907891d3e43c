"""For comparison: a draw."""

from __future__ import annotations

import torch

from secateur.curvature.weight_loss import WeightLoss
from secateur.saliency.criterion import criterion
from secateur.saliency.weight_score import Saliencies


@criterion("random", "weight", needs="nothing", in_loss_units=False)
def random(weights: WeightLoss) -> Saliencies:
    """Return uniform numbers in [0, 1), drawn from the seed."""
    draw = weights.generator
    return {
        n: torch.rand(u.shape, generator=draw, dtype=torch.float64).to(u.device) for n, u in weights.present().items()
    }
