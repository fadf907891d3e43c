"""One tensor among a model's inputs: its dtype and shape, which of its sizes are free, and random values like it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from secateur.errors import ArgumentError, DataError

WRITTEN = 2**14  # values of a tensor that are written, at most


class Free(NamedTuple):
    """A dimension of any size: the same size wherever the name is the same."""

    name: str
    size: int  # the example's


@dataclass(frozen=True)
class TensorSpec:
    """One tensor.

    Attributes:
        dtype: Its dtype.
        shape: Its sizes, without that of the batch unless it is shared; None: no dimension at all.
        low: The least value, of integers.
        high: The largest.
        shared: Whether all samples have it in common: its first dimension is not that of the samples.
        rows: Integers of the example; all of them where they are shared, since there they say how others belong
            together (edges, offsets).
    """

    dtype: str
    shape: tuple[int | Free, ...] | None
    low: int = 0
    high: int = 0
    shared: bool = False
    rows: Tensor | None = field(default=None, compare=False, repr=False)

    @property
    def per_sample(self) -> bool:
        """Whether its first dimension is that of the samples."""
        return self.shape is not None and not self.shared

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Return random normal values; of integers, which often mean something, the example's, or any in range."""
        if self.rows is not None:
            return self.rows.clone() if self.shared else self.rows[torch.arange(n) % len(self.rows)]
        dtype = getattr(torch, self.dtype)
        shape = [size.size if isinstance(size, Free) else size for size in self.shape or ()]
        shape = [n, *shape] if self.per_sample else shape
        if dtype.is_floating_point:
            return torch.randn(shape, generator=generator, dtype=dtype)
        return torch.randint(self.low, self.high + 1, shape, generator=generator).to(dtype)

    @property
    def sizes(self) -> dict[int, int | Free]:
        """The size of each dimension but that of the samples."""
        return dict(enumerate(self.shape or (), int(self.per_sample)))

    @property
    def free(self) -> dict[int, Free]:
        """The dimensions of any size."""
        return {dim: size for dim, size in self.sizes.items() if isinstance(size, Free)}

    def with_sizes(self, sizes: Mapping[int, int | Free]) -> TensorSpec:
        """Return the form with other sizes, given for each dimension but that of the samples."""
        return self if self.shape is None else replace(self, shape=tuple(sizes.values()))

    def match(self, tensor: Tensor, name: str, sizes: dict[str, tuple[int, str]]) -> Tensor:
        """Return a tensor of this form, whole numbers of a smaller type in this one.

        Args:
            tensor: Any tensor.
            name: What errors call it.
            sizes: The sizes that free dimensions have so far, and where; those of this tensor are added.

        Raises:
            DataError: It has another shape, or holds another kind of numbers.
        """
        dtype = getattr(torch, self.dtype)
        if not self._fits(tensor.shape):
            wanted = (*(["samples"] if self.per_sample else []), *self.sizes.values())
            described = ", ".join("any" if isinstance(size, Free) else str(size) for size in wanted)
            raise DataError(f"{name} of shape {tuple(tensor.shape)}, the model was captured for ({described})")
        for dim, free in self.free.items():
            size, place = sizes.setdefault(free.name, (tensor.shape[dim], f"dimension {dim} of {name}"))
            if tensor.shape[dim] != size:
                raise DataError(f"dimension {dim} of {name} is {tensor.shape[dim]}, it must be that of {place}, {size}")
        if tensor.dtype == dtype or (tensor.is_floating_point() and dtype.is_floating_point):
            return tensor
        if not _holds(dtype, tensor.dtype):
            raise DataError(f"{name} of {tensor.dtype}, the model was captured for {dtype}")
        return tensor.to(dtype)

    def _fits(self, shape: torch.Size) -> bool:
        if len(shape) != len(self.sizes) + self.per_sample:
            return False
        return all(isinstance(size, Free) or size == shape[dim] for dim, size in self.sizes.items())

    def to_json(self) -> dict[str, Any]:
        """Return plain data; `from_json` reads it."""
        plain: dict[str, Any] = {"dtype": self.dtype, "shape": self.shape and list(self.shape)}
        plain |= {} if self.low == self.high == 0 else {"low": self.low, "high": self.high}
        if not self.shared:
            return plain
        values = {} if self.rows is None or self.rows.numel() > WRITTEN else {"values": self.rows.tolist()}
        return plain | {"shared": True, **values}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TensorSpec:
        """Return the form that `to_json` wrote."""
        shape = data["shape"]
        if shape is not None:
            shape = tuple(Free(*size) if isinstance(size, list) else size for size in shape)
        values = data.get("values")
        rows = None if values is None else torch.tensor(values, dtype=getattr(torch, data["dtype"]))
        return cls(data["dtype"], shape, data.get("low", 0), data.get("high", 0), data.get("shared", False), rows)


def _holds(dtype: torch.dtype, inner: torch.dtype) -> bool:
    """Return whether both are types of whole numbers, and one has all those of the other."""
    if any(either.is_floating_point or either.is_complex or either == torch.bool for either in (dtype, inner)):
        return False
    wide, narrow = torch.iinfo(dtype), torch.iinfo(inner)
    return wide.min <= narrow.min and narrow.max <= wide.max


def describe_tensor(tensor: Tensor, shared: bool) -> TensorSpec:
    """Return the form of an example.

    Args:
        tensor: The example.
        shared: Whether all samples have it in common.

    Raises:
        ArgumentError: It holds numbers of a kind that is not supported.
    """
    dtype = str(tensor.dtype).removeprefix("torch.")
    if tensor.is_complex():
        raise ArgumentError(f"inputs: {dtype} is not supported, only floating-point numbers, integers and bools")
    shared = shared and tensor.ndim > 0
    shape = None if not tensor.ndim else tuple(tensor.shape) if shared else tuple(tensor.shape[1:])
    if tensor.is_floating_point() or not tensor.numel():
        return TensorSpec(dtype, shape, shared=shared)
    rows = (tensor if shared else tensor[:8]).detach().cpu().clone() if tensor.ndim else None
    return TensorSpec(dtype, shape, int(tensor.long().min()), int(tensor.long().max()), shared, rows)
