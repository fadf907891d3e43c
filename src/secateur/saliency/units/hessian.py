"""The second-order Taylor estimate with the exact second derivative."""

from __future__ import annotations

from torch import Tensor

from secateur.curvature.gate_hessian import diagonal
from secateur.objective.gated_loss import GatedLoss
from secateur.saliency.criterion import criterion


@criterion("hessian")
def hessian(gated: GatedLoss, g: Tensor) -> Tensor:
    """Return −g_k ∂E/∂g_k + ½ g_k² ∂²E/∂g_k², all interactions within the network included.

    The loss of each candidate is a function of its own gate alone; many are differentiated twice at a time, behind the
    layers that sum them up. Where that is not possible, one product with the Hessian for each unit.
    """
    sliced = gated.sliced(g)
    return -sliced.gradient(g) + 0.5 * diagonal(sliced, g)
