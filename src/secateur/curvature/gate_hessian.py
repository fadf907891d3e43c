"""The exact second derivative of the loss in each gate."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn.attention import SDPBackend, sdpa_kernel

from secateur.curvature.hessian_products import VALUES_HELD, hessian_vector_products
from secateur.objective.gated_loss import CachedBatch, GatedLoss, derivative
from secateur.objective.leave_one_out import LeaveOneOut, split_candidates
from secateur.objective.memory import bytes_of


def diagonal(gated: GatedLoss, g: Tensor) -> Tensor:
    """Return ∂²E/∂g_k² [K] of the units that are left, float64; 0 of all others."""
    units = g.nonzero()[:, 0]
    total = torch.zeros(len(g), dtype=torch.float64, device=g.device)
    stacks, rest = split_candidates(gated, g, units)
    keep = {node for stack, _ in stacks for node in stack.needed}
    with sdpa_kernel(SDPBackend.MATH):  # the only attention that PyTorch differentiates twice
        for batch in gated.cached if stacks else ():
            values = gated.graph.trace(batch.frontier, g, keep)
            for stack, places in stacks:
                total[units[places]] += batch.share * _of_stack(stack, batch, values, g, units[places])
    for places, columns in _columns(gated, g, units[rest]):
        total[places] = columns[torch.arange(len(places), device=g.device), places]
    return total


def matrix(gated: GatedLoss, g: Tensor) -> Tensor:
    """Return ∂²E/∂g∂g [K, K], float64, by a product with the Hessian for each unit, many at a time.

    Of the largest set with one dense layer behind it, the sums of that layer take these products in its units' place.
    """
    total = torch.zeros(len(g), len(g), dtype=torch.float64, device=g.device)
    units = torch.arange(len(g), device=g.device)
    stacks = [(stack, places) for stack, places in split_candidates(gated, g, units)[0] if stack.layer is not None]
    largest = sorted(stacks, key=lambda pair: len(pair[1]))[-1:]
    inner = largest[0][1] if largest else units[:0]
    for chosen, columns in _columns(gated, g, units[~torch.isin(units, inner)]):
        total[chosen], total[:, chosen] = columns, columns.T
    for stack, _ in largest:
        for batch in gated.cached:
            values = gated.graph.trace(batch.frontier, g, stack.needed)
            total[inner[:, None], inner] += batch.share * _block(stack, batch, values, g, inner)
    return total


def _block(stack: LeaveOneOut, batch: CachedBatch, values: dict[fx.Node, Any], g: Tensor, units: Tensor) -> Tensor:
    """Return Σ_n o_nj o_nk w_jᵀ H_n w_k [M, M]."""
    o, w, rows = _behind(stack, batch, values, g, units)
    total = torch.zeros(len(units), len(units), dtype=torch.float64, device=o.device)
    for outputs, row in rows:
        for weight, column in zip(w[outputs], row, strict=True):
            total += (o * weight).T @ (o * (column @ w))
    return total


def _of_stack(stack: LeaveOneOut, batch: CachedBatch, values: dict[fx.Node, Any], g: Tensor, units: Tensor) -> Tensor:
    if stack.layer is not None:
        o, w, rows = _behind(stack, batch, values, g, units)
        forms = sum(row.transpose(0, 1).flatten(1) @ (w[part, None] * w).flatten(0, 1) for part, row in rows)
        return (o.square() * forms).double().sum(0)
    parts = []
    for part in torch.split(units, max(1, stack.at_once(batch) // VALUES_HELD)):
        gates = g[part].clone().requires_grad_()
        slope = derivative(stack.losses(batch, values, g, part, gates).sum(), gates, create_graph=True)
        parts.append(derivative(slope.sum(), gates).double())
    return torch.cat(parts)


def _behind(
    stack: LeaveOneOut, batch: CachedBatch, values: dict[fx.Node, Any], g: Tensor, units: Tensor
) -> tuple[Tensor, Tensor, Iterator[tuple[Tensor, Tensor]]]:
    """Return what M units deliver, o [N, M], their weights w [O, M], and some rows at a time of H_n, [O, N, O].

    Unit k adds o_nk w_k to the sums z [N, O] of the one layer behind it, and H_n is the Hessian in sample n's sums: O
    products for all units together.
    """
    layer = stack.layer
    assert layer is not None
    z, (o, w) = values[layer], stack.summed(layer, values, g, units)

    def loss(sums: Tensor) -> Tensor:
        return stack.loss_of_sums(batch, values | {layer: sums})

    def rows() -> Iterator[tuple[Tensor, Tensor]]:
        at_once = max(1, stack.at_once(batch) // VALUES_HELD)
        for part in torch.split(torch.arange(len(w), device=z.device), at_once):
            directions = torch.eye(len(w), dtype=z.dtype, device=z.device)[part, None].expand(-1, *z.shape)
            yield part, hessian_vector_products(loss, z, directions)

    return o, w, rows()


def _columns(gated: GatedLoss, g: Tensor, units: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return some columns of the Hessian at a time, after the units that they belong to: [m], [m, K]."""
    suffix = bytes_of(gated.graph.suffix.nodes)
    largest = max((batch.size for batch in gated.cached), default=1)
    at_once = max(1, gated.memory // 8 // max(1, suffix * largest * VALUES_HELD))
    return [(part, _products(gated, g, part)) for part in torch.split(units, at_once) if len(part)]


def _products(gated: GatedLoss, g: Tensor, units: Tensor) -> Tensor:
    directions = torch.eye(len(g), dtype=g.dtype, device=g.device)[units]
    total = torch.zeros(directions.shape, dtype=torch.float64, device=g.device)
    for batch in gated.cached:

        def loss(gates: Tensor, batch: CachedBatch = batch) -> Tensor:
            return batch.share * gated.loss_function(gated.graph.run(batch.frontier, gates), batch.targets)

        total += hessian_vector_products(loss, g, directions).double()
    return total
