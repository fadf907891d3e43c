"""Orders of removal: the units that went so far, what is left of the network, and which may go next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from torch import Tensor

from secateur.compensation.unit_surgeon import UnitSurgeon
from secateur.objective.question import Question
from secateur.planning.budget import Budget
from secateur.planning.state import Basis, State, Step

FileSize = Callable[[dict[str, tuple[int, ...]]], int]  # bytes of the written file, by the units kept
OnStep = Callable[[int, int], None]  # steps made, steps there can be


class RemovalOrder:
    """The removals so far, what each left of the network, and the units that may go next.

    Args:
        question: The model, its units and the data; its judge measures loss and accuracy.
        file_size: Returns the bytes of the written file for the units kept.
        budget: The bounds at which to stop.
        surgeon: Lets the weights make up for each unit that goes; None to leave them as they are.
        refresh: After how many removals the surgeon fits all weights again; None for a hundredth of what can go.
    """

    def __init__(
        self, question: Question, file_size: FileSize, budget: Budget | None, surgeon: UnitSurgeon | None = None,
        refresh: int | None = None,
    ) -> None:  # fmt: skip
        self.question, self.gated, self.units = question, question.judge, question.units
        self.file_size, self.budget = file_size, budget
        self.g = question.ones.clone()
        self.sizes = {unit_set.name: unit_set.size for unit_set in self.units}
        self.limits = (budget or Budget(remove_units=0)).removable(self.sizes)
        self.gone: Counter[str] = Counter()
        self.steps: list[Step] = []
        self.surgeon, self.refresh = surgeon, refresh or -(-self.longest // 100)
        if surgeon is not None:
            self.gated = self.gated.with_weights(surgeon.compensator.weights)
            surgeon.begin(self.g)
        self.start = State(**self._measure())
        self.basis = self._basis()
        if budget is not None:
            budget.check_measured(self.start)
            budget.check_resolution(self.basis.predictions if self.basis else 0)
            self._check_possible(budget)

    def restarted(self) -> RemovalOrder:
        """Return an order for the same question and budget, with no removals."""
        return RemovalOrder(self.question, self.file_size, self.budget, self.surgeon, self.refresh)

    def _basis(self) -> Basis | None:
        """Return the samples that losses are measured on; None where there are no losses."""
        if self.start.loss is None:
            return None
        fitted = self.surgeon is not None and self.question.judged_on == "data"
        predictions = 0 if self.start.accuracy is None else self.gated.predictions(self.g)
        return Basis(self.question.judged_on, self.question.samples, fitted, predictions)

    @property
    def longest(self) -> int:
        """The largest number of steps that is possible."""
        return sum(self.limits.values())

    def _check_possible(self, budget: Budget) -> None:
        """Refuse a size that is out of reach, before any time is spent on the order."""
        least = {name: tuple(range(size - self.limits[name])) for name, size in self.sizes.items()}
        state = State(self.start.loss, self.start.accuracy, **self._sizes(least))
        if budget.least and not budget.holds(self.start, state, self.limits, self.sizes):
            raise budget.unmet(self.longest, self.units.total, state)

    def candidates(self) -> list[int]:
        """Return the units that may go next."""
        open_sets = {name for name, limit in self.limits.items() if self.gone[name] < limit}
        present = (self.g != 0).tolist()
        return [k for k, (name, _) in enumerate(self.units.places) if present[k] and name in open_sets]

    def enough(self) -> bool:
        """Return whether a budget that asks for as few removals as possible is satisfied."""
        if self.budget is None or not self.budget.least:
            return False
        state = self.steps[-1] if self.steps else self.start
        return self.budget.holds(self.start, state, self.gone, self.sizes)

    def least(self, saliency: Tensor, candidates: list[int]) -> int:
        """Return the candidate of least saliency; of tied ones the one that frees most bytes, then the first."""
        values = saliency[candidates].tolist()
        lowest = min(values)
        tied = [k for k, value in zip(candidates, values, strict=True) if value == lowest]
        return tied[0] if len(tied) == 1 else min(tied, key=lambda k: (-self._freed(self.units.places[k][0]), k))

    def _freed(self, name: str) -> int:
        counts = {n: size - self.gone[n] for n, size in self.sizes.items()}
        return self.units.bytes(counts) - self.units.bytes(counts | {name: counts[name] - 1})

    def remove(self, k: int, predicted: float | None) -> None:
        """Remove one unit and measure what is left."""
        name, index = self.units.places[k]
        self.g[k] = 0
        self.gone[name] += 1
        if self.surgeon is not None and (len(self.steps) + 1) % self.refresh == 0:
            self.surgeon.begin(self.g)
        elif self.surgeon is not None:
            self.surgeon.remove(self.g, k)
        self.steps.append(Step(**self._measure(), set=name, index=index, predicted=predicted))

    def allows(self, back: int, out: int) -> bool:
        """Return whether the budget's sizes still hold with one removed unit back and another one gone instead."""
        g, gone = self.g.clone(), self.gone.copy()
        g[back], g[out] = 1, 0
        gone[self.units.places[back][0]] -= 1
        gone[self.units.places[out][0]] += 1
        if self.budget is None or any(count > self.limits[name] for name, count in gone.items()):
            return False
        state = State(self.start.loss, self.start.accuracy, **self._sizes(self._kept(g)))
        return self.budget.holds(self.start, state, gone, self.sizes)

    def kept(self) -> dict[str, tuple[int, ...]]:
        """Return unit set → the indices of the units that are left."""
        return self._kept(self.g)

    def _kept(self, g: Tensor) -> dict[str, tuple[int, ...]]:
        pieces = self.units.split(g.cpu())
        return {name: tuple(piece.nonzero()[:, 0].tolist()) for name, piece in pieces.items()}

    def _measure(self) -> dict[str, Any]:
        measurable = self.gated.has_data and self.gated.has_loss
        loss, accuracy = self.gated.measure(self.g) if measurable else (None, None)
        return {"loss": loss, "accuracy": accuracy, **self._sizes(self.kept())}

    def _sizes(self, kept: dict[str, tuple[int, ...]]) -> dict[str, int]:
        counts = {name: len(indices) for name, indices in kept.items()}
        return {
            "params": self.units.params(counts),
            "bytes": self.file_size(kept),
            "macs": self.units.macs(counts),
        }
