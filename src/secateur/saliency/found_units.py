"""The units that a question is about: handed in, or found."""

from __future__ import annotations

from typing import Any

from torch import nn

from secateur.arguments import require_instance, require_model
from secateur.saliency.data import first_inputs
from secateur.structure.check_units import check_units
from secateur.structure.inputs import as_call
from secateur.structure.units import Units, find_units


def find_or_check(model: nn.Module, data: Any, units: Units | None, example_inputs: Any = None) -> Units:
    """Return the units handed in, held against the model; where there are none, those that it has.

    Args:
        model: Left as it was.
        data: As `batches` takes it; its first batch is compared on. None for random inputs of the form that the units
            were found with.
        units: As `find_units` made them, or None.
        example_inputs: To find units with or to compare on; None for the first batch's.

    Raises:
        ArgumentError: The model or the units are no such thing.
        DataError: There is no sample.
        ModelError: The model cannot be captured, or the units were found on another forward.
    """
    require_model(model)
    if units is not None:
        require_instance("units", units, Units, "what secateur.find_units returns")
    if example_inputs is None and (data is not None or units is None):
        example_inputs = first_inputs(data)
    if units is None:
        return find_units(model, example_inputs)
    check_units(model, units, units.captured.spec.sample(model) if example_inputs is None else as_call(example_inputs))
    return units
