"""The targets of rounds: how far each goes, so that what is left falls by the same share in each."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from secateur.planning.budget import Budget
from secateur.planning.plan import Plan
from secateur.planning.state import State, Step


@dataclass(frozen=True, kw_only=True)
class RoundBudget(Budget):
    """The budget of a round.

    Attributes:
        quotas: Unit set → how many of its units go, with ``scope="set"``; sets left out lose none.
    """

    quotas: tuple[tuple[str, int], ...] = ()

    def removable(self, sizes: Mapping[str, int], least: Mapping[str, int] | None = None) -> dict[str, int]:
        """Return how many units each set may lose in the round."""
        limits, quotas = super().removable(sizes, least), dict(self.quotas)
        return limits if self.scope == "global" else {name: min(n, quotas.get(name, 0)) for name, n in limits.items()}


def share_left(now: int, end: int, rounds: int) -> int:
    """Return what is left after the first of some rounds that lead to an end by the same share each.

    >>> [share_left(now, 10, rounds) for now, rounds in ((80, 3), (40, 2), (20, 1), (5, 1))]
    [40, 20, 10, 10]
    """
    return end if rounds == 1 or now <= end else round(now * (end / now) ** (1 / rounds))


def round_budget(budget: Budget, plan: Plan, rounds: int) -> Budget:
    """Return what has to hold after the next round, in the original's numbers: sizes left, units gone since its start.

    With a size or a minimum the quality does not matter before the end; without, the round may use all of it that is
    left.

    Args:
        budget: What has to hold at the end.
        plan: The rounds so far.
        rounds: How many rounds there are still, with this one.
    """
    if not budget.least:
        return _quality_left(budget, plan)
    now, sizes = plan.states[-1], plan.sizes
    gone = Counter(step.set for step in plan.steps)
    bounds: dict[str, Any] = {
        name: share_left(getattr(now, name), bound, rounds) for name, bound in budget.costs.items()
    }
    if budget.scope == "set":
        bounds["quotas"] = tuple(_quotas(sizes, gone, budget.removable(sizes), rounds).items())
    total = sum(sizes.values())
    left = total - len(plan.steps)
    more = max(0, left - share_left(left, total - budget.fewest(total), rounds))
    fraction = budget.remove_fraction if budget.scope == "set" else None
    return RoundBudget(
        **bounds, remove_units=more, remove_fraction=fraction, scope=budget.scope, min_units=budget.min_units,
        protect=budget.protect, multiple_of=budget.multiple_of, artifact=budget.artifact,
    )  # fmt: skip


def _quotas(
    sizes: Mapping[str, int], gone: Mapping[str, int], limits: Mapping[str, int], rounds: int
) -> dict[str, int]:
    """Return how many units of each set go in the next round."""
    left = {name: size - gone.get(name, 0) for name, size in sizes.items()}
    return {name: left[name] - share_left(left[name], size - limits[name], rounds) for name, size in sizes.items()}


def _quality_left(budget: Budget, plan: Plan) -> Budget:
    """Return how far the quality may still fall; training may have left more than there was before."""
    start, now, bounds = plan.states[0], plan.states[-1], dict[str, Any]()
    if budget.max_loss_increase is not None and start.loss is not None and now.loss is not None:
        bounds["max_loss_increase"] = max(0.0, budget.max_loss_increase + start.loss - now.loss)
    if budget.max_accuracy_drop is not None and start.accuracy is not None and now.accuracy is not None:
        drop = min(1.0, max(0.0, budget.max_accuracy_drop - start.accuracy + now.accuracy))
        predictions = plan.basis.predictions if plan.basis else 0
        bounds["max_accuracy_drop"] = math.floor(drop * predictions + 1e-6) / predictions if predictions else drop
    if budget.max_metric_drop is not None and start.metric is not None and now.metric is not None:
        bounds["max_metric_drop"] = max(0.0, budget.max_metric_drop - start.metric + now.metric)
    return replace(budget, **bounds)


def enough(budget: Budget, target: Budget, start: int, states: tuple[State, ...]) -> int:
    """Return after how many removals a round's target holds, at least those before it; all where it never does.

    Args:
        budget: What has to hold at the end of all rounds.
        target: What has to hold at the end of this one.
        start: How many removals there were before.
        states: The original network after 0, 1, 2 ... removals.
    """
    if not budget.least:
        return len(states) - 1
    gone: Counter[str] = Counter()
    quotas = dict(getattr(target, "quotas", ()))
    for n, state in enumerate(states[start:], start):
        gone.update([state.set] if n > start and isinstance(state, Step) else [])
        enough_gone = sum(gone.values()) >= (target.remove_units or 0)
        if enough_gone and target.small_enough(state) and all(gone[name] >= quota for name, quota in quotas.items()):
            return n
    return len(states) - 1
