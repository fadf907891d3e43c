"""Least squares from moments: the weights that best give what a layer gave, by ridge regression.

A layer takes rows a [M, D] and makes a W + b of them, [M, O]. What other weights would do depends on the rows through
their second moments alone, so nothing is kept for each row. Outputs that weigh the rows in ways of their own have
moments of their own: everything here starts with a dimension of C blocks with o = O / C outputs each.
"""

from __future__ import annotations

import copy
import math
from typing import NamedTuple

import torch
from torch import Tensor

from secateur.errors import DataError

ROWS = 2**14  # that are multiplied at a time
GRID = tuple(10.0**power for power in range(-7, 1))  # ridges that are tried
RIDGE = 1e-4  # where nothing is held out to try them on
TINY = 1e-30  # of a mean square, where all inputs are constant
ROUNDING = 1e-6  # of the targets' squares: errors below it are none


class Moments:
    """Σ ω x xᵀ over the rows x = (a − a₀, z − z₀, 1), of inputs a and targets z; float64 [2, C, X, X], X = D + o + 1.

    Two sums: of all rows, and of those held out. The products are made in the rows' own dtype; a₀ and z₀, the
    means of the first rows, keep digits there.

    Args:
        blocks: C.
        inputs: D.
        outputs: O, of all blocks.
        device: Of the sums.
    """

    def __init__(self, blocks: int, inputs: int, outputs: int, device: torch.device) -> None:
        self.inputs, width = inputs, inputs + outputs // blocks + 1
        self.sums = torch.zeros(2, blocks, width, width, dtype=torch.float64, device=device)
        self.origin: Tensor | None = None

    def add(self, a: Tensor, z: Tensor, held: Tensor, weight: Tensor | None = None) -> None:
        """Take in rows [M, D], targets [M, O], which of them are held out [M], and the rows' weights [M, C] or 1."""
        for start in range(0, len(a), ROWS):
            here = slice(start, start + ROWS)
            self._add(a[here], z[here], held[here], None if weight is None else weight[here])

    def _add(self, a: Tensor, z: Tensor, held: Tensor, weight: Tensor | None) -> None:
        if self.origin is None:
            self.origin = torch.cat([a, z], 1).double().mean(0)
        if a.element_size() < 4:
            a, z = a.float(), z.float()
        a, z = a - self.origin[: self.inputs].to(a), z - self.origin[self.inputs :].to(a)
        for c, targets in enumerate(z.chunk(len(self.sums[0]), 1)):
            x = torch.cat([a, targets, torch.ones_like(a[:, :1])], 1)
            if weight is not None:
                x *= weight[:, c : c + 1].to(x).sqrt()
            self.sums[0, c] += x.T @ x
            some = x[held]
            self.sums[1, c] += some.T @ some

    @property
    def parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """The sums over the rows to fit, those held out, and all."""
        whole, held = self.sums
        return whole - held, held, whole

    def only(self, inputs: Tensor, outputs: Tensor) -> Moments:
        """Those of some inputs and targets, by their numbers."""
        d, last = self.inputs, self.sums.shape[-1] - 1
        several = len(self.sums[0]) > 1
        targets = [d] if several else (d + outputs).tolist()
        places = torch.tensor([*inputs.tolist(), *targets, last], device=self.sums.device)
        found = copy.copy(self)
        found.inputs, found.sums = len(inputs), self.sums[:, :, places][:, :, :, places]
        if several:
            found.sums = found.sums[:, outputs]
        if self.origin is not None:
            found.origin = self.origin[torch.cat([inputs, d + outputs])]
        return found

    def normal(self, sums: Tensor, centred: bool) -> Normal:
        """The normal equations of some of the sums [C, X, X]; about the means where there is a bias to take these."""
        d, blocks = self.inputs, len(sums)
        origin = torch.zeros_like(sums[0, 0, :-1]) if self.origin is None else self.origin
        starts = torch.cat([origin[:d].expand(blocks, d), origin[d:].reshape(blocks, -1)], 1)
        total = sums[:, -1:, -1:].clamp(min=TINY)
        mean = sums[:, -1, :-1] / total[:, 0]
        second = sums[:, :-1, :-1] / total - mean[:, :, None] * mean[:, None, :]
        mean = mean + starts
        if not centred:
            second = second + mean[:, :, None] * mean[:, None, :]
        return Normal(second[:, :d, :d], second[:, :d, d:], second[:, d:, d:], mean[:, :d], mean[:, d:])


