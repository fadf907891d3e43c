"""Data without targets: for losses whose targets are the original's own outputs, and beside data that has them."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secateur.arguments import describe
from secateur.errors import ArgumentError, DataError
from secateur.objective.data import Batch, is_pair, require_batches
from secateur.objective.kept_outputs import KEPT, keep
from secateur.objective.loss_inputs import logits_of
from secateur.objective.losses import (
    LossFunction,
    binary_cross_entropy,
    cross_entropy,
    find_loss,
    squared_error,
)
from secateur.objective.mask import Masked
from secateur.options import Compensation

Augment = Callable[[Any, torch.Generator], Any]


def data_for(model: nn.Module, data: Any, loss: Any, name: str = "data", targets: bool = False) -> Any:
    """Return data as `batches` takes it: where a loss keeps the outputs as they were, None stands for the targets.

    Args:
        model: The model, whose forward tells (inputs, targets) from two inputs.
        data: For such a loss a tensor, a tuple of positional inputs or a dict of keyword inputs is one dataset,
            anything else an iterable of such batches; targets beside them are left out. Of another loss it stays as
            it is.
        loss: The loss, by name or a function; None without.
        name: What an error calls the data.
        targets: Whether targets beside the inputs are kept, which a metric needs.

    Raises:
        ArgumentError: There is no loss of that name.
        DataError: It is no data, or a pair that may be two inputs or inputs and targets.
    """
    if loss is None or find_loss(loss) not in KEPT.values() or data is None:
        return data
    if isinstance(data, Masked):
        return dataclasses.replace(data, data=data_for(model, data.data, loss, name, targets))
    forward = _Forward.of(model, name, targets)
    if isinstance(data, Tensor | Mapping) or _is_dataset(data):
        return forward.pair(data)
    return Unlabelled(require_batches(data, name), forward)


def _is_dataset(data: Any) -> bool:
    return isinstance(data, tuple) and (is_pair(data) or all(isinstance(value, Tensor) for value in data))


@dataclass(frozen=True)
class Unlabelled:
    """Batches of inputs, read as pairs (inputs, None), or with targets where these are kept."""

    batches: Iterable[Any]
    forward: _Forward

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        return (self.forward.pair(item) for item in self.batches)


@dataclass(frozen=True)
class _Forward:
    """The numbers of positional inputs that a model takes, at least and at most, and whether targets are kept."""

    least: int
    most: float
    name: str
    targets: bool

    @classmethod
    def of(cls, model: nn.Module, name: str, targets: bool) -> _Forward:
        parameters = inspect.signature(model.forward).parameters.values()
        positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        any_number = any(p.kind is p.VAR_POSITIONAL for p in parameters)
        least = sum(p.default is p.empty for p in positional)
        return cls(least, float("inf") if any_number else len(positional), name, targets)

    def pair(self, item: Any) -> tuple[Any, Any]:
        """Return the inputs of a batch, and its targets where there are some and they are kept, else None."""
        inputs, targets = self._split(item)
        return inputs, targets if self.targets else None

    def _split(self, item: Any) -> tuple[Any, Any]:
        if isinstance(item, Mapping):
            return {name: value for name, value in item.items() if name != "labels"}, item.get("labels")
        if not isinstance(item, tuple | list):
            return item, None
        return (item[0], item[1]) if len(item) == 2 and self._is_labelled(*item) else (tuple(item), None)

    def _is_labelled(self, first: Any, second: Any) -> bool:
        """Return whether two things are inputs and targets, and not two inputs.

        Raises:
            DataError: They may be either.
        """
        if not (isinstance(first, Tensor) and isinstance(second, Tensor)) or self.most < 2:
            return True
        if self.least < 2:
            raise DataError(
                f"{self.name}: two tensors may be two inputs of the model, whose forward takes {self.least} to "
                f"{self.most} positional ones, or inputs and targets; give ((a, b), None) or (a, None)"
            )
        return False


@dataclass(frozen=True)
class MoreInputs:
    """Inputs beside the data, for the fit of the weights at the end and for their refinement.

    Attributes:
        unlabelled: Inputs without targets, in the forms of data for loss="output"; may be `masked`; None for none.
        augment: A function of a batch's inputs and a generator that returns other inputs of their form; None for none.

    Raises:
        ArgumentError: `augment` is no function.
    """

    unlabelled: Any = None
    augment: Augment | None = None

    def __post_init__(self) -> None:
        if self.augment is not None and (not callable(self.augment) or isinstance(self.augment, type)):
            raise ArgumentError(
                f"augment: expected a function of inputs and a torch.Generator, got {describe(self.augment)}"
            )

    def check_use(self, compensation: Compensation | None) -> None:
        """Refuse inputs that no weight would be fitted on.

        Args:
            compensation: How weights are fitted; None where they are not.

        Raises:
            ArgumentError: There are such.
        """
        if self.unlabelled is not None and compensation is None:
            raise ArgumentError("unlabelled: is for weights that are fitted, beside the data")
        if self.augment is not None and not (compensation and compensation.refine):
            raise ArgumentError("augment: is for refine=, a number of steps or 'auto'")


def with_predictions(loss: LossFunction | None, batch: Batch, outputs: Any) -> Batch:
    """Return a batch without targets, with what the original gives as targets of a loss with a name.

    There such a loss is least, and its curvature in the outputs is the same for any targets.

    Args:
        loss: The loss; of one of the user's own, or without one, there are no targets.
        batch: The inputs.
        outputs: The original's.
    """
    if loss is not None and loss in KEPT.values():
        return batch._replace(targets=keep(loss, outputs, batch.mask))
    if loss not in _PREDICTIONS:
        return batch
    targets = _PREDICTIONS[loss](logits_of(outputs))
    undivided = batch.spec is not None and batch.spec.undivided
    return batch._replace(targets=targets, size=len(targets) if undivided else batch.size)


def _softmax(logits: Tensor) -> Tensor:
    return logits.softmax(1, dtype=torch.promote_types(logits.dtype, torch.float32))


_PREDICTIONS: dict[LossFunction | None, Callable[[Tensor], Tensor]] = {
    cross_entropy: _softmax,
    binary_cross_entropy: Tensor.sigmoid,
    squared_error: Tensor.detach,
}
