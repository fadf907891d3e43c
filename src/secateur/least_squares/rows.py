"""The rows of a layer with more inputs than rows, about their means, made a few columns at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

COLUMNS = 4096  # that are made at a time


class Rows(NamedTuple):
    """The rows over √N, Y [N, D], about their means where there is a bias; made a few columns at a time.

    Attributes:
        a: All that the layer takes [N, inputs].
        inputs: The numbers of the inputs that are columns of Y [D].
        centred: Whether there is a bias.
    """

    a: Tensor
    inputs: Tensor
    centred: bool

    def columns(self, some: Tensor) -> Tensor:
        """Return some columns of Y [N, n]."""
        y = self.a[:, self.inputs[some]]
        y = y.sub_(y.mean(0)) if self.centred else y
        return y.div_(math.sqrt(len(y)))

    def pieces(self, some: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the numbers of columns, a few at a time, and these columns of Y."""
        every = torch.arange(len(self.inputs), device=self.a.device) if some is None else some
        for numbers in torch.split(every, COLUMNS):
            yield numbers, self.columns(numbers)

    def gram(self, some: Tensor | None = None) -> Tensor:
        """Return Y Yᵀ of some columns [N, N], of all if none are named, in float64."""
        gram = torch.zeros(len(self.a), len(self.a), dtype=torch.float64, device=self.a.device)
        for _, y in self.pieces(some):
            gram += y @ y.T
        return gram

    def times(self, weight: Tensor, some: Tensor | None = None) -> Tensor:
        """Return Y W of some columns [N, o], for W [D, o]."""
        product = torch.zeros(len(self.a), weight.shape[1], dtype=torch.float64, device=self.a.device)
        for numbers, y in self.pieces(some):
            product += y @ weight[numbers].to(y)
        return product

    def transposed_times(self, change: Tensor, some: Tensor | None = None) -> Tensor:
        """Return Yᵀ times a matrix [N, o], for some columns [n, o]."""
        return torch.cat([y.T.double() @ change for _, y in self.pieces(some)])
