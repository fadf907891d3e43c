"""One round of weight removals: their order from the least salient up, and the weights that each one leaves."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from secateur.saliency.surgeon import Surgeon


class Removals(Protocol):
    """An order of removals among all P removable weights; `kept` are those there before the first [P]."""

    kept: Tensor

    def __len__(self) -> int:
        """How many removals there can be."""

    def after(self, n: int) -> Tensor:
        """The weights [P] after the first n removals."""

    def gone(self, n: int) -> Tensor:
        """Which weights these are [n]."""

    def predicted(self, n: int) -> float:
        """The sum of their saliencies."""


class Ordered:
    """Removals that leave all other weights as they are.

    Args:
        saliency: Of each weight [P].
        u: The weights [P].
        kept: Which of them are there [P].
        sets: The number of each one's parameter [P].
        limits: How many weights each parameter may lose.
    """

    def __init__(self, saliency: Tensor, u: Tensor, kept: Tensor, sets: Tensor, limits: Tensor) -> None:
        order = torch.where(kept, saliency, torch.inf).argsort(stable=True)[: int(kept.sum())]
        place = torch.empty_like(order)
        for k in range(len(limits)):
            mine = sets[order] == k
            place[mine] = torch.arange(int(mine.sum()), device=order.device)
        self.order = order[place < limits[sets[order]]]
        self.kept, self.saliency, self.u = kept, saliency, u

    def __len__(self) -> int:
        return len(self.order)

    def after(self, n: int) -> Tensor:
        """The weights [P] after the first n removals."""
        return self.u.index_fill(0, self.order[:n], 0)

    def gone(self, n: int) -> Tensor:
        """Which weights these are [n]."""
        return self.order[:n]

    def predicted(self, n: int) -> float:
        """The sum of their saliencies."""
        return self.saliency[self.order[:n]].sum().item()


class Operated:
    """Removals by the Optimal Brain Surgeon, which changes the weights that are left; made when they are asked for.

    Args:
        surgeon: At the weights before the first of them.
        sets: The number of each weight's parameter [P].
        limits: How many weights each parameter may lose.
    """

    def __init__(self, surgeon: Surgeon, sets: Tensor, limits: Tensor) -> None:
        self.first, self.kept, self.sets, self.limits = surgeon, surgeon.left, sets, limits
        self.now, self.lost = surgeon.copy(), torch.zeros_like(limits)
        self.order: list[int] = []
        self.saliencies: list[float] = []

    def __len__(self) -> int:
        there = torch.bincount(self.sets[self.first.left], minlength=len(self.limits))
        return int(torch.minimum(there, self.limits).sum())

    def _go(self, n: int) -> None:
        while len(self.order) < n:
            saliency = torch.where((self.lost < self.limits)[self.sets], self.now.saliency(), torch.inf)
            q = int(saliency.argmin())
            self.now.remove(q)
            self.lost[self.sets[q]] += 1
            self.order.append(q)
            self.saliencies.append(saliency[q].item())

    def after(self, n: int) -> Tensor:
        """The weights [P] after the first n removals."""
        self._go(n)
        if n == len(self.order):
            return self.now.u
        again = self.first.copy()
        for q in self.order[:n]:
            again.remove(q)
        return again.u

    def gone(self, n: int) -> Tensor:
        """Which weights these are [n]."""
        self._go(n)
        return torch.tensor(self.order[:n], dtype=torch.long, device=self.sets.device)

    def predicted(self, n: int) -> float:
        """The sum of their saliencies."""
        self._go(n)
        return sum(self.saliencies[:n])
