"""Brute force: what happens if unit k goes?"""

from __future__ import annotations

from torch import Tensor

from secateur.objective.gated_loss import GatedLoss
from secateur.objective.leave_one_out import rises
from secateur.saliency.criterion import criterion


@criterion("oracle", measures=True)
def oracle(gated: GatedLoss, g: Tensor) -> Tensor:
    """Return ΔE_k = E(g − g_k e_k) − E(g), exactly (003 section 2.1).

    The layers that sum a unit up are updated, Z − a_k w_kᵀ, and what is behind them runs once for each unit that is
    left, many units at a time.
    """
    return rises(gated, g, g.nonzero()[:, 0])
