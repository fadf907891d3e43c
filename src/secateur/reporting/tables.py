"""Tables of degradation curves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from secateur.text import table

TENTHS = range(1, 10)


def at_tenths(curves: Mapping[str, Mapping[str, Sequence[Any]]], what: str, total: int, title: str) -> str:
    """One row per curve, one column per tenth of the units removed.

    Args:
        curves: Name → lists `removed` (0, 1, 2 ...) and `what`.
        what: "loss" or "accuracy".
        total: Units there were.
        title: Above the table.

    >>> print(at_tenths({"a/single": {"loss": [0.0, 0.5, 1.0]}}, "loss", 2, "loss"))
    loss
    criterion/ranking   10 %   20 %   30 %   40 %   50 %   60 %   70 %   80 %   90 %
    a/single           0.500  0.500  0.500  0.500  0.500  1.000  1.000  1.000  1.000
    """
    rows = [
        (name, *(_number(curve[what], math.ceil(t * total / 10)) for t in TENTHS)) for name, curve in curves.items()
    ]
    return table(["criterion/ranking", *(f"{10 * t} %" for t in TENTHS)], rows, title)


def _number(values: Sequence[Any], removed: int) -> str:
    return f"{values[removed]:.3f}" if removed < len(values) and values[removed] is not None else "–"
