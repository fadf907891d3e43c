"""Criteria for single weights, and where they are found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from torch import Tensor

from secateur import saliency
from secateur.errors import DataError, ModelError, choose
from secateur.saliency.question import Question
from secateur.saliency.weights import Weights

Saliencies = dict[str, Tensor]  # by parameter, of its shape, float64
WeightSaliency = Callable[[Weights], Saliencies]


@dataclass(frozen=True)
class WeightCriterion:
    """A way to compute or estimate what a single weight is worth.

    Attributes:
        name: As users give it.
        saliency: The function.
        needs_loss: Whether it looks at more than the weights: at data and a loss.
        in_loss_units: Whether it predicts the rise of the loss.
        compensates: Whether the weights that are left change with each removal.
    """

    name: str
    saliency: WeightSaliency
    needs_loss: bool
    in_loss_units: bool
    compensates: bool


_CRITERIA: dict[str, WeightCriterion] = {}


def weight_criterion(
    name: str, needs_loss: bool = True, in_loss_units: bool = True, compensates: bool = False
) -> Callable[[WeightSaliency], WeightSaliency]:
    """Register the decorated function under this name."""

    def register(function: WeightSaliency) -> WeightSaliency:
        _CRITERIA[name] = WeightCriterion(name, function, needs_loss, in_loss_units, compensates)
        return function

    return register


def weight_criteria() -> dict[str, WeightCriterion]:
    """All criteria for weights by name: every module of this package is loaded."""
    for module in iter_modules(saliency.__path__):
        import_module(f"{saliency.__name__}.{module.name}")
    return dict(sorted(_CRITERIA.items()))


def find_weight_criterion(name: str, data: Any, loss: Any) -> WeightCriterion:
    """The criterion of that name, with all that it needs given.

    Raises:
        ArgumentError: There is none of that name.
        DataError: It needs data and a loss, and there are none.
    """
    found = choose("weight criterion", name, weight_criteria())
    missing = [what for what, given in (("data", data), ("a loss", loss)) if given is None]
    if found.needs_loss and missing:
        free = ", ".join(c.name for c in weight_criteria().values() if not c.needs_loss)
        raise DataError(f"criterion {name!r} needs {' and '.join(missing)}; without them: {free}")
    return found


def weights_of(question: Question, name: str = "data") -> Weights:
    """Return E as a function of the model's weights, on the question's data or validation.

    Raises:
        ModelError: The units are another model's, or it uses no weights that can be removed.
    """
    question.all_units.check_model(question.model)
    captured = question.all_units.captured
    data = question.validation if name == "validation" else question.data
    weights = Weights(question.model, captured, data, question.loss, question.seed, question.max_memory, name)
    if not weights.removable:
        raise ModelError("granularity='weight': the model uses no parameter of two dimensions or more")
    return weights


def score_weights(question: Question, criterion: str) -> Saliencies:
    """Return the saliency of every removable weight, by parameter; `secateur.score` with ``granularity="weight"``."""
    found = find_weight_criterion(criterion, question.data, question.loss)
    values = saliencies_of(found, weights_of(question))
    return {name: one.cpu() for name, one in values.items()}


def saliencies_of(found: WeightCriterion, weights: Weights) -> Saliencies:
    """The criterion's saliencies of the removable weights, float64.

    Raises:
        DataError: One of them is NaN: the loss or its derivative is, on this data.
    """
    values = found.saliency(weights)
    if any(bool(one.isnan().any()) for one in values.values()):
        raise DataError(f"criterion {found.name!r} gave NaN: the loss or its derivative is NaN on this data")
    return {name: values[name] for name in weights.removable}
