"""The second-order estimate by the sampled Fisher information."""

from __future__ import annotations

from torch import Tensor

from secateur.curvature.fisher import estimate
from secateur.objective.gated_loss import GatedLoss
from secateur.saliency.criterion import criterion


def standard_error(gated: GatedLoss, g: Tensor) -> Tensor:
    """Return a bound of the standard error of `fisher`, from the spread of ½ (∂ℓ_n/∂g_k)² over samples and draws."""
    return estimate(gated, g)[1]


@criterion("fisher", error=standard_error)
def fisher(gated: GatedLoss, g: Tensor) -> Tensor:
    """Return −∂E/∂g_k + ½ · 1/N Σ_n (∂ℓ_n/∂g_k)², ℓ_n for a target drawn from the model's own distribution.

    Expected over the draws this is `ggn`, and two backward passes are all it takes, however many outputs there are.
    """
    return estimate(gated, g)[0]
