"""Figures 2, 3, 7 and 8: what is left after each removal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import median
from typing import Any, Literal

from matplotlib.figure import Figure

from secateur.reporting.page import Cell, Table
from secateur_experiments.curves import Curve
from secateur_experiments.papers import figures
from secateur_experiments.papers.finding import Drawing, Finding
from secateur_experiments.study import Study, Way
from secateur_experiments.subjects import Subject

SHARES = (60, 80, 90)  # in percent, at which smaller networks are trained from scratch
TENTHS = tuple(n / 10 for n in range(1, 10))
SCRATCH = "trained from scratch"
SINGLE = {name: Way(name, "single") for name in ("oracle", "taylor1", "taylor2", "hessian")}
ITERATIVE = {name: Way(name) for name in SINGLE}
OURS = {"quadratic": Way("ggn", "quadratic"), "obs, compensated": Way("obs", compensate=True)}
ERROR = {"squared_error": "squared error per test sample", "cross_entropy": "cross-entropy per test sample"}
Jobs = list[Callable[[], object]]
Curves = dict[str, list[Curve]]  # way → one for each seed


def ways(ranking: str) -> dict[str, Way]:
    """Return all that are compared under one of the papers' algorithms."""
    return {**(SINGLE if ranking == "single" else ITERATIVE), **OURS}


def jobs(study: Study, subject: Subject, chosen: Mapping[str, Way], seeds: Sequence[int]) -> Jobs:
    """Return the work behind `curves`."""
    return [partial(study.plan, subject, seed, way) for seed in seeds for way in chosen.values()]


def curves(study: Study, subject: Subject, chosen: Mapping[str, Way], seeds: Sequence[int]) -> Curves:
    """Return label → what is left after each removal, a curve for each seed."""
    return {label: [study.curve(subject, seed, way) for seed in seeds] for label, way in chosen.items()}


def scratch_jobs(study: Study, subject: Subject) -> Jobs:
    """Return the work behind `scratch`."""
    return [partial(study.scratch, subject, seed, share) for seed in study.seeds for share in SHARES]


def scratch(study: Study, subject: Subject) -> list[figures.Band]:
    """Return loss and accuracy of smaller networks that were trained as the whole one was."""
    measured = [[study.scratch(subject, seed, share) for share in SHARES] for seed in study.seeds]
    values = [[[pair[i] for pair in network] for network in measured] for i in (0, 1)]
    return [band._replace(shares=[share / 100 for share in SHARES]) for band in figures.bands(values, 1)]


def figure_of(
    number: str, hidden: tuple[int, ...], ranking: str
) -> tuple[Callable[[Study], Jobs], Callable[[Study], Finding]]:
    """Return the work that figure 2, 3, 7 or 8 of the paper takes, and what makes it.

    Args:
        number: Of the figure.
        hidden: Widths.
        ranking: "single" (Algorithm I) or "iterative" (Algorithm II).
    """

    def work(study: Study) -> Jobs:
        subject = study.logistic(hidden)
        return jobs(study, subject, ways(ranking), study.seeds) + scratch_jobs(study, subject)

    def make(study: Study) -> Finding:
        subject = study.logistic(hidden)
        by_way = curves(study, subject, ways(ranking), study.seeds)
        smaller = scratch(study, subject)
        title = f"{subject.name}, {NAMES[ranking]}"
        drawing = Drawing(
            drawn(subject, title, by_way, {SCRATCH: smaller}),
            f"Two plots for {title}: squared error and accuracy against the share of units removed, for each way.",
            f"Figure {number}. Medians of {len(study.seeds)} networks; bands from the least to the largest.",
        )
        tables = accuracies(by_way, smaller), errors(by_way, smaller)
        return Finding(
            f"Figure {number}: degradation, {title}", (TEXT[ranking],), (drawing,), tables, numbers(by_way, smaller)
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
    subject: Subject, title: str, by_way: Curves, points: Mapping[str, Sequence[figures.Band]] | None = None
) -> Figure:
    """Draw error and accuracy of all ways."""
    lines = {
        label: figures.bands([[c.loss for c in several], [c.accuracy for c in several]], several[0].total)
        for label, several in by_way.items()
    }
    return figures.degradation(title, lines, ERROR[subject.loss], points)


def accuracies(by_way: Curves, smaller: Sequence[figures.Band] = ()) -> Table:
    """Return a table of the accuracy at each tenth."""
    rows: list[list[Cell]] = [
        [
            label, *(round(value, 4) for value in at_tenths(several, "accuracy")),
            *(round(100 * share) for share in withins(several)),
        ]
        for label, several in by_way.items()
    ]  # fmt: skip
    columns = ["way", *(f"{share:.0%}" for share in TENTHS), "within 1 pt, %", "within 5 pt, %"]
    note = "Within 1 pt, 5 pt: the largest share removed with accuracy never lower than that below the start."
    return Table(
        columns, rows + _scratch_rows(smaller, 1, 2), "Test accuracy with that share of the units removed", note
    )


def errors(by_way: Curves, smaller: Sequence[figures.Band] = ()) -> Table:
    """Return a table of the error at each tenth."""
    rows: list[list[Cell]] = [
        [label, *(round(value, 4) for value in at_tenths(several, "loss"))] for label, several in by_way.items()
    ]
    columns = ["way", *(f"{share:.0%}" for share in TENTHS)]
    return Table(columns, rows + _scratch_rows(smaller, 0, 0), "Error per test sample with that share removed")


def _scratch_rows(smaller: Sequence[figures.Band], which: int, more: int) -> list[list[Cell]]:
    if not smaller:
        return []
    known = dict(zip(smaller[which].shares, smaller[which].middle, strict=True))
    values = [round(known[share], 4) if share in known else None for share in TENTHS]
    return [[SCRATCH, *values, *[None] * more]]


def at_tenths(several: Sequence[Curve], what: Literal["accuracy", "loss"]) -> list[float]:
    """Return medians of loss or accuracy with each tenth of the units removed, or as many as can be."""
    return [
        median(c.at(min(round(share * c.total), c.removed[-1]), what) for c in several) for share in TENTHS
    ]  # fmt: skip


def withins(several: Sequence[Curve]) -> list[float]:
    """Return the median share that goes within one point and within five."""
    return [median(curve.within(points) / curve.total for curve in several) for points in (0.01, 0.05)]


def numbers(by_way: Curves, smaller: Sequence[figures.Band] = ()) -> dict[str, Any]:
    """Return plain data of all ways."""
    rows: dict[str, Any] = {}
    for label, several in by_way.items():
        one, five = withins(several)
        rows[label] = {
            "start": median(curve.accuracy[0] for curve in several), "within_1pt": one, "within_5pt": five,
            "error": at_tenths(several, "loss"), "accuracy": at_tenths(several, "accuracy"),
        }  # fmt: skip
    if smaller:
        loss, accuracy = smaller
        rows[SCRATCH] = {"shares": list(loss.shares), "error": list(loss.middle), "accuracy": list(accuracy.middle)}
    return rows
