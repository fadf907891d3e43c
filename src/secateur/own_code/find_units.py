"""The units of a model: those that its own code can follow, or all."""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from typing import Any

from torch import nn

from secateur.arguments import checked_call, require_model
from secateur.errors import ModelError, choose
from secateur.own_code.followed import followed
from secateur.process_state import one_at_a_time
from secateur.structure.exporting.programs import ProgramModule
from secateur.structure.infer import NOT_COVERED, infer
from secateur.structure.inputs import Call, InputSpec, as_call, like_model
from secateur.structure.lengths import capture_fixed, capture_lengths, few
from secateur.structure.ops.net import OF_INPUTS
from secateur.structure.units import Include, Units


@checked_call
@one_at_a_time
def find_units(model: nn.Module, example_inputs: Any, include: Include = "gated") -> Units:
    """Return all units that can be removed from a model, and why the others cannot.

    The model is captured by `torch.export`; each dimension of each value becomes an axis, and axes that an
    operation ties together are one (see `secateur.structure.axis`). An axis that reaches no input, output
    or unknown operation is a unit set. Cost: one export, seconds, or two where a size is free that the first cannot
    leave free; a few passes of two samples; inference itself is milliseconds.

    Args:
        model: Any `torch.nn.Module` that torch.export can capture; left as it was.
        example_inputs: A tensor, a tuple of positional inputs or a dict of keyword inputs, samples first; each may hold
            tensors at any depth, in lists, dicts, dataclasses. Tensors that all samples share (a mask [L, L], a
            timestep [1]) are told by trial; where nothing can be divided into samples (the nodes and edges of a graph,
            the bags of an EmbeddingBag), an input is a batch of its own, counted by its targets. Where the
            model leaves other sizes free (lengths of sequences, sizes of images), data may have others than these.
        include: "gated": the sets whose units can be removed exactly as by a gate of zero; "all": also those
            over which a norm or another statistic is taken (`removal` "sliced").

    Note:
        Where units are handed in later, the model must still have the forward that they were found on; other weights
        of the same sizes are fine. Threads may call Secateur at the same time, their calls run one after the other;
        but while one runs, no model must be called from elsewhere: torch.export patches `torch.nn.Module` for the whole
        process, and the model itself is in eval mode, with other weights at times.

    Returns:
        The unit sets; empty where nothing can be removed.

    Raises:
        ArgumentError: The model or the inputs are no such thing, or `include` is neither of the two.
        ModelError: The model cannot be captured, or its weights are not finite.

    >>> import torch
    >>> from torch import nn
    >>> units = find_units(nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)), torch.zeros(2, 3))
    >>> [(s.name, s.size, s.params_per_unit) for s in units], [f.reason for f in units.fixed]
    ([('0', 5, 6)], ['a model output', 'a model input'])
    """
    return units_of(require_model(model), as_call(example_inputs), include)


def units_of(model: nn.Module, call: Call, include: Include = "gated") -> Units:
    """Return all units that can be removed, for inputs given as (args, kwargs)."""
    choose("include", include, {"gated": True, "all": True})
    call = like_model(model, call)
    captured = capture_lengths(model, call)
    units = Units(captured, infer(captured), model, include)
    if captured.spec.free and any(OF_INPUTS in fixed.reason or NOT_COVERED in fixed.reason for fixed in units.fixed):
        captured = capture_fixed(model, call, captured.spec.without_free())  # for one length a rule may cover more
        units = max(units, Units(captured, infer(captured), model, include), key=lambda known: known.total)
    if include == "all" or isinstance(model, ProgramModule):  # whose graph is cut: it has no other code to follow
        return units
    return followed(model, units, few(call, captured.spec))


def units_of_sets(model: nn.Module, spec: InputSpec, names: Collection[str]) -> Units:
    """Return all units; where sets of these names are tied by code, those that the model's code can follow.

    Args:
        model: The network.
        spec: The form of its inputs.
        names: The unit sets of a plan.
    """
    units = all_units(model, spec)
    others = set(names) - {unit_set.name for unit_set in units}
    if others:
        tied = all_units(model, spec, "gated")
        if others <= {unit_set.name for unit_set in tied}:
            return tied
    return units


def all_units(model: nn.Module, spec: InputSpec, include: Include = "all") -> Units:
    """Return the units; where the code fixes the number of samples, for as many samples as the example had."""
    if spec.samples is None:
        return units_of(model, spec.sample(model), include)
    with contextlib.suppress(ModelError):
        units = units_of(model, spec.sample(model), include)
        if units.captured.spec.fixed is None:
            return units
    return units_of(model, spec.sample(model, spec.samples), include)
