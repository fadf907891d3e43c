"""Jobs beside floors: what a row says."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from secateur import Budget, find_units
from secateur.errors import ArgumentError
from secateur_experiments.bench.scale import measure
from secateur_experiments.bench.scale.measure import Row, Settings
from secateur_experiments.bench.scale.rows import Entry
from secateur_experiments.bench.scale.task import AbsentError, Task
from secateur_experiments.networks import seeded


def task(_=None) -> Task:
    with seeded(0):
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        x, y = torch.randn(20, 4), torch.arange(20) % 2
    quality = lambda small: {"width": float(small[0].out_features)}  # noqa: E731
    return Task(
        model, find_units(model, x[:2]), [(x, y)], "cross_entropy", Budget(remove_units=4), 0.5, quality=quality
    )


def test_a_row_has_counts_figures_and_what_is_missed():
    entry = Entry(task, {"ratio": 1e9, "seconds": 1e9, "width": 3.0}, {"width": 4.0})
    row = measure.measure("tiny", entry, task(), Settings(runs=2))
    assert (row.network, row.units, row.removed, row.params, row.left) == ("tiny", 8, 4, 58, 30)
    assert list(row.figures) == ["seconds", "memory", "floor", "ratio", "width"]
    assert row.figures["ratio"] == row.figures["seconds"] / row.figures["floor"]
    assert row.figures["width"] == 4
    assert (row.missed, row.note) == (["width"], "")


def test_without_a_bar_for_the_ratio_there_is_no_floor(monkeypatch):
    monkeypatch.setattr(measure, "floor", None)
    row = measure.measure("tiny", Entry(task, {"seconds": 1e9}), task(), Settings())
    assert list(row.figures) == ["seconds", "memory", "width"]


def test_a_job_without_data_finds_ranks_and_cuts():
    options = {"criterion": "magnitude", "ranking": "single"}
    whole = task()
    bare = replace(whole, data=[], loss=None, options=options, example=whole.data[0][0])
    small, plan = measure.job(bare, None)
    assert (small[0].out_features, len(plan.kept["0"])) == (4, 4)


def test_the_ranking_is_the_one_asked_for():
    with pytest.raises(ArgumentError, match="unknown ranking 'nope'"):
        measure.job(task(), "nope")
    assert measure.job(task(), "single")[1].ranking == "single"


def test_what_cannot_be_made_is_skipped_and_what_fails_misses_its_bars(monkeypatch):
    def absent(folders):
        raise AbsentError(f"no weights in {folders.mnist}")

    def broken(folders):
        raise ZeroDivisionError("by zero")

    entries = {"a": Entry(absent, {"seconds": 1.0}), "b": Entry(broken, {"seconds": 1.0}, {"cosine": 0.9})}
    monkeypatch.setattr(measure, "ENTRIES", entries)
    assert measure.attempt("a", Settings()) == Row("a", note="skipped: no weights in None")
    failed = "failed: ZeroDivisionError: by zero"
    assert measure.attempt("b", Settings()) == Row("b", missed=["seconds", "cosine"], note=failed)


def test_each_network_has_a_process_of_its_own():
    name = "convolutions 64-128-128"
    assert list(measure.compare([name], Settings())) == [Row(name, note="skipped: give --mnist DIR")]
