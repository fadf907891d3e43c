"""Factorisation and inverse of second moments, in place: what is large is held once."""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.errors import DataError

BLOCK = 512  # columns that are made at a time; zeros above the diagonal are left out of all products
NOT_FINITE = "compensation: the activations' second moments are not finite or not positive on this data"


def factorise(matrix: Tensor, ridge: Tensor) -> Tensor:
    """Return L with L Lᵀ = matrix + λI, in the place of the matrix.

    Args:
        matrix: Symmetric, of which the lower triangle is read [C, D, D]; overwritten.
        ridge: λ [C, 1, 1].

    Raises:
        DataError: There is none: the data hold NaN or infinite values.
    """
    matrix.diagonal(dim1=1, dim2=2).add_(ridge[:, :, 0])
    failed = torch.empty(len(matrix), dtype=torch.int32, device=matrix.device)
    torch.linalg.cholesky_ex(matrix, out=(matrix, failed))
    if bool(failed.any()) or not bool(matrix.isfinite().all()):
        raise DataError(NOT_FINITE)
    return matrix


def invert(factor: Tensor) -> Tensor:
    """Return (L Lᵀ)⁻¹ in the place of L [C, D, D]: L⁻¹ first, by columns, then L⁻ᵀL⁻¹, by rows."""
    d = factor.shape[1]
    for i in range(0, d, BLOCK):
        unit = torch.eye(d - i, min(BLOCK, d - i)).to(factor)
        factor[:, i:, i : i + BLOCK] = torch.linalg.solve_triangular(factor[:, i:, i:], unit, upper=False)
    for i in range(0, d, BLOCK):
        end = min(i + BLOCK, d)
        rows = factor[:, i:, i:end].mT @ factor[:, i:, :end]
        factor[:, i:end, :end] = rows
        factor[:, :end, i:end] = rows.mT
    return factor
