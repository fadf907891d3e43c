"""The positions left of the axes when units are gone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from secateur.structure.axis import Axis, count, expand, leaves


class Part(NamedTuple):
    """A size that depends on those of the inputs: so much of what it was before."""

    whole: Any  # the node of the size before
    times: int
    over: int


class KeepMask:
    """The positions left of every axis when some leaves have lost units."""

    def __init__(self, masks: Mapping[Axis, Tensor]) -> None:
        self.masks = masks
        self._counts = {axis: int(mask.sum()) for axis, mask in masks.items()}

    def count(self, axis: Axis) -> int:
        """Return the number of positions left."""
        return count(axis, self._counts)

    def size(self, axis: Axis, asked: Any) -> Any:
        """Return the positions left as an argument: a number, or where `asked` is none a part of it.

        Args:
            axis: The axis whose size it is.
            asked: The argument before: a number, or a node where it depends on the inputs' sizes.
        """
        left = self.count(axis)
        if isinstance(asked, int):
            return left
        common = math.gcd(left, axis.size)
        return asked if left == axis.size else Part(asked, left // common, axis.size // common)

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

    def renumbered(self, axis: Axis, places: Tensor) -> Tensor:
        """Return positions along an axis in the numbering of those left; one that is gone becomes another."""
        numbers = (self.mask(axis).cumsum(0) - 1).clamp(min=0).to(places)
        return numbers[places.long()]

    def mask(self, axis: Axis) -> Tensor:
        """Return which positions are left."""
        return expand(axis, self.masks, torch.ones(1, dtype=torch.bool)).expand(axis.size)

    def indices(self, axis: Axis) -> Tensor:
        """Return the positions left."""
        return self.mask(axis).nonzero()[:, 0]
