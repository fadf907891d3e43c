"""One layer after its fit: its new parameters, and how it sums the units of a set up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from secateur.compensation.elimination import Summation
from secateur.compensation.linear_layers import Layer
from secateur.compensation.row_elimination import RowSummation
from secateur.least_squares.ridge import RidgeFit


class FittedLayer(NamedTuple):
    """A layer's fit.

    Attributes:
        layer: The layer.
        fit: The solution.
        inputs: The numbers of the inputs that are kept, among all rows of W.
        outputs: The numbers of the outputs that are left.
    """

    layer: Layer
    fit: RidgeFit
    inputs: Tensor
    outputs: Tensor

    def tensors(self, named: Mapping[str, Tensor], weight: Tensor, inputs: Tensor | None = None) -> dict[str, Tensor]:
        """Return the layer's parameters with new weights [C, D', o] of some inputs, and the bias that goes with them.

        Args:
            named: The parameters so far, by name.
            weight: The weights.
            inputs: Their numbers, None for all that it was fitted with. Of the others the parameter keeps what it has.
        """
        inputs = self.inputs if inputs is None else inputs
        layer, old = self.layer, named[self.layer.weight]
        tensors = {layer.weight: layer.tensor(old, inputs, self.outputs, weight.transpose(0, 1).flatten(1))}
        bias = self.fit.bias_for(weight, torch.searchsorted(self.inputs, inputs))
        if layer.bias is not None and bias is not None:
            old = named[layer.bias]
            tensors[layer.bias] = old.index_put((self.outputs,), bias.flatten().to(old))
        return tensors

    def without_moments(self) -> FittedLayer:
        """Return the fit without its large matrices: what `tensors` needs."""
        return self._replace(fit=self.fit._replace(second=None, rows=None))

    def summation(self, rows: Tensor, curvature: Tensor | None) -> Summation | RowSummation:
        """Return what the layer makes of units, to remove them one after the other.

        Args:
            rows: The rows of W that belong to each unit [K, p].
            curvature: B of its outputs [O, O]; None where the loss minds all alike.
        """
        blocks = len(self.fit.weight)
        if curvature is not None:
            curvature = curvature.diagonal()[:, None, None] if blocks > 1 else _without_concave(curvature)[None]
        if self.fit.second is None:
            assert self.fit.rows is not None
            return RowSummation(self.fit.rows, self.fit.ridge, self.fit.weight, curvature, rows)
        return Summation(self.fit.second, self.fit.ridge, self.fit.weight, curvature, rows)


def _without_concave(matrix: Tensor) -> Tensor:
    """Return B without its negative part, which a drawn estimate may have."""
    shift = torch.finfo(matrix.dtype).eps * len(matrix) * matrix.diagonal().mean()
    if not bool(torch.linalg.cholesky_ex(matrix + shift * torch.eye(len(matrix)).to(matrix))[1]):
        return matrix
    values, vectors = torch.linalg.eigh(matrix)
    positive: Tensor = (vectors * values.clamp(min=0)) @ vectors.T
    return positive
