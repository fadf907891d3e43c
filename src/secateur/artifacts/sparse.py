"""Tensors without their removed weights: the values of the kept ones, and which these are.

Of a tensor's n weights of b bytes k are kept. Their values take k b bytes, in C order; which they are is told in one
of three ways, whichever is smallest:

==========  ==========================================================================  ===========================
 bitmap      one bit per weight, 1 = kept, the first in the lowest bit                  ⌈n / 8⌉ bytes
 kept        one byte per kept weight: how many removed ones come before it             k + Σ ⌊gap / 255⌋ bytes
 removed     one byte per removed weight: how many kept ones come before it             n − k + Σ ⌊gap / 255⌋ bytes
==========  ==========================================================================  ===========================

A byte of 255 stands for a gap that goes on: 255 weights passed, none found. A bitmap pays where more than 1 in 8 b
weights is removed: above 1/32 of float32, 1/16 of half precision, 1/64 of float64. Gaps between kept weights beat it
above about 7/8 removed, gaps between removed ones below about 1/8, where they pay from the first few on.

Small tensors, in which a second entry would cost more than it spares, are written whole (``zeros``: what is 0 is
removed), unless a kept weight happens to be 0. All is exact: the bits of every kept value, and every mask.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from secateur.errors import ArtifactError

ENTRY = 96  # bytes that one more entry takes in a file's header, about
SUFFIX = ".mask"  # no name of PyTorch's: a parameter holds no further ones


@dataclass(frozen=True)
class Masked:
    """A tensor without its removed weights.

    Attributes:
        encoding: "bitmap", "kept", "removed" or "zeros".
        shape: The shape of the whole tensor.
        values: The values of the kept weights [k]; with "zeros" the whole tensor.
        positions: The places of the kept weights, in bytes; None with "zeros".
    """

    encoding: str
    shape: tuple[int, ...]
    values: Tensor
    positions: Tensor | None = None

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the tensor."""
        return self.values.dtype

    def decode(self) -> tuple[Tensor, Tensor]:
        """Return the tensor with zeros where weights were removed, and its mask, True where they are kept.

        Raises:
            ArtifactError: Values and positions do not fit the shape.
        """
        if self.encoding == "zeros":
            if self.values.shape != self.shape:
                raise ArtifactError(f"{tuple(self.values.shape)} values for a tensor of {self.shape}")
            return self.values, self.values != 0
        mask = self._mask()
        if self.values.shape != (int(mask.sum()),):
            raise ArtifactError(f"{tuple(self.values.shape)} values for {int(mask.sum())} kept weights")
        tensor = torch.zeros(mask.shape, dtype=self.dtype)
        tensor[mask.nonzero().flatten()] = self.values  # by numbers: by a mask, one value alone would be converted
        return tensor.view(self.shape), mask.view(self.shape)

    def _mask(self) -> Tensor:
        """Return the flat mask, True where weights are kept.

        Raises:
            ArtifactError: It cannot be read from the positions.
        """
        if self.encoding not in _CODES:
            raise ArtifactError(f"unknown encoding {self.encoding!r}; one of: {', '.join(_CODES)}, zeros")
        if self.positions is None or self.positions.dtype != torch.uint8 or self.positions.ndim != 1:
            raise ArtifactError("which weights are kept must be told in one row of bytes")
        return _CODES[self.encoding][1](self.positions, math.prod(self.shape))


def encode(tensor: Tensor, mask: Tensor) -> Masked:
    """Return a tensor in the fewest bytes; removed values come back as 0, whatever they were.

    Cost: some passes over it, for a while about 32 bytes of memory per weight.

    Args:
        tensor: A tensor of any shape and dtype.
        mask: True where weights are kept [the same shape].

    >>> masked = encode(torch.arange(1000.0), torch.arange(1000) % 4 == 0)
    >>> masked.encoding, len(masked.values), len(masked.positions)
    ('bitmap', 250, 125)
    """
    flat = mask.flatten()
    codes = {name: write(flat) for name, (write, _) in _CODES.items()}
    encoding = min(codes, key=lambda name: codes[name].numel())
    masked = Masked(encoding, tuple(tensor.shape), tensor.flatten()[flat], codes[encoding])
    spared = tensor.nbytes - masked.values.nbytes - codes[encoding].nbytes
    if spared < ENTRY and torch.equal(tensor != 0, mask):
        return Masked("zeros", masked.shape, tensor)
    return masked


