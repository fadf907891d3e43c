"""Optimal Brain Damage on single weights beside their magnitude, without and with training in between."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from torch import nn

from secateur import Budget, find_units, shrink
from secateur.reporting.progress import progress_bar
from secateur.result import Result
from secateur_experiments.curves import ROUNDING, Curve, units_of
from secateur_experiments.datasets import Dataset
from secateur_experiments.study import Study
from secateur_experiments.training import train

LOSS = "squared_error"
HIDDEN = (100,)
CRITERIA = ("obd", "obd_ggn", "obd_recursion", "obd_fisher", "magnitude", "random")
LEAST = 0.005  # of the weights are left at the end
ROUNDS = 30
SHARE = 15  # of the first training's epochs one in so many follows each round, where there is any


@dataclass(frozen=True)
class Row:
    """One criterion, with training in between or without.

    Attributes:
        criterion: How weights are scored.
        retrained: Epochs after each round; 0 for none.
        start: Accuracy on the test part before.
        at_50: After the first round with at least 50 % of the weights removed.
        at_80: With 80 %.
        at_90: With 90 %.
        at_95: With 95 %.
        at_98: With 98 %.
        within_1pt: The largest share of weights removed, in percent, with accuracy at most one point below the start.
        bytes: Of the file written with that share.
        of_dense: Those, as a share of the original's file, in percent.
    """

    criterion: str
    retrained: int
    start: float
    at_50: float
    at_80: float
    at_90: float
    at_95: float
    at_98: float
    within_1pt: float
    bytes: int
    of_dense: float


def compare(
    study: Study, hidden: Sequence[int] = HIDDEN, criteria: Sequence[str] = CRITERIA, rounds: int = ROUNDS,
    progress: bool = True,
) -> list[Row]:  # fmt: skip
    """Return a row for each criterion, without and with training in between.

    Args:
        study: The data: saliency is computed on its calibration part, accuracy on its test part; its first seed.
        hidden: Hidden widths.
        criteria: How weights are scored.
        rounds: In which they are removed, each to the same share of those left.
        progress: Show a bar on stderr.
    """
    model = study.network(study.logistic(hidden), study.seeds[0])
    rows: list[Row] = []
    with progress_bar("removing weights", progress) as bar:
        for retrained in (0, max(1, study.epochs // SHARE)):
            for criterion in criteria:
                bar(len(rows), 2 * len(criteria))
                rows.append(_row(model, study.data, criterion, retrained, rounds))
    return rows


def _row(model: nn.Module, data: Dataset, criterion: str, retrained: int, rounds: int) -> Row:
    retrain = partial(train, data=data.train, epochs=retrained, learning_rate=1e-3, progress=False)
    result = shrink(
        model, data.calibration, LOSS, Budget(remove_fraction=1 - LEAST), units=find_units(model, data.test[0][:2]),
        criterion=criterion, granularity="weight", rounds=rounds, retrain=retrain if retrained else None,
        validation=data.test, progress=False,
    )  # fmt: skip
    return summary(result, criterion, retrained)


def summary(result: Result, criterion: str, retrained: int) -> Row:
    """Return what a result says, whose weights went in rounds."""
    start, total = result.before.accuracy or 0.0, sum(result.plan.sizes.values())
    curve = Curve([row.removed for row in result.curve], [row.accuracy or 0.0 for row in result.curve], total)
    good = [row for row in result.curve if (row.accuracy or 0) >= start - 0.01 - ROUNDING]
    removed, size = (good[-1].removed, good[-1].bytes) if good else (0, result.before.bytes)
    at = {f"at_{share}": curve.at(units_of(share, total)) for share in (50, 80, 90, 95, 98)}
    within, of_dense = 100 * removed / total, 100 * size / result.before.bytes
    return Row(criterion, retrained, start, **at, within_1pt=within, bytes=size, of_dense=of_dense)
