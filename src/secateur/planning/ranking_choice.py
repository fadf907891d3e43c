"""Which ranking is taken where none is asked for: by counted work, never by a clock, so that a plan can be repeated."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from secateur.compensation.calibration import EACH, ROWS
from secateur.compensation.linear_layers import find_layers, layers_of
from secateur.objective.question import Question
from secateur.options import Ranking
from secateur.planning.budget import Budget

SMALL = 2 * 10**11  # multiplications with addition that an iterative ranking may take: some seconds
FITS = 100  # of all weights, along a whole iterative order
FACTORISATIONS = 4  # by D³ each, of a fit that chooses its ridge


def choose_ranking(question: Question, ranking: Ranking, fitted: bool, budget: Budget | None) -> tuple[Ranking, str]:
    """Return the settings with a ranking, and why it was taken.

    Args:
        question: The model, its units and the data.
        ranking: Settings without a ranking; those that only an iterative one has decide.
        fitted: Whether weights make up for each removal.
        budget: Says how many units may go.
    """
    for name in ("threshold", "shortlist", "refresh"):
        if getattr(ranking, name) is not None:
            return replace(ranking, ranking="iterative"), f"it has a {name}"
    limits = (budget or Budget(remove_units=0)).removable({s.name: s.size for s in question.units})
    work = iterative_work(question, ranking.criterion or ("obs" if fitted else "oracle"), limits, budget)
    chosen = "iterative" if work <= SMALL else "layerwise"
    counted = f"an iterative ranking takes some {work:.0e} multiplications, and {SMALL:.0e} count as few"
    return replace(ranking, ranking=chosen), counted


def iterative_work(question: Question, criterion: str, limits: Mapping[str, int], budget: Budget | None) -> int:
    """Return how many multiplications with addition an iterative ranking takes, about.

    Args:
        question: The model, its units and the data.
        criterion: The criterion's name.
        limits: The number of units that each set may lose.
        budget: Says how many units go.
    """
    samples = sum(batch.size for batch in question.gated.batches) if question.gated.has_data else 0
    one_pass, total = question.units.macs({}) * samples, question.units.total
    removals = _removals(sum(limits.values()), total, budget)
    if criterion == "obs":
        fits = min(removals, FITS) + 1
        return fits * (3 * one_pass + _moments(question, samples)) + min(removals, 50) * one_pass
    if criterion == "oracle":
        return removals * total * one_pass // 2
    return removals * (3 * one_pass + question.units.params({}))


def _removals(longest: int, total: int, budget: Budget | None) -> int:
    if budget is None or budget.bytes is not None or budget.params is not None or not budget.least:
        return longest
    asked = max(math.ceil((budget.remove_fraction or 0) * total), budget.remove_units or 0)
    return min(longest, asked)


def _moments(question: Question, samples: int) -> int:
    """Return what the second moments of all layers and their factorisations take, with rows up to their limit."""
    work = 0
    for layer in find_layers(question.units):
        if any(layers_of(unit_set, [layer]) for unit_set in question.units):
            inputs = layer.inputs.size * layer.kernel
            rows = min(samples * layer.positions, max(ROWS, EACH * layer.width))
            work += rows * inputs**2 + FACTORISATIONS * inputs**3
    return work
