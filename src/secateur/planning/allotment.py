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
    """

    sets: tuple[Curve, ...]
    network: NetworkSizes

    @property
    def whole(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """The indices of all units of each set."""
        return tuple((name, tuple(range(size))) for name, size in self.network.sets)

    def to_json(self) -> dict[str, Any]:
        """Return plain data; `from_json` reads it."""
        return {"sets": [asdict(curve) for curve in self.sets], "network": self.network.to_json()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Curves:
        """Return the curves that `to_json` wrote."""
        curves = (Curve(c["set"], tuple(c["order"]), tuple(c["rises"]), c["of_loss"]) for c in data["sets"])
        return cls(tuple(curves), NetworkSizes.from_json(data["network"]))


def allotted_steps(curves: Sequence[Curve], network: NetworkSizes, budget: Budget | None) -> tuple[Step, ...]:
    """Return all removals that a budget permits, those first that cost least for what the budget counts.

    Args:
        curves: The curves of all sets that may lose units.
        network: The sizes of the network for any units kept.
        budget: Says what counts, and how many units each set may lose; None to count units, down to one of each set.
    """
    sizes = dict(network.sets)
    limits = (budget or Budget(remove_units=0)).removable(sizes, dict(network.least))
    shortened = [curve.first(limits[curve.set]) for curve in curves]
    removals = list(allot(shortened, sizes, _worth(network, budget)))
    blocks = None if budget is None else budget.blocks(sizes)
    removals = removals if blocks is None else list(in_blocks(removals, sizes, blocks))
    numbers, of_loss = {name: n for n, name in enumerate(sizes)}, {curve.set for curve in curves if curve.of_loss}
    along = network.along(
        torch.tensor([numbers[name] for name, _, _ in removals], dtype=torch.long),
        torch.tensor([index for _, index, _ in removals], dtype=torch.long),
    )
    params, written, macs = (values.tolist() for values in along)
    return tuple(
        Step(None, None, params[n], written[n], macs[n], name, index, rise if name in of_loss else None)
        for n, (name, index, rise) in enumerate(removals, 1)
    )


def _worth(network: NetworkSizes, budget: Budget | None) -> Worth:
    """Return what one more unit of each set gains: shares of what has to go, for each bound of a size."""
    budget = budget or Budget(remove_units=0)
    bounds = (
        (network.freed, _excess(budget.bytes, network.file_bytes({}))),
        (network.params_freed, _excess(budget.params, network.params({}))),
        (network.macs_freed, _excess(budget.macs, network.macs({}))),
    )
    asked = [(freed, excess) for freed, excess in bounds if excess]
    if not asked:
        return lambda left: dict.fromkeys(left, 1.0)

    def worth(left: Mapping[str, int]) -> dict[str, float]:
        gains = [(freed(left), more) for freed, more in asked]
        return {name: sum(freed[name] / more for freed, more in gains) for name in left}

    return worth


def _excess(bound: int | str | None, size: int) -> int:
    return max(0, size - int(bound)) if bound is not None else 0


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
