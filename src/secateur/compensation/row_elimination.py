"""The removal order of one layer with more inputs than rows: a matrix of rows × rows, made anew for a group of units.

With Y the rows over √N and M = Y Yᵀ + λI, G⁻¹ = (I − YᵀM⁻¹Y)/λ. If the units S are gone and the inputs K are left,
the best weights are W_K + Y_KᵀM_K⁻¹ Y_S W_S. A column of G⁻¹ costs as much as many rows × inputs, so that what each
unit's removal costs is computed for a group of removals at a time, and not after each.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from secateur.least_squares.cholesky import factorise
from secateur.least_squares.rows import COLUMNS, Rows

GROUPS = 16  # of removals, between which all costs are computed anew


class RowSummation(NamedTuple):
    """One layer that sums the units of a set up, at its optimum.

    Attributes:
        data: Y [N, D], about its means where there is a bias, made a few columns at a time.
        ridge: λ [1, 1, 1].
        weight: W [1, D, o].
        curvature: B, how much the loss minds changes of its outputs [1, o, o]; None where it minds all alike.
        rows: The rows of W that belong to each unit [K, p].
    """

    data: Rows
    ridge: Tensor
    weight: Tensor
    curvature: Tensor | None
    rows: Tensor


class RowElimination:
    """One layer whose inputs go, unit after unit, while the others make up for them.

    Args:
        layer: The layer; its matrices are not changed.
    """

    def __init__(self, layer: RowSummation) -> None:
        self.layer = layer
        self.left = torch.ones(len(layer.rows), dtype=torch.bool, device=layer.rows.device)
        self.waiting, self.group = 0, -(-len(layer.rows) // GROUPS)
        self.known = self._all_costs()

    def costs(self) -> Tensor:
        """Return what the removal of each unit adds to the ridge objective [K], infinite for those that are gone."""
        return self.known.masked_fill(~self.left, torch.inf)

    def remove(self, unit: int) -> None:
        """Strike a unit out."""
        self.left[unit] = False
        self.waiting += 1

    def settle(self) -> None:
        """Compute all costs anew once a group of units is gone."""
        if self.waiting >= self.group:
            self.known, self.waiting = self._all_costs(), 0

    def _stays(self) -> Tensor:
        stays = torch.ones(len(self.layer.data.inputs), dtype=torch.bool, device=self.left.device)
        stays[self.layer.rows[~self.left].flatten()] = False
        return stays

    def _solved(self) -> tuple[Tensor, Tensor]:
        """Return the factor of M [N, N] for the inputs that are left, and M⁻¹ times what those gone gave [N, o]."""
        data, stays = self.layer.data, self._stays()
        missing = data.times(self.layer.weight[0], (~stays).nonzero()[:, 0])
        factor = factorise(data.gram(stays.nonzero()[:, 0])[None], self.layer.ridge)[0]
        return factor, torch.cholesky_solve(missing, factor)

    def _all_costs(self) -> Tensor:
        factor, change = self._solved()
        places = self.left.nonzero()[:, 0]
        costs = torch.full((len(self.left),), torch.inf, dtype=torch.float64, device=places.device)
        for some in torch.split(places, max(1, COLUMNS // self.layer.rows.shape[1])):
            costs[some] = self._costs(some, factor, change)
        return costs

    def _costs(self, units: Tensor, factor: Tensor, change: Tensor) -> Tensor:
        rows, b = self.layer.rows[units], self.layer.curvature
        y = self.layer.data.columns(rows.flatten()).double()
        w = (self.layer.weight[0, rows.flatten()] + y.T @ change).reshape(*rows.shape, -1)
        solved = torch.linalg.solve_triangular(factor, y, upper=False).reshape(-1, *rows.shape).movedim(1, 0)
        blocks = (torch.eye(rows.shape[1]).to(solved) - solved.mT @ solved) / self.layer.ridge  # of G⁻¹
        gram = (w if b is None else w @ b) @ w.mT
        costs: Tensor = 0.5 * torch.linalg.solve(blocks, gram).diagonal(dim1=1, dim2=2).sum(1)
        return costs

    def weight(self) -> tuple[Tensor, Tensor]:
        """Return which rows of W are left, in order, and W there [1, n, o]."""
        left, (_, change) = self._stays().nonzero()[:, 0], self._solved()
        return left, self.layer.weight[:, left] + self.layer.data.transposed_times(change, left)[None]
