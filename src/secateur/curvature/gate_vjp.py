"""Derivatives of each sample's outputs in the gates, u ↦ (J_nᵀ u_n)_n, by one backward pass for all samples.

Every sample has gates of its own, so that one backward pass of Σ_n u_nᵀ o_n leaves J_nᵀ u_n in sample n's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from secateur.curvature.loss_factors import backward, float_outputs, only
from secateur.objective.gated_graph import NotStackableError
from secateur.objective.gated_loss import CachedBatch, GatedLoss
from secateur.structure.graph_run import difference, tolerance

# J_nᵀ u_n for every sample [N, K], from tensors among the outputs and u of their shapes.
Pull = Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]


def gate_vjp(gated: GatedLoss, batch: CachedBatch, g: Tensor) -> tuple[Any, Pull]:
    """Return the outputs for a batch at the gates g [K], and a function that pulls vectors at them back to the gates.

    Where samples know each other or a gated value holds none of them, each sample takes a backward pass of its own.
    """
    if gated.samples_independent is None:
        gated.samples_independent = _samples_independent(gated, g)
    if gated.samples_independent:
        return _together(gated, batch.frontier, batch.size, g)
    return _one_by_one(gated, batch.frontier, batch.size, g)


def float_tensors(outputs: Any) -> list[Tensor]:
    """Return the tensors among the outputs that have a derivative."""
    return [o for o in float_outputs(outputs) if o.requires_grad]


def _together(gated: GatedLoss, frontier: tuple[Any, ...], n: int, g: Tensor) -> tuple[Any, Pull]:
    gates = g.detach().repeat(n, 1).requires_grad_()
    out = gated.graph.run_each(frontier, gates)
    return out, lambda tensors, vectors: backward(tensors, vectors, [gates])[0]


def _one_by_one(gated: GatedLoss, frontier: tuple[Any, ...], n: int, g: Tensor) -> tuple[Any, Pull]:
    gates = g.detach().clone().requires_grad_()
    out = gated.graph.run(frontier, gates)

    def pull(tensors: Sequence[Tensor], vectors: Sequence[Tensor]) -> Tensor:
        return torch.stack([backward(tensors, only(vectors, i), [gates])[0] for i in range(n)])

    return out, pull


def _samples_independent(gated: GatedLoss, g: Tensor) -> bool:
    """Return whether sample n's outputs depend on its own gates alone and as on shared ones, tried on a few samples."""
    if gated.units.captured.spec.fixed is not None:
        return False
    frontier = gated.few_samples()
    n = min(3, next(gated.cached).size)
    try:
        out, pull = _together(gated, frontier, n, g)
        tensors = float_tensors(out)
        vectors = [torch.linspace(1, 2, o.numel(), dtype=o.dtype, device=o.device).reshape(o.shape) for o in tensors]
        each = [pull(tensors, only(vectors, i)) for i in range(n)]
    except (NotStackableError, RuntimeError, IndexError):
        return False
    shared_out, alone = _one_by_one(gated, frontier, n, g)
    expected = alone(float_tensors(shared_out), vectors)
    others = [row for i, rows in enumerate(each) for k, row in enumerate(rows) if k != i]
    own = torch.stack([rows[i] for i, rows in enumerate(each)])
    return not any(bool(row.any()) for row in others) and difference(expected, own)[1] <= tolerance(gated.model)
