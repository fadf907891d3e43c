"""The saliency of every single weight, by any criterion."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from secateur.curvature.weight_loss import WeightLoss
from secateur.errors import ModelError
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
    weights = WeightLoss(
        question.model, captured, data, question.loss, question.seed, question.max_memory, name, question.metric
    )
    if not weights.removable:
        raise ModelError("granularity='weight': the model uses no parameter of two dimensions or more")
    return weights


def score_weights(question: Question, criterion: Criterion) -> Saliencies:
    """Return the saliency of every removable weight, by parameter; `secateur.score` with ``granularity="weight"``."""
    criterion.require(question.data is not None, question.loss is not None)
    saliencies = saliencies_of(criterion, weights_of(question))
    return {name: values.cpu() for name, values in saliencies.items()}


def saliencies_of(criterion: Criterion, weights: WeightLoss) -> Saliencies:
    """Return the criterion's saliencies of the removable weights, float64.

    Raises:
        ArgumentError: It fails, or what it gives is none.
        DataError: One of them is NaN: the loss or its derivative is, on this data.
    """
    with criterion.blamed():
        result = criterion.saliency(weights)
    parameters = dict(weights.model.named_parameters())
    saliencies = {name: _of_parameter(criterion, name, parameters[name], result) for name in weights.removable}
    criterion.check_saliencies(list(saliencies.values()))
    return saliencies


def _of_parameter(criterion: Criterion, name: str, parameter: Tensor, result: object) -> Tensor:
    """Return the saliencies of one parameter's weights, on its device.

    Raises:
        ArgumentError: There are none, or no numbers of its shape.
    """
    expected = f"a dict with a floating-point tensor {[*parameter.shape]} under {name!r}"
    if not isinstance(result, Mapping) or name not in result:
        raise criterion.refuse(result, expected)
    return criterion.as_saliencies(result[name], parameter, expected)
