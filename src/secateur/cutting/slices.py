"""The gates of a plan."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from secateur.objective.gated_loss import ones
from secateur.own_code.slices import keep_mask_of
from secateur.structure.units import Units


def gates(model: nn.Module, units: Units, kept: Mapping[str, tuple[int, ...]]) -> Tensor:
    """Return one gate per unit [units.total]: 1 for kept, 0 for removed.

    Raises:
        PlanError: As for `keep_mask_of`.
    """
    masks = keep_mask_of(units, kept).masks
    g = ones(model, units)
    for unit_set, piece in zip(units, units.split(g).values(), strict=True):
        if unit_set.axis in masks:
            piece *= masks[unit_set.axis].to(piece)
    return g
