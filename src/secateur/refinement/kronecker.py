"""A preconditioner for the Gauss-Newton matrix: one Kronecker product for each layer's weights.

    (G + λI)⁻¹ ≈ (A ⊗ B + λI)⁻¹,  A = E[a aᵀ] of a layer's inputs a,  B = Σ_positions E[b bᵀ]

with b the derivatives of Σ u·o in what the layer gives, u drawn with E[u uᵀ] = H (Martens & Grosse 2015; of
convolutions Grosse & Martens 2016). Of any other parameter the mean of G's diagonal, estimated by the same draws,
stands for G.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from secateur.compensation.calibration import ROWS, BatchPlace, batch_places, counted_rows
from secateur.compensation.linear_layers import Layer, find_layers
from secateur.curvature.loss_factors import backward
from secateur.refinement.distance import Distance, leaves_of
from secateur.refinement.small_network import Tensors

LARGEST = 4096  # inputs or outputs of a layer that has factors: beyond, their eigenvectors cost more than they save


@dataclass
class _Sums:
    """The sums of a layer's factors so far."""

    layer: Layer
    inputs: Tensor
    slopes: Tensor
    rows: int = 0

    def add(self, value: Tensor, slope: Tensor, place: BatchPlace) -> None:
        places, samples = counted_rows(self.layer, value, place).some(ROWS)
        a, b = self.layer.rows(value.detach(), places).double(), self.layer.targets(slope).double()
        a = a if self.layer.bias is None else torch.cat([a, a.new_ones(len(a), 1)], 1)
        self.inputs += a.T @ a
        self.slopes += b.T @ b
        self.rows += len(samples)


class _Factors(NamedTuple):
    """The factors of a layer by their eigenvalues and eigenvectors."""

    layer: Layer
    a: tuple[Tensor, Tensor]
    b: tuple[Tensor, Tensor]

    @property
    def names(self) -> list[str]:
        """The layer's parameters."""
        return _names(self.layer)

    def solve(self, vector: Tensors, damping: float) -> Tensors:
        """Return (A ⊗ B + λI)⁻¹ v for the layer's weight and bias."""
        layer, (a, left), (b, right) = self.layer, self.a, self.b
        weight = vector[layer.weight]
        matrix = layer.matrix(weight).double()
        if layer.bias is not None:
            matrix = torch.cat([matrix, vector[layer.bias].double()[None]])
        solved = left @ ((left.T @ matrix @ right) / (a[:, None] * b + damping)) @ right.T
        solved = solved.to(weight)
        if layer.bias is None:
            return {layer.weight: layer.weight_of(solved, weight.shape)}
        return {layer.weight: layer.weight_of(solved[:-1], weight.shape), layer.bias: solved[-1]}


@dataclass
class Kronecker:
    """The preconditioner.

    Attributes:
        scales: The mean of G's diagonal in each parameter.
        factors: Those of the layers.
    """

    scales: dict[str, float]
    factors: list[_Factors] = field(default_factory=list)

    @classmethod
    def of(cls, distance: Distance, parameters: Tensors) -> Kronecker:
        """Return the preconditioner at some parameters: one pass forwards and one backwards.

        Args:
            distance: What G is of.
            parameters: The parameters.
        """
        network, scales = distance.network, dict.fromkeys(parameters, 0.0)
        sums = [
            _empty(layer, parameters)
            for layer in find_layers(network.units, every=True)
            if _has_factors(layer, parameters)
        ]
        trace = network.tracing([n for s in sums for n in (s.layer.operand(s.layer.call), s.layer.call)])
        for batch, place in zip(distance.batches, batch_places(distance.batches), strict=True):
            leaves = leaves_of(parameters)
            out, values = trace(leaves, batch.call)
            slopes = backward(*distance.teacher.drawn(out, batch), [*leaves.values(), *values[1::2]])
            for name, slope in zip(leaves, slopes, strict=False):
                scales[name] += slope.double().square().mean().item() / distance.samples
            for layer_sums, value, slope in zip(sums, values[::2], slopes[len(leaves) :], strict=True):
                layer_sums.add(value, slope, place)
        factors = [
            _Factors(s.layer, _spectrum(s.inputs / s.rows), _spectrum(s.slopes / distance.samples)) for s in sums
        ]
        for f in factors:
            scales |= dict.fromkeys(f.names, (f.a[0].mean() * f.b[0].mean()).item())
        return cls(scales, factors)

    def mean(self, parameters: Tensors) -> float:
        """Return the mean of G's diagonal."""
        sizes = {name: tensor.numel() for name, tensor in parameters.items()}
        return sum(self.scales[name] * size for name, size in sizes.items()) / sum(sizes.values())

    def solve(self, vector: Tensors, damping: float) -> Tensors:
        """Return about (G + λI)⁻¹ v."""
        solved = {name: v / (self.scales[name] + damping) for name, v in vector.items()}
        for factors in self.factors:
            solved.update(factors.solve(vector, damping))
        return solved


def _names(layer: Layer) -> list[str]:
    return [layer.weight] if layer.bias is None else [layer.weight, layer.bias]


def _has_factors(layer: Layer, parameters: Tensors) -> bool:
    """Return whether weight and bias are both trained, and the factors small enough."""
    trained = all(name in parameters for name in _names(layer))
    return trained and max(layer.matrix(parameters[layer.weight]).shape) < LARGEST


def _empty(layer: Layer, parameters: Tensors) -> _Sums:
    matrix = layer.matrix(parameters[layer.weight])
    rows, columns = len(matrix) + (layer.bias is not None), matrix.shape[1]
    zeros = torch.zeros(rows, rows, dtype=torch.float64, device=matrix.device)
    return _Sums(layer, zeros, zeros.new_zeros(columns, columns))


def _spectrum(matrix: Tensor) -> tuple[Tensor, Tensor]:
    values, vectors = torch.linalg.eigh(matrix)
    return values.clamp(min=0), vectors
