"""Brute force: what happens if unit k goes?"""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.objective.gated_loss import Gated
from secateur.objective.leave_one_out import change_one
from secateur.saliency.criterion import criterion


@criterion("oracle", measures=True)
def oracle(gated: Gated, g: Tensor) -> Tensor:
    """ΔE_k = E(g − g_k e_k) − E(g), exactly (003 section 2.1).

    The layers that sum a unit up are updated, Z − a_k w_kᵀ, and what is behind them runs once for each unit that is
    left, many units at a time.
    """
    return rises(gated, g, g.nonzero()[:, 0])


def rises(gated: Gated, g: Tensor, units: Tensor) -> Tensor:
    """ΔE_k of these units [K], infinite for all others."""
    here, without = change_one(gated, g, units, torch.zeros_like(units, dtype=g.dtype))
    found = torch.full((len(g),), torch.inf, dtype=torch.float64, device=g.device)
    found[units] = without - here
    return found
