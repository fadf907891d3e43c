"""Budgets: what must hold of a network after units are removed."""

from __future__ import annotations

import functools
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatchcase
from typing import Any, ClassVar, Literal

from secateur.errors import ArgumentError, BudgetError
from secateur.planning.state import State, Step
from secateur.text import format_bytes, parse_bytes


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Bounds that must hold at the end; the shortest prefix of a plan that satisfies them is taken.

    Sizes and losses are upper bounds, `remove_*` lower bounds. With a size or a minimum, the fewest units go that
    satisfy all bounds; with only `max_loss_increase` or `max_*_drop`, as many as they allow.

    Attributes:
        bytes: The size of the written safetensors file: an int, or "200 kB", "64 KiB", "1.5 MB".
        params: The number of parameters left.
        macs: The multiplications with addition that are left for one sample.
        remove_fraction: The share f of all K units that goes: ⌈f · K⌉ of them, whatever their kinds. Or shares by unit
            set, ``{"layer3.*": 0.5, "*": 0.2}``: ⌈f · size⌉ of each set go, by the first name that matches, and none
            where none does.
        remove_units: The number of units that go.
        max_loss_increase: The absolute rise of the loss.
        max_accuracy_drop: The fall of the accuracy, as a fraction: 0.01 is one point.
        max_metric_drop: The fall of what ``metric=`` of `shrink` and `rank` gives: higher is better, and where lower is
            (perplexity), the function returns its negative.
        scope: "global"; "set": `remove_fraction` then counts for each unit set, ⌈f · size⌉; or "uniform": sets whose
            names differ in the number of a layer alone lose equally many units, each its own.
        multiple_of: What is left of a set that loses units is a multiple of this number; or numbers by unit set,
            ``{"*.conv*": 8, "*": 1}``, by the first name that matches.
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
    macs: int | None = None
    remove_fraction: float | Mapping[str, float] | None = None
    remove_units: int | None = None
    max_loss_increase: float | None = None
    max_accuracy_drop: float | None = None
    max_metric_drop: float | None = None
    scope: Literal["global", "set", "uniform"] = "global"
    multiple_of: int | Mapping[str, int] = 1
    min_units: int = 1
    protect: str | tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.bytes is not None:
            object.__setattr__(self, "bytes", parse_bytes(self.bytes))
        names = (self.protect,) if isinstance(self.protect, str) else self.protect
        if not isinstance(names, tuple | list) or not all(isinstance(name, str) for name in names):
            raise ArgumentError(f"Budget: protect must be names of unit sets, got {self.protect!r}")
        object.__setattr__(self, "protect", tuple(names))
        self._check_whole("bytes", "params", "macs", "remove_units", "min_units")
        if isinstance(self.remove_fraction, Mapping):
            object.__setattr__(self, "scope", "set" if self.scope == "global" else self.scope)
        self._check(1.0, "from 0 to 1", "remove_fraction", "max_accuracy_drop")
        self._check(math.inf, "at least 0", "max_loss_increase", "max_metric_drop")
        if not self.min_units:
            raise ArgumentError(f"Budget: min_units must be at least 1, got {self.min_units}")
        self._check_sets()
        if not self._asked(*self._SIZES, *self._QUALITY):
            raise ArgumentError(f"Budget: give at least one of {', '.join((*self._SIZES, *self._QUALITY))}")

    def _check_sets(self) -> None:
        for multiple in self._numbers("multiple_of"):
            if not isinstance(multiple, int) or isinstance(multiple, bool) or multiple < 1:
                raise ArgumentError(f"Budget: multiple_of must be a whole number from 1, got {multiple!r}")
        if self.scope not in ("global", "set", "uniform"):
            raise ArgumentError(f"Budget: scope must be 'global', 'set' or 'uniform', got {self.scope!r}")
        if self.scope == "uniform" and isinstance(self.remove_fraction, Mapping):
            raise ArgumentError("Budget: remove_fraction by unit set goes with scope='set'")
        if self.scope == "set" and self.remove_fraction is None:
            raise ArgumentError("Budget: scope='set' goes with remove_fraction, the share of each unit set")

    _SIZES = ("bytes", "params", "macs", "remove_fraction", "remove_units")
    _QUALITY: ClassVar = {
        "max_loss_increase": ("loss", -1), "max_accuracy_drop": ("accuracy", 1), "max_metric_drop": ("metric", 1)
    }  # fmt: skip

    def _numbers(self, name: str) -> list[Any]:
        """Return a number, or all that are given by the names of unit sets.

        Raises:
            ArgumentError: They may not be given so, or are given by nothing.
        """
        value = getattr(self, name)
        if not isinstance(value, Mapping):
            return [value]
        if name not in ("remove_fraction", "multiple_of"):
            raise ArgumentError(f"Budget: {name} must be a number, got {value!r}")
        if not value or not all(isinstance(pattern, str) for pattern in value):
            raise ArgumentError(f"Budget: {name} must be a number, or numbers by the names of unit sets, got {value!r}")
        return list(value.values())

    def _check(self, highest: float, span: str, *names: str) -> None:
        for name, value in [(bound, value) for bound in names for value in self._numbers(bound)]:
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
            ArgumentError: A protected name, or a name that a share or a multiple is for, matches no unit set.
        """
        for what in ("protect", "remove_fraction", "multiple_of"):
            patterns = getattr(self, what)
            for pattern in patterns if isinstance(patterns, tuple | Mapping) else ():
                if not any(_matches(name, pattern) for name in sizes):
                    raise ArgumentError(f"Budget: {what}={pattern!r} is no unit set; there are: {', '.join(sizes)}")
        limits = {name: self._removable(name, size, (least or {}).get(name, 1)) for name, size in sizes.items()}
        groups = self._groups(sizes)
        return {name: min(limits[other] for other in groups[name]) for name in sizes}

    def _removable(self, name: str, size: int, least: int) -> int:
        """Return how many units a set may lose: down to a multiple, which is above what must stay."""
        if any(_matches(name, pattern) for pattern in self.protect):
            return 0
        multiple, fewest = self._multiple(name), max(self.min_units, least)
        fewest = -(-fewest // multiple) * multiple
        if self.scope == "set":
            fewest = max(fewest, (size - self._quota(name, size)) // multiple * multiple)
        return max(size - fewest, 0) if self._quota(name, size) else 0

    def _quota(self, name: str, size: int) -> int:
        fraction: float | None = _first(self.remove_fraction, name, 0.0)
        return _share(fraction or 0.0, size) if self.scope == "set" else size

    def _multiple(self, name: str) -> int:
        return int(_first(self.multiple_of, name, 1))

    def _groups(self, sizes: Mapping[str, int]) -> dict[str, list[str]]:
        """Return for each set those that lose as many units as it does, itself among them."""
        if self.scope != "uniform":
            return {name: [name] for name in sizes}
        return _alike(tuple(sizes.items()))

    def blocks(self, sizes: Mapping[str, int]) -> dict[str, tuple[list[str], int]] | None:
        """Return for each set those that lose units with it, and the number of which multiples stay; None without."""
        if self.scope != "uniform" and self.multiple_of == 1:
            return None
        return {name: (group, self._multiple(name)) for name, group in self._groups(sizes).items()}

    def goes_next(self, gone: Mapping[str, int], sizes: Mapping[str, int]) -> str | None:
        """Return a set that must lose a unit now, for what is left to be of the sizes asked for; None where it is."""
        for name, (group, multiple) in (self.blocks(sizes) or {}).items():
            most = max(gone.get(other, 0) for other in group)
            if gone.get(name, 0) < most or (gone.get(name, 0) and (sizes[name] - gone[name]) % multiple):
                return name
        return None

    def ends(self, steps: Sequence[Step], sizes: Mapping[str, int]) -> list[int]:
        """Return after how many removals an order may end, none among them."""
        gone, ends = Counter[str](), [0]
        for n, step in enumerate(steps, 1):
            gone[step.set] += 1
            if self.goes_next(gone, sizes) is None:
                ends.append(n)
        return ends

    @property
    def bounds_quality(self) -> bool:
        """Whether the loss, the accuracy or the metric is bounded."""
        return bool(self._asked(*self._QUALITY))

    @property
    def least(self) -> bool:
        """Whether as few units as possible go, for a size or a minimum; if not, as many as the quality allows."""
        return bool(self._asked(*self._SIZES))

    def without_quality(self) -> Budget:
        """Return the bounds of sizes alone."""
        return replace(self, max_loss_increase=None, max_accuracy_drop=None, max_metric_drop=None)

    def holds(self, start: State, state: State, gone: Mapping[str, int], sizes: Mapping[str, int]) -> bool:
        """Return whether all bounds hold at one point of an order.

        Args:
            start: The network before any removal.
            state: The network at that point.
            gone: How many units each set has lost there.
            sizes: How many units each set had.
        """
        measured = self.removed_enough(gone, sizes) and self.small_enough(state) and self.good_enough(start, state)
        return measured and self.goes_next(gone, sizes) is None

    def small_enough(self, state: State) -> bool:
        """Return whether bytes, parameters and multiplications are within their bounds."""
        bounds = ((state.bytes, self.bytes), (state.params, self.params), (state.macs, self.macs))
        return all(size <= _bound(bound) for size, bound in bounds)

    def removed_enough(self, gone: Mapping[str, int], sizes: Mapping[str, int]) -> bool:
        """Return whether as many units are gone, of each set or of all, as have to go."""
        if self.scope == "set" and any(gone.get(name, 0) < quota for name, quota in self.removable(sizes).items()):
            return False
        return sum(gone.values()) >= self.fewest(sum(sizes.values()))

    def fewest(self, total: int) -> int:
        """Return how many units of so many have to go at least, whatever their sets."""
        fraction = None if isinstance(self.remove_fraction, Mapping) or self.scope == "set" else self.remove_fraction
        return max(_share(fraction or 0.0, total), self.remove_units or 0)

    def good_enough(self, start: State, state: State) -> bool:
        """Return whether the quality has fallen no more since the start than is allowed; no where it is not known."""
        return all(
            (now := getattr(state, what)) is not None and sign * (getattr(start, what) - now) <= bound + _ROUNDING
            for name, (what, sign) in self._QUALITY.items()
            if (bound := getattr(self, name)) is not None
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
            ArgumentError: What it bounds is None.
        """
        for name, (what, _) in self._QUALITY.items():
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
            f"({format_bytes(state.bytes)})" + (f", {state.macs:,} MACs" if self.macs is not None else "")
        )


