"""Ridge regression with more inputs than rows: from the rows themselves, by a matrix of rows × rows.

(AᵀA/N + λI)⁻¹ Aᵀ/N = Aᵀ/N (AAᵀ/N + λI)⁻¹, so with Y = A/√N the solution about the weights W is

    W + Yᵀ (Y Yᵀ + λI)⁻¹ (Z/√N − Y W)

The rows are kept in float32, evenly so many of them that they fit into half a gigabyte, whatever memory there is.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from secateur.errors import DataError
from secateur.least_squares.cholesky import NOT_FINITE, factorise
from secateur.least_squares.ridge import GRID, RIDGE, TINY, RidgeFit, nearest_to_usual

NUMBERS = 2**27  # of the rows of one layer, at most
MANY = 4096  # inputs, from which rows are kept if there are fewer of them


def rows_kept(inputs: int, rows: int) -> int | None:
    """Return how many rows are kept of a layer; None where second moments are smaller.

    >>> rows_kept(65_536, 25_600), rows_kept(8192, 25_600), rows_kept(100, 5)
    (2048, None, None)
    """
    kept = min(rows, NUMBERS // inputs)
    return kept if inputs >= MANY and kept < inputs else None


class RowMoments:
    """The rows a [M, D] that a layer takes and their targets z [M, O], those to fit and those held out.

    Args:
        inputs: D.
        outputs: O; 0 for no targets.
        device: That of second moments; rows stay where they are.
    """

    blocks = 1

    def __init__(self, inputs: int, outputs: int, device: torch.device) -> None:  # noqa: ARG002
        self.inputs, self.outputs = inputs, outputs
        self.hold_out = True
        self.batches: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, a: Tensor, z: Tensor, held: Tensor, weight: Tensor | None = None) -> None:  # noqa: ARG002
        """Take in rows [M, D], targets [M, O], and which of them are held out [M]; all count alike."""
        self.batches.append((a.to(torch.float32), z.to(torch.float32), held))

    def only(self, outputs: Tensor) -> RowMoments:  # noqa: ARG002
        """Return the same rows: where there are no targets, all outputs share them."""
        return self

    def rows(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return all rows, their targets, and which of them are held out; they are joined once."""
        if len(self.batches) > 1:
            columns = [list(column) for column in zip(*self.batches, strict=True)]
            self.batches = []
            self.batches = [(torch.cat(columns[0]), torch.cat(columns[1]), torch.cat(columns[2]))]
        return self.batches[0]


class _Centred(NamedTuple):
    """Rows about their means, over √N, and residuals of the present weights likewise."""

    y: Tensor
    residual: Tensor

    @classmethod
    def of(cls, a: Tensor, z: Tensor, weight: Tensor, centred: bool) -> _Centred:
        """Return rows and targets [n, o] about their means, where there is a bias, beside present weights [D, o]."""
        a, z = _about_means(a, a, centred), _about_means(z, z, centred)
        return cls(a / math.sqrt(len(a)), (z - a @ weight) / math.sqrt(len(a)))

    @property
    def strength(self) -> float:
        """The mean square of an input, in whose units ridges are."""
        return max(float(torch.linalg.vector_norm(self.y)) ** 2 / self.y.shape[1], TINY)

    def change(self, ridge: float) -> Tensor:
        """Return (Y Yᵀ + λI)⁻¹ times the residual [n, o]."""
        gram = (self.y @ self.y.T).double()[None]
        λ = torch.full((1, 1, 1), ridge, dtype=torch.float64, device=gram.device)
        return torch.cholesky_solve(self.residual.double()[None], factorise(gram, λ))[0]


def fit_rows(moments: RowMoments, weight: Tensor, bias: Tensor | None, ridge: float | None, kept: Tensor) -> RidgeFit:
    """Return what `secateur.least_squares.ridge.fit` does, of rows.

    Raises:
        DataError: There is no solution: activations are not finite.
    """
    a, z, held = moments.rows()
    if not moments.outputs:
        z = a @ weight[0].to(a) + (0 if bias is None else bias[0].to(a))
    same = not moments.outputs and bool(kept.all())
    present, a = weight[:, kept], a if bool(kept.all()) else a[:, kept]
    if not bool(a.isfinite().all() & z.isfinite().all()):
        raise DataError(NOT_FINITE)
    centred = bias is not None
    if ridge is None and not same and bool(held.any()) and not bool(held.all()):
        ridge = _best((a[~held], z[~held]), (a[held], z[held]), present[0].to(a), centred)
    whole = _Centred.of(a, z, present[0].to(a), centred)
    λ = (RIDGE if ridge is None else ridge) * whole.strength
    solved = present if same else present + (whole.y.T.double() @ whole.change(λ))[None]
    absolute = torch.full((1, 1, 1), λ, dtype=torch.float64, device=a.device)
    target = z.mean(0).double()[None] if centred else None
    return RidgeFit(solved, target, absolute, None, a.mean(0).double()[None], whole.y)


def _about_means(values: Tensor, rows: Tensor, centred: bool) -> Tensor:
    """Return values about the means of some rows; as they are where no bias takes these up."""
    return values - rows.mean(0) if centred else values


def _best(fitted: tuple[Tensor, Tensor], held: tuple[Tensor, Tensor], weight: Tensor, centred: bool) -> float:
    """Return the ridge that does best on the rows that are held out, as `ridge.fit` chooses it."""
    part = _Centred.of(*fitted, weight, centred)
    a, z = (_about_means(own, rows, centred) for own, rows in zip(held, fitted, strict=True))
    cross, left, strength = a @ part.y.T, z - a @ weight, part.strength

    def error(ridge: float) -> float:
        try:
            return (left - cross @ part.change(ridge * strength).to(cross)).square().sum().item()
        except DataError:  # too small for the rounding
            return math.inf

    return nearest_to_usual({ridge: error(ridge) for ridge in GRID}, z.square().sum().item())
