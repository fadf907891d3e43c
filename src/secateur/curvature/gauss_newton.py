"""The second derivative by Gauss and Newton: the curvature of the loss, without that of the network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from secateur.curvature.gate_vjp import float_tensors, gate_vjp
from secateur.curvature.loss_factors import Factor
from secateur.objective.gated_loss import GatedLoss
from secateur.objective.losses import differentiable

Factors = Callable[[Any, Any], Iterator[Factor]]  # of the loss's curvature, from outputs and targets


def expansion(gated: GatedLoss, g: Tensor, factors: Factors, full: bool = False) -> tuple[Tensor, Tensor]:
    """Return ∂E/∂g [K] and the diagonal [K], or all [K, K], of 1/N Σ_n J_nᵀ L_n J_n (Gauss-Newton); float64."""
    gradient = torch.zeros(len(g), dtype=torch.float64, device=g.device)
    curvature = torch.zeros(len(g), *[len(g)] * full, dtype=torch.float64, device=g.device)
    for share, rows in pulled_to_gates(gated, g, factors):
        for weight, row in rows:
            if weight is None:
                gradient += share * row.sum(0)
            elif full:
                curvature += share * (row * weight[:, None]).T @ row
            else:
                curvature += share * weight @ row.square()
    return gradient, curvature


def pulled_to_gates(
    gated: GatedLoss, g: Tensor, factors: Factors
) -> Iterator[tuple[float, Iterator[tuple[Tensor | None, Tensor]]]]:
    """Yield for each batch one sample's share of all, and its factors' J_nᵀ u_n [N, K] with weights [N]; float64.

    First, with a weight of None, each sample's ∂ℓ_n/∂g.
    """
    for batch in gated.cached:
        out, pull = gate_vjp(gated, batch, g)
        yield batch.share / batch.size, _rows(gated, batch, out, pull, factors)


def _rows(
    gated: GatedLoss, batch: Any, out: Any, pull: Any, factors: Factors
) -> Iterator[tuple[Tensor | None, Tensor]]:
    tensors = float_tensors(out)
    loss = batch.size * differentiable(gated.loss_function, out, batch.targets)
    slopes = torch.autograd.grad(loss, tensors, retain_graph=True, allow_unused=True, materialize_grads=True)
    yield None, pull(tensors, slopes).double()
    for factor in factors(out, batch.targets):
        yield factor.weight.double(), pull(factor.tensors, factor.vectors).double()
