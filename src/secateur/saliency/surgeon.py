"""Optimal Brain Surgeon on single weights: those that are left make up for the one that goes."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from secateur.errors import ArgumentError
from secateur.saliency.weight_criterion import Saliencies, weight_criterion
from secateur.saliency.weights import Weights
from secateur.text import format_bytes

RIDGE = 1e-6  # of the mean of H's diagonal, added to it: weights without curvature have no inverse
MATRICES = 3  # of P × P that are held at a time


@weight_criterion("obs", compensates=True)
def obs(weights: Weights) -> Saliencies:
    """ΔE ≈ ½ u_q² / [H⁻¹]_qq (Hassibi, Stork 1992), H the Gauss-Newton matrix over all P removable weights.

    One backward pass for each output, P² numbers of memory and P³ operations: for small networks.

    Raises:
        ArgumentError: There are more weights than memory holds a matrix for.
    """
    return weights.split(Surgeon(weights).saliency())


class Surgeon:
    """All removable weights u [P] with the inverse of H, through one removal after the other.

        δu = −u_q / [H⁻¹]_qq · H⁻¹e_q          H⁻¹ −= H⁻¹e_q e_qᵀH⁻¹ / [H⁻¹]_qq

    What is subtracted is kept as one vector v vᵀ for each removal, and only columns that are asked for are made up:
    the n-th removal takes O(n P) operations, not P².

    Args:
        weights: The network and its data.
        left: Which weights are there [P]; None for all. The others are zero, and stay so.

    Raises:
        ArgumentError: There are more weights than memory holds a matrix for.
    """

    def __init__(self, weights: Weights, left: Tensor | None = None) -> None:
        self.u = weights.flat()
        size = 8 * MATRICES * len(self.u) ** 2  # bytes
        if size > weights.memory:
            raise ArgumentError(
                f"criterion 'obs': the inverse Hessian of {len(self.u):,} weights takes {format_bytes(size)}, "
                f"max_memory is {format_bytes(weights.memory)}; use 'obd', or remove units"
            )
        self.left = torch.ones_like(self.u, dtype=torch.bool) if left is None else left.clone()
        matrix = weights.ggn_matrix(weights.removable)[self.left][:, self.left]
        matrix.diagonal().add_(RIDGE * matrix.diagonal().mean().clamp(min=torch.finfo(torch.float64).tiny / RIDGE))
        self.inverse = self.u.new_zeros(len(self.u), len(self.u))
        places = self.left.nonzero()[:, 0]
        self.inverse[places[:, None], places] = torch.cholesky_inverse(torch.linalg.cholesky(matrix))
        self.diagonal = self.inverse.diagonal().clone()
        self.subtracted = self.u.new_zeros(0, len(self.u))  # v, a row for each removal, and room for more
        self.removed = 0

    def copy(self) -> Surgeon:
        """The same weights, to be operated on apart."""
        twin = copy.copy(self)
        twin.u, twin.left, twin.diagonal = self.u.clone(), self.left.clone(), self.diagonal.clone()
        twin.subtracted = self.subtracted.clone()
        return twin

    def saliency(self) -> Tensor:
        """½ u_q² / [H⁻¹]_qq of the weights that are left [P]; infinite for the others."""
        diagonal = self.diagonal.clamp(min=torch.finfo(torch.float64).tiny)
        return torch.where(self.left, 0.5 * self.u.square() / diagonal, torch.inf)

    def remove(self, q: int) -> None:
        """Set weight q to zero, and the others to what makes up for it."""
        before = self.subtracted[: self.removed]
        v = (self.inverse[q] - before[:, q] @ before) * self.left
        v /= v[q].sqrt()
        self.u -= self.u[q] / v[q] * v
        self.diagonal -= v.square()
        self.left[q] = False
        self.u[q] = 0  # and not nearly
        if self.removed == len(self.subtracted):
            self.subtracted = torch.cat([self.subtracted, self.u.new_zeros(max(64, self.removed), len(self.u))])
        self.subtracted[self.removed] = v
        self.removed += 1
