"""Optimal Brain Damage: what a single weight is worth, from the second derivative in it (note 004 eq. 5)."""

from __future__ import annotations

from secateur.curvature.weight_loss import ByParameter, WeightLoss
from secateur.saliency.criterion import criterion
from secateur.saliency.weight_score import Saliencies


@criterion("obd", "weight")
def obd(weights: WeightLoss) -> Saliencies:
    """Return ½ h_ii u_i², h_ii = ∂²E/∂u_i² exactly: a product with the Hessian for each neuron or weight."""
    return obd_saliency(weights, weights.hessian())


def obd_saliency(weights: WeightLoss, curvature: ByParameter) -> Saliencies:
    """Return ½ h_ii u_i² from the second derivatives h_ii of the removable weights."""
    return {name: 0.5 * curvature[name] * u.square() for name, u in weights.present().items()}
