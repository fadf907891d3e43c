"""The saliency of every single weight by any criterion."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from secateur.curvature.weight_loss import WeightLoss
from secateur.errors import ArgumentError, DataError, ModelError
from secateur.objective.question import Question
from secateur.saliency.criterion import Criterion

Saliencies = dict[str, Tensor]  # by parameter, of its shape, float64


def weights_of(question: Question, name: str = "data") -> WeightLoss:
    """Return E as a function of the model's weights, on the question's data or validation.

    Raises:
        ModelError: The units are another model's, or it uses no weights that can be removed.
    """
    question.all_units.check_model(question.model)
    captured = question.all_units.captured
    data = question.validation if name == "validation" else question.data
    weights = WeightLoss(question.model, captured, data, question.loss, question.seed, question.max_memory, name)
    if not weights.removable:
        raise ModelError("granularity='weight': the model uses no parameter of two dimensions or more")
    return weights


def score_weights(question: Question, criterion: Criterion) -> Saliencies:
    """Return the saliency of every removable weight, by parameter; `secateur.score` with ``granularity="weight"``."""
    criterion.require(question.data is not None, question.loss is not None)
    values = saliencies_of(criterion, weights_of(question))
    return {name: one.cpu() for name, one in values.items()}


def saliencies_of(found: Criterion, weights: WeightLoss) -> Saliencies:
    """The criterion's saliencies of the removable weights, float64.

    Raises:
        ArgumentError: It fails, or what it gives is none.
        DataError: One of them is NaN: the loss or its derivative is, on this data.
    """
    with found.blamed():
        values = found.saliency(weights)
    parameters = dict(weights.model.named_parameters())
    checked = {name: _checked(found, name, parameters[name], values) for name in weights.removable}
    if any(bool(one.isnan().any()) for one in checked.values()):
        raise DataError(f"criterion {found.name!r} gave NaN: {found.why_nan}")
    if any(bool(one.isneginf().any()) for one in checked.values()):
        raise ArgumentError(f"criterion {found.name!r} gave -inf; a weight that it cannot judge is worth inf")
    return checked


def _checked(found: Criterion, name: str, parameter: Tensor, values: object) -> Tensor:
    """The saliencies of one parameter's weights, on its device.

    Raises:
        ArgumentError: There are none, or no numbers of its shape.
    """
    expected = f"a dict with a floating-point tensor {[*parameter.shape]} under {name!r}"
    if not isinstance(values, Mapping) or name not in values:
        raise found.refuse(values, expected)
    value = values[name]
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.shape != parameter.shape:
        raise found.refuse(value, expected)
    return value.detach().to(parameter.device, torch.float64)
