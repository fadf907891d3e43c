"""The copy of a model, or of a part of it, with sliced parameters and buffers."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from secateur.errors import ModelError, PlanError
from secateur.structure.axis import Axis
from secateur.structure.keep_mask import KeepMask
from secateur.structure.sliced_graph import slice_tensor
from secateur.structure.units import Units


def keep_mask_of(units: Units, kept: Mapping[str, tuple[int, ...]]) -> KeepMask:
    """Return which entries of every axis stay, for the units kept of each set.

    Raises:
        PlanError: A name or an index is not one of the model's, or a set would lose all its units.
    """
    names = [unit_set.name for unit_set in units]
    masks: dict[Axis, Tensor] = {}
    for name, indices in kept.items():
        if name not in names:
            why = next((f", which cannot lose any: {axis.reason}" for axis in units.fixed if axis.name == name), "")
            raise PlanError(f"the plan keeps units of {name!r}{why}; the model's unit sets are: {', '.join(names)}")
        unit_set = units[name]
        if not indices or min(indices) < 0 or max(indices) >= unit_set.size:
            raise PlanError(f"the plan keeps {list(indices)} of {name!r}, which has units 0 to {unit_set.size - 1}")
        if len(set(indices)) < unit_set.least:
            asked, least = len(set(indices)), unit_set.least
            raise PlanError(f"the plan keeps {asked} of {name!r}, and as many as are chosen at once must stay: {least}")
        masks[unit_set.axis] = torch.zeros(unit_set.size, dtype=torch.bool)
        masks[unit_set.axis][list(indices)] = True
    return KeepMask(masks)


def index_map(units: Units, kept: Mapping[str, tuple[int, ...]]) -> dict[str, list[list[int] | None]]:
    """Return, for each parameter and buffer that loses something, the old indices that stay along each dimension.

    They are in their new order; None stands for a dimension that stays whole.

    >>> from secateur.own_code.find_units import find_units
    >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> index_map(find_units(model, torch.zeros(2, 3)), {"0": (1, 3)})
    {'0.weight': [[1, 3], None], '0.bias': [[1, 3]], '2.weight': [None, [1, 3]]}
    """
    keep_mask = keep_mask_of(units, kept)
    indices = {
        name: [None if keep_mask.count(axis) == axis.size else keep_mask.indices(axis).tolist() for axis in axes]
        for name, axes in units.axes.items()
    }
    return {name: dims for name, dims in indices.items() if any(left is not None for left in dims)}


def sliced_copy(model: nn.Module, units: Units, keep_mask: KeepMask) -> nn.Module:
    """Return a copy of the model with only the kept units' slices of every parameter and buffer.

    Values are copied, so that no view writes the old storage out; ties between parameters, hooks, devices,
    dtypes, training mode and requires_grad stay as they are.

    Raises:
        ModelError: The model cannot be copied.
    """
    memo: dict[int, object] = {}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        piece = slice_tensor(tensor.detach(), units.axes.get(name, []), keep_mask)
        piece = piece.clone(memory_format=torch.preserve_format)
        memo[id(tensor)] = nn.Parameter(piece, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else piece
    try:
        return copy.deepcopy(model, memo)  # takes the sliced tensors wherever it meets the old ones
    except Exception as error:
        raise ModelError(f"{type(model).__name__} cannot be copied ({type(error).__name__}: {error})") from error
