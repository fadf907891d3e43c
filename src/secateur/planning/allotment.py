"""The order of removals that curves and a budget make, without data or model: sizes and predicted losses alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from secateur.planning.budget import Budget
from secateur.planning.curves import Curve, Worth, allot
from secateur.planning.network_sizes import NetworkSizes
from secateur.planning.state import State, Step


@dataclass(frozen=True)
class Curves:
    """The curves of all sets and the sizes of the network: all that it takes to allot any budget.

    Attributes:
        sets: The curve of each set that may lose units.
        network: The sizes of the network for any units kept.
        priced: Whether the costs that a budget bounds count; if not, units do.
    """

    sets: tuple[Curve, ...]
    network: NetworkSizes
    priced: bool = True

    @property
    def whole(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """The indices of all units of each set."""
        return tuple((name, tuple(range(size))) for name, size in self.network.sets)

    def to_json(self) -> dict[str, Any]:
        """Return plain data; `from_json` reads it."""
        return {
            "sets": [asdict(curve) for curve in self.sets],
            "network": self.network.to_json(),
            "priced": self.priced,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Curves:
        """Return the curves that `to_json` wrote."""
        curves = (Curve(c["set"], tuple(c["order"]), tuple(c["rises"]), c["of_loss"]) for c in data["sets"])
        return cls(tuple(curves), NetworkSizes.from_json(data["network"]), bool(data.get("priced", True)))


def allotted_steps(curves: Curves, budget: Budget | None) -> tuple[Step, ...]:
    """Return all removals that a budget permits, those first that cost least for what the budget counts.

    Args:
        curves: The curves of all sets that may lose units, and the sizes of the network.
        budget: Says what counts, and how many units each set may lose; None to count units, down to one of each set.
    """
    network = curves.network
    sizes = dict(network.sets)
    limits = (budget or Budget(remove_units=0)).removable(sizes, dict(network.least))
    shortened = [curve.first(limits[curve.set]) for curve in curves.sets]
    removals = list(allot(shortened, sizes, (worth_of(network, budget) if curves.priced else None) or _alike))
    blocks = None if budget is None else budget.blocks(sizes)
    removals = removals if blocks is None else list(in_blocks(removals, sizes, blocks))
    numbers, of_loss = {name: n for n, name in enumerate(sizes)}, {curve.set for curve in curves.sets if curve.of_loss}
    along = network.along(
        torch.tensor([numbers[name] for name, _, _ in removals], dtype=torch.long),
        torch.tensor([index for _, index, _ in removals], dtype=torch.long),
    ).each()
    return tuple(
        Step(None, None, **costs, set=name, index=index, predicted=rise if name in of_loss else None)
        for costs, (name, index, rise) in zip(along[1:], removals, strict=True)
    )


def worth_of(network: NetworkSizes, budget: Budget | None) -> Worth | None:
    """Return what one more unit of each set gains: shares of what has to go, for each bound of a cost; None without."""
    whole, bounds = network.costs({}), {} if budget is None else budget.costs
    over = {cost: getattr(whole, cost) - bound for cost, bound in bounds.items() if getattr(whole, cost) > bound}
    if not over:
        return None

    def worth(left: Mapping[str, int]) -> dict[str, float]:
        gains = [(network.freed(left, cost, bounds[cost]), more) for cost, more in over.items()]
        return {name: sum(freed[name] / more for freed, more in gains) for name in left}

    return worth


def comparison(by_cost: float, alone: float) -> str:
    """Return in words how two orders came out.

    Args:
        by_cost: The loss at the end of the one by rise of the loss for what the budget counts.
        alone: The loss at the end of the one by rise of the loss alone.
    """
    way, other = (
        ("for what the budget counts", "alone") if by_cost <= alone else ("alone", "for what the budget counts")
    )
    low, high = sorted((by_cost, alone))
    return f"units go by the rise of the loss {way}, to {low:.4g}; by the rise {other} it would be {high:.4g}"


def _alike(left: Mapping[str, int]) -> dict[str, float]:
    """Return the same for each set: units count."""
    return dict.fromkeys(left, 1.0)


Removal = tuple[str, int, float]  # set, unit, rise of the loss


def in_blocks(
    removals: Sequence[Removal], sizes: Mapping[str, int], blocks: Mapping[str, tuple[list[str], int]]
) -> Iterator[Removal]:
    """Yield the removals, those that go together one after the other, at the place of the last of them.

    Args:
        removals: One after the other.
        sizes: The units of each set before any removal.
        blocks: For each set the sets that lose as many, and what the numbers left are multiples of.
    """
    left, waiting = dict(sizes), {name: list[Removal]() for name in sizes}
    for removal in removals:
        waiting[removal[0]].append(removal)
        group, multiple = blocks[removal[0]]
        block = left[group[0]] % multiple or multiple
        if all(len(waiting[name]) >= block for name in group):
            for name in group:
                yield from waiting[name][:block]
                del waiting[name][:block]
                left[name] -= block


def end_of(steps: Sequence[Step], start: State, budget: Budget, sizes: Mapping[str, int]) -> int:
    """Return after how many removals the budget's sizes hold.

    Raises:
        BudgetError: They hold nowhere; the message says how far one can get.
    """
    return budget.without_quality().position((start, *steps), sizes)
