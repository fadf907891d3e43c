"""The layerwise ranking: each set's own order from one pass over the data, and any budget shared among the sets.

Where `iterative` measures and fits again after every removal or so, here the curves of all sets are made once, in
closed form, put into units of the measured loss at a few sizes, and allotted together. Then the weights are fitted once
at the end, layer after layer, and the loss is measured there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from secateur.compensation.compensator import Compensator
from secateur.objective.quality.quality import Quality
from secateur.objective.question import Question
from secateur.options import Ranking
from secateur.planning.allotment import Curves, allotted_steps, comparison, end_of, worth_of
from secateur.planning.budget import Budget
from secateur.planning.network_sizes import NetworkSizes
from secateur.planning.plan import Plan
from secateur.planning.removal_order import basis_of, check_start, removable
from secateur.planning.set_curves import set_curves
from secateur.planning.state import State, Step
from secateur.saliency.criterion import Criterion


def rank_layerwise(
    question: Question, ranking: Ranking, criterion: Criterion, compensator: Compensator | None, budget: Budget | None,
    network: NetworkSizes,
) -> Plan:  # fmt: skip
    """Return the plan: the curves, and the removals that the budget asks for, measured at their end.

    Args:
        question: The model, its units and the data.
        ranking: The settings, which the plan keeps.
        criterion: As for `set_curves`.
        compensator: Fits the weights that stay; None to leave them as they are.
        budget: The bounds that must hold; None to go on until one unit is left in each set.
        network: The sizes of the network and of its file for any units kept.

    Raises:
        BudgetError: The budget is out of reach.
        DataError: The criterion needs data or a loss, and there is none.
    """
    ends = _Ends(question, compensator, network)
    if budget is not None:
        check_start(budget, network, ends.start, ends.predictions)
    sets, fitted = set_curves(question, criterion, compensator, removable(network, budget)), compensator is not None
    made, steps, compared = _better(ends, Curves(tuple(sets), network), budget)
    plan = Plan(
        made.whole, ends.start, (), question.units.captured.spec, ranking,
        compensator.settings if compensator else None, curves=made, compared=compared,
        basis=basis_of(question, fitted, ends.start, ends.predictions),
    )  # fmt: skip
    return plan.with_steps(steps)


def _better(ends: _Ends, curves: Curves, budget: Budget | None) -> tuple[Curves, tuple[Step, ...], str | None]:
    """Return curves allotted by what the budget counts, or by units alone where that ends at a lower loss, measured."""
    steps = ends.measured(allotted_steps(curves, budget), budget)
    if budget is None or budget.bounds_quality or not ends.measurable or worth_of(curves.network, budget) is None:
        return curves, steps, None
    plain = dataclasses.replace(curves, priced=False)
    others = ends.measured(allotted_steps(plain, budget), budget)
    by_cost, alone = (s[-1].loss if s else None for s in (steps, others))
    if by_cost is None or alone is None:
        return curves, steps, None
    compared = comparison(by_cost, alone)
    return (curves, steps, compared) if by_cost <= alone else (plain, others, compared)


class _Ends:
    """What is measured at the ends that an order may have."""

    def __init__(self, question: Question, compensator: Compensator | None, network: NetworkSizes) -> None:
        self.question, self.compensator = question, compensator
        self.sizes = dict(network.sets)
        self.measurable = question.judge.has_data and question.judge.has_loss
        quality = question.judge.measure(question.ones) if self.measurable else Quality()
        self.predictions = quality.predictions
        self.start = State(None, None, **network.after({}, 0)._asdict()).measured(quality)

    def measured(self, steps: tuple[Step, ...], budget: Budget | None) -> tuple[Step, ...]:
        """Return the steps that the budget asks for, with the quality at their end."""
        if budget is None:
            return steps
        end = end_of(steps, self.start, budget, self.sizes) if budget.least else len(steps)
        steps = steps[:end]
        if self.measurable and end:
            steps = self._with(steps, end)
            if not budget.good_enough(self.start, steps[-1]):
                steps = self._sought(steps, budget)
                if budget.least:
                    raise budget.unmet(len(steps), sum(self.sizes.values()), (self.start, *steps)[-1])
        return steps

    def _sought(self, steps: tuple[Step, ...], budget: Budget) -> tuple[Step, ...]:
        """Return the steps to the last end that is good enough, found by halving; the end of all is not."""
        ends = budget.ends(steps, self.sizes)
        good, bad = 0, len(ends) - 1
        while bad - good > 1:
            middle = (good + bad) // 2
            steps = self._with(steps, ends[middle])
            good, bad = (middle, bad) if budget.good_enough(self.start, steps[ends[middle] - 1]) else (good, middle)
        return steps[: ends[good]]

    def _with(self, steps: tuple[Step, ...], n: int) -> tuple[Step, ...]:
        """Return the steps with what is measured after n of them, all weights fitted there."""
        g, judge = self._gates(steps[:n]), self.question.judge
        if self.compensator is not None:
            self.compensator.fit(g)
            judge = judge.with_weights(self.compensator.weights)
        return (*steps[: n - 1], steps[n - 1].measured(judge.measure(g)), *steps[n:])

    def _gates(self, steps: Sequence[Step]) -> Tensor:
        numbers = {place: n for n, place in enumerate(self.question.units.places)}
        gone = [numbers[step.set, step.index] for step in steps]
        return self.question.ones.index_fill(0, torch.tensor(gone, device=self.question.ones.device), 0)
