"""A study on few digits with small networks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from secateur.papers.data import digits
from secateur.papers.finding import Finding
from secateur.papers.study import Study

WHOLE = digits()
FEW = replace(
    WHOLE, name="few", **{part: tuple(t[:60] for t in getattr(WHOLE, part)) for part in ("calibration", "test")},
    train=tuple(t[:200] for t in WHOLE.train),
)  # fmt: skip


def study(seeds: tuple[int, ...] = (0, 1)) -> Study:
    return Study(FEW, 12, seeds)


def done(experiment: tuple[Any, Any], made: Study) -> Finding:
    """Its jobs done one by one, and what is made of them without more work."""
    work, make = experiment
    for job in work(made):
        job()
    known = [*made._known]
    found: Finding = make(made)
    assert [*made._known] == known
    return found
