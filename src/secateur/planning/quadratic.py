"""The quadratic ranking: the loss as a parabola in all gates at once, so that removals know of each other."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from secateur.objective.gated_loss import GatedLoss
from secateur.options import Ranking
from secateur.planning.removal_order import OnStep, RemovalOrder
from secateur.planning.state import Swaps
from secateur.saliency.interactions import expand_loss


class Quadratic:
    """E(g) ≈ E(r) + ∇ᵀδ + ½ δᵀHδ around gates r, δ = g − r.

    Removing unit k changes the gradient by −H[:, k]: that is, column k is added to every saliency. O(K) for each, and
    no pass over the data.

    Args:
        gated: The network and its data.
        g: The gates r.
        curvature: How H is computed.
    """

    def __init__(self, gated: GatedLoss, g: Tensor, curvature: str) -> None:
        gradient, matrix = expand_loss(gated, g, curvature)
        self.centre, self.gradient, self.matrix = _own(g), gradient.cpu(), matrix.cpu()
        self.move(g)

    def move(self, g: Tensor) -> None:
        """Go to these gates."""
        self.g = _own(g)
        self.slope = self.gradient + self.matrix @ (self.g - self.centre)

    def change(self, k: int, gate: float) -> None:
        """Set one gate."""
        self.slope += (gate - self.g[k]) * self.matrix[:, k]
        self.g[k] = gate

    @property
    def rise(self) -> float:
        """Of the loss since g = 1."""

        def at(g: Tensor) -> Tensor:
            delta = g - self.centre
            return self.gradient @ delta + 0.5 * delta @ self.matrix @ delta

        return (at(self.g) - at(torch.ones_like(self.g))).item()

    def saliency(self) -> Tensor:
        """ΔE_k of removing each unit that is left [K]: −∂E/∂g_k + ½ H_kk."""
        return -self.slope + 0.5 * self.matrix.diagonal()

    def exchanges(self, back: Tensor, out: Tensor) -> Tensor:
        """The change of E by taking one unit back and another one out [len(back), len(out)]."""
        half = 0.5 * self.matrix.diagonal()
        return (self.slope + half)[back][:, None] + (half - self.slope)[out] - self.matrix[back][:, out]


def _own(g: Tensor) -> Tensor:
    return g.detach().to("cpu", torch.float64, copy=True)


def rank_quadratic(
    gated: GatedLoss, order: RemovalOrder, ranking: Ranking, on_step: OnStep
) -> tuple[RemovalOrder, Swaps | None]:
    """Remove the least salient unit, as long as needed; the others learn of it from the parabola.

    Args:
        gated: What the parabola is made of.
        order: The removals, none so far.
        ranking: The curvature, when the parabola is made again, and whether units are exchanged at the end.
        on_step: Called after each step.

    Returns:
        The removals, in a new order if some were exchanged, and what that did.
    """
    model, refresh = None, ranking.refresh
    while (candidates := order.candidates()) and not order.enough():
        if model is None or (refresh is not None and len(order.steps) % refresh == 0):
            model = Quadratic(gated, order.g, ranking.criterion)
        _remove(order, model, candidates)
        on_step(len(order.steps), order.longest)
    if model is None or not ranking.swaps:
        return order, None
    made = swap(model, gated.units.set_of_each, order.allows)
    return (_again(order, model) if made.number else order), made


def _remove(order: RemovalOrder, model: Quadratic, candidates: list[int]) -> None:
    saliency = model.saliency()
    best = order.least(saliency, candidates)
    order.remove(best, saliency[best].item())
    model.change(best, 0.0)


def _again(order: RemovalOrder, model: Quadratic) -> RemovalOrder:
    """The units that the parabola has removed, in the order in which it would take them."""
    fresh, chosen = order.again(), (model.g == 0).nonzero()[:, 0].tolist()
    model.move(fresh.g)
    while left := [k for k in chosen if fresh.g[k] != 0]:
        _remove(fresh, model, left)
    return fresh


def swap(model: Quadratic, sets: Tensor, allowed: Callable[[int, int], bool]) -> Swaps:
    """Exchange one removed unit for one that is left as long as that lowers the predicted loss, the best one first.

    Args:
        model: At the gates to improve; left at those found.
        sets: A number for each unit's set [K].
        allowed: Whether a unit may come back and another one go in its place; asked of one pair for two sets.
    """
    before = model.rise
    least = 1e-12 * max(model.matrix.diagonal().abs().max().item(), abs(before))  # what is not rounding
    number = 0
    while (pair := _best(model, sets, allowed, least)) is not None:
        model.change(pair[0], 1.0)
        model.change(pair[1], 0.0)
        number += 1
    return Swaps(number, before, model.rise)


def _best(model: Quadratic, sets: Tensor, allowed: Callable[[int, int], bool], least: float) -> tuple[int, int] | None:
    back, out = ((model.g == gate).nonzero()[:, 0] for gate in (0, 1))
    change = model.exchanges(back, out)
    while change.numel() and change.min() < -least:
        i, j = divmod(int(change.argmin()), len(out))
        if allowed(int(back[i]), int(out[j])):
            return int(back[i]), int(out[j])
        change[(sets[back] == sets[back[i]])[:, None] & (sets[out] == sets[out[j]])] = torch.inf
    return None
