"""Quality: the mean loss, the accuracy and the metric of a network on some samples."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from secateur.objective.losses import LossFunction, correct, loss_of_batch
from secateur.objective.quality.metric import Metric, Run, value_of_metric


class Quality(NamedTuple):
    """The quality of a network on some samples; None where it was not measured.

    Attributes:
        loss: The mean loss.
        accuracy: The share of right predictions; None also where there are no classes.
        metric: What a function of the user's own gives; None also where there is none.
        predictions: The number of predictions that the accuracy is taken over.
    """

    loss: float | None = None
    accuracy: float | None = None
    metric: float | None = None
    predictions: int = 0


def quality_of(loss: LossFunction, metric: Metric | None, runs: Iterable[Run]) -> Quality:
    """Return the quality from the outputs and targets of all batches.

    Outputs are held together for a metric alone.

    Args:
        loss: The loss of one batch.
        metric: A function of the outputs and targets of all samples; None for none.
        runs: The batches.

    Raises:
        DataError: The loss is NaN or no number, or the metric no finite number, or one of them fails.
    """
    total, right, predictions, held = 0.0, 0, 0, list[Run]()
    for run in runs:
        total += run.share * loss_of_batch(loss, run.outputs, run.targets).double().item()
        hits = correct(loss, run.outputs, run.targets)
        if hits is not None:
            right, predictions = right + int(hits.sum()), predictions + hits.numel()
        if metric is not None:
            held.append(run)
    value = None if metric is None else value_of_metric(metric, held)
    return Quality(total, right / predictions if predictions else None, value, predictions)
