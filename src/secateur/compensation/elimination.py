"""The whole removal order of one layer's inputs in closed form: a Cholesky factorisation with the cheapest unit next.

Optimal Brain Surgeon on units, as `BlockOBS` has it, strikes the unit P of least ½ tr(B W_Pᵀ Γ W_P) out of G⁻¹:

    Γ = ([G⁻¹]_PP)⁻¹ = S⁻ᵀS⁻¹     L = G⁻¹[:, P] S⁻ᵀ     G⁻¹ −= L Lᵀ     W −= L S⁻¹ W_P

So the L of one removal after the other are the columns of a Cholesky factor of G⁻¹. They are gathered and subtracted
from the matrices together, which makes the whole order ⅓ D³ multiplications of large matrices, as a factorisation is;
in between, of G⁻¹ only the column of the unit that goes is needed, and the diagonal blocks.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from secateur.least_squares.cholesky import factorise, invert

COLUMNS = 256  # of L that are gathered before they are subtracted from the matrices


class Summation(NamedTuple):
    """One layer that sums the units of a set up, at its optimum.

    Attributes:
        second: AᵀA, the second moments of its inputs [C, D, D].
        ridge: λ [C, 1, 1].
        weight: W [C, D, o].
        curvature: B, how much the loss minds changes of its outputs [C, o, o]; None where it minds all alike.
        rows: The rows of W that belong to each unit [K, p].
    """

    second: Tensor
    ridge: Tensor
    weight: Tensor
    curvature: Tensor | None
    rows: Tensor


class Elimination:
    """One layer whose inputs go, unit after unit, while the others make up for them.

    The rows of the units come first in all arrays, unit after unit, so that those of each are a slice.

    Args:
        layer: The layer; its matrices are not changed.
    """

    def __init__(self, layer: Summation) -> None:
        (self.size, self.each), inputs = layer.rows.shape, layer.second.shape[1]
        others = torch.ones(inputs, dtype=torch.bool, device=layer.rows.device)
        others[layer.rows.flatten()] = False
        self.names = torch.cat([layer.rows.flatten(), others.nonzero()[:, 0]])  # the rows of W in the arrays
        self.inverse = invert(factorise(layer.second[:, self.names[:, None], self.names], layer.ridge))
        self.weights = layer.weight[:, self.names]
        self.weighed = self.weights if layer.curvature is None else self.weights @ layer.curvature  # W B
        self.units = torch.arange(self.size, device=self.names.device)  # in the arrays
        self.left = torch.ones_like(self.units, dtype=torch.bool)
        self._begin()

    def _begin(self) -> None:
        """Compute the diagonal blocks of G⁻¹ and W B Wᵀ [C, K, p, p] anew, with no L gathered."""
        c, d, _ = self.inverse.shape
        self.gathered = 0
        self.columns = self.inverse.new_empty(c, d, COLUMNS + self.each)
        self.targets, self.weighed_targets = (
            self.weights.new_empty(c, COLUMNS + self.each, self.weights.shape[2]) for _ in range(2)
        )
        k, p = len(self.units), self.each
        blocks = self.inverse[:, : k * p, : k * p].reshape(c, k, p, k, p)
        self.diagonal = blocks.diagonal(dim1=1, dim2=3).movedim(-1, 1).contiguous()
        self.gram = self._of_units(self.weighed) @ self._of_units(self.weights).mT

    def _of_units(self, rows: Tensor) -> Tensor:
        """Return the rows [C, D, n] that belong to each unit [C, K, p, n]; a view."""
        units = len(self.units)
        return rows[:, : units * self.each].reshape(len(rows), units, self.each, rows.shape[2])

    def costs(self) -> Tensor:
        """Return what the removal of each unit adds to the ridge objective [K], infinite for those that are gone."""
        if self.each == 1:
            costs = 0.5 * (self.gram / self.diagonal)[:, :, 0, 0].sum(0)
        else:
            costs = 0.5 * torch.linalg.solve(self.diagonal, self.gram).diagonal(dim1=2, dim2=3).sum((0, 2))
        all_costs: Tensor = costs.new_full((self.size,), torch.inf)
        all_costs[self.units] = costs.masked_fill(~self.left, torch.inf)
        return all_costs

    def remove(self, unit: int) -> None:
        """Strike a unit out, and let those that are left make up for it."""
        place, n = int(torch.searchsorted(self.units, unit)), self.gathered
        rows, more = slice(place * self.each, (place + 1) * self.each), slice(n, n + self.each)
        before = self.columns[:, rows, :n]
        column = self.inverse[:, rows].mT - self.columns[:, :, :n] @ before.mT
        root = torch.linalg.cholesky(column[:, rows])
        inverse = torch.linalg.solve_triangular(root, torch.eye(self.each).to(root), upper=False)  # S⁻¹
        self.columns[:, :, more] = factor = column @ inverse.mT  # L
        self.targets[:, more] = inverse @ (self.weights[:, rows] - before @ self.targets[:, :n])
        self.weighed_targets[:, more] = inverse @ (self.weighed[:, rows] - before @ self.weighed_targets[:, :n])
        self._update_blocks(factor, self.targets[:, more], self.weighed_targets[:, more].mT)
        self.gathered, self.left[place] = n + self.each, False
        self.diagonal[:, place] = torch.eye(self.each).to(self.diagonal)

    def _update_blocks(self, factor: Tensor, target: Tensor, weighed: Tensor) -> None:
        n = self.gathered
        product = self.weights @ weighed - self.columns[:, :, :n] @ (self.targets[:, :n] @ weighed)  # W B tᵀ
        of_units = self._of_units(factor)
        mixed = self._of_units(product) @ of_units.mT
        self.gram += of_units @ (target @ weighed)[:, None] @ of_units.mT - mixed - mixed.mT
        self.diagonal -= of_units @ of_units.mT

    def _stays(self) -> Tensor:
        """Return which rows of the arrays are no gone unit's."""
        stays = torch.ones_like(self.names, dtype=torch.bool)
        stays[: len(self.units) * self.each] = self.left.repeat_interleave(self.each)
        return stays

    def settle(self) -> None:
        """Subtract what was gathered from the matrices once it is much, and strike the rows out that are gone."""
        if self.gathered < COLUMNS:
            return
        stays, n = self._stays(), self.gathered
        columns = self.columns[:, stays, :n]
        self.inverse = self.inverse[:, stays][:, :, stays].baddbmm_(columns, columns.mT, alpha=-1)
        alike = self.weighed is self.weights
        self.weights = self.weights[:, stays].baddbmm_(columns, self.targets[:, :n], alpha=-1)
        self.weighed = (
            self.weights if alike else self.weighed[:, stays].baddbmm_(columns, self.weighed_targets[:, :n], alpha=-1)
        )
        self.names, self.units = self.names[stays], self.units[self.left]
        self.left = self.left[self.left]
        self._begin()

    def weight(self) -> tuple[Tensor, Tensor]:
        """Return which rows of W are left, in order, and W there [C, n, o]."""
        stays, n = self._stays(), self.gathered
        names, order = self.names[stays].sort()
        weights = self.weights[:, stays] - self.columns[:, stays, :n] @ self.targets[:, :n]
        return names, weights[:, order]