_ROUNDING = 1e-12  # a drop of exactly one point is allowed by 0.01
_NUMBER = re.compile(r"(?<![\w\[])\d+(?![\w\]])")  # of a layer: in a name "layers.0.fc1[2]" the 0


@functools.lru_cache(maxsize=8)  # it is asked after each removal
def _alike(sizes: tuple[tuple[str, int], ...]) -> dict[str, list[str]]:
    """Return for each set those of its size whose names differ in the number of a layer alone."""
    groups: dict[tuple[str, int], list[str]] = {}
    for name, size in sizes:
        groups.setdefault((_NUMBER.sub("#", name), size), []).append(name)
    return {name: group for group in groups.values() for name in group}


def _first(value: Any, name: str, default: Any) -> Any:
    """Return a value, or the first that is given for a name."""
    if not isinstance(value, Mapping):
        return value
    return next((part for pattern, part in value.items() if _matches(name, pattern)), default)


def _matches(name: str, pattern: str) -> bool:
    return name == pattern or fnmatchcase(name, pattern)  # names may hold brackets


def _share(fraction: float, size: int) -> int:
    return math.ceil(fraction * size - 1e-9)  # 0.1 · 30 is 3, and not a little more


def _bound(limit: int | str | None) -> float:
    return math.inf if limit is None else float(limit)
