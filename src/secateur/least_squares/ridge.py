"""Least squares from moments: the weights that best give what a layer gave, by ridge regression.

Everything here starts with a dimension of C blocks, as in `secateur.least_squares.moments`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from secateur.errors import DataError
from secateur.least_squares.cholesky import NOT_FINITE, factorise
from secateur.least_squares.moments import LARGE, Moments, Sums
from secateur.least_squares.rows import Rows

GRID = tuple(10.0**power for power in range(-7, 1))  # ridges that are tried
RIDGE = 1e-4  # where nothing is held out to try them on
TINY = 1e-30  # of a mean square, where all inputs are constant
ROUNDING = 1e-6  # of the targets' squares: errors below it are none


class NormalEquations(NamedTuple):
    """The second moments of inputs [C, D, D], with targets [C, D, o], of targets [C, o]; the means of both."""

    aa: Tensor
    az: Tensor
    zz: Tensor
    a: Tensor
    z: Tensor

    @classmethod
    def of(cls, sums: Sums, a0: Tensor, z0: Tensor, centred: bool) -> NormalEquations:
        """Return the normal equations of sums; about the means where there is a bias to take these.

        Args:
            sums: The sums over the rows.
            a0: What was taken from inputs [D].
            z0: What was taken from targets [C, o].
            centred: Whether there is a bias.
        """
        total = sums.xx[:, -1:, -1:].double().clamp(min=TINY)
        a, z = sums.xx[:, -1, :-1] / total[:, 0], sums.xz[:, -1] / total[:, 0]
        about = cls(
            (sums.xx[:, :-1, :-1] / total).baddbmm_(a[:, :, None], a[:, None, :], alpha=-1),
            sums.xz[:, :-1] / total - a[:, :, None] * z[:, None, :],
            sums.zz / total[:, 0] - z.square(),
            a + a0,
            z + z0,
        )
        return about if centred else about.about(torch.zeros_like(about.a), torch.zeros_like(about.z))

    def strength(self) -> Tensor:
        """Return the mean diagonal [C, 1, 1], in whose units ridges are."""
        return self.aa.diagonal(dim1=1, dim2=2).mean(1).clamp(min=TINY)[:, None, None]

    def about(self, a: Tensor, z: Tensor) -> NormalEquations:
        """Return the equations about other points, from those about the means."""
        a, z = (self.a - a)[:, :, None], (self.z - z)[:, :, None]
        aa, az = self.aa.baddbmm(a, a.mT), self.az.baddbmm(a, z.mT)
        return self._replace(aa=aa, az=az, zz=self.zz + z[:, :, 0].square())

    def solve(self, weight: Tensor, ridge: float) -> Tensor:
        """Return (AᵀA + λI)⁻¹ (AᵀZ + λW), closest to the targets, and to the weights [C, D, o] so far.

        Raises:
            DataError: It has no solution: the data hold NaN or infinite values.
        """
        λ = ridge * self.strength()
        if not bool(self.az.isfinite().all()):
            raise DataError(NOT_FINITE)
        return torch.cholesky_solve(self.az + λ * weight, factorise(self.aa.clone(), λ))

    def error(self, weight: Tensor) -> Tensor:
        """Return the mean square of what is missing, summed over outputs, per block [C]."""
        return (self.zz + (weight * (self.aa @ weight - 2 * self.az)).sum(1)).sum(1)


class RidgeFit(NamedTuple):
    """A solution for the inputs kept, D' of all.

    Attributes:
        weight: [C, D', o].
        target: The means of what it should give [C, o], for a bias to meet; None without one.
        ridge: λ, absolute [C, 1, 1].
        second: The inputs' second moments [C, D', D'], about their means where there is a bias; None where there are
            more inputs than rows.
        mean: The inputs' means [C, D'].
        rows: In their place the rows Y [n, D'], with YᵀY the second moments.
    """

    weight: Tensor
    target: Tensor | None
    ridge: Tensor
    second: Tensor | None
    mean: Tensor
    rows: Rows | None = None

    @property
    def bias(self) -> Tensor | None:
        """The bias [C, o]; None without one."""
        return self.bias_for(self.weight)

    def bias_for(self, weight: Tensor, places: Tensor | None = None) -> Tensor | None:
        """Return the bias that goes with other weights [C, n, o], of some of the inputs or all."""
        mean = self.mean if places is None else self.mean[:, places]
        return None if self.target is None else self.target - (mean[:, None] @ weight)[:, 0]


def fit(moments: Moments, weight: Tensor, bias: Tensor | None, ridge: float | None, kept: Tensor) -> RidgeFit:
    """Return the ridge solution about the present weights without some of the inputs.

    Args:
        moments: Moments of what the layer takes now and should make of it; without targets, of what it makes of all.
        weight: Present weights [C, D, o].
        bias: The present bias [C, o], None without one; it is not held back by the ridge.
        ridge: λ relative to the mean square of an input; None for the one of `GRID` that does best on what is held out.
        kept: The inputs that are left [D].

    Raises:
        DataError: There is no solution: activations are not finite.
    """
    a0, z0 = moments.points
    z0 = z0.reshape(len(weight), -1) if moments.outputs else a0 @ weight + (0 if bias is None else bias)

    def normal(sums: Sums) -> NormalEquations:
        sums = sums if moments.outputs else sums.with_targets_of(weight)
        return NormalEquations.of(sums.only(kept), a0[kept], z0, centred=bias is not None)

    present, same = weight[:, kept], not moments.outputs and bool(kept.all())
    if ridge is None and not same:
        fitted, held = moments.parts()
        ridge = _chosen(fitted, held, normal, present, bias is not None)
    whole, ridge = normal(moments.total()), RIDGE if ridge is None else ridge
    if not bool(whole.aa.isfinite().all()):
        raise DataError(NOT_FINITE)
    solved = present if same else whole.solve(present, ridge)
    return RidgeFit(solved, None if bias is None else whole.z, ridge * whole.strength(), whole.aa, whole.a)


def _chosen(
    fitted: Sums, held: Sums, normal: Callable[[Sums], NormalEquations], weight: Tensor, centred: bool
) -> float | None:
    """Return the ridge that does best on what is held out; None where one of the two has no rows."""
    if not all(bool((part.xx[:, -1, -1] > 0).all()) for part in (fitted, held)):
        return None
    training, validation = normal(fitted), normal(held)
    return _best(training, validation.about(training.a, training.z) if centred else validation, weight)


def _best(part: NormalEquations, held: NormalEquations, weight: Tensor) -> float:
    """Return the ridge nearest to the usual one among those within one percent of the best on what is held out.

    Where inputs are many, each a factorisation of seconds, only as long as the error falls on the way from the usual.
    """
    errors = dict[float, float]()
    usual = GRID.index(RIDGE)
    for ridges in (GRID[usual:], GRID[usual::-1]):
        last = math.inf
        for ridge in ridges:
            if ridge not in errors:
                errors[ridge] = held.error(_tried(part, weight, ridge)).sum().nan_to_num(torch.inf).item()
            if errors[ridge] >= last and math.isfinite(last) and len(part.a[0]) >= LARGE:
                break
            last = errors[ridge]
    return nearest_to_usual(errors, held.zz.sum().item())


def nearest_to_usual(errors: Mapping[float, float], squares: float) -> float:
    """Return the ridge nearest to the usual one among those whose error is within one percent of the least.

    Args:
        errors: The error of each ridge on what is held out.
        squares: The squares of the targets there, of which a small part is rounding.
    """
    most = max(1.01 * min(errors.values()), ROUNDING * squares)
    good = [ridge for ridge, value in errors.items() if value <= most]
    return min(good, key=lambda ridge: abs(math.log(ridge / RIDGE)), default=RIDGE)


def _tried(part: NormalEquations, weight: Tensor, ridge: float) -> Tensor:
    try:
        return part.solve(weight, ridge)
    except DataError:  # too small for the rounding
        return torch.full_like(weight, torch.nan)
