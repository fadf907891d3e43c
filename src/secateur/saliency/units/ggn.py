"""The second-order estimate by Gauss and Newton."""

from __future__ import annotations

from torch import Tensor

from secateur.curvature.gauss_newton import expansion
from secateur.curvature.loss_factors import exact_factors
from secateur.objective.gated_loss import GatedLoss
from secateur.saliency.criterion import criterion


@criterion("ggn")
def ggn(gated: GatedLoss, g: Tensor) -> Tensor:
    """Return −∂E/∂g_k + ½ · 1/N Σ_n J_nkᵀ L_n J_nk, J_n the derivative of sample n's outputs in the gates.

    L_n is the Hessian of its loss in them. One forward pass, and a backward pass for each output of a sample.
    """
    sliced = gated.sliced(g)
    gradient, curvature = expansion(sliced, g, lambda out, targets: exact_factors(gated.loss_function, out, targets))
    return -gradient + 0.5 * curvature
