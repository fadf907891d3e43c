"""The exact second derivative of the loss in each gate."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn.attention import SDPBackend, sdpa_kernel

from secateur.curvature.hessian_products import HELD, hessian_vector_products
from secateur.objective.gated_loss import CachedBatch, GatedLoss, derivative
from secateur.objective.leave_one_out import LeaveOneOut, split_candidates
from secateur.objective.memory import bytes_of


def diagonal(gated: GatedLoss, g: Tensor) -> Tensor:
    """∂²E/∂g_k² [K] of the units that are left, float64; 0 of all others."""
    units = g.nonzero()[:, 0]
    found = torch.zeros(len(g), dtype=torch.float64, device=g.device)
    stacks, rest = split_candidates(gated, g, units)
    keep = {node for stack, _ in stacks for node in stack.needed}
    with sdpa_kernel(SDPBackend.MATH):  # the only attention that PyTorch differentiates twice
        for batch in gated.cached if stacks else ():
            values = gated.graph.trace(batch.frontier, g, keep)
            for stack, places in stacks:
                found[units[places]] += batch.share * _of_stack(stack, batch, values, g, units[places])
    for places, columns in _columns(gated, g, units[rest]):
        found[places] = columns[torch.arange(len(places), device=g.device), places]
    return found


def matrix(gated: GatedLoss, g: Tensor) -> Tensor:
    """∂²E/∂g∂g [K, K], float64: a product with the Hessian for each unit, many at a time.

    Of the largest set with one dense layer behind it, the sums of that layer take these products in its units' place.
    """
    found = torch.zeros(len(g), len(g), dtype=torch.float64, device=g.device)
    units = torch.arange(len(g), device=g.device)
    stacks = [(stack, places) for stack, places in split_candidates(gated, g, units)[0] if stack.layer is not None]
    largest = sorted(stacks, key=lambda pair: len(pair[1]))[-1:]
    inner = largest[0][1] if largest else units[:0]
    for some, columns in _columns(gated, g, units[~torch.isin(units, inner)]):
        found[some], found[:, some] = columns, columns.T
    for stack, _ in largest:
        for batch in gated.cached:
            values = gated.graph.trace(batch.frontier, g, stack.needed)
            found[inner[:, None], inner] += batch.share * _block(stack, batch, values, g, inner)
    return found


def _block(stack: LeaveOneOut, batch: CachedBatch, values: dict[fx.Node, Any], g: Tensor, units: Tensor) -> Tensor:
    """Σ_n o_nj o_nk w_jᵀ H_n w_k [M, M]."""
    o, w, rows = _behind(stack, batch, values, g, units)
    total = torch.zeros(len(units), len(units), dtype=torch.float64, device=o.device)
    for some, row in rows:
        for mine, of_output in zip(w[some], row, strict=True):
            total += (o * mine).T @ (o * (of_output @ w))
    return total


def _of_stack(stack: LeaveOneOut, batch: CachedBatch, values: dict[fx.Node, Any], g: Tensor, units: Tensor) -> Tensor:
    if stack.layer is not None:
        o, w, rows = _behind(stack, batch, values, g, units)
        forms = sum(row.transpose(0, 1).flatten(1) @ (w[some, None] * w).flatten(0, 1) for some, row in rows)
        return (o.square() * forms).double().sum(0)
    found = []
    for some in torch.split(units, max(1, stack.at_once(batch) // HELD)):
        gates = g[some].clone().requires_grad_()
        slope = derivative(stack.losses(batch, values, g, some, gates).sum(), gates, create_graph=True)
        found.append(derivative(slope.sum(), gates).double())
    return torch.cat(found)


def _behind(
    stack: LeaveOneOut, batch: CachedBatch, values: dict[fx.Node, Any], g: Tensor, units: Tensor
) -> tuple[Tensor, Tensor, Iterator[tuple[Tensor, Tensor]]]:
    """What M units deliver, o [N, M], their weights w [O, M], and some rows at a time of H_n, [O, N, O].

    Unit k adds o_nk w_k to the sums z [N, O] of the one layer behind it, and H_n is the Hessian in sample n's sums: O
    products for all units together.
    """
    layer = stack.layer
    assert layer is not None
    z, (o, w) = values[layer], stack.summed(layer, values, g, units)

    def loss(sums: Tensor) -> Tensor:
        return stack.loss_of_sums(batch, values | {layer: sums})

    def rows() -> Iterator[tuple[Tensor, Tensor]]:
        at_once = max(1, stack.at_once(batch) // HELD)
        for some in torch.split(torch.arange(len(w), device=z.device), at_once):
            directions = torch.eye(len(w), dtype=z.dtype, device=z.device)[some, None].expand(-1, *z.shape)
            yield some, hessian_vector_products(loss, z, directions)

    return o, w, rows()


def _columns(gated: GatedLoss, g: Tensor, units: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Some columns of the Hessian at a time, and of which units [m], [m, K]."""
    suffix = bytes_of(gated.graph.suffix.nodes)
    largest = max((batch.size for batch in gated.cached), default=1)
    at_once = max(1, gated.memory // 8 // max(1, suffix * largest * HELD))
    return [(some, _products(gated, g, some)) for some in torch.split(units, at_once) if len(some)]


def _products(gated: GatedLoss, g: Tensor, units: Tensor) -> Tensor:
    directions = torch.eye(len(g), dtype=g.dtype, device=g.device)[units]
    total = torch.zeros(directions.shape, dtype=torch.float64, device=g.device)
    for batch in gated.cached:

        def loss(gates: Tensor, batch: CachedBatch = batch) -> Tensor:
            return batch.share * gated.loss_function(gated.graph.run(batch.frontier, gates), batch.targets)

        total += hessian_vector_products(loss, g, directions).double()
    return total
