"""The most memory that some work takes."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from secateur_experiments.bench.scale.peak_memory import with_peak

SIZE = 200_000_000


def test_the_peak_is_above_what_was_held_before():
    def work():
        held = torch.ones(SIZE, dtype=torch.uint8)
        time.sleep(1)  # long enough for a look at it
        return len(held)

    result, peak = with_peak(work)
    assert result == SIZE
    assert 0.9 * SIZE <= peak < 2 * SIZE


def test_what_is_held_at_the_end_counts_too():
    result, peak = with_peak(lambda: torch.ones(SIZE, dtype=torch.uint8))
    assert len(result) == SIZE
    assert 0.9 * SIZE <= peak < 2 * SIZE


def test_an_error_of_the_work_comes_through_and_nobody_goes_on_looking():
    with pytest.raises(ZeroDivisionError):
        with_peak(lambda: 1 // 0)
    assert [thread for thread in threading.enumerate() if thread.daemon and thread.name == "peak memory"] == []
