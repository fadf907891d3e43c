"""Orders of removal: the units that went so far, what is left of the network, and which may go next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from secateur.compensation.unit_surgeon import UnitSurgeon
from secateur.objective.question import Question
from secateur.planning.budget import Budget
from secateur.planning.curves import Worth
from secateur.planning.loss_curve import LossCurve
from secateur.planning.network_sizes import NetworkSizes
from secateur.planning.state import Basis, State, Step


def removable(sizes: NetworkSizes, budget: Budget | None) -> dict[str, int]:
    """Return how many units each set may lose, by the budget or down to one, or to as many as are chosen among them."""
    return (budget or Budget(remove_units=0)).removable(dict(sizes.sets), dict(sizes.least))


def state_of_kept(network: NetworkSizes, start: State, kept: Mapping[str, Sequence[int]]) -> State:
    """Return the sizes with these units left, with the quality of the start."""
    return replace(start, **network.costs(kept)._asdict())


def check_start(budget: Budget, network: NetworkSizes, start: State, predictions: int) -> None:
    """Refuse a budget that cannot be judged or is out of reach, before any unit goes.

    Args:
        budget: The bounds.
        network: The sizes of the network for any units kept.
        start: The network before any removal.
        predictions: How many predictions an accuracy is taken over.

    Raises:
        ArgumentError: It bounds a quality that is not measured.
        BudgetError: It is out of reach; the message says how far one can get.
    """
    budget.check_measured(start)
    budget.check_resolution(predictions)
    sizes, limits = dict(network.sets), removable(network, budget)
    state = state_of_kept(network, start, {name: range(size - limits[name]) for name, size in sizes.items()})
    if budget.least and not budget.holds(start, state, limits, sizes):
        raise budget.unmet(sum(limits.values()), sum(sizes.values()), state)


def basis_of(question: Question, fitted: bool, start: State, predictions: int) -> Basis | None:
    """Return the samples that losses are measured on; None where there are no losses.

    Args:
        question: Says what judges.
        fitted: Whether weights are fitted.
        start: The network before any removal.
        predictions: How many predictions an accuracy is taken over.
    """
    if start.loss is None:
        return None
    return Basis(question.judged_on, question.samples, fitted and question.judged_on == "data", predictions)


class RemovalOrder:
    """The removals so far, what each left of the network, and the units that may go next.

    Args:
        question: The model, its units and the data; its judge measures loss and accuracy.
        network: The sizes of the network for any units kept.
        budget: The bounds at which to stop.
        surgeon: Lets the weights make up for each unit that goes; None to leave them as they are.
        refresh: After how many removals the surgeon fits all weights again; None for a hundredth of what can go.
        worth: What one more unit of each set gains, by which saliencies are divided; None to take them as they are.
    """

    def __init__(
        self, question: Question, network: NetworkSizes, budget: Budget | None, surgeon: UnitSurgeon | None = None,
        refresh: int | None = None, worth: Worth | None = None,
    ) -> None:  # fmt: skip
        self.question, self.units, self.network, self.budget = question, question.units, network, budget
        self.worth = worth
        self.g = question.ones.clone()
        self.sizes, self.limits = dict(network.sets), removable(network, budget)
        self.set_of_each = self.units.set_of_each
        self.free = torch.tensor(list(self.limits.values()))[self.set_of_each] > 0
        self._next: str | None = None  # the set whose units alone may go now
        self.gone: Counter[str] = Counter()
        self.gone_text = 0  # characters of their indices, each with a comma
        self.removed: list[int] = []
        self.ends = [0]  # after how many removals the order may end
        self.predicted: list[float | None] = []
        self.surgeon, self.refresh = surgeon, refresh or -(-self.longest // 100)
        if surgeon is not None:
            surgeon.begin(self.g)
        self.curve = LossCurve(question, surgeon.compensator if surgeon else None, self.longest, network.macs({}))
        self.curve.measure(0, self.g)
        self.small = False  # whether the budget's sizes have held
        self.start = State(None, None, **network.after({}, 0)._asdict()).measured(self.curve.at(0))
        predictions = self.curve.at(0).predictions
        self.basis = basis_of(question, surgeon is not None, self.start, predictions)
        if budget is not None:
            check_start(budget, network, self.start, predictions)

    def restarted(self) -> RemovalOrder:
        """Return an order for the same question and budget, with no removals."""
        return RemovalOrder(self.question, self.network, self.budget, self.surgeon, self.refresh, self.worth)

    @property
    def one_by_one(self) -> bool:
        """Whether each removal may change which unit is next, by the units that go with it or by what others cost."""
        return self.worth is not None or (self.budget is not None and self.budget.blocks(self.sizes) is not None)

    @property
    def may_go(self) -> Tensor:
        """The units that may go next [K]."""
        return self.free if self._next is None else self.free & (self.set_of_each == list(self.sizes).index(self._next))

    @property
    def longest(self) -> int:
        """The largest number of steps that is possible."""
        return sum(self.limits.values())

    def enough(self) -> bool:
        """Return whether a budget that asks for as few removals as possible is satisfied."""
        budget = self.budget
        if budget is None or not budget.least or not budget.removed_enough(self.gone, self.sizes):
            return False
        if self._next is not None:
            return False
        if not budget.small_enough(self.network.after(self._counts(self.gone), self.gone_text)):
            return False
        if budget.bounds_quality and not self.small:
            self.small = True
            self.curve.measure(len(self.removed), self.g)
        return self._good_enough(len(self.removed))

    def _good_enough(self, removals: int) -> bool:
        state = self.start.measured(self.curve.at(removals))
        return self.budget is None or self.budget.good_enough(self.start, state)

    def least(self, saliency: Tensor) -> int:
        """Return the unit of least saliency [K] that may go; of tied ones the one that `choose` takes."""
        candidates = self.may_go.nonzero()[:, 0]
        values = self._prices(saliency)[candidates]
        return self.choose(candidates[values == values.min()])

    def _prices(self, saliency: Tensor) -> Tensor:
        """Return the saliencies [K] for what each unit gains; as they are where none gains anything."""
        if self.worth is None:
            return saliency
        gains = self.worth(self._counts(self.gone))
        worth = torch.tensor(list(gains.values()), dtype=saliency.dtype)[self.set_of_each]
        prices = torch.where(saliency > 0, saliency / worth, saliency * worth)
        return prices if prices[self.may_go].isfinite().any() else saliency

    def choose(self, tied: Tensor) -> int:
        """Return the unit that frees most bytes, of several the first."""
        if len(tied) > 1:
            freed = self.network.freed(self._counts(self.gone))
            bytes_freed = torch.tensor(list(freed.values()))[self.set_of_each[tied]]
            tied = tied[bytes_freed == bytes_freed.max()]
        return int(tied[0])

    def remove(self, k: int, predicted: float | None) -> None:
        """Remove one unit, and measure what is left where that is due."""
        name, index = self.units.places[k]
        self.g[k] = 0
        self.free[k] = False
        self.gone[name] += 1
        self.gone_text += len(f"{index},")
        if self.gone[name] == self.limits[name]:
            self.free &= self.set_of_each != self.set_of_each[k]
        self._next = None if self.budget is None else self.budget.goes_next(self.gone, self.sizes)
        self.removed.append(k)
        self.ends += [len(self.removed)] if self._next is None else []
        self.predicted.append(predicted)
        if self.surgeon is not None and len(self.removed) % self.refresh == 0:
            self.surgeon.begin(self.g)
        elif self.surgeon is not None:
            self.surgeon.remove(self.g, k)
        if self.curve.due(len(self.removed)):
            self.curve.measure(len(self.removed), self.g)

    def allows(self, back: int, out: int) -> bool:
        """Return whether the budget's sizes still hold with one removed unit back and another one gone instead."""
        g, gone = self.g.clone(), self.gone.copy()
        g[back], g[out] = 1, 0
        gone[self.units.places[back][0]] -= 1
        gone[self.units.places[out][0]] += 1
        if self.budget is None or any(count > self.limits[name] for name, count in gone.items()):
            return False
        return self.budget.holds(self.start, state_of_kept(self.network, self.start, self._kept(g)), gone, self.sizes)

    def kept(self) -> dict[str, tuple[int, ...]]:
        """Return unit set → the indices of the units that are left."""
        return self._kept(self.g)

    def _kept(self, g: Tensor) -> dict[str, tuple[int, ...]]:
        pieces = self.units.split(g.cpu())
        return {name: tuple(piece.nonzero()[:, 0].tolist()) for name, piece in pieces.items()}

    def steps(self) -> tuple[Step, ...]:
        """Return the removals, each with what it left; measured at the end, too, and where a budget of quality ends."""
        self.curve.measure(len(self.removed), self.g)
        if self.budget is not None and self.budget.bounds_quality and not self.budget.least:
            self.curve.refine(self.removed, self.ends, self._good_enough)
        places = [self.units.places[k] for k in self.removed]
        sets = self.set_of_each[torch.tensor(self.removed, dtype=torch.long)]
        along = self.network.along(sets, torch.tensor([index for _, index in places], dtype=torch.long)).each()
        return tuple(
            Step(None, None, **costs, set=place[0], index=place[1], predicted=predicted).measured(self.curve.at(n))
            for n, (place, predicted, costs) in enumerate(zip(places, self.predicted, along[1:], strict=True), 1)
        )

    def _counts(self, gone: Mapping[str, int]) -> dict[str, int]:
        return {name: size - gone[name] for name, size in self.sizes.items()}
