"""Data without targets, for losses whose targets are the original's own outputs: inputs alone, as (inputs, None)."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from secateur.errors import DataError
from secateur.objective.data import is_pair, require_batches
from secateur.objective.kept_outputs import KEPT
from secateur.objective.losses import find_loss
from secateur.objective.mask import Masked


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