class Normal(NamedTuple):
    """Second moments of inputs [C, D, D], with targets [C, D, o], of targets [C, o, o]; the means of both."""

    aa: Tensor
    az: Tensor
    zz: Tensor
    a: Tensor
    z: Tensor

    def strength(self) -> Tensor:
        """The mean diagonal [C, 1, 1], in whose units ridges are."""
        return self.aa.diagonal(dim1=1, dim2=2).mean(1).clamp(min=TINY)[:, None, None]

    def about(self, a: Tensor, z: Tensor) -> Normal:
        """The same from moments about the means, about other points."""
        a, z = (self.a - a)[:, :, None], (self.z - z)[:, :, None]
        return self._replace(aa=self.aa + a @ a.mT, az=self.az + a @ z.mT, zz=self.zz + z @ z.mT)

    def solve(self, weight: Tensor, ridge: float) -> Tensor:
        """(AᵀA + λI)⁻¹ (AᵀZ + λW): closest to the targets, and to the weights [C, D, o] so far.

        Raises:
            DataError: It has no solution: the data hold NaN or infinite values.
        """
        λ = ridge * self.strength()
        factor, failed = torch.linalg.cholesky_ex(self.aa + λ * torch.eye(self.aa.shape[1]).to(self.aa))
        if bool(failed.any()) or not bool(factor.isfinite().all() & self.az.isfinite().all()):
            raise DataError("compensation: the activations' second moments are not finite or not positive on this data")
        return torch.cholesky_solve(self.az + λ * weight, factor)

    def error(self, weight: Tensor) -> Tensor:
        """The mean square of what is missing, summed over outputs, per block [C]."""
        missing = self.zz - 2 * weight.mT @ self.az + weight.mT @ self.aa @ weight
        return missing.diagonal(dim1=1, dim2=2).sum(1)


class Fit(NamedTuple):
    """A solution for the inputs kept, D' of all.

    Attributes:
        weight: [C, D', o].
        bias: [C, o]; None without one.
        ridge: λ, absolute [C, 1, 1].
        second: The inputs' second moments [C, D', D'], about their means where there is a bias.
        mean: The inputs' means [C, D'].
    """

    weight: Tensor
    bias: Tensor | None
    ridge: Tensor
    second: Tensor
    mean: Tensor

    def bias_for(self, weight: Tensor) -> Tensor | None:
        """The bias that goes with other weights [C, D', o]."""
        return None if self.bias is None else self.bias + (self.mean[:, None] @ (self.weight - weight))[:, 0]


def fit(moments: Moments, weight: Tensor, bias: bool, ridge: float | None, kept: Tensor) -> Fit:
    """The ridge solution about the present weights without some of the inputs.

    Args:
        moments: Of what the layer takes now, and what it should make of it.
        weight: Present weights [C, D, o].
        bias: Whether there is one; it is not held back by the ridge.
        ridge: λ relative to the mean square of an input; None for the one of `GRID` that does best on what is held out.
        kept: The inputs that are left [D].

    Raises:
        DataError: There is no solution: activations are not finite.
    """
    places = kept.nonzero()[:, 0]
    part, held, whole = (_only(moments.normal(sums, bias), places) for sums in moments.parts)
    here = weight[:, places]
    if ridge is None:
        there = all(bool((sums[:, -1, -1] > 0).all()) for sums in moments.parts)
        ridge = _best(part, held.about(part.a, part.z) if bias else held, here) if there else RIDGE
    solved = whole.solve(here, ridge)
    shift = whole.z - (whole.a[:, None] @ solved)[:, 0] if bias else None
    return Fit(solved, shift, ridge * whole.strength(), whole.aa, whole.a)


def _only(normal: Normal, places: Tensor) -> Normal:
    return normal._replace(aa=normal.aa[:, places][:, :, places], az=normal.az[:, places], a=normal.a[:, places])


def _best(part: Normal, held: Normal, weight: Tensor) -> float:
    """Of the ridges that do within one percent of the best on what is held out, the nearest to the usual one."""
    errors = [held.error(_tried(part, weight, ridge)).sum().nan_to_num(torch.inf).item() for ridge in GRID]
    rounding = ROUNDING * held.zz.diagonal(dim1=1, dim2=2).sum().item()
    good = [ridge for ridge, error in zip(GRID, errors, strict=True) if error <= max(1.01 * min(errors), rounding)]
    return min(good, key=lambda ridge: abs(math.log(ridge / RIDGE)), default=RIDGE)


def _tried(part: Normal, weight: Tensor, ridge: float) -> Tensor:
    try:
        return part.solve(weight, ridge)
    except DataError:  # too small for the rounding
        return torch.full_like(weight, torch.nan)
