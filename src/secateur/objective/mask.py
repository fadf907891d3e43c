"""Positions that do not count: padding, which no weight is fitted to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from secateur.arguments import describe
from secateur.errors import ArgumentError, DataError
from secateur.structure.calls.trees import unpack
from secateur.structure.inputs import Call

Mask = str | Callable[..., Tensor]  # the name of an input, or a function of the inputs
KNOWN = "attention_mask"  # a keyword input [N, L] of this name says by itself which positions count


@dataclass(frozen=True)
class Masked:
    """Data, and what tells from the inputs of a batch which positions count."""

    data: Any
    mask: Mask


def masked(data: Any, mask: Mask | None) -> Any:
    """Return the data with its mask, or as they are where there is none.

    Raises:
        ArgumentError: The mask is neither a name nor a function, or there are no data.
    """
    if mask is None:
        return data
    if not (isinstance(mask, str) or callable(mask)) or isinstance(mask, type):
        raise ArgumentError(
            f"mask: expected the name of a keyword input or a function of the inputs, got {describe(mask)}"
        )
    if data is None:
        raise ArgumentError("mask: says which positions of the data count, and there are no data")
    return Masked(data, mask)


def data_and_mask(data: Any) -> tuple[Any, Mask | None]:
    """Return what `masked` was given."""
    return (data.data, data.mask) if isinstance(data, Masked) else (data, None)


def find_mask(call: Call, n: int, mask: Mask | None, where: str) -> Tensor | None:
    """Return which positions of a batch count [N, L], bools; None for all.

    Args:
        call: The inputs.
        n: The number of samples.
        mask: As the caller gave it; None for the keyword input `attention_mask`, where there is one of two dimensions.
        where: The beginning of an error's text.

    Raises:
        DataError: There is no such input, the function fails, or what is found is no mask.
    """
    args, kwargs = call
    if mask is None:
        known = kwargs.get(KNOWN)
        return _checked(known, n, f"{where}{KNOWN}") if isinstance(known, Tensor) and known.ndim == 2 else None
    if isinstance(mask, str):
        if not isinstance(kwargs.get(mask), Tensor):
            names = ", ".join(name for name, value in kwargs.items() if isinstance(value, Tensor)) or "none"
            raise DataError(f"{where}mask: there is no keyword input {mask!r}; those of this batch: {names}")
        return _checked(kwargs[mask], n, f"{where}mask {mask!r}")
    try:
        with torch.no_grad():
            unpacked: Any = unpack((args, kwargs))
            found = mask(*unpacked[0], **unpacked[1])
    except Exception as error:
        raise DataError(f"{where}mask: the function fails ({type(error).__name__}: {error})") from error
    return _checked(found, n, f"{where}mask")


def _checked(found: Any, n: int, where: str) -> Tensor:
    if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != n:
        got = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else describe(found)
        raise DataError(f"{where}: expected a tensor of {n} samples and their positions, got {got}")
    if not bool(((found == 0) | (found == 1)).all()):
        raise DataError(f"{where}: expected True or 1 where a position counts and False or 0 where it does not")
    if not bool(found.any()):
        raise DataError(f"{where}: no position counts")
    return found.bool()
