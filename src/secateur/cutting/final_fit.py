"""The last fit: the weights at a plan's end, which make up for all units that are gone, and their refinement."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from secateur.compensation.compensator import Compensator, compensated
from secateur.cutting.slices import gates
from secateur.objective.gated_loss import GatedLoss
from secateur.objective.losses import NAMED
from secateur.objective.question import Question
from secateur.options import Compensation
from secateur.own_code.probe_weights import holding
from secateur.planning.budget import Budget
from secateur.planning.plan import Plan
from secateur.refinement.refine import refined


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
    judge, steps = question.judge, compensator.settings.refine
    fitted_on = _fitted_on(question, compensator.settings)
    compensator = compensator if fitted_on is question.gated else Compensator(fitted_on, compensator.settings)
    while True:
        g = gates(question.model, question.units, plan.kept)
        anew = compensator.fit(g) or bool(steps)
        weights = refined(question.calibration, g, compensator.weights, steps, question.more.augment)
        if not plan.steps or not (judge.has_data and judge.has_loss):
            return plan, weights
        if not anew and plan.steps[-1].loss is not None and budget.good_enough(plan.states[0], plan.steps[-1]):
            return plan, weights
        loss, accuracy = _measure(judge, weights, g) if steps else judge.with_weights(weights).measure(g)
        end = dataclasses.replace(plan.steps[-1], loss=loss, accuracy=accuracy)
        fitted = dataclasses.replace(plan, steps=(*plan.steps[:-1], end))
        if budget.good_enough(fitted.states[0], end):
            return fitted, weights
        if budget.least:
            raise budget.unmet(len(plan.steps) - 1, question.units.total, end)
        plan = plan.prefix(budget.ends(plan.steps[:-1], plan.sizes)[-1])


def measured_plan(question: Question, plan: Plan) -> Plan:
    """Return the plan with loss and accuracy at its end, which are measured where the order left them out."""
    judge = question.judge
    if not plan.steps or plan.steps[-1].loss is not None or not (judge.has_data and judge.has_loss):
        return plan
    loss, accuracy = judge.measure(gates(question.model, question.units, plan.kept))
    return dataclasses.replace(
        plan, steps=(*plan.steps[:-1], dataclasses.replace(plan.steps[-1], loss=loss, accuracy=accuracy))
    )


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


def _measure(judge: GatedLoss, weights: dict[str, Tensor], g: Tensor) -> tuple[float, float | None]:
    """Return loss and accuracy with other weights anywhere: what no gate changes is another, too."""
    with holding(judge.model, weights):
        return judge.on_batches(judge.batches).measure(g)
