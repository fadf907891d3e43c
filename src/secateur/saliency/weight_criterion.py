"""The saliency of every single weight by any criterion."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import ArgumentError, DataError, ModelError
from secateur.saliency.data import first_inputs
from secateur.saliency.registry import Criterion, Saliency, as_criterion
from secateur.saliency.weights import Weights
from secateur.structure.capture import capture
from secateur.structure.inputs import as_call, like_model
from secateur.structure.units import Units

Saliencies = dict[str, Tensor]  # by parameter, of its shape, float64


def find_weight_criterion(chosen: str | Saliency | Criterion, data: Any, loss: Any) -> Criterion:
    """The criterion of that name, or that a function is, with all that it needs given.

    Raises:
        ArgumentError: There is none.
        DataError: It needs data and a loss, and there are none.
    """
    found = as_criterion(chosen, "weight")
    found.require(data is not None, loss is not None)
    return found


def weights_of(
    model: nn.Module, data: Any, loss: Any, units: Units | None, seed: int, max_memory: int | str | None
) -> Weights:
    """E as a function of the model's weights; the graph is that of the units, or captured with the first batch.

    Raises:
        ModelError: The model cannot be captured, or uses no weights that can be removed.
    """
    if units is None:
        captured = capture(model, like_model(model, as_call(first_inputs(data))))
    else:
        units.check_model(model)
        captured = units.captured
    weights = Weights(model, captured, data, loss, seed, max_memory)
    if not weights.removable:
        raise ModelError("granularity='weight': the model uses no parameter of two dimensions or more")
    return weights


def score_weights(
    model: nn.Module, data: Any, loss: Any, units: Units | None, criterion: str | Saliency, seed: int,
    max_memory: int | str | None,
) -> Saliencies:  # fmt: skip
    """The saliency of every removable weight, by parameter; `secateur.score` with ``granularity="weight"``."""
    found = find_weight_criterion(criterion, data, loss)
    values = saliencies_of(found, weights_of(model, data, loss, units, seed, max_memory))
    return {name: one.cpu() for name, one in values.items()}


def saliencies_of(found: Criterion, weights: Weights) -> Saliencies:
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
