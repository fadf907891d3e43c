"""The quadratic ranking beside the iterative oracle: what is left of the accuracy, and how long it takes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean, median
from typing import Any

from torch import nn

from secateur.bench.curves import Curve
from secateur.bench.oracle import best_batch, iterative
from secateur.bench.timing import seconds
from secateur.papers.data import Dataset
from secateur.papers.training import logistic_network, train
from secateur.planning.budget import Budget
from secateur.planning.plan import Plan
from secateur.reporting.progress import progress_bar
from secateur.shrink import rank
from secateur.structure.units import Units, find_units

LOSS = "squared_error"
HIDDEN = ((100,), (50, 50))
WAYS: dict[str, dict[str, Any]] = {
    "oracle, iterative": {"criterion": "oracle"},
    "quadratic, ggn": {"ranking": "quadratic", "criterion": "ggn"},
    "quadratic, ggn, refresh=10": {"ranking": "quadratic", "criterion": "ggn", "refresh": 10},
    "quadratic, hessian": {"ranking": "quadratic", "criterion": "hessian"},
    "quadratic, hessian, refresh=10": {"ranking": "quadratic", "criterion": "hessian", "refresh": 10},
    "quadratic, fisher": {"ranking": "quadratic", "criterion": "fisher"},
}


@dataclass(frozen=True)
class Row:
    """One network pruned in one way, without retraining; medians over the seeds.

    Attributes:
        network: Its widths, inputs and outputs too.
        way: Ranking and criterion.
        start: Accuracy on the test part before.
        at_30: With 30 % of the hidden units removed.
        at_50: With 50 %.
        at_70: With 70 %.
        within_1pt: The largest share of units removed, in percent, with accuracy never more than one point below.
        seconds: Of the whole order, every step measured on the calibration data.
        ratio: Those of the naive iterative oracle, K passes of the whole model for each removal, to these.
        swaps: With half of the units to remove: exchanges, the mean over the seeds; None where there can be none.
        before: The rise of the loss that was predicted without them, likewise.
        after: With them.
    """

    network: str
    way: str
    start: float
    at_30: float
    at_50: float
    at_70: float
    within_1pt: float
    seconds: float
    ratio: float
    swaps: float | None = None
    before: float | None = None
    after: float | None = None


def compare(
    data: Dataset, epochs: int, seeds: Sequence[int], hidden: Sequence[Sequence[int]] = HIDDEN,
    ways: Mapping[str, Mapping[str, Any]] = WAYS, progress: bool = True,
) -> list[Row]:  # fmt: skip
    """All rows: one for each network and each way.

    Args:
        data: What they learn; saliency is computed on its calibration part, accuracy on its test part.
        epochs: Of the training.
        seeds: One network of each kind for each.
        hidden: Hidden widths of each kind.
        ways: Name → arguments of `secateur.rank`.
        progress: Show a bar on stderr.
    """
    rows: list[Row] = []
    with progress_bar("rankings", progress) as bar:
        for widths in hidden:
            sizes = [data.features, *widths, data.classes]
            trained = [_trained(sizes, data, epochs, seed) for seed in seeds]
            batch = best_batch(trained[0][0], data.calibration[0])
            naive = seconds(iterative(*trained[0], data.calibration, LOSS, batch)[0])[0]
            for way, options in ways.items():
                bar(len(rows), len(hidden) * len(ways))
                rows.append(_row("-".join(map(str, sizes)), way, options, trained, data, naive))
    return rows


def _trained(widths: list[int], data: Dataset, epochs: int, seed: int) -> tuple[nn.Module, Units]:
    model = logistic_network(widths, seed)
    train(model, data.train, epochs, seed=seed, progress=False)
    return model, find_units(model, data.calibration[0][:2])


def _row(
    network: str, way: str, options: Mapping[str, Any], trained: list[tuple[nn.Module, Units]], data: Dataset,
    naive: float,
) -> Row:  # fmt: skip
    plans = [_rank(model, units, data, {**options, "validation": data.test}) for model, units in trained]
    times = [seconds(partial(_rank, model, units, data, options))[0] for model, units in trained]
    curves = [_accuracies(plan) for plan in plans]
    total = trained[0][1].total
    at = {f"at_{share}": median(curve[math.ceil(share * total / 100)] for curve in curves) for share in (30, 50, 70)}
    start, within = median(curve[0] for curve in curves), median(map(_within_a_point, plans))
    swapped = list(_swapped(trained, data, options)) if options.get("ranking") == "quadratic" else []
    number, before, after = map(fmean, zip(*swapped, strict=True)) if swapped else (None,) * 3
    return Row(
        network, way, start, **at, within_1pt=within, seconds=median(times), ratio=naive / median(times),
        swaps=number, before=before, after=after,
    )  # fmt: skip


def _rank(model: nn.Module, units: Units, data: Dataset, options: Mapping[str, Any]) -> Plan:
    return rank(model, data.calibration, LOSS, units, progress=False, **options)


def _swapped(
    trained: list[tuple[nn.Module, Units]], data: Dataset, options: Mapping[str, Any]
) -> Iterator[tuple[int, float, float]]:
    for model, units in trained:
        plan = _rank(model, units, data, {**options, "swaps": True, "budget": Budget(remove_fraction=0.5)})
        if plan.swaps is not None:
            yield plan.swaps.number, plan.swaps.before, plan.swaps.after


def _accuracies(plan: Plan) -> list[float]:
    return [state.accuracy or 0.0 for state in plan.states]


def _within_a_point(plan: Plan) -> float:
    accuracies = _accuracies(plan)
    return Curve(range(len(accuracies)), accuracies, sum(plan.sizes.values())).within
