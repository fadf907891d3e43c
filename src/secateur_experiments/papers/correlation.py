"""Correlated neurons, and single removals that fail together (001: faults from the removal of one at a time)."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from secateur.compensation.compensator import Compensator
from secateur.objective.gated_loss import GatedLoss, ones
from secateur.reporting.page import Cell, Table
from secateur.saliency.interactions import correlation, expand_loss
from secateur.saliency.units.oracle import oracle
from secateur_experiments.papers import figures
from secateur_experiments.papers.degradation import Jobs
from secateur_experiments.papers.finding import Drawing, Finding
from secateur_experiments.study import ONE, TWO, Study
from secateur_experiments.subjects import Subject

PAIRS = 100  # of each kind
SAMPLES = 1_000  # of the calibration part


class Pair(NamedTuple):
    """Two units whose removals seem harmless one by one.

    Attributes:
        units: Their numbers.
        correlation: H_jk / √|H_jj H_kk|.
        alone: The rise of the error without the first, and without the second.
        together: Without both.
        compensated: Without both, the weights left fitted.
    """

    units: tuple[int, int]
    correlation: float
    alone: tuple[float, float]
    together: float
    compensated: float


class Correlated(NamedTuple):
    """One network: its correlations, what counts as harmless, pairs by how they were chosen."""

    matrix: list[list[float]]
    sizes: list[int]
    harmless: float
    pairs: dict[str, list[Pair]]


def correlated(study: Study, subject: Subject) -> Correlated:
    """Measure the first network of its kind."""
    return study.once(("correlated", subject.name), lambda: _correlated(study, subject))


def _correlated(study: Study, subject: Subject) -> Correlated:
    gated = study.gated(subject, study.seeds[0], SAMPLES)
    g = ones(gated.model, gated.units)
    related = correlation(expand_loss(gated, g, "hessian")[1])
    alone = oracle(gated, g)
    harmless = max(0.0, alone.median().item())
    units = (alone <= harmless).nonzero()[:, 0].tolist()
    ranked = sorted(itertools.combinations(units, 2), key=lambda pair: -related[pair].item())
    drawn = random.Random(0).sample(ranked, min(PAIRS, len(ranked)))
    compensator, whole = Compensator(gated), gated.loss(g)
    pairs = {
        label: [_pair(gated, compensator, g, whole, alone, pair, related[pair].item()) for pair in chosen]
        for label, chosen in (("most correlated", ranked[:PAIRS]), ("drawn", drawn))
    }
    return Correlated(related.tolist(), [s.size for s in gated.units], harmless, pairs)


def _pair(
    gated: GatedLoss, compensator: Compensator, g: Tensor, whole: float, alone: Tensor, pair: tuple[int, int],
    related: float,
) -> Pair:  # fmt: skip
    without = g.index_fill(0, torch.tensor(pair), 0)
    compensator.fit(without)
    j, k = pair
    rises = gated.loss(without) - whole, compensator.gated.loss(without) - whole
    return Pair(pair, related, (alone[j].item(), alone[k].item()), *rises)


def faults(pairs: Sequence[Pair], harmless: float) -> dict[str, float | None]:
    """Return which share of pairs costs more together than two harmless units may, and than both alone; None of none.

    >>> faults([Pair((0, 1), 0.9, (0.1, 0.1), 0.5, 0.05)], 0.1)
    {'fail together': 1.0, 'compensated': 0.0, 'together to alone': 2.5}
    """
    if not pairs:
        return dict.fromkeys(("fail together", "compensated", "together to alone"))
    alone = sum(sum(pair.alone) for pair in pairs)
    return {
        "fail together": sum(pair.together > 2 * harmless for pair in pairs) / len(pairs),
        "compensated": sum(pair.compensated > 2 * harmless for pair in pairs) / len(pairs),
        "together to alone": sum(pair.together for pair in pairs) / alone if alone > 0 else None,
    }


def _percent(share: float | None) -> int | None:
    return None if share is None else round(100 * share)


def correlation_jobs(study: Study) -> Jobs:
    """Return the work behind `neurons`."""
    return [partial(correlated, study, study.logistic(hidden)) for hidden in (ONE, TWO)]


def neurons(study: Study) -> Finding:
    """Make heat maps of interactions, and tell how often pairs fail together."""
    subjects = [study.logistic(hidden) for hidden in (ONE, TWO)]
    networks = {subject.name: correlated(study, subject) for subject in subjects}
    drawing = Drawing(
        figures.heat_maps(
            "How the removals of two units depend on each other",
            {name: (network.matrix, network.sizes) for name, network in networks.items()},
            "$H_{jk} / \\sqrt{|H_{jj} H_{kk}|}$",
        ),
        "Heat maps of the correlation between the removals of all pairs of units, one for each network.",
        "Red: the two cost more together than apart, each could stand in for the other. Blue: with one gone the other "
        "is of less use. Lines: between layers.",
    )  # fmt: skip
    rows: dict[str, Any] = {
        name: {label: faults(pairs, network.harmless) for label, pairs in network.pairs.items()}
        for name, network in networks.items()
    }
    cells: list[list[Cell]] = [
        [name, label, len(networks[name].pairs[label]), _percent(row["fail together"]), _percent(row["compensated"]),
         row["together to alone"]]
        for name, both in rows.items() for label, row in both.items()
    ]  # fmt: skip
    columns = ["network", "pairs", "number", "fail together, %", "with compensation, %", "rise together, to sum alone"]
    table = Table(columns, cells, "Pairs of units whose removals are harmless one by one")
    text = (
        "A removal is called harmless here if it costs no more than the median of all, or nothing. A pair of harmless "
        "units fails together if without both the error rises by more than twice that.",
        f"The first network of each kind, {study.some(SAMPLES):,} calibration samples.",
    )
    return Finding("Neuron correlation", text, (drawing,), (table,), rows)
