"""Budgets: what must hold of a network after units are removed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatchcase
from typing import Literal

from secateur.errors import ArgumentError, BudgetError
from secateur.planning.state import State, Step
from secateur.text import format_bytes, parse_bytes


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Bounds that must hold at the end; the shortest prefix of a plan that satisfies them is taken.

    Sizes and losses are upper bounds, `remove_*` lower bounds. With a size or a minimum, the fewest units go that
    satisfy all bounds; with only `max_loss_increase` or `max_accuracy_drop`, as many as they allow.

    Attributes:
        bytes: The size of the written safetensors file: an int, or "200 kB", "64 KiB", "1.5 MB".
        params: The number of parameters left.
        remove_fraction: The share f of all K units that goes: ⌈f · K⌉ of them, whatever their kinds.
        remove_units: The number of units that go.
        max_loss_increase: The absolute rise of the loss.
        max_accuracy_drop: The fall of the accuracy, as a fraction: 0.01 is one point.
        scope: "global", or "set": `remove_fraction` then counts for each unit set, ⌈f · size⌉.
        min_units: The number of units that every set keeps.
        protect: The names of unit sets that keep all units; ``*`` and ``?`` match as in file names.

    Raises:
        ArgumentError: A value is outside its range, or nothing is asked for.

    >>> Budget(bytes="64 KiB").bytes
    65536
    >>> Budget(remove_fraction=1.5)
    Traceback (most recent call last):
    secateur.errors.ArgumentError: Budget: remove_fraction must be from 0 to 1, got 1.5
    """

    bytes: int | str | None = None
    params: int | None = None
    remove_fraction: float | None = None
    remove_units: int | None = None
    max_loss_increase: float | None = None
    max_accuracy_drop: float | None = None
    scope: Literal["global", "set"] = "global"
    min_units: int = 1
    protect: str | tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.bytes is not None:
            object.__setattr__(self, "bytes", parse_bytes(self.bytes))
        names = (self.protect,) if isinstance(self.protect, str) else self.protect
        if not isinstance(names, tuple | list) or not all(isinstance(name, str) for name in names):
            raise ArgumentError(f"Budget: protect must be names of unit sets, got {self.protect!r}")
        object.__setattr__(self, "protect", tuple(names))
        self._check_whole("bytes", "params", "remove_units", "min_units")
        for name in ("remove_fraction", "max_accuracy_drop"):
            self._check(name, 1.0, "from 0 to 1")
        self._check("max_loss_increase", math.inf, "at least 0")
        if not self.min_units:
            raise ArgumentError(f"Budget: min_units must be at least 1, got {self.min_units}")
        if self.scope not in ("global", "set"):
            raise ArgumentError(f"Budget: scope must be 'global' or 'set', got {self.scope!r}")
        if self.scope == "set" and self.remove_fraction is None:
            raise ArgumentError("Budget: scope='set' goes with remove_fraction, the share of each unit set")
        if not self._asked(*self._SIZES, *self._QUALITY):
            raise ArgumentError(f"Budget: give at least one of {', '.join(self._SIZES + self._QUALITY)}")

    _SIZES = ("bytes", "params", "remove_fraction", "remove_units")
    _QUALITY = ("max_loss_increase", "max_accuracy_drop")

    def _check(self, name: str, highest: float, span: str) -> None:
        value = getattr(self, name)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is not None and not (number and 0 <= value <= highest):
            raise ArgumentError(f"Budget: {name} must be {span}, got {value!r}")

    def _check_whole(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            required = value is not None or name == "min_units"
            if required and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
                raise ArgumentError(f"Budget: {name} must be a whole number from 0, got {value!r}")

    def _asked(self, *names: str) -> dict[str, float]:
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def __str__(self) -> str:
        changed = (f for f in fields(self) if getattr(self, f.name) != f.default)
        return f"Budget({', '.join(f'{f.name}={getattr(self, f.name)!r}' for f in changed)})"

    def removable(self, sizes: Mapping[str, int], least: Mapping[str, int] | None = None) -> dict[str, int]:
        """Return how many units each set may lose.

        Args:
            sizes: The number of units of each set.
            least: The number of units that must stay, where the network needs more than one.

        Raises:
            ArgumentError: A protected name matches no unit set.
        """
        for pattern in self.protect:
            if not any(_matches(name, pattern) for name in sizes):
                raise ArgumentError(f"Budget: protect={pattern!r} is no unit set; there are: {', '.join(sizes)}")
        limits = {name: self._removable(name, size, (least or {}).get(name, 1)) for name, size in sizes.items()}
        return {name: min(limits[name], self._quota(size)) for name, size in sizes.items()}

    def _removable(self, name: str, size: int, least: int) -> int:
        protected = any(_matches(name, pattern) for pattern in self.protect)
        return 0 if protected else max(size - max(self.min_units, least), 0)

    def _quota(self, size: int) -> int:
        return _share(self.remove_fraction or 0.0, size) if self.scope == "set" else size

    @property
    def bounds_quality(self) -> bool:
        """Whether the loss or the accuracy is bounded."""
        return bool(self._asked(*self._QUALITY))

    @property
    def least(self) -> bool:
        """Whether as few units as possible go, for a size or a minimum; if not, as many as the quality allows."""
        return bool(self._asked(*self._SIZES))

    def without_quality(self) -> Budget:
        """Return the bounds of sizes alone."""
        return replace(self, max_loss_increase=None, max_accuracy_drop=None)

    def holds(self, start: State, state: State, gone: Mapping[str, int], sizes: Mapping[str, int]) -> bool:
        """Return whether all bounds hold at one point of an order.

        Args:
            start: The network before any removal.
            state: The network at that point.
            gone: How many units each set has lost there.
            sizes: How many units each set had.
        """
        return self.removed_enough(gone, sizes) and self.small_enough(state) and self.good_enough(start, state)

    def small_enough(self, state: State) -> bool:
        """Return whether bytes and parameters are within their bounds."""
        return state.bytes <= _bound(self.bytes) and state.params <= _bound(self.params)

    def removed_enough(self, gone: Mapping[str, int], sizes: Mapping[str, int]) -> bool:
        """Return whether as many units are gone, of each set or of all, as have to go."""
        if self.scope == "set" and any(gone.get(name, 0) < quota for name, quota in self.removable(sizes).items()):
            return False
        return sum(gone.values()) >= self.fewest(sum(sizes.values()))

    def fewest(self, total: int) -> int:
        """Return how many units of so many have to go at least, whatever their sets."""
        share = _share(self.remove_fraction or 0.0, total) if self.scope == "global" else 0
        return max(share, self.remove_units or 0)

    def good_enough(self, start: State, state: State) -> bool:
        """Return whether loss and accuracy have changed no more since the start than is allowed.

        Where they were not measured nobody knows, and the answer is no.
        """
        bounds = (("loss", -1, self.max_loss_increase), ("accuracy", 1, self.max_accuracy_drop))
        return all(
            (now := getattr(state, name)) is not None and sign * (getattr(start, name) - now) <= bound + _ROUNDING
            for name, sign, bound in bounds
            if bound is not None
        )

    def position(self, states: Sequence[State], sizes: Mapping[str, int]) -> int:
        """Return after how many removals of an order this budget is satisfied.

        Args:
            states: The network after 0, 1, 2 ... removals.
            sizes: How many units each set had.

        Raises:
            ArgumentError: The order lacks what the budget is about, or removes what it protects.
            BudgetError: It is satisfied nowhere; the message says how far one can get.
        """
        self._check_fits(states, sizes)
        gone: Counter[str] = Counter()
        good = []
        for n, state in enumerate(states):
            gone.update([state.set] if isinstance(state, Step) else [])
            if self.holds(states[0], state, gone, sizes):
                good.append(n)
        if good:
            return good[0] if self.least else good[-1]
        furthest = [n for n, state in enumerate(states) if self.good_enough(states[0], state)][-1]
        raise self.unmet(furthest, sum(sizes.values()), states[furthest])

    def check_measured(self, state: State) -> None:
        """Refuse a budget of quality where it was not measured.

        Raises:
            ArgumentError: The loss or the accuracy that it bounds is None.
        """
        for name, what in (("max_loss_increase", "loss"), ("max_accuracy_drop", "accuracy")):
            if getattr(self, name) is not None and getattr(state, what) is None:
                raise ArgumentError(f"Budget: {name} needs the {what} after each step, and it was not measured")

    def check_resolution(self, predictions: int) -> None:
        """Refuse a fall of the accuracy that so few predictions cannot tell.

        Raises:
            BudgetError: One prediction more or less is more than the fall allowed.
        """
        drop = self.max_accuracy_drop
        if drop and predictions and drop * predictions < 1 - _ROUNDING:
            raise BudgetError(
                f"Budget: max_accuracy_drop={drop:g} cannot be told on {predictions:,} predictions, of which each is "
                f"{1 / predictions:.2g}; measure on {math.ceil(1 / drop - _ROUNDING):,} or more, or allow more"
            )

    def _check_fits(self, states: Sequence[State], sizes: Mapping[str, int]) -> None:
        self.check_measured(states[0])
        allowed = self.removable(sizes)
        for name, gone in Counter(state.set for state in states if isinstance(state, Step)).items():
            if gone > allowed[name]:
                raise ArgumentError(
                    f"the plan removes {gone} of {sizes[name]} units of {name!r}, {self} allows {allowed[name]}; "
                    "make the plan with rank(..., budget=budget)"
                )

    def unmet(self, removed: int, total: int, state: State) -> BudgetError:
        """Return the error that says how far one can get: how many units can go, and what that leaves."""
        quality = self._asked(*self._QUALITY)
        within = " within " + " and ".join(f"{name}={value:g}" for name, value in quality.items()) if quality else ""
        return BudgetError(
            f"{self} cannot be met: at most {removed} of {total} units can be removed{within}, "
            f"which leaves {state.params:,} parameters and a file of {state.bytes:,} bytes "
            f"({format_bytes(state.bytes)})"
        )


_ROUNDING = 1e-12  # a drop of exactly one point is allowed by 0.01


def _matches(name: str, pattern: str) -> bool:
    return name == pattern or fnmatchcase(name, pattern)  # names may hold brackets


def _share(fraction: float, size: int) -> int:
    return math.ceil(fraction * size - 1e-9)  # 0.1 · 30 is 3, and not a little more


def _bound(limit: int | str | None) -> float:
    return math.inf if limit is None else float(limit)
