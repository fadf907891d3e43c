"""Two sides timed in turns, and the data that they are timed on."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from secateur.papers.data import Pair, mnist
from secateur.reporting.progress import progress_bar

Result = TypeVar("Result")


class Timed(NamedTuple):
    """Median seconds of both sides, and what each returned first."""

    slow_s: float
    fast_s: float
    slow: Any
    fast: Any


def seconds(work: Callable[[], Result]) -> tuple[float, Result]:
    """How long it takes, and what it returns."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def in_turns(name: str, slow: Callable[[], Any], fast: Callable[[], Any], runs: int, progress: bool = True) -> Timed:
    """Both sides so many times, one after the other, that the machine's moods meet both."""
    with progress_bar(name, progress) as bar:
        pairs = [(bar(i, runs), seconds(slow), seconds(fast))[1:] for i in range(runs)]
    first, second = (statistics.median(pair[side][0] for pair in pairs) for side in (0, 1))
    return Timed(first, second, pairs[0][0][1], pairs[0][1][1])


def images(shape: tuple[int, ...], n: int, dtype: torch.dtype, folder: Path | None, classes: int = 10) -> Pair:
    """MNIST's test digits where they have the size, else random pixels and targets."""
    if folder is not None and math.prod(shape) == 784 and classes == 10:
        x, y = mnist(folder).test
        return x[:n].reshape(-1, *shape).to(dtype), y[:n]
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(n, *shape, generator=generator, dtype=dtype)
    return x, torch.randint(classes, (n,), generator=generator)
