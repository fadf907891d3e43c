"""Shrink trained networks to a byte budget, exactly, and prove it."""

from secateur.artifacts.measure import measure
from secateur.artifacts.safetensors import load
from secateur.cutting.cut import cut
from secateur.errors import SecateurError
from secateur.estimating.estimate import estimate
from secateur.options import Compensation
from secateur.ordering import rank
from secateur.own_code.find_units import find_units
from secateur.planning.budget import Budget
from secateur.planning.plan import Plan
from secateur.saliency.criterion import criterion
from secateur.saliency.interactions import interactions
from secateur.saliency.score import score
from secateur.shrinking import shrink
from secateur.structure.units import Units

__all__ = [
    "Budget",
    "Compensation",
    "Plan",
    "SecateurError",
    "Units",
    "criterion",
    "cut",
    "estimate",
    "find_units",
    "interactions",
    "load",
    "measure",
    "rank",
    "score",
    "shrink",
]
