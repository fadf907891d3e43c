"""The last fit: the weights at a plan's end, which make up for all units that are gone."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from secateur.compensation.compensator import Compensator
from secateur.cutting.slices import gates
from secateur.objective.question import Question
from secateur.planning.budget import Budget
from secateur.planning.plan import Plan


def fitted_plan(
    question: Question, compensator: Compensator, plan: Plan, budget: Budget
) -> tuple[Plan, dict[str, Tensor]]:
    """Return the plan with loss and accuracy of the weights as they are fitted at its end, and these weights.

    Between two fits the order was measured with weights that were updated alone, and a loss is not monotone: where the
    end does not keep a budget of quality, the plan ends a step earlier.

    Args:
        question: The model, its units and the data; its judge measures loss and accuracy.
        compensator: Fits the weights; changed.
        plan: The prefix at the budget.
        budget: The bounds that must hold.

    Raises:
        BudgetError: The size asked for is out of reach within the quality asked for.
    """
    judge = question.judge
    while True:
        g = gates(question.model, question.units, plan.kept)
        anew = compensator.fit(g)
        if not plan.steps or not (judge.has_data and judge.has_loss):
            return plan, compensator.weights
        if not anew and plan.steps[-1].loss is not None and budget.good_enough(plan.states[0], plan.steps[-1]):
            return plan, compensator.weights
        loss, accuracy = judge.with_weights(compensator.weights).measure(g)
        end = dataclasses.replace(plan.steps[-1], loss=loss, accuracy=accuracy)
        fitted = dataclasses.replace(plan, steps=(*plan.steps[:-1], end))
        if budget.good_enough(fitted.states[0], end):
            return fitted, compensator.weights
        if budget.least:
            raise budget.unmet(len(plan.steps) - 1, question.units.total, end)
        plan = plan.prefix(len(plan.steps) - 1)


def measured_plan(question: Question, plan: Plan) -> Plan:
    """Return the plan with loss and accuracy at its end, which are measured where the order left them out."""
    judge = question.judge
    if not plan.steps or plan.steps[-1].loss is not None or not (judge.has_data and judge.has_loss):
        return plan
    loss, accuracy = judge.measure(gates(question.model, question.units, plan.kept))
    return dataclasses.replace(
        plan, steps=(*plan.steps[:-1], dataclasses.replace(plan.steps[-1], loss=loss, accuracy=accuracy))
    )
