"""States: what is left of a network at one point of an order of removals, and on which samples it was measured."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol, Self

from secateur.objective.quality.quality import Quality


@dataclass(frozen=True)
class State:
    """The network at one point of the order; loss, accuracy and metric are None where they were not measured.

    Attributes:
        loss: The loss.
        accuracy: The share of right predictions.
        params: The number of parameters.
        bytes: The bytes of the written file.
        macs: The multiplications with addition for one sample.
        ram: The bytes of the values alive at the same time, at most, for one sample.
        kv_cache: The bytes that a decoder keeps of each earlier token; 0 where that is not known.
    """

    loss: float | None
    accuracy: float | None
    params: int
    bytes: int
    macs: int
    metric: float | None = field(default=None, kw_only=True)
    ram: int = field(default=0, kw_only=True)
    kv_cache: int = field(default=0, kw_only=True)

    def measured(self, quality: Quality) -> Self:
        """Return the state with the quality that was measured there."""
        return replace(self, loss=quality.loss, accuracy=quality.accuracy, metric=quality.metric)


@dataclass(frozen=True)
class Step(State):
    """One removal: the unit in the original model's numbering, the predicted rise of the loss, what is left."""

    set: str
    index: int
    predicted: float | None


@dataclass(frozen=True)
class Swaps:
    """The exchanges of removed units, and the rise of the loss that a quadratic ranking predicts without and with them.

    Attributes:
        number: The number of exchanges.
        before: The predicted rise without them.
        after: The predicted rise with them; never more.
    """

    number: int
    before: float
    after: float

    def __str__(self) -> str:
        if not self.number:
            return f"no swap lowers the predicted rise of the loss, {self.before:.4g}"
        swaps = "1 swap" if self.number == 1 else f"{self.number} swaps"
        return f"{swaps} lowered the predicted rise of the loss from {self.before:.4g} to {self.after:.4g}"


@dataclass(frozen=True)
class Basis:
    """The samples on which losses and accuracies of a plan were measured.

    Attributes:
        where: "data", the samples that saliency and weights come from; "validation"; or "held back", every fifth sample
            of the data, which no weight was fitted on.
        samples: The number of samples.
        fitted: Whether weights were fitted on these very samples.
        predictions: The number of predictions an accuracy is taken over; 0 where there are no classes.

    >>> print(Basis("held back", 200, False))
    200 samples held back from the fit
    """

    where: str
    samples: int
    fitted: bool
    predictions: int = 0

    def standard_error(self, accuracy: float) -> float:
        """Return √(p (1 − p) / n), the standard error of an accuracy p measured on n samples."""
        return math.sqrt(max(accuracy * (1 - accuracy), 0.0) / self.samples)

    def __str__(self) -> str:
        samples = "1 sample" if self.samples == 1 else f"{self.samples:,} samples"
        if self.where == "data":
            return (
                f"{samples} of the data, on which the weights were fitted" if self.fitted else f"{samples} of the data"
            )
        return f"{samples} held back from the fit" if self.where == "held back" else f"{samples} of the validation data"


def accuracy_of(accuracy: float | None, basis: Basis | None) -> str | None:
    """Return an accuracy as in the tables, with its standard error where its samples are known.

    >>> accuracy_of(0.9, Basis("data", 1000, False)), accuracy_of(0.9, None)
    ('0.9000 ± 0.0095', '0.9000')
    """
    if accuracy is None:
        return None
    return f"{accuracy:.4f}" + (f" ± {basis.standard_error(accuracy):.4f}" if basis else "")


def to_json(sizes: Any) -> dict[str, Any]:
    """Return a state, or other sizes with a quality, as plain data, without a metric and costs that nobody measured."""
    left_out = [("metric", None), ("latency_ms", None), ("kv_cache", None), ("kv_cache", 0), ("ram", 0)]
    return {name: value for name, value in asdict(sizes).items() if (name, value) not in left_out}


class Measured(Protocol):
    """A state, or other sizes with a quality."""

    @property
    def loss(self) -> float | None:
        """The loss."""

    @property
    def accuracy(self) -> float | None:
        """The accuracy."""

    @property
    def metric(self) -> float | None:
        """The metric."""


def quality_columns(start: Measured) -> list[str]:
    """Return the columns of tables that `quality_cells` fills: one for the metric where there is one at the start."""
    return ["loss", "accuracy", *(["metric"] if start.metric is not None else [])]


def quality_cells(state: Measured, start: Measured, basis: Basis | None) -> tuple[str | None, ...]:
    """Return loss, accuracy and metric as in the tables.

    Args:
        state: The network.
        start: The network before any removal.
        basis: The samples; None where unknown.

    >>> start = State(0.5, 0.9, 1, 1, 1, metric=-23.456)
    >>> quality_cells(start, start, None)
    ('0.5', '0.9000', '-23.46')
    """
    metric = None if state.metric is None else f"{state.metric:.4g}"
    cells = three_digits(state.loss), accuracy_of(state.accuracy, basis), metric
    return cells[: len(quality_columns(start))]


def three_digits(value: float | None) -> str | None:
    """Return a number with three digits, as in the tables; None where there is none."""
    return None if value is None else f"{value:.3g}"
