"""Figure 12 (toy sets), thresholds, and deeper and other networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from matplotlib.figure import Figure

from secateur_experiments.datasets import DIAMOND, Dataset, diamond, random_shape, random_shape_points
from secateur_experiments.papers import figures
from secateur_experiments.papers.degradation import (
    ITERATIVE,
    OURS,
    SINGLE,
    Curves,
    Jobs,
    accuracies,
    curves,
    drawn,
    errors,
    jobs,
    numbers,
)  # fmt: skip
from secateur_experiments.papers.finding import Drawing, Finding
from secateur_experiments.study import FOUR, ONE, TWO, Study, Way
from secateur_experiments.subjects import Subject, channels

TOYS = {"diamond": (diamond, DIAMOND), "random shape": (random_shape_points, random_shape())}
TOY_EPOCHS, TOY_RATE = 100, 0.02
TOY_WAYS = ("oracle", "taylor1", "taylor2")


# ---------------------------------------------------------------- figure 12


def toys(study: Study) -> dict[str, Study]:
    """Return one study for each toy set, kept with the first."""
    return {name: study.once(("toy", name), partial(_toy, name, study.seeds)) for name in TOYS}


def _toy(name: str, seeds: Sequence[int]) -> Study:
    return Study(TOYS[name][0](), TOY_EPOCHS, seeds, TOY_RATE)


def toy_jobs(study: Study) -> Jobs:
    """Return the work behind figure 12."""
    return [
        job
        for toy in toys(study).values()
        for chosen in (SINGLE, ITERATIVE)
        for job in jobs(toy, toy.logistic(TWO), {name: chosen[name] for name in TOY_WAYS}, toy.seeds)
    ]


def toy_figure(study: Study) -> Finding:
    """Make figure 12."""
    degraded: dict[str, dict[str, Curves]] = {}  # toy set → ranking
    for name, toy in toys(study).items():
        subject = toy.logistic(TWO)
        degraded[name] = {
            ranking: curves(toy, subject, {way: chosen[way] for way in TOY_WAYS}, toy.seeds)
            for ranking, chosen in (("single", SINGLE), ("iterative", ITERATIVE))
        }
    tables = tuple(
        replace(errors(by_way), caption=f"{name}, {ranking} ranking: error per test sample with that share removed")
        for name, rankings in degraded.items() for ranking, by_way in rankings.items()
    )  # fmt: skip
    starts = [f"{name} {rankings['single']['oracle'][0].accuracy[0]:.3f}" for name, rankings in degraded.items()]
    drawing = Drawing(
        _draw_toys({name: toy.data for name, toy in toys(study).items()}, degraded),
        "For each toy set its points, coloured by class, and the squared error against the share of units removed, by "
        "single and by iterative ranking.",
        f"Figure 12. 2-50-50-2; is a point inside the shape? Medians of {len(study.seeds)} networks, trained for "
        f"{TOY_EPOCHS} epochs at {TOY_RATE}; accuracy of the first at the start: {', '.join(starts)}.",
    )
    rows = {
        name: {ranking: numbers(by_way) for ranking, by_way in rankings.items()} for name, rankings in degraded.items()
    }
    return Finding("Figure 12: toy sets", (), (drawing,), tables, rows)


def _draw_toys(data: dict[str, Dataset], degraded: dict[str, dict[str, Curves]]) -> Figure:
    figure = Figure(figsize=(11, 7), layout="constrained")
    grid = figure.subplots(len(data), 3)
    for (name, rankings), row in zip(degraded.items(), grid, strict=True):
        x, y = data[name].test
        polygon = TOYS[name][1]
        for label, colour in enumerate(("#999999", "#0072B2")):
            row[0].plot(*x[y == label].T.tolist(), ".", color=colour, markersize=2.5)
        row[0].fill(*polygon.T.tolist(), facecolor="none", edgecolor="black", linewidth=1.5)
        row[0].set(title=f"{name}: test points", aspect="equal", xlabel="x", ylabel="y", xlim=(-1, 1), ylim=(-1, 1))
        for panel, (ranking, by_way) in zip(row[1:], rankings.items(), strict=True):
            for way, several in by_way.items():
                (band,) = figures.bands([[curve.loss for curve in several]], several[0].total)
                figures.band(panel, band, way)
            figures.shares(panel)
            panel.set(title=f"{name}: {ranking} ranking", ylabel="squared error per test sample")
    return figures.with_legend(figure, grid[0][1], "Toy sets, 2-50-50-2")


# ---------------------------------------------------------------- thresholds


THRESHOLDS = (None, "mean", "median")


def _thresholded() -> dict[str, Way]:
    return {
        f"{criterion}, single, {threshold or 'no'} threshold": Way(criterion, "single", threshold=threshold)
        for criterion in ("taylor1", "taylor2") for threshold in THRESHOLDS
    }  # fmt: skip


def threshold_jobs(study: Study) -> Jobs:
    """Return the work behind the table of thresholds."""
    return [job for hidden in (ONE, TWO) for job in jobs(study, study.logistic(hidden), _thresholded(), study.seeds)]


def thresholds(study: Study) -> Finding:
    """Tell what replacing large estimates by their mean or median changes (003 section 2.3)."""
    subjects = [study.logistic(hidden) for hidden in (ONE, TWO)]
    degraded = {subject.name: curves(study, subject, _thresholded(), study.seeds) for subject in subjects}
    text = (
        "An estimate above the mean (median) of all is replaced by it (003 section 2.3, read as a cap on the signed "
        "value); units so tied go in the order of the bytes that they free, then of their place. It can only matter "
        "once the units below it are gone, and never where scores are made again: the least stays the least."
    )
    tables = [replace(accuracies(by_way), caption=f"{name}: test accuracy") for name, by_way in degraded.items()]
    tables += [replace(errors(by_way), caption=f"{name}: error per test sample") for name, by_way in degraded.items()]
    rows = {name: numbers(by_way) for name, by_way in degraded.items()}
    return Finding("Thresholds", (text,), (), tuple(tables), rows)


# ---------------------------------------------------------------- deeper, wider, other


def _subjects(study: Study) -> list[Subject]:
    return [study.logistic(FOUR), channels(study.data, study.epochs)]


def _first(study: Study) -> Sequence[int]:
    return study.seeds[:1]


DEEPER = {label: way for label, way in {**ITERATIVE, **OURS}.items() if label != "hessian"}  # it takes too long


def deeper_jobs(study: Study) -> Jobs:
    """Return the work behind the networks that the papers leave to others."""
    return [job for subject in _subjects(study) for job in jobs(study, subject, DEEPER, _first(study))]


def _spared(subject: Subject) -> str:
    if not subject.spared:
        return ""
    shortlist = subject.spared["shortlist"]
    return f"Orders on {subject.samples:,} calibration samples; oracle: the {shortlist} least by taylor1 only."


def deeper(study: Study) -> Finding:
    """Prune networks with four hidden layers, and with channels."""
    drawings, tables, rows = [], [], dict[str, Any]()
    for subject in _subjects(study):
        by_way = curves(study, subject, DEEPER, _first(study))
        rows[subject.name] = numbers(by_way)
        tables.append(replace(accuracies(by_way), caption=f"{subject.name}: test accuracy with that share removed"))
        drawings.append(
            Drawing(
                drawn(subject, f"{subject.name}, iterative re-ranking", by_way),
                f"Error and accuracy of {subject.name} against the share of units removed, for each way.",
                f"{subject.name}, one network. {_spared(subject)}",
            )
        )
    return Finding("Deeper networks, and channels", (), tuple(drawings), tuple(tables), rows)
