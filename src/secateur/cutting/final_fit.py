"""The last fit: the weights at a plan's end, which make up for all units that are gone, and their refinement."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from torch import Tensor

from secateur.compensation.compensator import Compensator, compensated
from secateur.cutting.slices import gates
from secateur.objective.gated_loss import GatedLoss
from secateur.objective.losses import NAMED
from secateur.objective.quality.quality import Quality
from secateur.objective.question import Question
from secateur.options import Compensation
from secateur.own_code.probe_weights import holding
from secateur.planning.budget import Budget
from secateur.planning.plan import Plan
from secateur.refinement.refine import refined


def fitted_plan(
    question: Question, compensator: Compensator, order: Plan, plan: Plan, budget: Budget
) -> tuple[Plan, dict[str, Tensor]]:
    """Return the plan with the quality of the weights as they are fitted at its end, and these weights.

    Between two fits the order was measured with weights that were updated alone, and before their refinement: with a
    budget of quality alone the plan ends where the fitted weights keep it, and a step further they do not.

    Args:
        question: The model, its units and the data; its judge measures the quality.
        compensator: Fits the weights; changed.
        order: The removals, as far as they go.
        plan: Its prefix at the budget.
        budget: The bounds that must hold.

    Raises:
        BudgetError: The size asked for is out of reach within the quality asked for.
    """
    if not budget.least and question.judge.has_data and question.judge.has_loss:
        return _longest(question, compensator, order, len(plan.steps), budget)
    fitted, weights = _fitted(question, compensator, plan)
    if plan.steps and not budget.good_enough(fitted.states[0], fitted.states[-1]):
        raise budget.unmet(len(plan.steps) - 1, question.units.total, fitted.states[-1])
    return fitted, weights


def _longest(
    question: Question, compensator: Compensator, order: Plan, near: int, budget: Budget
) -> tuple[Plan, dict[str, Tensor]]:
    """Return the prefix of an order that ends near a number of removals, and keeps a budget that the next one breaks.

    With it come the weights that are fitted there.
    """
    ends = budget.ends(order.steps, order.sizes)
    longest: tuple[Plan, dict[str, Tensor]] | None = None

    def good(place: int) -> bool:
        nonlocal longest
        fitted, weights = _fitted(question, compensator, order.prefix(ends[place]))
        kept = place == 0 or budget.good_enough(fitted.states[0], fitted.states[-1])
        longest = (fitted, weights) if kept else longest
        return kept

    furthest(good, ends.index(near), len(ends) - 1)
    assert longest is not None
    return longest


def furthest(good: Callable[[int], bool], near: int, last: int) -> int:
    """Return a good place whose next one is not, or the last one, found from a place near it; the first has to be good.

    Of the good places that are asked for it is the last.

    >>> furthest(lambda place: place <= 5, 2, 9), furthest(lambda place: place <= 5, 8, 9), furthest(bool, 1, 3)
    (5, 5, 3)
    """
    low, high, stride = -1, last + 1, 1
    place = near
    while low < place < high:  # strides grow until one end is good and the other is not
        if good(place):
            low, place = place, min(place + stride, last) if high > last else high
        else:
            high, place = place, max(place - stride, 0) if low < 0 else low
        stride *= 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if good(middle) else (low, middle)
    return low


def _fitted(question: Question, compensator: Compensator, plan: Plan) -> tuple[Plan, dict[str, Tensor]]:
    """Return a plan with the quality of the weights that are fitted at its end, and these weights."""
    judge, steps = question.judge, compensator.settings.refine
    fitted_on = _fitted_on(question, compensator.settings)
    compensator = compensator if fitted_on is question.gated else Compensator(fitted_on, compensator.settings)
    g = gates(question.model, question.units, plan.kept)
    anew = compensator.fit(g) or bool(steps)
    weights = refined(question.calibration, g, compensator.weights, steps, question.more.augment)
    known = bool(plan.steps) and plan.steps[-1].loss is not None and not anew
    if known or not plan.steps or not (judge.has_data and judge.has_loss):
        return plan, weights
    quality = _measure(judge, weights, g) if steps else judge.with_weights(weights).measure(g)
    return dataclasses.replace(plan, steps=(*plan.steps[:-1], plan.steps[-1].measured(quality))), weights


def measured_plan(question: Question, plan: Plan) -> Plan:
    """Return the plan with the quality at its end, which is measured where the order left it out."""
    judge = question.judge
    if not plan.steps or plan.steps[-1].loss is not None or not (judge.has_data and judge.has_loss):
        return plan
    end = plan.steps[-1].measured(judge.measure(gates(question.model, question.units, plan.kept)))
    return dataclasses.replace(plan, steps=(*plan.steps[:-1], end))


def fitted_weights(question: Question, g: Tensor, settings: Compensation) -> dict[str, Tensor]:
    """Return the parameters and buffers that change when the gates are g [K], by name.

    Raises:
        ArgumentError: As `Compensator`.
        DataError: There is no data, or too little, or activations are not finite.
    """
    weights = compensated(_fitted_on(question, settings), g, settings)
    return refined(question.calibration, g, weights, settings.refine, question.more.augment)


def _fitted_on(question: Question, settings: Compensation) -> GatedLoss:
    """Return E(g) on all inputs; on the data alone where a loss that needs targets says how samples count."""
    gated = question.gated
    weighted = settings.fit and settings.weighting == "ggn" and gated.has_loss
    return gated if weighted and gated.loss_function not in NAMED.values() else question.calibration


def _measure(judge: GatedLoss, weights: dict[str, Tensor], g: Tensor) -> Quality:
    """Return the quality with other weights anywhere: what no gate changes is another, too."""
    with holding(judge.model, weights):
        return judge.on_batches(judge.batches).measure(g)
