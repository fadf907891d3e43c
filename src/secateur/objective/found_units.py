"""The units that a question is about: handed in, or found."""

from __future__ import annotations

from typing import Any

from torch import nn

from secateur.arguments import require_instance, require_model
from secateur.objective.data import first_inputs
from secateur.objective.memory import memory_cap, samples_at_once
from secateur.structure.check_units import check_units
from secateur.structure.inputs import as_call, map_tensors, sample_weight
from secateur.structure.units import Units, find_units


def find_or_check(
    model: nn.Module, data: Any, units: Units | None, max_memory: int | str | None = None, example_inputs: Any = None
) -> Units:
    """Return the units handed in, held against the model; where there are none, those that it has.

    Args:
        model: Left as it was.
        data: As `batches` takes it; its first batch is compared on, or of that so many samples as are run at a time.
            None for random inputs of the form that the units were found with.
        units: The units that `find_units` made, or None.
        max_memory: As for `secateur.score`.
        example_inputs: Inputs to find units with or to compare on; None for the first batch's.

    Raises:
        ArgumentError: The model, the units or the memory are no such thing.
        DataError: There is no sample.
        ModelError: The model cannot be captured, or the units were found on another forward.
    """
    require_model(model)
    if units is not None:
        require_instance("units", units, Units, "what secateur.find_units returns")
    memory = memory_cap(max_memory, sample_weight(model).device)
    if example_inputs is None and (data is not None or units is None):
        example_inputs = first_inputs(data)
    if units is None:
        return find_units(model, example_inputs)
    call = units.captured.spec.sample(model) if example_inputs is None else as_call(example_inputs)
    n = samples_at_once(units.captured, memory)
    check_units(model, units, map_tensors(call, lambda tensor: tensor[:n] if tensor.ndim else tensor))
    return units
