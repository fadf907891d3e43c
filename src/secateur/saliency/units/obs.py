"""Optimal Brain Surgeon on units (Hassibi, Stork 1992, in blocks)."""

from __future__ import annotations

from torch import Tensor

from secateur.compensation.compensator import Compensator
from secateur.compensation.unit_surgeon import UnitSurgeon
from secateur.objective.gated_loss import GatedLoss
from secateur.saliency.criterion import criterion


@criterion("obs")
def obs(gated: GatedLoss, g: Tensor) -> Tensor:
    """Return ½ tr(B W_Pᵀ ([G⁻¹]_PP)⁻¹ W_P) summed over unit k's consumers, without its ridge term (design section 7).

    P are the rows of the consumers' weights that belong to the unit, G = AᵀA/N + λI of their inputs, B the loss's mean
    curvature in their outputs (Hassibi, Stork 1992, in blocks). Each set's costs are scaled to what removing some of
    its units is measured to cost. Units that something else than dense and convolutional layers sums up have their
    exact rise without compensation. About three forward passes over the data, and one over the inputs' products.
    """
    surgeon = UnitSurgeon(Compensator(gated))
    surgeon.begin(g)
    return surgeon.saliency(g)
