"""The second derivative by the Fisher information: targets drawn from the model's own distribution."""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.curvature.gauss_newton import pulled_to_gates
from secateur.curvature.loss_factors import sampled_factors
from secateur.objective.gated_loss import GatedLoss


def estimate(gated: GatedLoss, g: Tensor, draws: int = 1) -> tuple[Tensor, Tensor]:
    """Return the saliencies [K] and their standard errors [K], float64.

    Args:
        gated: The network and its data; its generator draws.
        g: Gates of all units [K].
        draws: Number of draws for each sample, a backward pass each.
    """
    gradient, second, fourth = torch.zeros(3, len(g), dtype=torch.float64, device=g.device)
    count = 0
    sliced = gated.sliced(g)
    for share, rows in pulled_to_gates(
        sliced, g, lambda out, targets: sampled_factors(gated.loss_function, out, targets, gated.generator, draws)
    ):
        for weight, row in rows:
            if weight is None:
                gradient += share * row.sum(0)
            else:
                second += share * weight @ row.square()
                fourth += share * weight @ row.square().square()
                count += len(row)
    variance = (fourth - second.square()).clamp(min=0)
    return -gradient + 0.5 * second, 0.5 * (variance / max(count - 1, 1)).sqrt()
