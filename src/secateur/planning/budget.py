"""Budgets: what must hold of a network after units are removed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal

from secateur.errors import ArgumentError, BudgetError
from secateur.planning.details.budget_checks import check_numbers
from secateur.planning.details.file_formats import artifact_format
from secateur.planning.details.set_names import alike_sets, first, matches, set_names
from secateur.planning.state import State, Step
from secateur.text import format_bytes, parse_bytes


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Bounds that must hold at the end; the shortest prefix of a plan that satisfies them is taken.

    Sizes and losses are upper bounds, `remove_*` lower bounds. With a size or a minimum, the fewest units go that
    satisfy all bounds; with only `max_loss_increase` or `max_*_drop`, as many as they allow.

    Attributes:
        bytes: The size of the written file: an int, or "200 kB", "64 KiB", "1.5 MB".
        params: The number of parameters left.
        macs: The multiplications with addition that are left for one sample.
        ram: The bytes of the values alive at the same time, at most, for one sample; as `bytes`.
        kv_cache: The bytes that a decoder keeps of each earlier token; as `bytes`.
        latency_ms: The milliseconds that one sample takes, measured on this machine on the way: best effort, since no
            two measurements are alike, and such a plan may come out differently each time.
        remove_fraction: The share f of all K units that goes: ⌈f · K⌉ of them, whatever their kinds. Or shares by unit
            set, ``{"layer3.*": 0.5, "*": 0.2}``: ⌈f · size⌉ of each set go, by the first name that matches, and none
            where none does.
        remove_units: The number of units that go.
        max_loss_increase: The absolute rise of the loss.
        max_accuracy_drop: The fall of the accuracy, as a fraction: 0.01 is one point.
        max_metric_drop: The fall of what ``metric=`` of `shrink` and `rank` gives: higher is better, and where lower is
            (perplexity), the function returns its negative.
        artifact: The kind of file that `bytes` are of: "safetensors", "pt2", "onnx", "int8.onnx", "pte" or "int8.pte".
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
    ram: int | str | None = None
    kv_cache: int | str | None = None
    latency_ms: float | None = None
    remove_fraction: float | Mapping[str, float] | None = None
    remove_units: int | None = None
    max_loss_increase: float | None = None
    max_accuracy_drop: float | None = None
    max_metric_drop: float | None = None
    artifact: str = "safetensors"
    scope: Literal["global", "set", "uniform"] = "global"
    multiple_of: int | Mapping[str, int] = 1
    min_units: int = 1
    protect: str | tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("bytes", "ram", "kv_cache"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, parse_bytes(getattr(self, name), name))
        object.__setattr__(self, "protect", set_names("protect", self.protect))
        if isinstance(self.remove_fraction, Mapping) and self.scope == "global":
            object.__setattr__(self, "scope", "set")
        object.__setattr__(self, "artifact", artifact_format(self.artifact).suffix.removeprefix("."))
        check_numbers(self)
        if not self._asked(*self._SIZES, *self._QUALITY):
            raise ArgumentError(f"Budget: give at least one of {', '.join((*self._SIZES, *self._QUALITY))}")

    _COSTS = ("bytes", "params", "macs", "ram", "kv_cache")
    _SIZES = (*_COSTS, "latency_ms", "remove_fraction", "remove_units")
    _QUALITY: ClassVar = {
        "max_loss_increase": ("loss", -1), "max_accuracy_drop": ("accuracy", 1), "max_metric_drop": ("metric", 1)
    }  # fmt: skip

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
                if not any(matches(name, pattern) for name in sizes):
                    raise ArgumentError(f"Budget: {what}={pattern!r} is no unit set; there are: {', '.join(sizes)}")
        limits = {name: self._removable(name, size, (least or {}).get(name, 1)) for name, size in sizes.items()}
        groups = self._groups(sizes)
        return {name: min(limits[other] for other in groups[name]) for name in sizes}

    def _removable(self, name: str, size: int, least: int) -> int:
        """Return how many units a set may lose: down to a multiple, which is above what must stay."""
        if any(matches(name, pattern) for pattern in self.protect):
            return 0
        multiple, fewest = self._multiple(name), max(self.min_units, least)
        fewest = -(-fewest // multiple) * multiple
        if self.scope == "set":
            fewest = max(fewest, (size - self._quota(name, size)) // multiple * multiple)
        return max(size - fewest, 0) if self._quota(name, size) else 0

    def _quota(self, name: str, size: int) -> int:
        fraction: float | None = first(self.remove_fraction, name, 0.0)
        return _share(fraction or 0.0, size) if self.scope == "set" else size

    def _multiple(self, name: str) -> int:
        return int(first(self.multiple_of, name, 1))

    def _groups(self, sizes: Mapping[str, int]) -> dict[str, list[str]]:
        """Return for each set those that lose as many units as it does, itself among them."""
        if self.scope != "uniform":
            return {name: [name] for name in sizes}
        return alike_sets(tuple(sizes.items()))

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

    @property
    def costs(self) -> dict[str, int]:
        """The bounds of costs that are counted, by their names."""
        return {name: int(bound) for name, bound in self._asked(*self._COSTS).items()}

    def small_enough(self, costs: Any) -> bool:
        """Return whether a state's bytes, parameters, multiplications and memory are within their bounds."""
        return all(getattr(costs, name) <= bound for name, bound in self.costs.items())

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
            f"({format_bytes(state.bytes)})"
            + "".join(f", {getattr(state, name):,} {what}" for name, what in _MORE.items() if name in self.costs)
        )


_MORE = {"macs": "MACs", "ram": "bytes of activations", "kv_cache": "bytes kept of each token"}
_ROUNDING = 1e-12  # a drop of exactly one point is allowed by 0.01


def _share(fraction: float, size: int) -> int:
    return math.ceil(fraction * size - 1e-9)  # 0.1 · 30 is 3, and not a little more
