"""Optimal Brain Damage with the second derivative by Gauss and Newton."""

from __future__ import annotations

from secateur.curvature.weight_loss import WeightLoss
from secateur.saliency.criterion import criterion
from secateur.saliency.weight_score import Saliencies
from secateur.saliency.weights.obd import obd_saliency


@criterion("obd_ggn", "weight")
def obd_ggn(weights: WeightLoss) -> Saliencies:
    """Return ½ h_ii u_i², h_ii by Gauss and Newton, never negative: one backward pass for each output."""
    return obd_saliency(weights, weights.ggn())
