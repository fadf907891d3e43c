"""Targets of layers, given by the original network, and how much the loss minds a change of them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from secateur.compensation.linear_layers import Layer
from secateur.curvature.loss_factors import (
    Factor,
    backward,
    drawn_factors,
    exact_factors,
    float_outputs,
    sampled_factors,
)
from secateur.errors import DataError
from secateur.objective.gated_graph import downstream
from secateur.objective.gated_loss import CachedBatch, GatedLoss
from secateur.objective.losses import NAMED, loss_of_batch
from secateur.structure.graph_run import outputs

FEW = 16  # outputs: of a last layer, that each weigh the samples in a way of their own; of a network, all pulled back


class NoCurvatureError(Exception):
    """A loss by which no sample has a curvature of its own."""


def last_layers(layers: Sequence[Layer]) -> list[Layer]:
    """Return the layers of few outputs with no other layer behind them."""
    behind = {layer: downstream([layer.call]) for layer in layers}
    return [
        layer
        for layer in layers
        if layer.outputs.size <= FEW and not any(later.call in behind[layer] for later in layers)
    ]


def curvature(gated: GatedLoss, layers: Sequence[Layer], g: Tensor) -> dict[Layer, Tensor]:
    """Return B = 1/N Σ_n J_nᵀ L_n J_n [O, O] of each layer, J_n the derivative of sample n's outputs in the layer's.

    Summed over positions. L_n is the Hessian of the sample's loss. One forward pass, and a backward pass for each of
    few outputs. Where outputs are many, or layers have positions and so more rows than samples, one backward pass for a
    target drawn for each sample; of a loss of the user's own, where outputs are many, a few for drawn directions.

    Args:
        gated: The network and the data.
        layers: The layers.
        g: The gates [K].

    Returns:
        By layer, float64; empty without a loss, and where samples of the loss have no curvature of their own.
    """
    matrices, draw = no_curvature(gated, layers, g), draws_of(gated)
    for batch in gated.cached if matrices else ():
        add_curvature(matrices, gated, batch, trace_layers(gated, batch, (), g, layers), draw)
    return positive(matrices)


def no_curvature(gated: GatedLoss, layers: Sequence[Layer], g: Tensor) -> dict[Layer, Tensor]:
    """Return B over no samples [O, O], by layer; empty without a loss."""
    sizes = {layer: gated.graph.kept.count(layer.outputs) for layer in layers if gated.has_loss}
    return {layer: torch.zeros(n, n, dtype=torch.float64, device=g.device) for layer, n in sizes.items()}


def add_curvature(
    matrices: dict[Layer, Tensor], gated: GatedLoss, batch: CachedBatch, values: dict[fx.Node, Any],
    draw: torch.Generator,
) -> None:  # fmt: skip
    """Add a batch's part to B of each layer, from values that `trace_layers` gives; with no curvature, empty them."""
    try:
        for layer, rows, sign in pulled_to_layers(gated, batch, list(matrices), values, draw) if matrices else ():
            matrices[layer] += (rows.T @ rows).double() * (sign * batch.share / batch.size)
    except NoCurvatureError:
        matrices.clear()


def positive(matrices: dict[Layer, Tensor]) -> dict[Layer, Tensor]:
    """Return B with no diagonal below 0, which a drawn estimate may fall below."""
    for matrix in matrices.values():
        matrix.diagonal().clamp_(min=0)
    return matrices


def trace_layers(
    gated: GatedLoss, batch: CachedBatch, nodes: Collection[fx.Node], g: Tensor, layers: Sequence[Layer]
) -> dict[fx.Node, Any]:
    """Return values of some nodes of the captured graph, the output, and what some layers give, differentiably."""
    copies, calls = gated.graph.copies, {gated.graph.copies[layer.call] for layer in layers}
    return gated.graph.trace(batch.frontier, g, calls.union(copies[node] for node in nodes), calls)


def pulled_to_layers(
    gated: GatedLoss, batch: CachedBatch, layers: Sequence[Layer], values: dict[fx.Node, Any], draw: torch.Generator
) -> Iterator[tuple[Layer, Tensor, int]]:
    """Yield √|λ_n| J_nᵀu_n [M, O] at all positions of each layer's outputs, for each factor λ u uᵀ, and λ's sign."""
    with torch.enable_grad():
        out = outputs(gated.units.captured, values[gated.graph.suffix.output_node()])
        layer_outputs = [values[gated.graph.copies[layer.call]] for layer in layers]
        loss_of_batch(gated.loss_function, out, batch.targets)
        positions = any(value.ndim > 2 for value in layer_outputs)
        for factor in _factors(gated, out, batch.targets, positions, draw):
            root, sign = factor.weight.abs().sqrt(), -1 if bool((factor.weight < 0).any()) else 1
            vectors = [u * root.to(u).reshape(-1, *[1] * (u.ndim - 1)) for u in factor.vectors]
            for layer, slope in zip(layers, backward(factor.tensors, vectors, layer_outputs), strict=True):
                yield layer, layer.targets(slope), sign


def draws_of(gated: GatedLoss) -> torch.Generator:
    """Return what draws targets in one pass over the data: the same ones however the data are cut into batches."""
    return torch.Generator().manual_seed(gated.generator.initial_seed())


def _factors(gated: GatedLoss, out: Any, targets: Any, positions: bool, draw: torch.Generator) -> Iterator[Factor]:
    """Yield factors that have one sign each: exact ones without what is concave, or drawn ones.

    Raises:
        NoCurvatureError: The loss ties samples, or has no derivatives.
    """
    loss, width = gated.loss_function, sum(tensor[:1].numel() for tensor in float_outputs(out))
    if (width > FEW or positions) and loss in NAMED.values():
        yield from sampled_factors(loss, out, targets, draw, 1)
        return
    try:
        if width > FEW:
            yield from drawn_factors(loss, out, targets, draw)
            return
        for factor in exact_factors(loss, out, targets):
            yield factor._replace(weight=factor.weight.clamp(min=0))
    except DataError as error:
        raise NoCurvatureError from error


def sample_weights(
    gated: GatedLoss, batch: CachedBatch, layers: Sequence[Layer], values: dict[fx.Node, Any], draw: torch.Generator
) -> dict[Layer, Tensor]:
    """Return how much the loss minds each number that some layers give: the diagonals of J_nᵀ L_n J_n [M, O].

    Where outputs are many or layers have positions, an estimate, as in `curvature`; never below 0.

    Args:
        gated: The original network.
        batch: The samples.
        layers: The layers.
        values: Values that `trace_layers` gives for these layers.
        draw: The generator from `draws_of`, at the start of the pass over the data.

    Returns:
        By layer; empty where samples of the loss have no curvature of their own.
    """
    diagonals: dict[Layer, Tensor] = {}
    try:
        for layer, rows, sign in pulled_to_layers(gated, batch, layers, values, draw) if layers else ():
            diagonals[layer] = sign * rows.square() + diagonals.get(layer, 0)
    except NoCurvatureError:
        return {}
    return {layer: diagonal.clamp(min=0) for layer, diagonal in diagonals.items()}
