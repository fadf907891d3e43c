"""Studies on few digits with small networks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from secateur_experiments.datasets import Dataset, digits
from secateur_experiments.papers.finding import Finding
from secateur_experiments.study import Study

WHOLE = digits()


def few(train: int, calibration: int, test: int) -> Dataset:
    """So many digits of each part."""
    sizes = {"train": train, "calibration": calibration, "test": test}
    parts = {name: tuple(values[:size] for values in getattr(WHOLE, name)) for name, size in sizes.items()}
    return replace(WHOLE, name="few", **parts)  # type: ignore[arg-type]


FEW = few(200, 60, 60)


def study(seeds: tuple[int, ...] = (0, 1)) -> Study:
    return Study(FEW, 12, seeds)


def done(experiment: tuple[Any, Any], made: Study) -> Finding:
    """Its jobs done one by one, and what is made of them without more work."""
    work, make = experiment
    for job in work(made):
        job()
    known = [*made.known]
    finding: Finding = make(made)
    assert [*made.known] == known
    return finding
