"""The last fit: the weights at a plan's end, which make up for all units that are gone, and their refinement."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from secateur.compensation.compensator import Compensator, compensated
from secateur.cutting.slices import gates
from secateur.objective.gated_loss import GatedLoss
from secateur.objective.quality.quality import Quality
from secateur.objective.question import Question
from secateur.options import Compensation
from secateur.own_code.probe_weights import holding
from secateur.planning.budget import Budget
from secateur.planning.plan import Plan
from secateur.refinement.refine import refined


def fitted_plan(
    question: Question, compensator: Compensator, plan: Plan, budget: Budget
) -> tuple[Plan, dict[str, Tensor]]:
    """Return the plan with the quality of the weights as they are fitted at its end, and these weights.

    Between two fits the order was measured with weights that were updated alone, and a loss is not monotone: where the
    end does not keep a budget of quality, the plan ends a step earlier.

    Args:
        question: The model, its units and the data; its judge measures the quality.
        compensator: Fits the weights; changed.
        plan: The prefix at the budget.
        budget: The bounds that must hold.

    Raises:
        BudgetError: The size asked for is out of reach within the quality asked for.
    """
    judge, steps = question.judge, compensator.settings.refine
    while True:
        g = gates(question.model, question.units, plan.kept)
        anew = compensator.fit(g) or bool(steps)
        weights = refined(question.gated, g, compensator.weights, steps)
        if not plan.steps or not (judge.has_data and judge.has_loss):
            return plan, weights
        if not anew and plan.steps[-1].loss is not None and budget.good_enough(plan.states[0], plan.steps[-1]):
            return plan, weights
        quality = _measure(judge, weights, g) if steps else judge.with_weights(weights).measure(g)
        end = plan.steps[-1].measured(quality)
        fitted = dataclasses.replace(plan, steps=(*plan.steps[:-1], end))
        if budget.good_enough(fitted.states[0], end):
            return fitted, weights
        if budget.least:
            raise budget.unmet(len(plan.steps) - 1, question.units.total, end)
        plan = plan.prefix(budget.ends(plan.steps[:-1], plan.sizes)[-1])


def measured_plan(question: Question, plan: Plan) -> Plan:
    """Return the plan with the quality at its end, which is measured where the order left it out."""
    judge = question.judge
    if not plan.steps or plan.steps[-1].loss is not None or not (judge.has_data and judge.has_loss):
        return plan
    end = plan.steps[-1].measured(judge.measure(gates(question.model, question.units, plan.kept)))
    return dataclasses.replace(plan, steps=(*plan.steps[:-1], end))


def fitted_weights(gated: GatedLoss, g: Tensor, settings: Compensation) -> dict[str, Tensor]:
    """Return the parameters and buffers that change when the gates are g [K], by name.

    Raises:
        ArgumentError: As `Compensator`.
        DataError: There is no data, or too little, or activations are not finite.
    """
    return refined(gated, g, compensated(gated, g, settings), settings.refine)


def _measure(judge: GatedLoss, weights: dict[str, Tensor], g: Tensor) -> Quality:
    """Return the quality with other weights anywhere: what no gate changes is another, too."""
    with holding(judge.model, weights):
        return judge.on_batches(judge.batches).measure(g)
