"""The second derivative by the Fisher information: targets drawn from the model's own distribution."""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.curvature.gauss_newton import pulled
from secateur.curvature.loss_factors import sampled_factors
from secateur.objective.gated_loss import Gated
from secateur.saliency.criterion import criterion


def standard_error(gated: Gated, g: Tensor) -> Tensor:
    """Of `fisher`, from the spread of ½ (∂ℓ_n/∂g_k)² over samples and draws: at most so much."""
    return estimate(gated, g)[1]


@criterion("fisher", error=standard_error)
def fisher(gated: Gated, g: Tensor) -> Tensor:
    """ΔE_k ≈ −∂E/∂g_k + ½ · 1/N Σ_n (∂ℓ_n/∂g_k)², ℓ_n for a target drawn from the model's own distribution.

    Expected over the draws this is `ggn`, and two backward passes are all it takes, however many outputs there are.
    """
    return estimate(gated, g)[0]


def estimate(gated: Gated, g: Tensor, draws: int = 1) -> tuple[Tensor, Tensor]:
    """The saliencies [K] and their standard errors [K], float64.

    Args:
        gated: The network and its data; its generator draws.
        g: Gates of all units [K].
        draws: For each sample, a backward pass each.
    """
    gradient, second, fourth = torch.zeros(3, len(g), dtype=torch.float64, device=g.device)
    count = 0
    narrow = gated.narrowed(g)
    for share, rows in pulled(
        narrow, g, lambda out, targets: sampled_factors(gated.loss_function, out, targets, gated.generator, draws)
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
