"""The quadratic ranking: the loss as a parabola in all gates at once, so that removals know of each other."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from secateur.objective.gated_loss import GatedLoss
from secateur.options import Ranking
from secateur.phases import phase
from secateur.planning.removal_order import RemovalOrder
from secateur.planning.state import Swaps
from secateur.saliency.interactions import expand_loss


class Quadratic:
    """The parabola E(g) ≈ E(r) + ∇ᵀδ + ½ δᵀHδ around gates r, δ = g − r.

    Removing unit k changes the gradient by −H[:, k]: that is, column k is added to every saliency. O(K) for each, and
    no pass over the data.

    Args:
        gated: E(g), of a network and its data.
        g: The gates r.
        curvature: The name of the curvature that H is: "ggn", "fisher" or "hessian".
    """

    def __init__(self, gated: GatedLoss, g: Tensor, curvature: str) -> None:
        gradient, matrix = expand_loss(gated, g, curvature)
        self.centre, self.gradient, self.matrix = _copied(g), gradient.cpu(), matrix.cpu()
        self.move(g)

    def move(self, g: Tensor) -> None:
        """Set all gates."""
        self.g = _copied(g)
        self.slope = self.gradient + self.matrix @ (self.g - self.centre)

    def change(self, k: int, gate: float) -> None:
        """Set one gate."""
        self.slope += (gate - self.g[k]) * self.matrix[:, k]
        self.g[k] = gate

    @property
    def rise(self) -> float:
        """The rise of the loss since g = 1."""

        def parabola(g: Tensor) -> Tensor:
            delta = g - self.centre
            return self.gradient @ delta + 0.5 * delta @ self.matrix @ delta

        return (parabola(self.g) - parabola(torch.ones_like(self.g))).item()

    def saliency(self) -> Tensor:
        """Return ΔE_k of removing each unit that is left [K]: −∂E/∂g_k + ½ H_kk."""
        return -self.slope + 0.5 * self.matrix.diagonal()

    def exchanges(self, back: Tensor, out: Tensor) -> Tensor:
        """Return the change of E by taking one unit back and another one out [len(back), len(out)]."""
        half = 0.5 * self.matrix.diagonal()
        return (self.slope + half)[back][:, None] + (half - self.slope)[out] - self.matrix[back][:, out]


def _copied(g: Tensor) -> Tensor:
    return g.detach().to("cpu", torch.float64, copy=True)


def rank_quadratic(gated: GatedLoss, order: RemovalOrder, ranking: Ranking) -> tuple[RemovalOrder, Swaps | None]:
    """Remove the least salient unit, as long as needed; the others learn of it from the parabola.

    Args:
        gated: E(g), which the parabola approximates.
        order: The removals, none so far.
        ranking: Names the curvature, says when the parabola is made again and whether units are exchanged at the end.

    Returns:
        The removals, in a new order if some were exchanged, and what the exchanges did.
    """
    parabola, refresh = None, ranking.refresh
    with phase(f"ranking by {ranking.criterion}", order.longest) as removing:
        while order.may_go.any() and not order.enough():
            if parabola is None or (refresh is not None and len(order.removed) % refresh == 0):
                parabola = Quadratic(gated, order.g, ranking.criterion)
            _remove(order, parabola)
            removing.advance()
    if parabola is None or not ranking.swaps:
        return order, None
    swaps = swap(parabola, gated.units.set_of_each, order.allows)
    return (_reordered(order, parabola) if swaps.number else order), swaps


def _remove(order: RemovalOrder, parabola: Quadratic) -> None:
    saliency = parabola.saliency()
    best = order.least(saliency)
    order.remove(best, saliency[best].item())
    parabola.change(best, 0.0)


def _reordered(order: RemovalOrder, parabola: Quadratic) -> RemovalOrder:
    """Return the removals of the parabola's removed units, in the order in which it would take them."""
    fresh = order.restarted()
    fresh.free &= parabola.g == 0
    parabola.move(fresh.g)
    while fresh.may_go.any():
        _remove(fresh, parabola)
    return fresh


def swap(parabola: Quadratic, sets: Tensor, allowed: Callable[[int, int], bool]) -> Swaps:
    """Exchange a removed unit for one that is left as long as that lowers the predicted loss, the best pair first.

    Args:
        parabola: Its gates are those to improve; changed to the improved ones.
        sets: A number for each unit's set [K].
        allowed: Whether a unit may come back and another one go in its place; asked of one pair for two sets.
    """
    before = parabola.rise
    least = 1e-12 * max(parabola.matrix.diagonal().abs().max().item(), abs(before))  # less may be rounding
    number = 0
    while (pair := _best_exchange(parabola, sets, allowed, least)) is not None:
        parabola.change(pair[0], 1.0)
        parabola.change(pair[1], 0.0)
        number += 1
    return Swaps(number, before, parabola.rise)


def _best_exchange(
    parabola: Quadratic, sets: Tensor, allowed: Callable[[int, int], bool], least: float
) -> tuple[int, int] | None:
    back, out = ((parabola.g == gate).nonzero()[:, 0] for gate in (0, 1))
    change = parabola.exchanges(back, out)
    while change.numel() and change.min() < -least:
        i, j = divmod(int(change.argmin()), len(out))
        if allowed(int(back[i]), int(out[j])):
            return int(back[i]), int(out[j])
        change[(sets[back] == sets[back[i]])[:, None] & (sets[out] == sets[out[j]])] = torch.inf
    return None
