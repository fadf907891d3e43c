"""Figures 2, 3, 7 and 8: what is left after each removal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import median
from typing import Any

from matplotlib.figure import Figure

from secateur.papers.finding import Drawing, Finding
from secateur.papers.study import Course, Study, Subject, Way
from secateur.reporting import figures
from secateur.reporting.page import Cell, Table

SHARES = (0.6, 0.8, 0.9)  # at which smaller networks are trained from scratch
TENTHS = tuple(n / 10 for n in range(1, 10))
SCRATCH = "trained from scratch"
SINGLE = {name: Way(name, "single") for name in ("oracle", "taylor1", "taylor2", "hessian")}
ITERATIVE = {name: Way(name) for name in SINGLE}
OURS = {"quadratic": Way("ggn", "quadratic"), "obs, compensated": Way("obs", compensate=True)}
ERROR = {"squared_error": "squared error per test sample", "cross_entropy": "cross-entropy per test sample"}
Jobs = list[Callable[[], object]]
Courses = dict[str, list[Course]]


def ways(ranking: str) -> dict[str, Way]:
    """All that are compared under one of the papers' algorithms."""
    return {**(SINGLE if ranking == "single" else ITERATIVE), **OURS}


def jobs(study: Study, subject: Subject, chosen: Mapping[str, Way], seeds: Sequence[int]) -> Jobs:
    """The work behind `courses`."""
    return [partial(study.plan, subject, seed, way) for seed in seeds for way in chosen.values()]


def courses(study: Study, subject: Subject, chosen: Mapping[str, Way], seeds: Sequence[int]) -> Courses:
    """Label → what is left after each removal, one for each seed."""
    return {label: [study.course(subject, seed, way) for seed in seeds] for label, way in chosen.items()}


def scratch_jobs(study: Study, hidden: Sequence[int]) -> Jobs:
    """The work behind `scratch`."""
    return [partial(study.scratch, hidden, seed, share) for seed in study.seeds for share in SHARES]


def scratch(study: Study, hidden: Sequence[int]) -> list[figures.Band]:
    """Loss and accuracy of smaller networks that were trained as the whole one was."""
    found = [[study.scratch(hidden, seed, share) for share in SHARES] for seed in study.seeds]
    several = [[[pair[i] for pair in one] for one in found] for i in (0, 1)]
    return [band._replace(shares=SHARES) for band in figures.bands(several, 1)]


def figure_of(
    number: str, hidden: tuple[int, ...], ranking: str
) -> tuple[Callable[[Study], Jobs], Callable[[Study], Finding]]:
    """What figure 2, 3, 7 or 8 of the paper takes, and makes of it.

    Args:
        number: Of the figure.
        hidden: Widths.
        ranking: "single" (Algorithm I) or "iterative" (Algorithm II).
    """

    def work(study: Study) -> Jobs:
        return jobs(study, study.logistic(hidden), ways(ranking), study.seeds) + scratch_jobs(study, hidden)

    def make(study: Study) -> Finding:
        subject = study.logistic(hidden)
        found = courses(study, subject, ways(ranking), study.seeds)
        smaller = scratch(study, hidden)
        title = f"{subject.name}, {NAMES[ranking]}"
        drawing = Drawing(
            drawn(subject, title, found, {SCRATCH: smaller}),
            f"Two plots for {title}: squared error and accuracy against the share of units removed, for each way.",
            f"Figure {number}. Medians of {len(study.seeds)} networks; bands from the least to the largest.",
        )
        tables = accuracies(found, smaller), errors(found, smaller)
        return Finding(
            f"Figure {number}: degradation, {title}", (TEXT[ranking],), (drawing,), tables, numbers(found, smaller)
        )

    return work, make


NAMES = {"single": "single overall ranking", "iterative": "iterative re-ranking"}
TEXT = {
    "single": "Algorithm I: all units are scored once. For comparison: quadratic, which makes one pass and knows how "
    "units depend on each other, and obs, which scores again and lets the weights that are left make up for what goes.",
    "iterative": "Algorithm II: the units left are scored again after each removal. The quadratic ranking makes one "
    "pass; obs lets the weights that are left make up for what goes.",
}


def drawn(
    subject: Subject, title: str, found: Courses, points: Mapping[str, Sequence[figures.Band]] | None = None
) -> Figure:
    """Error and accuracy of all."""
    lines = {
        label: figures.bands([[one.loss for one in several], [one.accuracy for one in several]], several[0].total)
        for label, several in found.items()
    }
    return figures.degradation(title, lines, ERROR[subject.loss], points)


def accuracies(found: Courses, smaller: Sequence[figures.Band] = ()) -> Table:
    """Accuracy at each tenth."""
    rows: list[list[Cell]] = [
        [label, *(round(value, 4) for value in at_tenths(several, 1)), *(round(100 * one) for one in withins(several))]
        for label, several in found.items()
    ]
    columns = ["way", *(f"{share:.0%}" for share in TENTHS), "within 1 pt, %", "within 5 pt, %"]
    note = "Within 1 pt, 5 pt: the largest share removed with accuracy never lower than that below the start."
    return Table(
        columns, rows + _scratch_rows(smaller, 1, 2), "Test accuracy with that share of the units removed", note
    )


def errors(found: Courses, smaller: Sequence[figures.Band] = ()) -> Table:
    """The error at each tenth."""
    rows: list[list[Cell]] = [
        [label, *(round(value, 4) for value in at_tenths(several, 0))] for label, several in found.items()
    ]
    columns = ["way", *(f"{share:.0%}" for share in TENTHS)]
    return Table(columns, rows + _scratch_rows(smaller, 0, 0), "Error per test sample with that share removed")


def _scratch_rows(smaller: Sequence[figures.Band], which: int, more: int) -> list[list[Cell]]:
    if not smaller:
        return []
    known = dict(zip(SHARES, smaller[which].middle, strict=True))
    values = [round(known[share], 4) if share in known else None for share in TENTHS]
    return [[SCRATCH, *values, *[None] * more]]


def at_tenths(several: Sequence[Course], which: int) -> list[float]:
    """Medians of loss (0) or accuracy (1) at each tenth."""
    return [median(one.at((one.loss, one.accuracy)[which], share) for one in several) for share in TENTHS]


def withins(several: Sequence[Course]) -> list[float]:
    """The median share that goes within one point and within five."""
    return [median(one.within(points) for one in several) for points in (0.01, 0.05)]


def numbers(found: Courses, smaller: Sequence[figures.Band] = ()) -> dict[str, Any]:
    """Plain data of all."""
    rows: dict[str, Any] = {}
    for label, several in found.items():
        one, five = withins(several)
        rows[label] = {
            "start": median(course.accuracy[0] for course in several), "within_1pt": one, "within_5pt": five,
            "error": at_tenths(several, 0), "accuracy": at_tenths(several, 1),
        }  # fmt: skip
    if smaller:
        rows[SCRATCH] = {"shares": list(SHARES), "error": list(smaller[0].middle), "accuracy": list(smaller[1].middle)}
    return rows
