"""Curves of unit sets, and how a budget is shared among them: by the lower convex hulls of loss against size.

Each set has its own order of removals, with the predicted rise of the loss after each. Where sets are apart, the rises
add up, and the best sharing of any budget takes next the stretch of least slope among all hulls: the one whose rise is
least for what it frees.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

Worth = Callable[[Mapping[str, int]], Mapping[str, float]]  # what one more unit of each set frees, by the units left

LEAST = 0.01  # of a predicted rise, where none was measured
MOST = 1000.0  # times a predicted rise, where the loss measured is no number


@dataclass(frozen=True)
class Curve:
    """The order of removals of one set, and the predicted rise of the loss after each.

    Attributes:
        set: The set's name.
        order: Indices of its units, as many as may go.
        rises: The rise after 0, 1, 2 ... removals; it starts at 0 and never falls.
        of_loss: Whether it is the loss that rises; if not, what the criterion makes of each unit, such as its weights.
    """

    set: str
    order: tuple[int, ...]
    rises: tuple[float, ...]
    of_loss: bool = True

    def hull(self) -> list[int]:
        """Return the numbers of removals at the corners of the lower convex hull, from 0 to all.

        >>> Curve("0", (2, 0, 1), (0.0, 3.0, 4.0, 9.0)).hull()
        [0, 2, 3]
        """
        corners = [0]
        for n in range(1, len(self.rises)):
            while len(corners) > 1 and self.slope(*corners[-2:]) >= self.slope(corners[-1], n):
                corners.pop()
            corners.append(n)
        return corners

    def slope(self, start: int, end: int) -> float:
        """Return the rise for each removal between two points."""
        return (self.rises[end] - self.rises[start]) / (end - start)

    def scaled(self, measured: Mapping[int, float]) -> Curve:
        """Return the curve in units of the measured loss: through what was measured after some numbers of removals.

        In between the prediction is stretched, and behind the last measurement as much as over all before it. Where
        the loss falls from one measurement to the next, the curve hardly rises.

        >>> Curve("0", (0, 1, 2), (0.0, 1.0, 1.0, 1.0)).scaled({1: 1.0, 3: 4.0}).rises
        (0.0, 1.0, 2.5, 4.0)
        """
        if not measured:
            return self
        rises, last = [0.0], max(measured)
        for start, end in itertools.pairwise([0, *sorted(measured)]):
            rises += _stretched(self.rises[start : end + 1], rises[-1], measured[end])
        ratio = rises[last] / self.rises[last] if self.rises[last] > 0 else 1.0
        rises += [rises[last] + ratio * (rise - self.rises[last]) for rise in self.rises[last + 1 :]]
        return replace(self, rises=tuple(rises), of_loss=True)

    def first(self, removals: int) -> Curve:
        """Return the beginning of the curve."""
        return replace(self, order=self.order[:removals], rises=self.rises[: removals + 1])


def _stretched(predicted: Sequence[float], low: float, high: float) -> list[float]:
    """Return all but the first of predicted rises, stretched to what was measured at both ends."""
    first, span, steps = predicted[0], predicted[-1] - predicted[0], len(predicted) - 1
    rise = max(high - low, LEAST * span) if math.isfinite(high) else MOST * span
    shares = ((r - first) / span for r in predicted[1:]) if span > 0 else (n / steps for n in range(1, steps + 1))
    return [low + rise * share for share in shares]


def allot(curves: Sequence[Curve], sizes: Mapping[str, int], worth: Worth) -> Iterator[tuple[str, int, float]]:
    """Yield all removals in the order in which they go: the set, the unit, the predicted rise of the loss by it.

    Args:
        curves: One for each set that may lose units.
        sizes: The units of each set before any removal.
        worth: What the budget gains by one more unit of each set; asked anew after each stretch of a hull, since it
            depends on the units left. A set that gains nothing goes last.
    """
    left = dict(sizes)
    waiting = {curve.set: (curve, corners) for curve in curves if len(corners := curve.hull()) > 1}
    while waiting:
        gains = worth(left)
        name = min(waiting, key=lambda name: _price(*waiting[name], gains[name]))
        curve, (start, end, *_) = waiting[name]
        for n in range(start, end):
            yield name, curve.order[n], curve.rises[n + 1] - curve.rises[n]
        left[name] -= end - start
        del waiting[name][1][0]
        if end == len(curve.order):
            del waiting[name]


def _price(curve: Curve, corners: list[int], gain: float) -> tuple[float, float]:
    """Return what the next stretch costs for what it gains; of those that gain nothing, what it costs."""
    slope = curve.slope(*corners[:2])
    return (slope / gain, 0.0) if gain > 0 else (math.inf, slope)
