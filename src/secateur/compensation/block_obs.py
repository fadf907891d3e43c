"""Optimal Brain Surgeon on units: what it costs that one goes, if the weights left make up for it."""

from __future__ import annotations

import torch
from torch import Tensor

SPARSE = 0.25  # of the inputs gone, after which their rows are struck out of the arrays


class BlockOBS:
    """The weights W [C, D, o] of one layer that are left, through one removal of inputs after the other.

        Γ = ([G⁻¹]_PP)⁻¹     W −= G⁻¹[:, P] Γ W_P     G⁻¹ −= G⁻¹[:, P] Γ G⁻¹[P, :]     (Hassibi, Stork 1992, in blocks)

    G = AᵀA + λI. Then W is the ridge solution about the weights at the start, without the inputs removed. The ridge
    objective ½ tr(B ΔWᵀGΔW) rises by ½ tr(B W_PᵀΓW_P) each time, the data's part of it by λ tr(B ΔWᵀδ) +
    ½ λ tr(B δᵀδ) less, δ the change of W. With B = R Rᵀ costs need W R alone. O(D²) memory, O(D² p) for a removal of p
    inputs, O(D² p) for the costs of all.

    Args:
        second: AᵀA over the rows [C, D, D].
        weight: W, at the optimum [C, D, o].
        ridge: λ [C, 1, 1].
        root: R [C, o, r].
        names: The number of each input in the whole layer [D].
    """

    def __init__(self, second: Tensor, weight: Tensor, ridge: Tensor, root: Tensor, names: Tensor) -> None:
        self.ridge, self.names, self.width = ridge, names, weight.shape[2]
        self.weights = torch.cat([weight, weight @ root], 2)  # W, and W R
        self.moved = torch.zeros_like(self.weights[:, :, self.width :])  # G⁻¹ ΔW R
        ridges = ridge * torch.eye(second.shape[1]).to(second)
        self.inverse = torch.cholesky_inverse(torch.linalg.cholesky(second + ridges))
        self.squares = self.inverse.square().sum(1)  # the diagonal of G⁻²
        self.there = torch.ones_like(names, dtype=torch.bool)

    def holds(self, inputs: Tensor) -> Tensor:
        """Return which inputs, by their numbers in the whole layer, are not gone."""
        return torch.isin(inputs, self.names[self.there])

    def places(self, inputs: Tensor) -> Tensor:
        """Return where inputs are in the arrays."""
        places: Tensor = torch.searchsorted(self.names, inputs)
        return places

    def costs(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return what removing inputs [K, p] adds to the ridge objective and to the data's part of it, both [K]."""
        places = self.places(inputs)
        if places.shape[1] == 1:
            return self._costs_of_one(places[:, 0])
        columns = self.inverse[:, :, places]  # [C, D, K, p]
        blocks = self.inverse[:, places[:, :, None], places[:, None, :]]
        squares = torch.einsum("cdkp,cdkq->ckpq", columns, columns)
        w, moved = self.weights[:, places, self.width :], self.moved[:, places]
        scaled = torch.linalg.solve(blocks, w)
        whole = 0.5 * (w * scaled).sum((2, 3))
        ridge = self.ridge[:, :, 0] * (0.5 * (scaled * (squares @ scaled)).sum((2, 3)) - (moved * scaled).sum((2, 3)))
        return whole.sum(0), (whole - ridge).sum(0)

    def _costs_of_one(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """Return the costs of single inputs [K], found without their columns."""
        w, gamma = self.weights[:, :, self.width :], 1 / self.inverse.diagonal(dim1=1, dim2=2)[:, places]
        norm = torch.linalg.vector_norm(w, dim=2).square()[:, places]
        moved = torch.linalg.vecdot(self.moved, w)[:, places]
        whole = 0.5 * gamma * norm
        ridge = self.ridge[:, :, 0] * (0.5 * gamma.square() * self.squares[:, places] * norm - gamma * moved)
        return whole.sum(0), (whole - ridge).sum(0)

    def change(self, inputs: Tensor) -> Tensor:
        """Return what the removal of inputs would change of W [C, D, o]."""
        places = self.places(inputs)
        v = self.inverse[:, :, places]
        change: Tensor = -v @ torch.linalg.solve(v[:, places], self.weights[:, places, : self.width])
        return change

    def remove(self, inputs: Tensor) -> None:
        """Strike inputs out, and let those that are left make up for them."""
        places = self.places(inputs)
        v = self.inverse[:, :, places].clone()
        again = self.inverse @ v
        gamma = torch.linalg.inv(v[:, places])
        solved = gamma @ v.mT  # Γ Vᵀ
        squared = v.mT @ v
        rows = torch.cat([self.weights[:, places], self.moved[:, places]], 2)
        of_weights, of_moved = (gamma @ rows).split([self.weights.shape[2], self.moved.shape[2]], 2)
        second = again - v @ (gamma @ squared)
        changes = torch.cat([of_moved, of_weights[:, :, self.width :]], 1)
        self.moved.baddbmm_(torch.cat([v, second], 2), changes, alpha=-1)
        self.weights.baddbmm_(v, of_weights, alpha=-1)
        self.squares += ((solved.mT @ squared) * solved.mT - 2 * again * solved.mT).sum(2)
        self.inverse.baddbmm_(v, solved, alpha=-1)
        self.there[places] = False
        self._strike(places)

    def _strike(self, places: Tensor) -> None:
        """Set the rows that are gone to zero, and not nearly; when they are many, make the arrays smaller."""
        for array in (self.weights, self.moved, self.inverse):
            array[:, places] = 0
        self.inverse[:, :, places] = 0
        if self.there.sum() <= (1 - SPARSE) * len(self.there):
            left = self.there.nonzero()[:, 0]
            self.weights, self.moved, self.squares = (a[:, left] for a in (self.weights, self.moved, self.squares))
            self.inverse = self.inverse[:, left][:, :, left]
            self.names, self.there = self.names[left], self.there[left]

    def weight(self, change: Tensor | None = None) -> Tensor:
        """Return W, plus a change where there is one, for the inputs `names` [C, D, o]; zero where they are gone."""
        left = self.weights[:, :, : self.width]
        return left if change is None else left + change
