"""Curves of unit sets, and how a budget is shared among them: by the lower convex hulls of loss against size.

Each set has its own order of removals, with the predicted rise of the loss after each. Where sets are apart, the rises
add up, and the best sharing of any budget takes next the stretch of least slope among all hulls: the one whose rise is
least for what it frees.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

Worth = Callable[[Mapping[str, int]], Mapping[str, float]]  # what one more unit of each set frees, by the units left

LEAST, MOST = 0.01, 1000.0  # measured over predicted rise: what is outside is noise, or an accident


@dataclass(frozen=True)
class Curve:
    """The order of removals of one set, and the predicted rise of the loss after each.

    Attributes:
        set: The set's name.
        order: Indices of its units, as many as may go.
        rises: The rise after 0, 1, 2 ... removals; it starts at 0 and never falls.
    """

    set: str
    order: tuple[int, ...]
    rises: tuple[float, ...]

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

        In between, the ratio of measured to predicted rise changes geometrically.

        >>> Curve("0", (0, 1, 2), (0.0, 1.0, 1.0, 1.0)).scaled({1: 1.0, 3: 4.0}).rises
        (0.0, 1.0, 2.0, 4.0)
        """
        places = sorted(measured)
        ratios = [_ratio(measured[n], self.rises[n]) for n in places]
        rises = (_between(places, ratios, n) * rise for n, rise in enumerate(self.rises)) if places else self.rises
        return Curve(self.set, self.order, tuple(itertools.accumulate(rises, max)))

    def first(self, removals: int) -> Curve:
        """Return the beginning of the curve."""
        return Curve(self.set, self.order[:removals], self.rises[: removals + 1])


def _ratio(measured: float, predicted: float) -> float:
    if predicted <= 0 or math.isnan(measured):
        return 1.0
    return min(MOST, max(LEAST, measured / predicted))


def _between(places: Sequence[int], ratios: Sequence[float], n: int) -> float:
    """Return the ratio at n, by its logarithm's line between the places next to it."""
    i = bisect.bisect_left(places, n)
    if i == 0 or i == len(places):
        return ratios[min(i, len(places) - 1)]
    share = (n - places[i - 1]) / (places[i] - places[i - 1])
    return math.exp((1 - share) * math.log(ratios[i - 1]) + share * math.log(ratios[i]))


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
