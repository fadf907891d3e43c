"""Second moments of what a layer takes, and of what it should make of it.

A layer takes rows a [M, D] and makes a W + b of them, [M, O]. What other weights would do depends on the rows through
their second moments alone, so nothing is kept for each row. Outputs that weigh the rows in ways of their own have
moments of their own: everything here starts with a dimension of C blocks with o = O / C outputs each.
"""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor

ROWS = 2**14  # that are multiplied at a time
COLUMNS = 512  # of a symmetric product that are made at a time, without what is left of them
FLOOR = 0.1  # of the mean weight of all rows, added to each: some have none
LARGE = 2048  # inputs from which sums are held in float32: they are of some hundred thousand products at most


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

    def with_targets_of(self, weight: Tensor) -> Sums:
        """Return the sums for the targets that weights [C, D, o] make of the inputs."""
        weight = torch.cat([weight, torch.zeros_like(weight[:, :1])], 1)
        xz = torch.cat([rows.to(weight) @ weight for rows in torch.split(self.xx, COLUMNS, 1)], 1)
        return Sums(self.xx, xz, (weight * xz).sum(1))

    def only(self, kept: Tensor) -> Sums:
        """Return the sums for the inputs kept [D]."""
        if bool(kept.all()):
            return self
        places = torch.cat([kept.nonzero()[:, 0], kept.new_tensor([len(kept)], dtype=torch.int64)])
        return self._replace(xx=self.xx[:, places][:, :, places], xz=self.xz[:, places])

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
        a0, z0 = self.points
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
    def points(self) -> tuple[Tensor, Tensor]:
        """a₀ [D] and z₀ [O]."""
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
