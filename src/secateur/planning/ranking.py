"""From saliencies to an order of removals: single (003, Algorithm I) and iterative (Algorithm II)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import ArgumentError, choose
from secateur.planning.budget import Budget
from secateur.planning.plan import Plan, State, Step
from secateur.saliency.criterion import THRESHOLDS, Criterion, apply_threshold, find_criterion, saliency_of
from secateur.saliency.gates import Gated, ones
from secateur.saliency.oracle import rises
from secateur.structure.units import Units

# Whether the units that are left are scored again after each removal.
RANKINGS = {"single": False, "iterative": True}
CHEAP = "taylor1"  # makes the shortlist: one backward pass

FileSize = Callable[[dict[str, tuple[int, ...]]], int]  # bytes of the written file, by the units kept
OnStep = Callable[[int, int], None]  # steps made, steps there can be


def rank(
    model: nn.Module,
    data: Any,
    loss: Any,
    units: Units,
    file_size: FileSize,
    criterion: str = "oracle",
    ranking: str = "iterative",
    budget: Budget | None = None,
    threshold: str | None = None,
    validation: Any = None,
    seed: int = 0,
    shortlist: int | None = None,
    max_memory: int | str | None = None,
    on_step: OnStep = lambda *_: None,
) -> Plan:
    """The order of removals; `secateur.rank` is this with the size of the written file filled in.

    Args:
        model: Evaluated as in eval mode, left as it was.
        data: As for `secateur.score`.
        loss: As for `secateur.score`.
        units: The model's units.
        file_size: Bytes of the written file, by the units kept.
        criterion: A criterion's name.
        ranking: "single" or "iterative".
        budget: Where to stop; None to go on until one unit is left in each set.
        threshold: "mean" or "median".
        validation: Data on which loss and accuracy are measured; None for `data`.
        seed: For criteria that draw random numbers.
        shortlist: As for `secateur.rank`.
        max_memory: As for `secateur.score`.
        on_step: Called after each step.

    Returns:
        The plan, as long as the budget needs it, or with a budget of quality alone as long as it can be.

    Raises:
        ArgumentError: An unknown name, or a budget that is none.
    """
    again = choose("ranking", ranking, RANKINGS)
    if threshold is not None:
        choose("threshold", threshold, THRESHOLDS)
    if budget is not None and not isinstance(budget, Budget):
        raise ArgumentError(f"budget: expected secateur.Budget(...), got {budget!r}")
    if shortlist is not None:
        _check_shortlist(shortlist, criterion, again, threshold)
    gated = Gated(model, units, data, loss, seed, max_memory)
    found = find_criterion(criterion, gated)
    measured = gated if validation is None else Gated(model, units, validation, loss, max_memory=max_memory)
    order = _Order(measured, file_size, budget)
    saliency: Tensor | None = None
    while (candidates := order.candidates()) and not order.enough():
        if saliency is None or again:
            saliency = _scores(found, gated, order.g, candidates, threshold, shortlist)
        best = order.least(saliency, candidates)
        order.remove(best, saliency[best].item() if found.in_loss_units else None)
        on_step(len(order.steps), order.longest)
    kept = tuple(order.kept().items())
    return Plan(kept, order.start, tuple(order.steps), units.captured.spec, criterion, ranking)


def _check_shortlist(shortlist: int, criterion: str, again: bool, threshold: str | None) -> None:
    if isinstance(shortlist, bool) or not isinstance(shortlist, int) or shortlist < 1:
        raise ArgumentError(f"shortlist: expected a number of units above 0, got {shortlist!r}")
    if criterion != "oracle" or not again or threshold is not None:
        raise ArgumentError("shortlist: is for criterion='oracle' with ranking='iterative' and no threshold")


def _scores(
    found: Criterion, gated: Gated, g: Tensor, candidates: list[int], threshold: str | None, shortlist: int | None
) -> Tensor:
    if shortlist is not None and shortlist < len(candidates):
        cheap = saliency_of(find_criterion(CHEAP, gated), gated, g)[candidates]
        best = torch.tensor(candidates, device=g.device)[cheap.argsort(stable=True)[:shortlist]]
        return rises(gated, g, best).cpu()
    values = saliency_of(found, gated, g)
    values[candidates] = apply_threshold(values[candidates], threshold)
    return values.cpu()


class _Order:
    """The removals so far, and what may follow."""

    def __init__(self, gated: Gated, file_size: FileSize, budget: Budget | None) -> None:
        self.gated, self.units, self.file_size, self.budget = gated, gated.units, file_size, budget
        self.g = ones(gated.model, gated.units)
        self.sizes = {unit_set.name: unit_set.size for unit_set in self.units}
        self.limits = (budget or Budget(remove_units=0)).removable(self.sizes)
        self.gone: Counter[str] = Counter()
        self.steps: list[Step] = []
        self.start = State(**self._measure())
        if budget is not None:
            budget.check_measured(self.start)
            self._check_possible(budget)

    @property
    def longest(self) -> int:
        """How many steps there can be."""
        return sum(self.limits.values())

    def _check_possible(self, budget: Budget) -> None:
        """Refuse a size that is out of reach before any time is spent on the order."""
        least = {name: tuple(range(size - self.limits[name])) for name, size in self.sizes.items()}
        state = State(self.start.loss, self.start.accuracy, **self._sizes(least))
        if budget.least and not budget.holds(self.start, state, self.limits, self.sizes):
            raise budget.unmet(self.longest, self.units.total, state)

    def candidates(self) -> list[int]:
        """The units that may go next."""
        left = {name for name, limit in self.limits.items() if self.gone[name] < limit}
        there = (self.g != 0).tolist()
        return [k for k, (name, _) in enumerate(self.units.places) if there[k] and name in left]

    def enough(self) -> bool:
        """Whether the budget is satisfied, so that the least has been removed."""
        here = self.steps[-1] if self.steps else self.start
        return (
            self.budget is not None and self.budget.least and self.budget.holds(self.start, here, self.gone, self.sizes)
        )

    def least(self, saliency: Tensor, candidates: list[int]) -> int:
        """The candidate of least saliency; of tied ones that which frees most bytes, then the first."""
        values = saliency[candidates].tolist()
        lowest = min(values)
        tied = [k for k, value in zip(candidates, values, strict=True) if value == lowest]
        return tied[0] if len(tied) == 1 else min(tied, key=lambda k: (-self._freed(self.units.places[k][0]), k))

    def _freed(self, name: str) -> int:
        left = {n: size - self.gone[n] for n, size in self.sizes.items()}
        return self.units.bytes(left) - self.units.bytes(left | {name: left[name] - 1})

    def remove(self, k: int, predicted: float | None) -> None:
        """Take one unit away and measure what is left."""
        name, index = self.units.places[k]
        self.g[k] = 0
        self.gone[name] += 1
        self.steps.append(Step(**self._measure(), set=name, index=index, predicted=predicted))

    def kept(self) -> dict[str, tuple[int, ...]]:
        """The units that are left."""
        pieces = self.units.split(self.g.cpu())
        return {name: tuple(piece.nonzero()[:, 0].tolist()) for name, piece in pieces.items()}

    def _measure(self) -> dict[str, Any]:
        measurable = self.gated.has_data and self.gated.has_loss
        loss, accuracy = self.gated.evaluate(self.g) if measurable else (None, None)
        return {"loss": loss, "accuracy": accuracy, **self._sizes(self.kept())}

    def _sizes(self, kept: dict[str, tuple[int, ...]]) -> dict[str, int]:
        counts = {name: len(indices) for name, indices in kept.items()}
        return {
            "params": self.units.params(counts),
            "bytes": self.file_size(kept),
            "macs": self.units.macs(counts),
        }
