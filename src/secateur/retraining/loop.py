"""The loop of rounds for units: rank, cut, train, and again on the network that is left, to the budget."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from secateur.arguments import require_whole
from secateur.cutting.cut import cut_units
from secateur.cutting.final_fit import fitted_plan
from secateur.cutting.original import in_original, same_sets
from secateur.cutting.slices import gates
from secateur.cutting.trained import Retrain, trained
from secateur.cutting.verify import truth
from secateur.errors import ArgumentError, BudgetError, ModelError, VerificationError
from secateur.objective.gated_loss import GatedLoss
from secateur.objective.quality.quality import Quality
from secateur.objective.question import Question
from secateur.ordering import Job, Ranked, make_order, sizes_of
from secateur.own_code.find_units import units_of
from secateur.own_code.probe_weights import holding
from secateur.phases import phase
from secateur.planning.budget import Budget
from secateur.planning.plan import Plan
from secateur.planning.removal_order import basis_of, check_start
from secateur.planning.state import State, Step
from secateur.retraining.targets import RoundBudget, enough, round_budget
from secateur.structure.inputs import named_tensors
from secateur.weight_pruning import Loop

SLACK = 8  # bytes by which the padding of two files' headers may differ


class Cut(NamedTuple):
    """A cut network after some rounds.

    Attributes:
        plan: The removals of all rounds, in the original's numbers.
        end: The sizes of the network, and its quality.
        network: The network with the units that are left; the original before the first round.
        weights: Its parameters and buffers in the original's places.
        difference: How far it is, at most, from the gated original with these weights.
    """

    plan: Plan
    end: State
    network: nn.Module
    weights: Mapping[str, Tensor]
    difference: float


def shrink_in_rounds(job: Job, loop: Loop, budget: Budget) -> Cut:
    """Return the network after all rounds.

    Raises:
        ArgumentError: `retrain` returns something else than the network, or the ranking exchanges units.
        BudgetError: The budget cannot be met.
        ModelError: Training leaves weights that are not finite, or another network.
        VerificationError: A network would not compute what the gated original does.
    """
    if job.ranking.swaps:
        raise ArgumentError("swaps: improve one order at its end; there are several with rounds or retrain")
    rounds = Rounds(job, loop, budget)
    for number in range(1, loop.rounds + 1):
        with phase(f"round {number} of {loop.rounds}"):
            if not rounds.make(number):
                break
    return rounds.result()


class Rounds:
    """The rounds so far.

    Every network is cut from the original, which holds the weights trained so far: so each is proven against it, and
    all sizes and numbers of units are the original's.

    Args:
        job: The ranking of the original's units.
        loop: The number of rounds, and what trains the network.
        budget: The bounds that must hold at the end.

    Raises:
        ArgumentError: There are more rounds than units that may go, or the budget bounds what is not measured.
        BudgetError: The budget is out of reach.
    """

    def __init__(self, job: Job, loop: Loop, budget: Budget) -> None:
        self.job, self.loop, self.budget = job, loop, budget
        self.question = question = job.question
        removable = sum(budget.removable({unit_set.name: unit_set.size for unit_set in question.units}).values())
        require_whole(
            "rounds", loop.rounds, 1, f"at most {removable:,}, the number of units that may go", removable or 1
        )
        whole = tuple((unit_set.name, tuple(range(unit_set.size))) for unit_set in question.units)
        plan = Plan(
            whole, inputs=question.units.captured.spec, made_by=job.ranking, compensation=job.compensation,
            biases=job.biases, reason=job.reason, rounds=loop.rounds, retrained=loop.retrain is not None,
        )  # fmt: skip
        self.sizes = sizes_of(job, plan)
        quality = self._measured(plan, {})
        start = State(None, None, **self.sizes.after({}, 0)._asdict()).measured(quality)
        check_start(budget, self.sizes, start, quality.predictions)
        basis = basis_of(question, job.compensation is not None, start, quality.predictions)
        self.now = Cut(dataclasses.replace(plan, start=start, basis=basis), start, question.model, {}, 0.0)

    def make(self, number: int) -> bool:
        """Make a round, and return whether another one may follow.

        Raises:
            BudgetError: The round's share of the budget cannot be met.
        """
        target = round_budget(self.budget, self.now.plan, self.loop.rounds - number + 1)
        try:
            plan, tensors = self._ranked(number, target)
        except BudgetError as error:
            raise BudgetError(f"round {number} of {self.loop.rounds}: {error}") from error
        if not self.budget.least and len(plan.steps) == len(self.now.plan.steps):
            return False
        after = self._cut(plan, tensors)
        if self.loop.retrain is not None:
            after = self._trained(after, self.loop.retrain)
        if not self.budget.least and not self.budget.good_enough(after.plan.states[0], after.end):
            return False
        self.now = after
        return True

    def result(self) -> Cut:
        """Return the network after the last round.

        Raises:
            BudgetError: It does not keep the budget.
        """
        if self.now.network is self.question.model:  # no round held
            self.now = self._cut(self.now.plan, named_tensors(self.question.model))
        plan = self.now.plan
        gone = {name: size - len(plan.kept[name]) for name, size in plan.sizes.items()}
        if self.budget.least and not self.budget.holds(plan.states[0], self.now.end, gone, plan.sizes):
            states = (*plan.states[:-1], self.now.end)
            good = [n for n, state in enumerate(states) if n == 0 or self.budget.good_enough(states[0], state)]
            raise self.budget.unmet(good[-1], sum(plan.sizes.values()), states[good[-1]])
        return self.now

    def _ranked(self, number: int, target: Budget) -> tuple[Plan, dict[str, Tensor]]:
        """Return the plan with the removals of a round, and the weights fitted to it, in the places they have now.

        Raises:
            BudgetError: The network that is left cannot lose as much.
        """
        before, tensors = self.now.plan, named_tensors(self.now.network)
        if number > 1 and self._met(target):
            return before, tensors
        question, names = self._question(number)
        if not names:
            if self.budget.least:
                raise BudgetError("no unit set of the network that is left is one of the original's")
            return before, tensors
        bounds = self._bounds(target, question, names)
        ranked = make_order(self.job._replace(question=question, budget=bounds))
        part = ranked.plan.at(bounds)
        plan = self._with_steps(part.steps, names)
        part = part.prefix(enough(self.budget, target, len(before.steps), plan.states) - len(before.steps))
        part, fitted = _fitted(ranked, part, bounds)
        plan = dataclasses.replace(self._with_steps(part.steps, names), unfitted=part.unfitted)
        return plan, {**tensors, **fitted}

    def _met(self, target: Budget) -> bool:
        plan = self.now.plan
        return enough(self.budget, target, len(plan.steps), (*plan.states, plan.states[-1])) == len(plan.steps)

    def _question(self, number: int) -> tuple[Question, dict[str, str]]:
        """Return the question of the network that is left, and its unit sets with their names in the original.

        The batches and their targets stay those that the original was asked with.
        """
        first, network = self.question, self.now.network
        if number == 1:
            return first, {unit_set.name: unit_set.name for unit_set in first.units}
        units = units_of(network, first.call, first.units.include)
        question = first.for_model(network, units)
        gated = GatedLoss(network, units, None, first.loss, first.seed, first.max_memory, metric=first.metric)
        if first.gated.has_data:
            question.__dict__ |= {
                "gated": gated.on_batches(first.gated.batches),
                "judge": gated.on_batches(first.judge.batches),
                "judged_on": first.judged_on,
            }
        return question, same_sets(first.units, self.now.plan.kept, units)

    def _bounds(self, target: Budget, question: Question, names: Mapping[str, str]) -> Budget:
        """Return a round's bounds in the names of the network that is left; sets that are not the original's stay.

        The original's indices are longer to write than its own: bytes are held back for them, and no unit goes for
        these in the end, since the plan's prefix is taken by the original's sizes.
        """
        limits = self.budget.removable(self.now.plan.sizes)
        stay = tuple(s.name for s in question.units if not limits.get(names.get(s.name, ""), 0))
        changed: dict[str, Any] = {"protect": stay}
        if isinstance(target.bytes, int):
            header = dataclasses.replace(
                self.now.plan, inputs=question.units.captured.spec, rounds=0, retrained=False
            )  # as `make_order` counts it
            own = sizes_of(self.job._replace(question=question), header)
            longer = self.now.plan.states[-1].bytes - own.file_bytes({})
            changed["bytes"] = max(0, target.bytes - max(0, longer) - SLACK)
        if isinstance(target, RoundBudget):
            quotas = dict(target.quotas)
            changed["quotas"] = tuple((own, quotas[name]) for own, name in names.items() if name in quotas)
        return dataclasses.replace(target, **changed)

    def _with_steps(self, steps: Iterable[Step], names: Mapping[str, str]) -> Plan:
        """Return the plan with removals from the network that is left, in the original's numbers and sizes."""
        before = self.now.plan
        kept = before.kept
        moved = [
            dataclasses.replace(step, set=names[step.set], index=kept[names[step.set]][step.index]) for step in steps
        ]
        every, numbers = [*before.steps, *moved], {name: n for n, (name, _) in enumerate(self.sizes.sets)}
        along = self.sizes.along(
            torch.tensor([numbers[step.set] for step in every], dtype=torch.long),
            torch.tensor([step.index for step in every], dtype=torch.long),
        ).each()[len(before.steps) + 1 :]
        return before.with_steps(
            tuple(dataclasses.replace(step, **costs) for step, costs in zip(moved, along, strict=True))
        )

    def _cut(self, plan: Plan, tensors: Mapping[str, Tensor]) -> Cut:
        """Return the network without the units that a plan removes, proven."""
        model, units, before = self.question.model, self.question.units, self.now
        with holding(model, before.weights):
            weights = in_original(model, units, before.plan.kept, tensors)
        with holding(model, weights), phase("cutting and proving"):
            network, difference = cut_units(model, units, plan, self.question.call)
        return Cut(plan, plan.states[-1], network, weights, difference)

    def _trained(self, cut: Cut, retrain: Retrain) -> Cut:
        """Return the network as trained, its weights in the original's places, and its loss.

        Raises:
            ModelError: It is another network, or its weights are not finite.
        """
        with phase("training"):
            network = trained(cut.network, retrain)
        model, units, kept = self.question.model, self.question.units, cut.plan.kept
        with holding(model, cut.weights):
            weights = in_original(model, units, kept, named_tensors(network))
        try:
            with holding(model, weights):
                difference = truth(model, units, kept, self.question.call).check(network)
        except VerificationError as error:
            raise ModelError(f"after retrain: the network computes something else with its weights: {error}") from error
        end = cut.end.measured(self._measured(cut.plan, weights))
        steps = (*cut.plan.steps[:-1], end) if isinstance(end, Step) else ()
        return Cut(dataclasses.replace(cut.plan, steps=steps), end, network, weights, difference)

    def _measured(self, plan: Plan, weights: Mapping[str, Tensor]) -> Quality:
        """Return the quality of the original with other weights and gates."""
        judge = self.question.judge
        if not (judge.has_data and judge.has_loss):
            return Quality()
        model, units = self.question.model, self.question.units
        with holding(model, weights):
            return judge.on_batches(judge.batches).measure(gates(model, units, plan.kept))


def _fitted(ranked: Ranked, plan: Plan, bounds: Budget) -> tuple[Plan, Mapping[str, Tensor]]:
    """Return the plan and the weights that make up for what it removes; none without compensation."""
    if ranked.compensator is None:
        return plan, {}
    order = ranked.plan if bounds.least else ranked.plan.longest(bounds)
    return fitted_plan(ranked.question, ranked.compensator, order, plan, bounds)
