"""The path of one unit set: its units go one after the other, and the layers that sum them up make up for each."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

from torch import Tensor

from secateur.compensation.elimination import Elimination, Summation
from secateur.compensation.row_elimination import RowElimination, RowSummation
from secateur.process_state import one_thread


class Point(NamedTuple):
    """A point of the path.

    Attributes:
        unit: The unit that went last.
        cost: What its removal adds to the objective of all layers together.
        weights: Of each layer, which rows of W are left and W there; None where they were not asked for.
    """

    unit: int
    cost: float
    weights: list[tuple[Tensor, Tensor]] | None


def removal_path(
    layers: Sequence[Summation | RowSummation],
    removals: int,
    points: Collection[int] = (),
    order: Sequence[int] | None = None,
) -> Iterator[Point]:
    """Yield one removal after the other, the cheapest next; a function of layers and settings alone.

    Args:
        layers: All that sum the units of one set up.
        removals: How many units go.
        points: Numbers of removals after which the weights are asked for.
        order: The units in their order, where that is known before.
    """
    eliminations = [_elimination(layer) for layer in layers]
    del layers  # and with them, where nobody else has them, matrices as large as those of the eliminations
    for n in range(removals):
        with one_thread():
            costs = sum((elimination.costs() for elimination in eliminations[1:]), eliminations[0].costs())
            unit = int(costs.argmin()) if order is None else order[n]
            for elimination in eliminations:
                elimination.remove(unit)
        for elimination in eliminations:
            elimination.settle()
        weights = [elimination.weight() for elimination in eliminations] if n + 1 in points else None
        yield Point(unit, max(costs[unit].item(), 0.0), weights)


def _elimination(layer: Summation | RowSummation) -> Elimination | RowElimination:
    return Elimination(layer) if isinstance(layer, Summation) else RowElimination(layer)
