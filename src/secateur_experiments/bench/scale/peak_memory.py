"""How much memory some work takes at most."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

import psutil

Result = TypeVar("Result")
EVERY = 0.02  # seconds between two looks


def with_peak(work: Callable[[], Result]) -> tuple[Result, int]:
    """Return what some work returns, and the most bytes that the process held meanwhile above those before."""
    process, done = psutil.Process(), threading.Event()
    before = process.memory_info().rss
    seen = [before]

    def watch() -> None:
        while not done.wait(EVERY):
            seen.append(max(seen.pop(), process.memory_info().rss))

    thread = threading.Thread(target=watch, daemon=True, name="peak memory")
    thread.start()
    try:
        result = work()
    finally:
        done.set()
        thread.join()
    return result, max(*seen, process.memory_info().rss) - before
