"""Jobs beside their floors, each network in a process of its own: seconds, memory, quality."""

from __future__ import annotations

import os
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context

from torch import nn

import secateur as sc
from secateur_experiments.bench.scale.floor import floor
from secateur_experiments.bench.scale.peak_memory import with_peak
from secateur_experiments.bench.scale.rows import ENTRIES, Entry
from secateur_experiments.bench.scale.task import AbsentError, Folders, Task
from secateur_experiments.bench.timing import seconds


@dataclass(frozen=True)
class Settings:
    """What holds for all networks.

    Attributes:
        runs: Of job and floor, of which medians are taken.
        ranking: A name; None for the library's default.
        folders: Where things lie.
    """

    runs: int = 1
    ranking: str | None = None
    folders: Folders = field(default_factory=Folders)


@dataclass(frozen=True)
class Row:
    """One network.

    Attributes:
        network: Its name.
        units: Their number, of all sets.
        removed: How many of them went.
        params: Parameters of the original.
        left: And of the smaller network.
        figures: "seconds", "floor", "ratio", "memory" and qualities; empty where it was not measured.
        missed: The names of figures beyond their bars.
        note: Why it was not measured; empty where it was.
    """

    network: str
    units: int = 0
    removed: int = 0
    params: int = 0
    left: int = 0
    figures: Mapping[str, float] = field(default_factory=dict)
    missed: Sequence[str] = ()
    note: str = ""


def compare(names: Sequence[str], settings: Settings) -> Iterator[Row]:
    """Measure networks, one after the other, each in a process of its own: none is met by what another left behind.

    Yields:
        The rows as they are done.
    """
    with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        yield from pool.imap(partial(attempt, settings=settings), names, chunksize=1)


def attempt(name: str, settings: Settings) -> Row:
    """Measure one network; where that fails, the row says why."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # all weights are in packages
    entry = ENTRIES[name]
    try:
        with redirect_stdout(sys.stderr):
            return measure(name, entry, entry.build(settings.folders), settings)
    except AbsentError as error:
        return Row(name, note=f"skipped: {error}")
    except Exception as error:  # noqa: BLE001 - one row of the table
        return Row(name, note=f"failed: {type(error).__name__}: {error}", missed=[*entry.at_most, *entry.at_least])


def measure(name: str, entry: Entry, task: Task, settings: Settings) -> Row:
    """Do the job so many times, and its floor after each."""
    jobs, floors = [], []
    for _ in range(settings.runs):
        (spent, shrunk), peak = with_peak(partial(seconds, partial(job, task, settings.ranking)))
        jobs.append((spent, peak, shrunk))
        floors += [seconds(partial(floor, task))[0]] if "ratio" in entry.at_most else []
    _, memory, (small, plan) = jobs[0]  # later ones find memory that earlier ones let go
    figures = {"seconds": statistics.median(spent for spent, _, _ in jobs), "memory": float(memory)}
    if floors:
        figures["floor"] = statistics.median(floors)
        figures["ratio"] = figures["seconds"] / figures["floor"]
    figures |= {} if task.quality is None else task.quality(small)
    removed = task.units.total - sum(map(len, plan.kept.values()))
    params, left = (sum(p.numel() for p in model.parameters()) for model in (task.model, small))
    return Row(name, task.units.total, removed, params, left, figures, entry.missed(figures))


def job(task: Task, ranking: str | None) -> tuple[nn.Module, sc.Plan]:
    """Do the whole job as a user does; return the smaller network and its plan."""
    options = {**({} if ranking is None else {"ranking": ranking}), **task.options}
    if task.data:
        result = sc.shrink(task.model, task.data, task.loss, task.budget, progress=False, **options)
        assert isinstance(result.plan, sc.Plan)
        return result.model, result.plan
    units = sc.find_units(task.model, task.example)
    plan = sc.rank(task.model, None, None, units=units, budget=task.budget, progress=False, **options)
    return sc.cut(task.model, plan), plan
