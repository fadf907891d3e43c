"""A study on few digits with small networks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

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
    once = Study.once

    def kept(self: Study, key: Any, _: Any) -> Any:
        return once(self, key, lambda: pytest.fail(f"no job made {key}"))

    work, make = experiment
    for job in work(made):
        job()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Study, "once", kept)
        found: Finding = make(made)
    return found
