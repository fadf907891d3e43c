"""What is left of networks after removals: curves, their medians, and a table of test accuracy at each tenth."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Literal

from secateur import Plan

TENTHS = range(10, 100, 10)  # percent
ROUNDING = 1e-12


@dataclass(frozen=True)
class Curve:
    """Loss and accuracy on the test part after so many removals from `total` units.

    Attributes:
        removed: Units, from 0 up.
        accuracy: After each; the last may be that at which the curve was given up.
        total: Units that count.
        seconds: For the order; None where there is none.
        threads: On so many.
        loss: After each; empty where it was not measured.
    """

    removed: Sequence[int]
    accuracy: Sequence[float]
    total: int
    seconds: float | None = None
    threads: int = 1
    loss: Sequence[float] = field(default_factory=list)

    def at(self, removed: int, what: Literal["accuracy", "loss"] = "accuracy") -> float:
        """Return the value with at least so many units removed; −∞ where the curve was given up before.

        >>> curve = Curve([0, 1, 3], [0.9, 0.8, 0.7], 4)
        >>> curve.at(0), curve.at(2), curve.at(4)
        (0.9, 0.7, -inf)
        """
        points = zip(self.removed, getattr(self, what), strict=True)
        return next((value for n, value in points if n >= removed), -math.inf)

    def within(self, points: float = 0.01) -> int:
        """Return the most units removed with accuracy at no point up to there lower than that below the start.

        >>> Curve([0, 1, 2, 3], [0.9, 0.91, 0.895, 0.8], 4).within()
        2
        """
        good = [value >= self.accuracy[0] - points - ROUNDING for value in self.accuracy]
        return self.removed[good.index(False) - 1 if False in good else -1]


def curve_of(plan: Plan) -> Curve:
    """Return the losses and accuracies of a plan where they were measured."""
    points = [(n, state.accuracy or 0.0, state.loss) for n, state in enumerate(plan.states) if state.loss is not None]
    removed, accuracies, losses = map(list, zip(*points, strict=True))
    return Curve(removed, accuracies, sum(plan.sizes.values()), loss=losses)


def units_of(share: float, total: int) -> int:
    """Return how many units are at least that share of them, in percent.

    >>> units_of(30, 10), units_of(31, 10)
    (3, 4)
    """
    return math.ceil(share * total / 100 - 1e-9)


def middle(curves: Sequence[Curve]) -> list[tuple[float, float]]:
    """Return medians: pairs of the share removed, in percent, and the accuracy, where not given up."""
    longest = max(curves, key=lambda curve: len(curve.removed))
    medians = [(n, median(curve.at(n) for curve in curves)) for n in longest.removed]
    return [(100 * n / longest.total, value) for n, value in medians if math.isfinite(value)]


def within(curves: Sequence[Curve]) -> float:
    """Return the median share removed within a point, in percent."""
    return median(100 * curve.within() / curve.total for curve in curves)


def best(ways: Mapping[str, Sequence[Curve]], names: Iterable[str]) -> str | None:
    """Return the way among these that removes most within a point, the first of several; None without any."""
    return max((name for name in names if name in ways), key=lambda name: within(ways[name]), default=None)


@dataclass(frozen=True)
class Row:
    """One network pruned in one way, without retraining; medians over the seeds.

    Attributes:
        network: Its name.
        way: Criterion and ranking, and whether the weights left were fitted.
        start: Accuracy on the test part before.
        accuracy: With each tenth of the units that count removed, 10 to 90 %; None where the curve was given up before.
        within_1pt: The largest share of units removed, in percent, with accuracy never more than one point below.
        seconds: Of the order; None where there is none.
    """

    network: str
    way: str
    start: float
    accuracy: tuple[float | None, ...]
    within_1pt: float
    seconds: float | None


def rows(curves: Mapping[str, Mapping[str, Sequence[Curve]]]) -> list[Row]:
    """Return a row for each network and each way.

    Args:
        curves: Network → way → one for each seed.
    """
    return [_row(network, way, each) for network, ways in curves.items() for way, each in ways.items()]


def _row(network: str, way: str, curves: Sequence[Curve]) -> Row:
    medians = [median(curve.at(units_of(share, curve.total)) for curve in curves) for share in TENTHS]
    accuracy = tuple(value if math.isfinite(value) else None for value in medians)
    times = [curve.seconds for curve in curves if curve.seconds is not None]
    start, time = median(curve.accuracy[0] for curve in curves), median(times) if times else None
    return Row(network, way, start, accuracy, within(curves), time)
