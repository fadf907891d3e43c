"""How units depend on each other: the second derivative of the loss in every pair of gates."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from secateur.arguments import checked_call
from secateur.curvature.gate_hessian import matrix
from secateur.curvature.gauss_newton import expansion
from secateur.curvature.loss_factors import exact_factors, sampled_factors
from secateur.errors import DataError, choose
from secateur.objective.gated_loss import GatedLoss
from secateur.objective.question import Question
from secateur.process_state import one_at_a_time
from secateur.structure.units import Units


@checked_call
@one_at_a_time
def interactions(
    model: nn.Module,
    data: Any,
    loss: Any,
    *,
    units: Units | None = None,
    curvature: str = "ggn",
    seed: int = 0,
    max_memory: int | str | None = None,
) -> Tensor:
    """Return H_jk = ∂²E/∂g_j∂g_k at g = 1: how much the removal of one unit changes what the other's costs.

    E(1 − e_j − e_k) − E(1) ≈ ΔE_j + ΔE_k + H_jk. Positive: together they cost more than apart, each could stand in for
    the other; negative: with one gone the other is of less use.

    ``ggn``: 1/N Σ_n J_nᵀ L_n J_n, a backward pass for each output and O(N C K²) operations; ``fisher``: the same
    with targets drawn from the model's own distribution, one backward pass; ``hessian``: exactly, by a product with
    the Hessian for each unit.

    Args:
        model: Evaluated as in eval mode, left as it was.
        data: As for `score`.
        loss: As for `score`; ``fisher`` needs one with a name.
        units: From `find_units`; None to find them with the first batch.
        curvature: One of those above.
        seed: The seed of ``fisher``.
        max_memory: As for `score`.

    Returns:
        A symmetric float64 matrix [K, K] on the CPU, the units in the order of `units.places`.

    Raises:
        ArgumentError: An unknown curvature, a seed that is none, no model, no units.
        DataError: Unusable data or loss.
        ModelError: The model cannot be captured, holds NaN, or has no removable units; or `units` were found on another
            forward.

    >>> model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False)).double()
    >>> for layer in model: _ = nn.init.ones_(layer.weight)
    >>> interactions(model, (torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.zeros(2, 1)), "squared_error")
    tensor([[2.5000, 2.5000],
            [2.5000, 2.5000]], dtype=torch.float64)
    """
    choose("curvature", curvature, CURVATURES)
    question = Question(model, data, loss, units, seed=seed, max_memory=max_memory)
    return expand_loss(question.gated, question.ones, curvature)[1].cpu()


def expand_loss(gated: GatedLoss, g: Tensor, curvature: str) -> tuple[Tensor, Tensor]:
    """Return ∂E/∂g [K] and the matrix of second derivatives [K, K] at g, float64.

    Raises:
        DataError: One of them is NaN.
    """
    with torch.enable_grad():
        gradient, second = CURVATURES[curvature](gated, g)
    if bool(second.isnan().any() | gradient.isnan().any()):
        raise DataError(f"curvature {curvature!r} gave NaN: the loss or its derivative is NaN on this data")
    return gradient, 0.5 * (second + second.T)  # rounding leaves it a little askew


def _ggn(gated: GatedLoss, g: Tensor) -> tuple[Tensor, Tensor]:
    return expansion(gated, g, lambda out, targets: exact_factors(gated.loss_function, out, targets), full=True)


def _fisher(gated: GatedLoss, g: Tensor) -> tuple[Tensor, Tensor]:
    draw = gated.generator
    factors = lambda out, targets: sampled_factors(gated.loss_function, out, targets, draw, 1)  # noqa: E731
    return expansion(gated, g, factors, full=True)


def _hessian(gated: GatedLoss, g: Tensor) -> tuple[Tensor, Tensor]:
    return gated.gradient(g), matrix(gated, g)


CURVATURES = {"ggn": _ggn, "fisher": _fisher, "hessian": _hessian}


def correlation(matrix: Tensor) -> Tensor:
    """Return H_jk / √(|H_jj| |H_kk|): 1 of units that could stand in for each other; 0 of those without curvature.

    >>> correlation(torch.tensor([[4.0, 1.0], [1.0, 1.0]]))
    tensor([[1.0000, 0.5000],
            [0.5000, 1.0000]])
    """
    scale = matrix.diagonal().abs().sqrt()
    scaled = matrix / (scale[:, None] * scale)
    return scaled.nan_to_num(0.0, 0.0, 0.0)
