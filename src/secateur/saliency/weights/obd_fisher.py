"""Optimal Brain Damage with the second derivative from drawn targets."""

from __future__ import annotations

from secateur.curvature.weight_loss import WeightLoss
from secateur.saliency.criterion import criterion
from secateur.saliency.weight_score import Saliencies
from secateur.saliency.weights.obd import obd_saliency


@criterion("obd_fisher", "weight")
def obd_fisher(weights: WeightLoss) -> Saliencies:
    """Return ½ h_ii u_i², h_ii for targets drawn from the model's own distribution: one backward pass."""
    return obd_saliency(weights, weights.fisher())
