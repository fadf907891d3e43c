"""Curves of unit sets, and how a budget is shared among them: by the lower convex hulls of loss against size.

Each set has its own order of removals, with the predicted rise of the loss after each. Where sets are apart, the rises
add up, and the best sharing of any budget takes next the stretch of least slope among all hulls: the stretch whose rise
is least for what it frees.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

Worth = Callable[[Mapping[str, int]], Mapping[str, float]]  # what one more unit of each set frees, by the units left


@dataclass(frozen=True)
class Curve:
    """The order of removals of one set, and the predicted rise of the loss after 0, 1, 2 ... of them.

    Attributes:
        set: The set's name.
        order: Indices of its units, as many as may go.
        rises: The rise after each number of removals, from 0; it never falls.
    """

    set: str
    order: tuple[int, ...]
    rises: tuple[float, ...]

    def hull(self) -> list[int]:
        """Return the numbers of removals at the corners of the lower convex hull, from 0 to all.

        >>> Curve("0", (2, 0, 1), (0.0, 3.0, 4.0, 9.0)).hull()
        [0, 2, 3]
        """
        corners: list[int] = []
        for n, rise in enumerate(self.rises):
            while len(corners) > 1 and self._slope(corners[-2], corners[-1]) >= (rise - self.rises[corners[-1]]) / (
                n - corners[-1]
            ):
                corners.pop()
            corners.append(n)
        return corners

    def _slope(self, start: int, end: int) -> float:
        return (self.rises[end] - self.rises[start]) / (end - start)


def allot(curves: Sequence[Curve], sizes: Mapping[str, int], worth: Worth) -> Iterator[tuple[Curve, int, int]]:
    """Yield stretches of the curves in the order in which they go: a curve, and from which removal to which.

    Args:
        curves: One for each set that may lose units.
        sizes: The units of each set before any removal.
        worth: What the budget gains by one more unit of each set; asked anew after each stretch, since it depends on
            the units left. A set that gains nothing goes last.
    """
    left = dict(sizes)
    waiting = {curve.set: (curve, corners) for curve in curves if len(corners := curve.hull()) > 1}
    while waiting:
        gains = worth(left)
        name = min(waiting, key=lambda name: _price(*waiting[name], gains.get(name, 0.0)))
        curve, corners = waiting[name]
        start, end = corners[:2]
        yield curve, start, end
        left[name] -= end - start
        del corners[0]
        if len(corners) < 2:
            del waiting[name]


def _price(curve: Curve, corners: list[int], gain: float) -> tuple[float, float]:
    rise = (curve.rises[corners[1]] - curve.rises[corners[0]]) / (corners[1] - corners[0])
    return (rise / gain, 0.0) if gain > 0 else (math.inf, rise)
