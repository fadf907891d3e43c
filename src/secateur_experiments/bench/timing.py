"""Two sides timed in turns, and how times grow."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

from secateur.reporting.progress import progress_bar

Result = TypeVar("Result")


class Timed(NamedTuple):
    """Median seconds of both sides, and what each returned first."""

    slow_s: float
    fast_s: float
    slow: Any
    fast: Any


def seconds(work: Callable[[], Result]) -> tuple[float, Result]:
    """Tell how long it takes, and what it returns."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def in_turns(name: str, slow: Callable[[], Any], fast: Callable[[], Any], runs: int, progress: bool = True) -> Timed:
    """Run both sides so many times, one after the other: the machine's moods meet both."""
    with progress_bar(name, progress) as bar:
        pairs = [(bar(i, runs), seconds(slow), seconds(fast))[1:] for i in range(runs)]
    first, second = (statistics.median(pair[side][0] for pair in pairs) for side in (0, 1))
    return Timed(first, second, pairs[0][0][1], pairs[0][1][1])


def exponent(times: Mapping[int, float]) -> float:
    """Return the power of a size with which times grow: the slope of the least-squares line through their logarithms.

    >>> exponent({1: 0.5, 2: 2.0, 4: 8.0})
    2.0
    """
    x, y = ([math.log(value) for value in values] for values in (times, times.values()))
    return statistics.linear_regression(x, y).slope
