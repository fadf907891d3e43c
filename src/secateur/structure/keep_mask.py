"""The positions left of the axes when units are gone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from secateur.structure.axis import BATCH, Axis, count, expand, leaves


class Samples(NamedTuple):
    """A size that is so many times the batch size."""

    times: int


class KeepMask:
    """The positions left of every axis when some leaves have lost units."""

    def __init__(self, masks: Mapping[Axis, Tensor]) -> None:
        self.masks = masks
        self._counts = {axis: int(mask.sum()) for axis, mask in masks.items()}

    def count(self, axis: Axis) -> int:
        """Return the number of positions left."""
        return count(axis, self._counts)

    def size(self, axis: Axis, asked: Any) -> Any:
        """Return the positions left as an argument: a number, or where `asked` is none a multiple of the batch size."""
        left = self.count(axis)
        if isinstance(asked, int):
            return left
        return asked if left % BATCH else Samples(left // BATCH)

    def before(self, axis: Axis, position: int) -> int:
        """Return the number of positions left among the first ones.

        >>> from secateur.structure.axis import leaf
        >>> axis = leaf(4)
        >>> KeepMask({axis: torch.tensor([True, False, True, True])}).before(axis, 3)
        2
        """
        if not any(leaf in self.masks for leaf in leaves(axis)):
            return position
        return int(self.mask(axis)[:position].sum())

    def mask(self, axis: Axis) -> Tensor:
        """Return which positions are left."""
        return expand(axis, self.masks, torch.ones(1, dtype=torch.bool)).expand(axis.size)

    def indices(self, axis: Axis) -> Tensor:
        """Return the positions left."""
        return self.mask(axis).nonzero()[:, 0]
