"""Figures 1, 4-6 and 9-11: the error as the gain of one unit's output changes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch

from secateur.cutting.slices import gates
from secateur.objective.gated_loss import ones
from secateur.objective.leave_one_out import change_one
from secateur.reporting.page import Cell, Table
from secateur.saliency.score import find_criterion, saliency_of
from secateur_experiments.papers import figures
from secateur_experiments.papers.degradation import Jobs
from secateur_experiments.papers.finding import Drawing, Finding
from secateur_experiments.study import ONE, Study, Way
from secateur_experiments.subjects import Subject

GAINS = [n / 1000 for n in range(10_001)]  # the paper's, 0 to 10 in steps of 0.001
EVERY = 10  # removals between two units
SAMPLES = 500  # of the calibration part
ERROR = "squared error per sample"
CRITERIA = {"oracle": "brute force", "taylor1": "first order", "taylor2": "second order"}


class Surface(NamedTuple):
    """Units removed so far → the unit that goes next, and the error at each gain of it."""

    units: dict[int, str]
    losses: dict[int, list[float]]


def surface(study: Study, subject: Subject, criterion: str) -> Surface:
    """Measure it for the units that iterative re-ranking chooses, one in ten, with those before it gone."""
    return study.once(("surface", subject.name, criterion), lambda: _surface(study, subject, criterion))


def _surface(study: Study, subject: Subject, criterion: str) -> Surface:
    seed = study.seeds[0]
    plan, gated = study.plan(subject, seed, Way(criterion)), study.gated(subject, seed, SAMPLES)
    model, units = study.network(subject, seed), study.units(subject, seed)
    chosen = Surface({}, {})
    for n in range(0, len(plan.steps), EVERY):
        step = plan.steps[n]
        k = torch.tensor([units.places.index((step.set, step.index))])
        gains = torch.tensor(GAINS, dtype=torch.float32)
        losses = change_one(gated, gates(model, units, plan.prefix(n).kept), k.expand(len(gains)), gains)[1]
        chosen.units[n], chosen.losses[n] = f"{step.set}[{step.index}]", losses.tolist()
    return chosen


def figure_of(
    number: str, hidden: tuple[int, ...], criterion: str
) -> tuple[Callable[[Study], Jobs], Callable[[Study], Finding]]:
    """Return the work that figure 4, 5, 6, 9, 10 or 11 of the paper takes, and what makes it."""

    def work(study: Study) -> Jobs:
        return [partial(surface, study, study.logistic(hidden), criterion)]

    def make(study: Study) -> Finding:
        subject = study.logistic(hidden)
        chosen = surface(study, subject, criterion)
        title = f"{subject.name}, units chosen by {CRITERIA[criterion]}"
        drawing = Drawing(
            figures.surfaces(title, GAINS, chosen.losses, ERROR),
            f"Error against gain from 0 to 10 in log and in real scale, a curve for each of {len(chosen.losses)} units "
            "chosen at intervals of ten removals; a dashed line marks gain 1.",
            f"Figure {number}. The first network, error on {study.some(SAMPLES)} calibration samples; units removed "
            "before are gone. Gain 0 removes the unit.",
        )
        rows = [describe(chosen, n) for n in chosen.losses]
        columns = ["units gone before", "unit", *(f"α = {a}" for a in AT)]
        table = Table(columns, rows, "The units and the error at some gains")
        return Finding(f"Figure {number}: error surfaces, {title}", (), (drawing,), (table,), _numbers(chosen))

    return work, make


AT = (0, 1, 2, 4, 10)  # gains in the table


def describe(chosen: Surface, n: int) -> list[Cell]:
    """Return a row of the table."""
    return [n, chosen.units[n], *(chosen.losses[n][1000 * gain] for gain in AT)]


def _numbers(chosen: Surface) -> dict[str, Any]:
    """Return what the claims need: errors at some gains, the slope at α = 1, and the largest relative changes."""
    return {
        str(n): {
            "unit": chosen.units[n], **{f"at {a}": values[1000 * a] for a in AT},
            "slope": (values[1001] - values[999]) / 0.002,
            "change 0-2": _change(values, 0, 2), "change 1-4": _change(values, 1, 4),
        }
        for n, values in chosen.losses.items()
    }  # fmt: skip


def _change(values: list[float], first: int, last: int) -> float:
    return max(abs(value / values[1000] - 1) for value in values[1000 * first : 1000 * last + 1])


# ---------------------------------------------------------------- figure 1


def intuition_jobs(study: Study) -> Jobs:
    """Return the work behind figure 1."""
    return [partial(_expanded, study)]


def _expanded(study: Study) -> dict[str, Any]:
    return study.once("figure 1", lambda: _expand(study))


def _expand(study: Study) -> dict[str, Any]:
    """Expand the error in the gain of a unit whose removal costs more than that of three in four."""
    subject, seed = study.logistic(ONE), study.seeds[0]
    gated, units = study.gated(subject, seed, SAMPLES), study.units(subject, seed)
    g = ones(gated.model, units)
    scores = {name: saliency_of(find_criterion(name, gated), gated, g) for name in ("oracle", "taylor1", "hessian")}
    k = int(scores["oracle"].argsort()[3 * units.total // 4])
    gains = torch.linspace(0, 2, 401)
    whole, losses = change_one(gated, g, torch.tensor([k]).expand(len(gains)), gains)
    first = {name: values[k].item() for name, values in scores.items()}
    return {
        "unit": "{}[{}]".format(*units.places[k]),
        "whole": whole,
        "gains": gains.tolist(),
        "losses": losses.tolist(),
        **first,
    }


def intuition(study: Study) -> Finding:
    """Make figure 1, of a real unit."""
    unit = _expanded(study)
    slope, curve = -unit["taylor1"], 2 * (unit["hessian"] - unit["taylor1"])
    lines = {
        "true error": unit["losses"],
        "first order": [unit["whole"] + slope * (a - 1) for a in unit["gains"]],
        "second order": [unit["whole"] + slope * (a - 1) + curve / 2 * (a - 1) ** 2 for a in unit["gains"]],
    }
    drawing = Drawing(
        figures.intuition(f"{study.logistic(ONE).name}, unit {unit['unit']}", unit["gains"], lines, ERROR),
        "The true error against a unit's gain from 0 to 2, with the straight line and the parabola that touch it at 1.",
        f"Figure 1. What first and second order predict for one unit of the first network, on {study.some(SAMPLES)} "
        "calibration samples: its removal costs more than that of three units in four.",
    )
    names = {"oracle": "measured", "taylor1": "first order", "hessian": "second order"}
    rows = [[label, unit[name]] for name, label in names.items()]
    table = Table(["", "rise"], rows, "The rise of the error if the unit goes")
    return Finding(
        "Figure 1: one unit's error, and its expansions", (), (drawing,), (table,), {n: unit[n] for n in names}
    )
