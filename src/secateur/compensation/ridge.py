"""Least squares from moments: the weights that best give what a layer gave, by ridge regression.

A layer takes rows a [M, D] and makes a W + b of them, [M, O]. What other weights would do depends on the rows through
their second moments alone, so nothing is kept for each row. Outputs that weigh the rows in ways of their own have
moments of their own: everything here starts with a dimension of C blocks with o = O / C outputs each.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from secateur.compensation.cholesky import NOT_FINITE, factorise
from secateur.errors import DataError

ROWS = 2**14  # that are multiplied at a time
COLUMNS = 512  # of a symmetric product that are made at a time, without what is left of them
FLOOR = 0.1  # of the mean weight of all rows, added to each: some have none
GRID = tuple(10.0**power for power in range(-7, 1))  # ridges that are tried
RIDGE = 1e-4  # where nothing is held out to try them on
TINY = 1e-30  # of a mean square, where all inputs are constant
LARGE = 2048  # inputs from which sums are held in float32: they are of some hundred thousand products at most
ROUNDING = 1e-6  # of the targets' squares: errors below it are none


class Sums(NamedTuple):
    """The sums Σ ω x xᵀ [C, X, X], Σ ω x zᵀ [C, X, o], Σ ω z² [C, o] over rows x = (a, 1), targets z; X = D + 1.

    All are float64, where inputs are many the first is float32. What is left of the diagonal may be missing in it.
    """

    xx: Tensor
    xz: Tensor
    zz: Tensor

    @classmethod
    def none(cls, blocks: int, inputs: int, outputs: int, device: torch.device) -> Sums:
        """Return the sums over no rows."""
        x, dtype = inputs + 1, torch.float32 if inputs >= LARGE else torch.float64
        return cls(
            torch.zeros(blocks, x, x, dtype=dtype, device=device),
            torch.zeros(blocks, x, outputs, dtype=torch.float64, device=device),
            torch.zeros(blocks, outputs, dtype=torch.float64, device=device),
        )

    def add(self, x: Tensor, z: Tensor, weight: Tensor | None) -> None:
        """Take in rows [M, X], targets [M, O], weights [M, C] or 1."""
        if weight is None:
            for i in range(0, x.shape[1], COLUMNS):
                self.xx[0, i : i + COLUMNS, i:] += x[:, i : i + COLUMNS].T @ x[:, i:]
            self.xz[0] += x.T @ z
            self.zz[0] += z.square().sum(0)
            return
        z = z.reshape(len(z), *self.zz.shape)
        weighted_x, weighted_z = weight[:, :, None] * x[:, None], weight[:, :, None] * z
        self.xx.add_((x.T @ weighted_x.flatten(1)).reshape(-1, *weighted_x.shape[1:]).movedim(1, 0))
        self.xz.add_((x.T @ weighted_z.flatten(1)).reshape(x.shape[1], *z.shape[1:]).movedim(1, 0))
        self.zz.add_((weighted_z * z).sum(0))

    def whole(self) -> Sums:
        """Return the sums with what is left of the diagonal, written in its place."""
        for i in range(0, self.xx.shape[1], COLUMNS):
            rows = self.xx[:, i : i + COLUMNS]
            self.xx[:, i + COLUMNS :, i : i + COLUMNS] = rows[:, :, i + COLUMNS :].mT
            square = rows[:, :, i : i + COLUMNS]
            square.copy_(square.triu() + square.triu(1).mT)
        return self

    def plus(self, other: Sums) -> Sums:
        """Return the sums over the rows of both."""
        return Sums(*(sums + addend for sums, addend in zip(self, other, strict=True)))

    def with_floor(self, plain: Sums, floor: Tensor) -> Sums:
        """Return the sums as if each row weighed so much more [C], by those of one block for rows that weigh 1."""
        c, o = len(floor), self.zz.shape[1]
        xz, zz = plain.xz[0].reshape(plain.xz.shape[1], c, o).movedim(1, 0), plain.zz[0].reshape(c, o)
        more = floor[:, None, None]
        return self.plus(Sums(more * plain.xx, more * xz, floor[:, None] * zz))


class Moments:
    """The sums over a layer's rows, those to fit and those held out, of inputs a − a₀ and targets z − z₀.

    Products are made in the rows' own dtype; a₀ and z₀, the means of the first rows, keep digits there. Where outputs
    weigh rows in ways of their own, each row counts by its weight and a tenth of the mean weight.

    Args:
        inputs: D.
        outputs: O; 0 for no targets.
        device: The sums' device.
    """

    def __init__(self, inputs: int, outputs: int, device: torch.device) -> None:
        self.inputs, self.outputs, self.device = inputs, outputs, device
        self.hold_out = True  # False where no ridge will be chosen: half of the memory
        self._plain: list[Sums | None] = [None, None]  # made when there are rows
        self.weighted: list[Sums] = []
        self.origin: tuple[Tensor, Tensor] | None = None

    @property
    def blocks(self) -> int:
        """The number of blocks C."""
        return len(self.weighted[0].zz) if self.weighted else 1

    def add(self, a: Tensor, z: Tensor, held: Tensor, weight: Tensor | None = None) -> None:
        """Take in rows [M, D], targets [M, O], which of them are held out [M], and the rows' weights [M, C] or 1."""
        if self.origin is None and len(a):
            self.origin = a.double().mean(0), z.double().mean(0)
        if weight is not None and not self.weighted:
            blocks = weight.shape[1]
            self.weighted = [Sums.none(blocks, self.inputs, self.outputs // blocks, self.device) for _ in range(2)]
        held = held if self.hold_out else torch.zeros_like(held)
        for part, rows in enumerate((~held, held)):
            for piece in torch.split(rows.nonzero()[:, 0], ROWS // self.blocks) if rows.any() else ():
                self._add(part, a[piece], z[piece], None if weight is None else weight[piece])

    def _add(self, part: int, a: Tensor, z: Tensor, weight: Tensor | None) -> None:
        a0, z0 = self._origin
        plain = self._plain[part] or self._none()
        self._plain[part] = plain
        if a.element_size() < 4:
            a, z = a.float(), z.float()
        x, z = a.new_ones(len(a), self.inputs + 1), z - z0.to(z)
        torch.sub(a, a0.to(a), out=x[:, :-1])
        plain.add(x, z, None)
        if weight is not None:
            self.weighted[part].add(x, z, weight.to(x))

    @property
    def _origin(self) -> tuple[Tensor, Tensor]:
        if self.origin is not None:
            return self.origin
        zeros = torch.zeros(self.inputs + self.outputs, dtype=torch.float64, device=self.device)
        return zeros[: self.inputs], zeros[self.inputs :]

    def parts(self) -> list[Sums]:
        """Return the sums over the rows to fit and over those held out."""
        plain_parts = [sums or self._none() for sums in self._plain]
        if not self.weighted:
            return [sums.whole() for sums in plain_parts]
        count, weight = (sum(sums.xx[:, -1, -1] for sums in parts) for parts in (plain_parts, self.weighted))
        floor = FLOOR * weight / torch.as_tensor(count).clamp(min=1)
        return [sums.with_floor(plain, floor).whole() for sums, plain in zip(self.weighted, plain_parts, strict=True)]

    def _none(self) -> Sums:
        return Sums.none(1, self.inputs, self.outputs, self.device)

    def total(self) -> Sums:
        """Return the sums over all rows; those that are there, where none are held out."""
        only, *others = [sums for sums in self._plain if sums is not None] or [self._none()]
        if not others and not self.weighted:
            return only.whole()
        fitted, held = self.parts()
        return fitted.plus(held)

    def only(self, outputs: Tensor) -> Moments:
        """Return the moments for some outputs, where there are no targets."""
        moments = copy.copy(self)
        moments.weighted = [Sums(*(tensor[outputs] for tensor in sums)) for sums in self.weighted]
        return moments

    def normal(self, sums: Sums, centred: bool) -> NormalEquations:
        """Return the normal equations of some of the sums; about the means where there is a bias to take these."""
        total = sums.xx[:, -1:, -1:].double().clamp(min=TINY)
        a, z = sums.xx[:, -1, :-1] / total[:, 0], sums.xz[:, -1] / total[:, 0]
        about = NormalEquations(
            (sums.xx[:, :-1, :-1] / total).baddbmm_(a[:, :, None], a[:, None, :], alpha=-1),
            sums.xz[:, :-1] / total - a[:, :, None] * z[:, None, :],
            sums.zz / total[:, 0] - z.square(),
            a + self._origin[0],
            z + self._origin[1].reshape(-1, z.shape[1]) if self.outputs else z,
        )
        return about if centred else about.about(torch.zeros_like(about.a), torch.zeros_like(about.z))


class NormalEquations(NamedTuple):
    """The second moments of inputs [C, D, D], with targets [C, D, o], of targets [C, o]; the means of both."""

    aa: Tensor
    az: Tensor
    zz: Tensor
    a: Tensor
    z: Tensor

    def strength(self) -> Tensor:
        """Return the mean diagonal [C, 1, 1], in whose units ridges are."""
        return self.aa.diagonal(dim1=1, dim2=2).mean(1).clamp(min=TINY)[:, None, None]

    def about(self, a: Tensor, z: Tensor) -> NormalEquations:
        """Return the equations about other points, from those about the means."""
        a, z = (self.a - a)[:, :, None], (self.z - z)[:, :, None]
        aa, az = self.aa.baddbmm(a, a.mT), self.az.baddbmm(a, z.mT)
        return self._replace(aa=aa, az=az, zz=self.zz + z[:, :, 0].square())

    def with_targets_of(self, weight: Tensor, bias: Tensor) -> NormalEquations:
        """Return the equations for the targets that weights [C, D, o] and a bias [C, o] make of the inputs."""
        az = self.aa @ weight
        return self._replace(az=az, zz=(weight * az).sum(1), z=(self.a[:, None] @ weight)[:, 0] + bias)

    def only(self, kept: Tensor) -> NormalEquations:
        """Return the equations for the inputs kept."""
        if bool(kept.all()):
            return self
        places = kept.nonzero()[:, 0]
        return self._replace(aa=self.aa[:, places][:, :, places], az=self.az[:, places], a=self.a[:, places])

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
        rows: In their place Y [n, D'], with YᵀY the second moments.
    """

    weight: Tensor
    target: Tensor | None
    ridge: Tensor
    second: Tensor | None
    mean: Tensor
    rows: Tensor | None = None

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

    def normal(sums: Sums) -> NormalEquations:
        equations = moments.normal(sums, centred=bias is not None)
        if not moments.outputs:
            equations = equations.with_targets_of(weight, torch.zeros_like(weight[:, 0]) if bias is None else bias)
        return equations.only(kept)

    present, same = weight[:, kept], not moments.outputs and bool(kept.all())
    if ridge is None and not same:
        fitted, held = moments.parts()
        if all(bool((part.xx[:, -1, -1] > 0).all()) for part in (fitted, held)):
            training, validation = normal(fitted), normal(held)
            ridge = _best(training, validation if bias is None else validation.about(training.a, training.z), present)
    whole, ridge = normal(moments.total()), RIDGE if ridge is None else ridge
    if not bool(whole.aa.isfinite().all()):
        raise DataError(NOT_FINITE)
    solved = present if same else whole.solve(present, ridge)
    return RidgeFit(solved, None if bias is None else whole.z, ridge * whole.strength(), whole.aa, whole.a)


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
