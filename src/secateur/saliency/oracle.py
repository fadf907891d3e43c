"""Brute force: what happens if unit k goes?"""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.saliency.criterion import criterion
from secateur.saliency.gates import Gated


@criterion("oracle", measures=True)
def oracle(gated: Gated, g: Tensor) -> Tensor:
    """ΔE_k = E(g − g_k e_k) − E(g), exactly (003 section 2.1).

    One evaluation of the suffix for each unit that is left, and one more.
    """
    rises = torch.zeros(len(g), dtype=torch.float64, device=g.device)
    here = gated.loss(g)
    for k in g.nonzero()[:, 0].tolist():
        without = g.clone()
        without[k] = 0
        rises[k] = gated.loss(without) - here
    return rises
