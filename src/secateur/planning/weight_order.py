"""Orders of removal of single weights within one round, and the weights that each removal leaves."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from secateur.saliency.weights.obs import WeightSurgeon


class WeightOrder(Protocol):
    """An order of removals among all P removable weights; `kept` says which are there before the first one [P]."""

    kept: Tensor

    def __len__(self) -> int:
        """Return how many removals are possible."""

    def after(self, n: int) -> Tensor:
        """Return the weights [P] after the first n removals."""

    def gone(self, n: int) -> Tensor:
        """Return which weights the first n removals are [n]."""

    def predicted(self, n: int) -> float:
        """Return the sum of the saliencies of the first n removals."""


class FixedWeightOrder:
    """Removals that leave all other weights as they are.

    Args:
        saliency: The saliency of each weight [P].
        u: The weights [P].
        kept: Which of them are there [P].
        sets: The number of each weight's parameter [P].
        limits: How many weights each parameter may lose.
    """

    def __init__(self, saliency: Tensor, u: Tensor, kept: Tensor, sets: Tensor, limits: Tensor) -> None:
        order = saliency.argsort(stable=True)
        order = order[kept[order]]
        place = torch.empty_like(order)
        for k in range(len(limits)):
            in_set = sets[order] == k
            place[in_set] = torch.arange(int(in_set.sum()), device=order.device)
        self.order = order[place < limits[sets[order]]]
        self.kept, self.saliency, self.u = kept, saliency, u

    def __len__(self) -> int:
        return len(self.order)

    def after(self, n: int) -> Tensor:
        """Return the weights [P] after the first n removals."""
        return self.u.index_fill(0, self.order[:n], 0)

    def gone(self, n: int) -> Tensor:
        """Return which weights the first n removals are [n]."""
        return self.order[:n]

    def predicted(self, n: int) -> float:
        """Return the sum of the saliencies of the first n removals."""
        return self.saliency[self.order[:n]].sum().item()


class SurgeonWeightOrder:
    """Removals by the Optimal Brain Surgeon, which changes the weights that are left; made when they are asked for.

    Args:
        surgeon: A surgeon that has removed nothing yet; changed.
        sets: The number of each weight's parameter [P].
        limits: How many weights each parameter may lose.
    """

    def __init__(self, surgeon: WeightSurgeon, sets: Tensor, limits: Tensor) -> None:
        self.surgeon, self.kept, self.sets, self.limits = surgeon, surgeon.left.clone(), sets, limits.clone()
        present = torch.bincount(sets[self.kept], minlength=len(limits))
        self.most = int(torch.minimum(present, limits).sum())
        self.saliencies: list[float] = []

    def __len__(self) -> int:
        return self.most

    def _remove_until(self, n: int) -> None:
        while len(self.saliencies) < n:
            saliency = torch.where(self.limits[self.sets] > 0, self.surgeon.saliency(), torch.inf)
            q = int(saliency.argmin())
            self.surgeon.remove(q)
            self.limits[self.sets[q]] -= 1
            self.saliencies.append(saliency[q].item())

    def after(self, n: int) -> Tensor:
        """Return the weights [P] after the first n removals."""
        self._remove_until(n)
        return self.surgeon.after(n)

    def gone(self, n: int) -> Tensor:
        """Return which weights the first n removals are [n]."""
        self._remove_until(n)
        return torch.tensor(self.surgeon.order[:n], dtype=torch.long, device=self.sets.device)

    def predicted(self, n: int) -> float:
        """Return the sum of the saliencies of the first n removals."""
        self._remove_until(n)
        return sum(self.saliencies[:n])
