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

from secateur.compensation.cholesky import factorise, invert

COLUMNS = 128  # of L that are gathered before they are subtracted from the matrices


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

    Args:
        layer: The layer; its matrices are not changed.
    """

    def __init__(self, layer: Summation) -> None:
        second, ridge, weight, self.curvature, rows = layer
        self.inverse = invert(factorise(second.clone(), ridge))
        self.weights = weight.clone()
        self.names = torch.arange(second.shape[1], device=second.device)  # of the rows of W that are in the matrices
        self.units, self.rows = torch.arange(len(rows), device=rows.device), rows  # and where each unit's are
        self.size, self.left = len(rows), torch.ones_like(self.units, dtype=torch.bool)
        self._begin()

    def _begin(self) -> None:
        """Compute the diagonal blocks of G⁻¹ and W B Wᵀ [C, K, p, p] anew, with no L gathered."""
        c, d, _ = self.inverse.shape
        self.columns = self.inverse.new_empty(c, d, 0)
        self.targets = self.weights.new_empty(c, 0, self.weights.shape[2])
        self.diagonal = self.inverse[:, self.rows[:, :, None], self.rows[:, None, :]]
        w = self.weights[:, self.rows]
        self.gram = self._weighed(w) @ w.mT

    def _weighed(self, weights: Tensor) -> Tensor:
        """Return weights [C, ..., o] times B."""
        b = self.curvature
        return weights if b is None else weights @ (b if weights.ndim == 3 else b[:, None])

    def costs(self) -> Tensor:
        """Return what the removal of each unit adds to the ridge objective [K], infinite for those that are gone."""
        if self.rows.shape[1] == 1:
            costs = 0.5 * (self.gram / self.diagonal)[:, :, 0, 0].sum(0)
        else:
            costs = 0.5 * torch.linalg.solve(self.diagonal, self.gram).diagonal(dim1=2, dim2=3).sum((0, 2))
        all_costs = costs.new_full((self.size,), torch.inf)
        all_costs[self.units] = costs.masked_fill(~self.left, torch.inf)
        return all_costs

    def remove(self, unit: int) -> None:
        """Strike a unit out, and let those that are left make up for it."""
        place = int(torch.searchsorted(self.units, unit))
        rows = self.rows[place]
        column = self.inverse[:, :, rows] - self.columns @ self.columns[:, rows].mT
        root = torch.linalg.cholesky(column[:, rows])
        factor = torch.linalg.solve_triangular(root.mT, column, upper=True, left=False)  # L
        w = self.weights[:, rows] - self.columns[:, rows] @ self.targets
        target = torch.linalg.solve_triangular(root, w, upper=False)  # S⁻¹ W_P
        self._update_blocks(factor, target)
        self.columns, self.targets = torch.cat([self.columns, factor], 2), torch.cat([self.targets, target], 1)
        self.left[place] = False
        self.diagonal[:, place] = torch.eye(len(rows)).to(self.diagonal)
        if self.columns.shape[2] >= COLUMNS:
            self._subtract()

    def _update_blocks(self, factor: Tensor, target: Tensor) -> None:
        of_units = factor[:, self.rows]  # [C, K, p, p]
        weighed = self._weighed(target).mT
        product = self.weights @ weighed - self.columns @ (self.targets @ weighed)  # W B tᵀ
        mixed = product[:, self.rows] @ of_units.mT
        self.gram += of_units @ (target @ weighed)[:, None] @ of_units.mT - mixed - mixed.mT
        self.diagonal -= of_units @ of_units.mT

    def _stays(self) -> Tensor:
        """Return which rows of the matrices are no gone unit's."""
        stays = torch.ones_like(self.names, dtype=torch.bool)
        stays[self.rows[~self.left].flatten()] = False
        return stays

    def _subtract(self) -> None:
        """Subtract what was gathered from the matrices, and strike the rows out that are gone."""
        stays = self._stays()
        columns = self.columns[:, stays]
        self.inverse = self.inverse[:, stays][:, :, stays].baddbmm_(columns, columns.mT, alpha=-1)
        self.weights = self.weights[:, stays].baddbmm_(columns, self.targets, alpha=-1)
        self.names, self.units = self.names[stays], self.units[self.left]
        self.rows = (stays.cumsum(0) - 1)[self.rows[self.left]]
        self.left = self.left[self.left]
        self._begin()

    def weight(self) -> tuple[Tensor, Tensor]:
        """Return which rows of W are left, and W there [C, n, o]."""
        stays = self._stays()
        return self.names[stays], self.weights[:, stays] - self.columns[:, stays] @ self.targets
