"""Augmented copies of samples: shifted, turned or noisy ones, which the original's own outputs belong to as well."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from secateur.errors import ArgumentError, DataError
from secateur.objective.data import Batch
from secateur.objective.gated_loss import GatedLoss
from secateur.objective.unlabelled import Augment
from secateur.structure.calls.trees import unpack
from secateur.structure.inputs import Call, as_call, input_leaves, map_tensors, sample_weight
from secateur.structure.lookups import Lookups


def augmented(gated: GatedLoss, batches: list[Batch], augment: Augment) -> list[Batch]:
    """Return each batch with the inputs that a function makes of it; the same ones for the same seed.

    Args:
        gated: The original; its seed is that of the function's generator.
        batches: Samples, left as they are.
        augment: The function: of inputs as data has them, a tensor, a tuple or a dict, and of a generator on their
            device.

    Raises:
        DataError: It fails, or returns inputs of another form, or that are not finite.
    """
    generator = torch.Generator(sample_weight(gated.model).device)
    generator.manual_seed(gated.generator.initial_seed())
    name, lookups = f"augment: {getattr(augment, '__name__', type(augment).__name__)}", Lookups(gated.units.captured)
    made = []
    for batch in batches:
        call = _changed(batch.call, augment, generator, name)
        lookups.check(call, f"{name} returns ")
        made.append(batch._replace(call=call, targets=None))
    return made


def _changed(call: Call, augment: Augment, generator: torch.Generator, name: str) -> Call:
    """Return the inputs that the function makes of those of a batch.

    Raises:
        DataError: As `augmented`.
    """
    try:
        with torch.no_grad():
            returned = augment(_inputs(map_tensors(call, Tensor.clone)), generator)
    except Exception as error:
        raise DataError(f"{name} fails ({type(error).__name__}: {error})") from error
    try:
        changed = as_call(returned)
    except ArgumentError:
        raise DataError(f"{name} returns {type(returned).__name__}, no inputs") from None
    _check_form(call, changed, name)
    return map_tensors(changed, lambda tensor: tensor.detach().clone())


def _inputs(call: Call) -> Any:
    """Return the inputs in the form in which data has them."""
    args, kwargs = unpack(call)
    if kwargs:
        return kwargs
    return args[0] if len(args) == 1 and isinstance(args[0], Tensor) else args


def _check_form(call: Call, changed: Call, name: str) -> None:
    """Refuse inputs of another form than those that they were made of.

    Raises:
        DataError: They are.
    """
    before, after = input_leaves(call), input_leaves(changed)
    if before.keys() != after.keys():
        raise DataError(f"{name} returns inputs {', '.join(after) or 'without any'}; expected {', '.join(before)}")
    for path, leaf in before.items():
        where, other = f"{name} returns as inputs{path if len(before) > 1 else ''}", after[path]
        if _form(other) != _form(leaf):
            raise DataError(f"{where} {_form(other)}; expected {_form(leaf)}")
        if isinstance(leaf, Tensor) and bool((leaf.isfinite() & ~other.isfinite()).any()):
            raise DataError(f"{where} NaN or infinite values")


def _form(leaf: Any) -> str:
    """Return what stays of an input: of a tensor all but its numbers."""
    if not isinstance(leaf, Tensor):
        return repr(leaf)
    return f"a tensor of shape {tuple(leaf.shape)}, {leaf.dtype} on {leaf.device}"
