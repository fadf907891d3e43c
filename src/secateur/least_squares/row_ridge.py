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
from secateur.least_squares.rows import Rows

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
        rows: How many rows there are at most.
    """

    blocks = 1
    dtype = torch.float32

    def __init__(self, inputs: int, outputs: int, rows: int) -> None:
        self.inputs, self.outputs, self.most = inputs, outputs, rows
        self.hold_out = True
        self.added = 0
        self._a, self._z, self._held = torch.empty(0), torch.empty(0), torch.empty(0)

    def add(self, a: Tensor, z: Tensor, held: Tensor, weight: Tensor | None = None) -> None:  # noqa: ARG002
        """Take in rows [M, D], targets [M, O], and which of them are held out [M]; all count alike."""
        if not self.added:  # on the device that rows are on
            self._a, self._z = (rows.new_empty(self.most, rows.shape[1], dtype=self.dtype) for rows in (a, z))
            self._held = held.new_empty(self.most)
        more = slice(self.added, self.added + len(a))
        self._a[more], self._z[more], self._held[more] = a, z, held
        self.added += len(a)

    def only(self, outputs: Tensor) -> RowMoments:  # noqa: ARG002
        """Return the same rows: where there are no targets, all outputs share them."""
        return self

    def rows(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return all rows, their targets, and which of them are held out."""
        return self._a[: self.added], self._z[: self.added], self._held[: self.added]


class _Dual(NamedTuple):
    """The equations in sample space: Y Yᵀ [n, n] and what the present weights miss, over √n [n, o]."""

    gram: Tensor
    residual: Tensor

    def change(self, ridge: float) -> Tensor:
        """Return (Y Yᵀ + λI)⁻¹ times the residual [n, o]."""
        λ = torch.full((1, 1, 1), ridge, dtype=torch.float64, device=self.gram.device)
        return torch.cholesky_solve(self.residual[None], factorise(self.gram.clone()[None], λ))[0]

    def strength(self, inputs: int) -> float:
        """Return the mean square of an input, in whose units ridges are."""
        return max(float(self.gram.trace()) / inputs, TINY)


def fit_rows(moments: RowMoments, weight: Tensor, bias: Tensor | None, ridge: float | None, kept: Tensor) -> RidgeFit:
    """Return what `secateur.least_squares.ridge.fit` does, of rows.

    Raises:
        DataError: There is no solution: activations are not finite.
    """
    a, z, held = moments.rows()
    rows, present = Rows(a, kept.nonzero()[:, 0], bias is not None), weight[:, kept]
    if not moments.outputs:
        z = a @ weight[0].to(a) + (0 if bias is None else bias[0].to(a))
    same = not moments.outputs and bool(kept.all())
    whole = _Dual(rows.gram(), _scaled(z, rows.centred) - rows.times(present[0]))
    if not bool(whole.gram.isfinite().all() & whole.residual.isfinite().all()):
        raise DataError(NOT_FINITE)
    if ridge is None and not same and bool(held.any()) and not bool(held.all()):
        ridge = _best(whole, z, held, rows)
    λ = (RIDGE if ridge is None else ridge) * whole.strength(len(rows.inputs))
    solved = present if same else present + rows.transposed_times(whole.change(λ))[None]
    absolute = torch.full((1, 1, 1), λ, dtype=torch.float64, device=a.device)
    target = z.mean(0).double()[None] if rows.centred else None
    return RidgeFit(solved, target, absolute, None, a.mean(0)[kept].double()[None], rows)


def _scaled(values: Tensor, centred: bool) -> Tensor:
    """Return values [N, o] over √N, about their means where there is a bias."""
    values = values.double()
    return (values - values.mean(0) if centred else values) / math.sqrt(len(values))


def _best(whole: _Dual, z: Tensor, held: Tensor, rows: Rows) -> float:
    """Return the ridge that does best on the rows that are held out, as `ridge.fit` chooses it.

    Rows to fit, and those held out, are taken about the means of the former: inner products tell all of that.
    """
    total, fitted = len(held), ~held
    gram, missing = total * whole.gram, math.sqrt(total) * whole.residual
    inner, cross, left = gram[fitted][:, fitted], gram[held][:, fitted], missing[held]
    targets = z[held].double()
    if rows.centred:
        means = inner.mean(0)
        cross = cross - cross.mean(1, keepdim=True) - means + means.mean()
        inner = inner - means - means[:, None] + means.mean()
        left, targets = left - missing[fitted].mean(0), targets - z[fitted].double().mean(0)
    n = len(inner)
    part = _Dual(inner / n, _scaled(missing[fitted], rows.centred))
    strength = part.strength(len(rows.inputs))

    def error(ridge: float) -> float:
        try:
            return (left - cross @ part.change(ridge * strength) / math.sqrt(n)).square().sum().item()
        except DataError:  # too small for the rounding
            return math.inf

    return nearest_to_usual({ridge: error(ridge) for ridge in GRID}, targets.square().sum().item())
