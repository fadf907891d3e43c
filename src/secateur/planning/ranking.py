"""From saliencies to an order of removals: single (003, Algorithm I), iterative (Algorithm II), quadratic."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from secateur.compensation.compensator import Compensator
from secateur.compensation.unit_surgeon import UnitSurgeon
from secateur.errors import BudgetError
from secateur.objective.gated_loss import GatedLoss
from secateur.objective.leave_one_out import rises
from secateur.objective.question import Question
from secateur.options import CURVATURES, Ranking
from secateur.phases import phase
from secateur.planning.allotment import comparison, worth_of
from secateur.planning.budget import Budget
from secateur.planning.curves import Worth
from secateur.planning.layerwise import rank_layerwise
from secateur.planning.network_sizes import NetworkSizes
from secateur.planning.plan import Plan
from secateur.planning.quadratic import rank_quadratic
from secateur.planning.removal_order import RemovalOrder, removable
from secateur.saliency.criterion import Criterion, criteria
from secateur.saliency.score import apply_threshold, find_criterion, saliency_of

CHEAP = "taylor1"  # makes the shortlist: one backward pass
SHORTLIST = 64  # units whose rise is measured each time where no layer makes up for them


def criteria_for(ranking: str) -> list[str]:
    """Return the names of the criteria that a ranking takes."""
    return list(CURVATURES if ranking == "quadratic" else criteria())


def rank_units(
    question: Question, ranking: Ranking, criterion: Criterion, compensator: Compensator | None, budget: Budget | None,
    network: NetworkSizes, chosen: bool = False,
) -> Plan:  # fmt: skip
    """Return the order of removals; `secateur.rank` is this with the sizes of the network and its file filled in.

    Args:
        question: The model, its units and the data.
        ranking: The settings by which saliencies make an order.
        criterion: Computes the saliencies.
        compensator: Fits the weights that stay after each removal; None to leave them as they are.
        budget: The bounds at which to stop; None to go on until one unit is left in each set.
        network: The sizes of the network and of its file for any units kept.
        chosen: Whether nobody asked for this ranking: then units go by the rise of the loss for what the budget counts,
            where that ends at a lower loss than by the rise alone.

    Returns:
        The plan: just as long as the budget needs it, and with a budget of quality alone as long as it can be.

    Raises:
        BudgetError: The budget is out of reach.
        DataError: The criterion needs data or a loss, and there is none.
    """
    find_criterion(criterion, question.gated)
    if ranking.ranking == "layerwise":
        return rank_layerwise(question, ranking, criterion, compensator, budget, network)

    def order(worth: Worth | None = None) -> Plan:
        return _ordered(question, ranking, criterion, compensator, budget, network, worth)

    plan, worth = order(), worth_of(network, budget) if chosen and criterion.in_loss_units else None
    if worth is None or not plan.steps or plan.steps[-1].loss is None:
        return plan
    try:
        priced = order(worth)
    except BudgetError:  # of quality
        return plan
    alone, by_cost = plan.steps[-1].loss, priced.steps[-1].loss
    assert by_cost is not None
    return replace(priced if by_cost < alone else plan, compared=comparison(by_cost, alone))


def _ordered(
    question: Question, ranking: Ranking, criterion: Criterion, compensator: Compensator | None, budget: Budget | None,
    network: NetworkSizes, worth: Worth | None,
) -> Plan:  # fmt: skip
    """Return an order in which units go by their saliencies, for what each gains where that counts."""
    open_sets = {name for name, limit in removable(network, budget).items() if limit}
    short = SHORTLIST if ranking.ranking == "iterative" else None
    surgeon = None if compensator is None else UnitSurgeon(compensator, criterion.name == "obs", open_sets, short)
    gated = question.gated if surgeon is None else surgeon.gated
    if ranking.ranking == "quadratic":
        order, swaps = rank_quadratic(gated, RemovalOrder(question, network, budget, surgeon), ranking)
    else:
        order, swaps = RemovalOrder(question, network, budget, surgeon, ranking.refresh, worth), None
        _BySaliency(criterion, gated, order, ranking).run()
    return Plan(
        tuple(order.kept().items()), order.start, order.steps(), question.units.captured.spec,
        ranking, compensator.settings if compensator else None, swaps,
        basis=order.basis,
    )  # fmt: skip


@dataclass(frozen=True)
class _BySaliency:
    """The removal of the least salient unit, as long as needed; the others are scored again each time, or never."""

    criterion: Criterion
    gated: GatedLoss
    order: RemovalOrder
    ranking: Ranking

    def run(self) -> None:
        """Remove units until the budget is satisfied, or none may go."""
        removals = self._iterative() if self.ranking.ranking == "iterative" else self._single()
        with phase(f"ranking by {self.criterion.name}", self.order.longest) as ranking:
            for k, saliency in ranking.through(removals):
                predicted = self.criterion.in_loss_units and math.isfinite(saliency)  # else it could judge none left
                self.order.remove(k, saliency if predicted else None)

    def _iterative(self) -> Iterator[tuple[int, float]]:
        """Yield the units to remove, each with its saliency by what is left before it."""
        while self._goes_on():
            saliency = self._scores()
            k = self.order.least(saliency)
            yield k, saliency[k].item()

    def _single(self) -> Iterator[tuple[int, float]]:
        """Yield the units to remove, each with its saliency at the start."""
        if not self._goes_on():
            return
        saliency, candidates = self._scores(), self.order.may_go.nonzero()[:, 0]
        if self.order.one_by_one:
            while self._goes_on():
                yield (k := self.order.least(saliency)), saliency[k].item()
            return
        values, places = saliency[candidates].sort(stable=True)
        ties = [len(list(group)) for _, group in itertools.groupby(values.tolist())]
        for tied in torch.split(candidates[places], ties):
            while len(tied := tied[self.order.may_go[tied]]) and self._goes_on():
                yield (k := self.order.choose(tied)), saliency[k].item()

    def _goes_on(self) -> bool:
        return bool(self.order.may_go.any()) and not self.order.enough()

    def _scores(self) -> Tensor:
        """Return the saliencies of the candidates [K]; those that are not on the shortlist are infinite."""
        g, shortlist = self.order.g, self.ranking.shortlist
        candidates = self.order.may_go.nonzero()[:, 0].to(g.device)
        if shortlist is None or shortlist >= len(candidates):
            values = self._saliency(self.criterion, candidates)
            values[candidates] = apply_threshold(values[candidates], self.ranking.threshold)
            return values.cpu()
        cheap = find_criterion(CHEAP, self.gated) if self._surgeon is None else self.criterion
        best = candidates[self._saliency(cheap, candidates)[candidates].argsort(stable=True)[:shortlist]]
        return (rises(self.gated, g, best) if self._surgeon is None else self._surgeon.exact(g, best)).cpu()

    def _saliency(self, criterion: Criterion, candidates: Tensor) -> Tensor:
        """Return the candidates' saliencies [K]; others have one, too, where they cost nothing more."""
        if self._surgeon is not None:
            return self._surgeon.saliency(self.order.g)
        if criterion.name != "oracle":
            return saliency_of(criterion, self.gated, self.order.g)
        values = rises(self.gated, self.order.g, candidates)
        criterion.check_saliencies([values[candidates]])
        return values

    @property
    def _surgeon(self) -> UnitSurgeon | None:
        return self.order.surgeon if self.criterion.name == "obs" else None
