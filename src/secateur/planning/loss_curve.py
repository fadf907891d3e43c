"""The loss along an order of removals: measured after every one where that is cheap, else after some."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from secateur.compensation.compensator import Compensator
from secateur.objective.quality.quality import Quality
from secateur.objective.question import Question

MEASURED = 50  # times at most, where it is not cheap to measure after every removal
CHEAP = 2 * 10**11  # multiplications with addition in all; counted, so that a plan depends on no clock


def spacing(removals: int, macs: int) -> int:
    """Return after how many removals the loss is measured.

    Args:
        removals: How many there can be.
        macs: The multiplications with addition for all samples once.

    >>> spacing(40, 10**12), spacing(1000, 10**8), spacing(1000, 10**9)
    (1, 1, 20)
    """
    return 1 if removals * macs <= CHEAP else max(1, -(-removals // MEASURED))


class LossCurve:
    """The quality after some of the removals of an order.

    Args:
        question: Its judge measures it.
        compensator: Fits the weights that stay; None to leave them as they are.
        removals: How many there can be.
        macs: The multiplications with addition for one sample.
    """

    def __init__(self, question: Question, compensator: Compensator | None, removals: int, macs: int) -> None:
        self.ones, self.compensator = question.ones, compensator
        self.judge = question.judge if compensator is None else question.judge.with_weights(compensator.weights)
        self.measurable = self.judge.has_data and self.judge.has_loss
        self.every = spacing(removals, macs * question.samples)
        self.measured: dict[int, Quality] = {}

    def at(self, removals: int) -> Quality:
        """Return the quality after so many removals, of which all is None where it was not measured."""
        return self.measured.get(removals, Quality())

    def due(self, removals: int) -> bool:
        """Return whether it is time to measure after so many removals."""
        return removals % self.every == 0

    def measure(self, removals: int, g: Tensor) -> None:
        """Measure after so many removals with the weights of now, unless that was done before."""
        if self.measurable and removals not in self.measured:
            self.measured[removals] = self.judge.measure(g)

    def refine(self, removed: Sequence[int], ends: Sequence[int], good: Callable[[int], bool]) -> None:
        """Measure between the last good end and the next one measured, halving, until they are neighbours.

        Args:
            removed: The units in the order in which they went.
            ends: After how many removals the order may end.
            good: Whether what was measured after so many removals is good enough.
        """
        known = [place for place, end in enumerate(ends) if end in self.measured]
        last = max(place for place in known if good(ends[place]))
        after = min((place for place in known if place > last), default=last)
        while after - last > 1:
            middle = (last + after) // 2
            self._measure_again(ends[middle], removed)
            last, after = (middle, after) if good(ends[middle]) else (last, middle)

    def _measure_again(self, removals: int, removed: Sequence[int]) -> None:
        """Measure after so many removals, with all weights fitted for these."""
        g = self.ones.index_fill(0, torch.tensor(removed[:removals], device=self.ones.device), 0)
        judge = self.judge
        if self.compensator is not None:
            trial = self.compensator.fork()
            trial.fit(g)
            judge = judge.with_weights(trial.weights)
        self.measured[removals] = judge.measure(g)