def pack(tensors: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the entries of a file, and for each masked tensor what the metadata say: [encoding, shape].

    A tensor that loses nothing is written as it is and not mentioned.
    """
    masked = {name: encode(tensors[name], mask) for name, mask in masks.items() if not mask.all()}
    entries = {**tensors, **{name: tensor.values for name, tensor in masked.items()}}
    entries |= {name + SUFFIX: tensor.positions for name, tensor in masked.items() if tensor.positions is not None}
    return entries, {name: [tensor.encoding, tensor.shape] for name, tensor in sorted(masked.items())}


def unpack(entries: Mapping[str, Tensor], described: Mapping[str, Any]) -> dict[str, Tensor | Masked]:
    """Return the tensors that `pack` was given; masked ones are decoded later, when their shapes are known to be right.

    Raises:
        ArtifactError: The metadata speak of tensors that are not there, or cannot be read.
    """
    masked = {}
    for name, (encoding, shape) in described.items():
        if name not in entries:
            raise ArtifactError(f"{name} is said to be masked, but is not there")
        positions = None if encoding == "zeros" else entries.get(name + SUFFIX)
        masked[name] = Masked(str(encoding), tuple(map(operator.index, shape)), entries[name], positions)
    used = masked.keys() | {name + SUFFIX for name, tensor in masked.items() if tensor.positions is not None}
    return {name: tensor for name, tensor in entries.items() if name not in used} | masked


def decode_all(stored: Mapping[str, Tensor | Masked]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return all tensors whole, and the masks of the masked ones.

    Raises:
        ArtifactError: As for `Masked.decode`, with the tensor's name.
    """
    tensors = {name: value for name, value in stored.items() if isinstance(value, Tensor)}
    masks = {}
    for name, value in stored.items():
        if isinstance(value, Masked):
            try:
                tensors[name], masks[name] = value.decode()
            except ArtifactError as error:
                raise ArtifactError(f"{name} cannot be read: {error}") from error
    return tensors, masks


def _write_bitmap(mask: Tensor) -> Tensor:
    return torch.from_numpy(np.packbits(mask.numpy(), bitorder="little"))


def _read_bitmap(code: Tensor, n: int) -> Tensor:
    bits = torch.from_numpy(np.unpackbits(code.numpy(), bitorder="little")).bool()
    if len(code) != -(-n // 8) or bits[n:].any():
        raise ArtifactError(f"a bitmap of {len(code)} bytes does not fit {n} weights")
    return bits[:n]


def _write_gaps(mask: Tensor) -> Tensor:
    """Return the number of False ones before each True, in bytes."""
    places = mask.nonzero().flatten()
    gaps = places.diff(prepend=torch.tensor([-1])) - 1
    ends = (gaps // 255 + 1).cumsum(0)  # each gap takes one byte, and one more for every 255
    code = torch.full((int(ends[-1]) if len(ends) else 0,), 255, dtype=torch.uint8)
    code[ends - 1] = (gaps % 255).to(torch.uint8)
    return code


def _read_gaps(code: Tensor, n: int) -> Tensor:
    ends = code != 255
    places = (code.long() + ends).cumsum(0) - 1  # a byte passes its number, and the True that ends a gap
    if len(places) and places[-1] >= n:
        raise ArtifactError(f"gaps that reach beyond the {n} weights there are")
    mask = torch.zeros(n, dtype=torch.bool)
    mask[places[ends]] = True
    return mask


_CODES: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor, int], Tensor]]] = {
    "bitmap": (_write_bitmap, _read_bitmap),
    "kept": (_write_gaps, _read_gaps),
    "removed": (lambda mask: _write_gaps(~mask), lambda code, n: ~_read_gaps(code, n)),
}
