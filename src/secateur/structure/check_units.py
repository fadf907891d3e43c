"""Units that were found earlier, held against the model that they are to be the units of."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from secateur.errors import ModelError
from secateur.structure.capture import check_finite, eval_outputs, evaluating
from secateur.structure.graph_run import difference, flatten, run, tolerance_of
from secateur.structure.inputs import Call, like_model, sample_weight
from secateur.structure.units import Units


def check_units(model: nn.Module, units: Units, call: Call) -> None:
    """Refuse units that were found on another forward than the model has now.

    Weights may have changed since, and the device. Cost: one pass of these inputs by the model, one by the graph.

    Args:
        model: A model in whatever mode; evaluated as in eval mode, left as it was.
        units: The units that `find_units` made, for this model or one of the same code and sizes.
        call: Inputs to compare on.

    Raises:
        DataError: The inputs have another form than those that the units were found with.
        ModelError: The model has other parameters, weights that are not finite, or computes something else.
    """
    units.check_model(model)
    check_finite(model)
    call = like_model(model, call)
    flatten(units.captured, call)  # refuses inputs of another form
    _, relative = difference(eval_outputs(model, call), _graph_outputs(model, units, call))
    if not relative <= tolerance_of(units.captured, sample_weight(model).dtype):
        gap = f"the captured graph differs from the model by {relative:.2g} of the largest output"
        raise ModelError(f"units: found on another forward: {gap}; call find_units again")


def _graph_outputs(model: nn.Module, units: Units, call: Call) -> Any:
    """Return the outputs of the captured graph with the model's weights of eval mode.

    Raises:
        ModelError: It does not run with the model's weights.
    """
    try:
        with evaluating(model), torch.no_grad():
            return run(units.captured, model, call)
    except (RuntimeError, IndexError, TypeError) as error:
        why = f"the captured graph does not run with this model's weights ({error})"
        raise ModelError(f"units: found on another forward: {why}; call find_units again") from error
