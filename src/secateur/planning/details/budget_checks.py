"""What a budget's numbers may be."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from secateur.errors import ArgumentError

if TYPE_CHECKING:
    from secateur.planning.budget import Budget

BY_SET = ("remove_fraction", "multiple_of")  # may be numbers by the names of unit sets
WHOLE = ("bytes", "params", "macs", "ram", "kv_cache", "remove_units", "min_units")
SPANS = {
    "remove_fraction": (1.0, "from 0 to 1"),
    "max_accuracy_drop": (1.0, "from 0 to 1"),
    "max_loss_increase": (math.inf, "at least 0"),
    "max_metric_drop": (math.inf, "at least 0"),
    "latency_ms": (math.inf, "at least 0"),
}


def check_numbers(budget: Budget) -> None:
    """Refuse a budget whose numbers are outside their ranges, or do not go together.

    Raises:
        ArgumentError: One of them is.
    """
    for name in WHOLE:
        _check_whole(name, getattr(budget, name), required=name == "min_units")
    for name, (highest, span) in SPANS.items():
        for value in _numbers(name, getattr(budget, name)):
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if value is not None and not (number and 0 <= value <= highest):
                raise ArgumentError(f"Budget: {name} must be {span}, got {value!r}")
    if not budget.min_units:
        raise ArgumentError(f"Budget: min_units must be at least 1, got {budget.min_units}")
    for multiple in _numbers("multiple_of", budget.multiple_of):
        if not isinstance(multiple, int) or isinstance(multiple, bool) or multiple < 1:
            raise ArgumentError(f"Budget: multiple_of must be a whole number from 1, got {multiple!r}")
    _check_together(budget)


def _check_together(budget: Budget) -> None:
    if budget.scope not in ("global", "set", "uniform"):
        raise ArgumentError(f"Budget: scope must be 'global', 'set' or 'uniform', got {budget.scope!r}")
    if budget.scope == "uniform" and isinstance(budget.remove_fraction, Mapping):
        raise ArgumentError("Budget: remove_fraction by unit set goes with scope='set'")
    if budget.scope == "set" and budget.remove_fraction is None:
        raise ArgumentError("Budget: scope='set' goes with remove_fraction, the share of each unit set")
    if budget.artifact != "safetensors" and budget.bytes is None:
        raise ArgumentError(f"Budget: artifact={budget.artifact!r} goes with bytes, the size of that file")


def _numbers(name: str, value: Any) -> list[Any]:
    """Return a number, or all that are given by the names of unit sets.

    Raises:
        ArgumentError: They may not be given so, or are given by nothing.
    """
    if not isinstance(value, Mapping):
        return [value]
    if name not in BY_SET:
        raise ArgumentError(f"Budget: {name} must be a number, got {value!r}")
    if not value or not all(isinstance(pattern, str) for pattern in value):
        raise ArgumentError(f"Budget: {name} must be a number, or numbers by the names of unit sets, got {value!r}")
    return list(value.values())


def _check_whole(name: str, value: Any, required: bool) -> None:
    if (value is not None or required) and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
        raise ArgumentError(f"Budget: {name} must be a whole number from 0, got {value!r}")
