"""What a cut network must compute: the original with what is gone set to zero, found by values alone.

All entries of a network's parameters and buffers are random and different. Those that are left after a cut are found
again by their value, wherever they lie now; all others become zero in a copy of the original. No unit set, axis or gate
is asked. Removed entries of variances may stay, since what they divide is zero. Nor are all values literally the same:
where the scale of attention depends on a width, the cut makes up for it in the queries.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from secateur import SecateurError

CACHES = ("past_key_values", "cache_params")
SCALES = sorted({math.sqrt(a / b) for b in range(1, 65) for a in range(1, b)})


def values(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield every parameter and buffer of floating-point numbers, tied ones once."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point():
            yield name, tensor.detach()


def _sorted_values(model: nn.Module) -> Tensor:
    return torch.cat([tensor.flatten() for _, tensor in values(model)]).sort().values


def _is_among(wanted: Tensor, known: Tensor, tolerance: float = 0.0) -> Tensor:
    """Return for each value whether it is among those known, which are sorted."""
    after = torch.searchsorted(known, wanted.contiguous()).clamp(max=len(known) - 1)
    gaps = [(known[place] - wanted).abs() for place in (after, (after - 1).clamp(min=0))]
    return torch.minimum(*gaps) <= tolerance * wanted.abs()


def zeroed(original: nn.Module, small: nn.Module) -> nn.Module:
    """Return the original with every entry that the cut network does not have set to zero.

    Raises:
        SecateurError: The cut network has values that are not the original's, not even by a factor of a scale.
    """
    known, left = _sorted_values(original), _sorted_values(small)
    strange = left[~_is_among(left, known)]
    for scale in SCALES:
        was = strange / scale
        there = _is_among(was, known, 1e-13 if known.dtype == torch.float64 else 1e-7)
        left, strange = torch.cat([left, was[there]]), strange[~there]
        if not len(strange):
            break
    if len(strange):
        raise SecateurError(f"{len(strange)} of the values left are not the original's")
    left = left.sort().values
    tolerance = 2e-13 if known.dtype == torch.float64 else 0.0
    twin = copy.deepcopy(original)
    for name, tensor in values(twin):
        if not name.endswith("running_var"):
            tensor.mul_(_is_among(tensor.flatten(), left, tolerance).view_as(tensor))
    return twin


def tensors(output: Any) -> list[Tensor]:
    """Return the tensors of an output in order, without those of caches, whose widths shrink."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, dict):
        output = [value for name, value in output.items() if name not in CACHES]
    elif is_dataclass(output):
        output = [getattr(output, field.name) for field in fields(output)]
    return [tensor for part in output for tensor in tensors(part)] if isinstance(output, list | tuple) else []


class InDouble(TorchFunctionMode):
    """All that a network's code asks for in float32, norms and rotations mostly, computed in float64."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the function with the wider type."""
        function = torch.Tensor.double if function is torch.Tensor.float else function
        args = [_wider(value) for value in args]
        return function(*args, **{name: _wider(value) for name, value in (kwargs or {}).items()})


def _wider(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value
