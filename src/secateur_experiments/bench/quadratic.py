"""The quadratic ranking beside the iterative oracle: what is left of the accuracy, and how long it takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean, median
from typing import Any

from torch import nn

from secateur import Budget, Plan, Units, rank
from secateur.reporting.progress import progress_bar
from secateur_experiments.bench.oracle import best_batch, iterative
from secateur_experiments.bench.timing import seconds
from secateur_experiments.curves import curve_of, units_of, within
from secateur_experiments.datasets import Dataset
from secateur_experiments.study import Study

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
    study: Study, hidden: Sequence[Sequence[int]] = HIDDEN, ways: Mapping[str, Mapping[str, Any]] = WAYS,
    progress: bool = True,
) -> list[Row]:  # fmt: skip
    """Return a row for each network and each way.

    Args:
        study: The data: saliency is computed on its calibration part, accuracy on its test part; and the seeds.
        hidden: Hidden widths of each kind of network.
        ways: Name → arguments of `secateur.rank`.
        progress: Show a bar on stderr.
    """
    rows: list[Row] = []
    with progress_bar("rankings", progress) as bar:
        for widths in hidden:
            subject = study.logistic(widths)
            trained = [(study.network(subject, seed), study.units(subject, seed)) for seed in study.seeds]
            batch = best_batch(trained[0][0], study.data.calibration[0])
            naive = seconds(iterative(*trained[0], study.data.calibration, LOSS, batch)[0])[0]
            for way, options in ways.items():
                bar(len(rows), len(hidden) * len(ways))
                rows.append(_row(subject.name, way, options, trained, study.data, naive))
    return rows


def _row(
    network: str, way: str, options: Mapping[str, Any], trained: list[tuple[nn.Module, Units]], data: Dataset,
    naive: float,
) -> Row:  # fmt: skip
    plans = [_rank(model, units, data, {**options, "validation": data.test}) for model, units in trained]
    times = [seconds(partial(_rank, model, units, data, options))[0] for model, units in trained]
    curves = [curve_of(plan) for plan in plans]
    at = {f"at_{share}": median(c.at(units_of(share, c.total)) for c in curves) for share in (30, 50, 70)}
    swapped = list(_swapped(trained, data, options)) if options.get("ranking") == "quadratic" else []
    number, before, after = map(fmean, zip(*swapped, strict=True)) if swapped else (None,) * 3
    return Row(
        network, way, median(curve.accuracy[0] for curve in curves), **at, within_1pt=within(curves),
        seconds=median(times), ratio=naive / median(times), swaps=number, before=before, after=after,
    )  # fmt: skip


def _rank(model: nn.Module, units: Units, data: Dataset, options: Mapping[str, Any]) -> Plan:
    return rank(model, data.calibration, LOSS, units=units, progress=False, **options)


def _swapped(
    trained: list[tuple[nn.Module, Units]], data: Dataset, options: Mapping[str, Any]
) -> Iterator[tuple[int, float, float]]:
    for model, units in trained:
        plan = _rank(model, units, data, {**options, "swaps": True, "budget": Budget(remove_fraction=0.5)})
        if plan.swaps is not None:
            yield plan.swaps.number, plan.swaps.before, plan.swaps.after
