"""The exact second derivative of the loss in each gate."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.nn.attention import SDPBackend, sdpa_kernel

from secateur.saliency.candidates import Candidates, stacks_of
from secateur.saliency.criterion import criterion
from secateur.saliency.gates import Cached, Gated, derivative
from secateur.saliency.memory import bytes_of
from secateur.saliency.products import products

HELD = 8  # values of the suffix that two derivatives hold at a time, for each that it computes


@criterion("hessian")
def hessian(gated: Gated, g: Tensor) -> Tensor:
    """ΔE_k ≈ −g_k ∂E/∂g_k + ½ g_k² ∂²E/∂g_k², all interactions within the network included.

    The loss of each candidate is a function of its own gate alone; many are differentiated twice at a time, behind the
    layers that sum them up. Where that is not possible, one product with the Hessian for each unit.
    """
    narrow = gated.narrowed(g)
    return -narrow.gradient(g) + 0.5 * diagonal(narrow, g)


def diagonal(gated: Gated, g: Tensor) -> Tensor:
    """∂²E/∂g_k² [K] of the units that are left, float64; 0 of all others."""
    units = g.nonzero()[:, 0]
    found = torch.zeros(len(g), dtype=torch.float64, device=g.device)
    stacks, rest = stacks_of(gated, g, units)
    keep = {node for stack, _ in stacks for node in stack.needed}
    with sdpa_kernel(SDPBackend.MATH):  # the only attention that PyTorch differentiates twice
        for batch in gated.cached if stacks else ():
            values = gated.graph.trace(batch.frontier, g, keep)
            for stack, places in stacks:
                found[units[places]] += batch.share * _of_stack(stack, batch, values, g, units[places])
    for places, columns in _columns(gated, g, units[rest]):
        found[places] = columns[torch.arange(len(places), device=g.device), places]
    return found


def matrix(gated: Gated, g: Tensor) -> Tensor:
    """∂²E/∂g∂g [K, K], float64: a product with the Hessian for each unit, many at a time."""
    return torch.cat([columns for _, columns in _columns(gated, g, torch.arange(len(g), device=g.device))])


def _of_stack(stack: Candidates, batch: Cached, values: dict[fx.Node, Any], g: Tensor, units: Tensor) -> Tensor:
    layer = stack.layer
    if layer is not None and values[layer].ndim == 2 and values[layer].shape[1] < len(units):
        return _through_layer(stack, layer, batch, values, g, units)
    found = []
    for some in torch.split(units, max(1, stack.at_once(batch) // HELD)):
        gates = g[some].clone().requires_grad_()
        slope = derivative(stack.losses(batch, values, g, some, gates).sum(), gates, create_graph=True)
        found.append(derivative(slope.sum(), gates).double())
    return torch.cat(found)


def _through_layer(
    stack: Candidates, layer: fx.Node, batch: Cached, values: dict[fx.Node, Any], g: Tensor, units: Tensor
) -> Tensor:
    """Σ_n d_nkᵀ H_n d_nk, d_nk = o_nk w_k what unit k adds to the sums z [N, O] of the one layer behind it.

    H_n, the Hessian in sample n's sums, takes O products for all units together.
    """
    z = values[layer]
    directions = torch.eye(z.shape[1], dtype=z.dtype, device=z.device)[:, None].expand(-1, *z.shape)
    inner = products(lambda sums: stack.loss_of_sums(batch, values | {layer: sums}), z, directions)  # [O, N, O]
    found = []
    for some in torch.split(units, stack.at_once(batch)):
        added = stack.added(layer, values, g, some).transpose(0, 1)  # [N, M, O]
        found.append(((added @ inner.transpose(0, 1)) * added).sum((0, 2)).double())
    return torch.cat(found)


def _columns(gated: Gated, g: Tensor, units: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Some columns of the Hessian at a time, and of which units [m], [m, K]."""
    suffix = bytes_of(gated.graph.suffix.nodes)
    largest = max((batch.size for batch in gated.cached), default=1)
    at_once = max(1, gated.memory // 8 // max(1, suffix * largest * HELD))
    return [(some, _products(gated, g, some)) for some in torch.split(units, at_once) if len(some)]


def _products(gated: Gated, g: Tensor, units: Tensor) -> Tensor:
    directions = torch.eye(len(g), dtype=g.dtype, device=g.device)[units]
    total = torch.zeros(directions.shape, dtype=torch.float64, device=g.device)
    for batch in gated.cached:

        def loss(gates: Tensor, batch: Cached = batch) -> Tensor:
            return batch.share * gated.loss_function(gated.graph.run(batch.frontier, gates), batch.targets)

        with sdpa_kernel(SDPBackend.MATH):
            total += products(loss, g, directions).double()
    return total
