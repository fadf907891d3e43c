"""A plan's end, with the weights that make up for all that is gone."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from secateur.cutting.slices import gates
from secateur.planning.budget import Budget
from secateur.planning.plan import Plan
from secateur.saliency.compensation import Compensation, Settings
from secateur.saliency.gates import Gated


def fitted_plan(
    gated: Gated, measured: Gated, plan: Plan, budget: Budget, settings: Settings
) -> tuple[Plan, dict[str, Tensor]]:
    """The plan with loss and accuracy of the weights as they are fitted at its end, and these weights.

    Between two fits the order was measured with weights that were updated alone, and a loss is not monotone: where the
    end does not keep a budget of quality, the plan ends a step earlier.

    Args:
        gated: The original network and the data to fit on.
        measured: The same with the data on which loss and accuracy are measured.
        plan: At the budget.
        budget: What must hold.
        settings: How weights make up for units.

    Raises:
        BudgetError: The size asked for is out of reach within the quality asked for.
    """
    compensation = Compensation(gated, settings)
    while True:
        g = gates(gated.model, gated.units, plan.kept)
        compensation.fit(g)
        if not plan.steps or not (measured.has_data and measured.has_loss):
            return plan, compensation.weights
        loss, accuracy = measured.holding(compensation.weights).evaluate(g)
        end = dataclasses.replace(plan.steps[-1], loss=loss, accuracy=accuracy)
        fitted = dataclasses.replace(plan, steps=(*plan.steps[:-1], end))
        if budget.good_enough(fitted.states[0], end):
            return fitted, compensation.weights
        if budget.least:
            raise budget.unmet(len(plan.steps) - 1, gated.units.total, end)
        plan = plan.prefix(len(plan.steps) - 1)
