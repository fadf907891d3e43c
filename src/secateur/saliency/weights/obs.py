"""Optimal Brain Surgeon on single weights: those that are left make up for the one that goes."""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.curvature.weight_loss import WeightLoss
from secateur.errors import ArgumentError, DataError
from secateur.saliency.criterion import criterion
from secateur.saliency.weight_score import Saliencies
from secateur.text import format_bytes

RIDGE = 1e-6  # of the mean of H's diagonal, added to it: weights without curvature have no inverse
MATRICES = 3  # of P × P that are held at a time
TINY = torch.finfo(torch.float64).tiny


@criterion("obs", "weight")
def obs(weights: WeightLoss) -> Saliencies:
    """Return ½ u_q² / [H⁻¹]_qq (Hassibi, Stork 1992), H the Gauss-Newton matrix over all P removable weights.

    One backward pass for each output, P² numbers of memory and P³ operations: for small networks.

    Raises:
        ArgumentError: There are more weights than memory holds a matrix for.
        DataError: H has no inverse.
    """
    return weights.split(WeightSurgeon(weights).saliency())


class WeightSurgeon:
    """All removable weights u [P] with the inverse of H, through one removal after the other.

        δu = −u_q / [H⁻¹]_qq · H⁻¹e_q          H⁻¹ −= H⁻¹e_q e_qᵀH⁻¹ / [H⁻¹]_qq

    What is subtracted is kept as one vector v vᵀ for each removal, and only columns that are asked for are made up:
    the n-th removal takes O(n P) operations, not P². Each δu is a multiple of its v, so that the weights after any
    number of removals can be had again.

    Args:
        weights: The network and its data.
        left: Which weights are there [P]; None for all. The others are zero, and stay so.

    Attributes:
        u: The weights [P] as they are now.
        left: Which of them are not removed [P].
        order: The weights removed, in order.

    Raises:
        ArgumentError: There are more weights than memory holds a matrix for.
        DataError: H has no inverse: it is NaN, or the loss is not convex in the outputs.
    """

    def __init__(self, weights: WeightLoss, left: Tensor | None = None) -> None:
        self.start = weights.flat()
        size = 8 * MATRICES * len(self.start) ** 2  # bytes
        if size > weights.memory:
            raise ArgumentError(
                f"criterion 'obs': the inverse Hessian of {len(self.start):,} weights takes {format_bytes(size)}, "
                f"max_memory is {format_bytes(weights.memory)}; use 'obd', or remove units"
            )
        self.u, self.order = self.start.clone(), list[int]()
        self.left = torch.ones_like(self.u, dtype=torch.bool) if left is None else left.clone()
        self.inverse = self._inverse(weights)
        self.diagonal = self.inverse.diagonal().clone()
        self.vectors = torch.empty_like(self.inverse)  # v, a row for each removal, and by how many of it u went down
        self.steps = torch.empty_like(self.u)

    def _inverse(self, weights: WeightLoss) -> Tensor:
        """Return H⁻¹ over the weights left; zero for the others [P, P].

        Raises:
            DataError: There is none.
        """
        matrix = weights.ggn_matrix(weights.removable)[self.left][:, self.left]
        matrix.diagonal().add_(RIDGE * matrix.diagonal().mean().clamp(min=TINY / RIDGE))
        factor, failed = torch.linalg.cholesky_ex(matrix)
        if failed or not factor.isfinite().all():
            raise DataError(
                "criterion 'obs': the Gauss-Newton matrix has no inverse on this data: it is NaN or infinite, or the "
                "loss is not convex in the outputs; use 'obd'"
            )
        places, inverse = self.left.nonzero()[:, 0], matrix.new_zeros(len(self.u), len(self.u))
        inverse[places[:, None], places] = torch.cholesky_inverse(factor)
        return inverse

    def saliency(self) -> Tensor:
        """Return ½ u_q² / [H⁻¹]_qq of the weights that are left [P]; infinite for the others."""
        return torch.where(self.left, 0.5 * self.u.square() / self.diagonal.clamp(min=TINY), torch.inf)

    def remove(self, q: int) -> None:
        """Set weight q to zero, and the others to what makes up for it."""
        n = len(self.order)
        before = self.vectors[:n]
        v = (self.inverse[q] - before[:, q] @ before) * self.left
        v /= v[q].sqrt()
        self.vectors[n], self.steps[n] = v, self.u[q] / v[q]
        self.u -= self.steps[n] * v
        self.u[q] = 0  # and not nearly
        self.diagonal -= v.square()
        self.left[q] = False
        self.order.append(q)

    def after(self, n: int) -> Tensor:
        """Return the weights [P] after the first n of the removals made."""
        u = self.start - self.steps[:n] @ self.vectors[:n]
        u[self.order[:n]] = 0
        return u
