"""The first-order Taylor estimate (003 eq. 3)."""

from __future__ import annotations

from torch import Tensor

from secateur.objective.gated_loss import GatedLoss
from secateur.saliency.criterion import criterion


@criterion("taylor1")
def taylor1(gated: GatedLoss, g: Tensor) -> Tensor:
    """Return −g_k ∂E/∂g_k = −Σ o ∂E/∂o (003 eq. 3), by one backward pass."""
    return -gated.gradient(g)
