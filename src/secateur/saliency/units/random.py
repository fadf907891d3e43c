"""For comparison: a draw."""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.objective.gated_loss import GatedLoss
from secateur.saliency.criterion import criterion


@criterion("random", needs="nothing", in_loss_units=False)
def random(gated: GatedLoss, g: Tensor) -> Tensor:
    """Return uniform numbers in [0, 1), drawn from the seed."""
    return torch.rand(len(g), generator=gated.generator, dtype=torch.float64).to(g.device)
