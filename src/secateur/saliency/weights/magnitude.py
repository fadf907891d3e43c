"""For comparison: how large a weight is."""

from __future__ import annotations

from secateur.curvature.weight_loss import WeightLoss
from secateur.saliency.criterion import criterion
from secateur.saliency.weight_score import Saliencies


@criterion("magnitude", "weight", needs="nothing", in_loss_units=False)
def magnitude(weights: WeightLoss) -> Saliencies:
    """Return |u|."""
    return {name: u.abs() for name, u in weights.present().items()}
