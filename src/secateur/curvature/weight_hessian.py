"""∂²E/∂w² of every single weight, exact, by products with the Hessian."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from secateur.curvature.hessian_products import VALUES_HELD, hessian_vector_products
from secateur.curvature.loss_factors import ties_samples
from secateur.curvature.per_sample import Uses, summed_squares
from secateur.curvature.weight_vjp import recompute, run_graph
from secateur.objective.data import Batch
from secateur.objective.gated_graph import downstream
from secateur.objective.losses import LossFunction, loss_of_batch
from secateur.objective.memory import bytes_of


def hessian_diagonal(
    fast: Uses, names: Sequence[str], values: list[Any], batch: Batch, loss: LossFunction, memory: int
) -> Iterator[tuple[str, Tensor]]:
    """Yield ∂²E/∂w² of each parameter for one batch, float64.

    A dense layer's z_n = W a_n + b, where z_n reaches sample n's loss alone, has ∂²E/∂w_ij² = Σ_n a_nj² ∂²E/∂z_ni²: one
    product with the Hessian in z for each neuron i, in the direction of z_ni for all samples n.

    Args:
        fast: The uses of parameters for which samples are apart.
        names: The parameters.
        values: The values of the graph's placeholders.
        batch: The samples.
        loss: Their mean loss.
        memory: Bytes that may be used.
    """
    captured = fast.captured
    with torch.no_grad():
        known, out = run_graph(captured, values)
        loss_of_batch(loss, out, batch.targets)

    def loss_at(changed: list[fx.Node], value: Tensor) -> Tensor:
        mean = loss(recompute(captured, known, dict.fromkeys(changed, value)), batch.targets).reshape(())
        return batch.size * mean  # the derivatives of a mean leave the range of float16

    apart = bool(fast.of) and not ties_samples(loss, out, batch.targets)
    of_neurons: dict[fx.Node, Tensor] = {}
    placeholders = Uses(captured, names, {}).placeholders
    for name in names:
        use = fast.dense(name) if apart and name in fast.of else None
        nodes = placeholders[name]
        at_once = _at_once([use.node] if use else nodes, batch.size, memory)
        if use is None:
            second = _elements(partial(loss_at, nodes), known[nodes[0]], at_once)
        else:
            if use.node not in of_neurons:
                of_neurons[use.node] = _neurons(partial(loss_at, [use.node]), known[use.node], at_once)
            second = summed_squares(use, known, of_neurons[use.node])
        yield name, second / batch.size


def _at_once(changed: list[fx.Node], n: int, memory: int) -> int:
    """Return how many products fit into memory."""
    return max(1, memory // 8 // max(1, VALUES_HELD * n * bytes_of(downstream(changed))))


def _neurons(f: Callable[[Tensor], Tensor], z: Tensor, at_once: int) -> Tensor:
    """Return ∂²f/∂z_ni² [N, O]."""
    pieces = []
    for neurons in torch.split(torch.arange(z.shape[1], device=z.device), at_once):
        rows = torch.arange(len(neurons), device=z.device)
        directions = z.new_zeros(len(neurons), *z.shape)
        directions[rows, :, neurons] = 1
        pieces.append(hessian_vector_products(f, z, directions)[rows, :, neurons].double())
    return torch.cat(pieces).T


def _elements(f: Callable[[Tensor], Tensor], w: Tensor, at_once: int) -> Tensor:
    """Return ∂²f/∂w_i² in w's shape."""
    pieces = [w.new_zeros(0, dtype=torch.float64)]
    for elements in torch.split(torch.arange(w.numel(), device=w.device), at_once):
        rows = torch.arange(len(elements), device=w.device)
        directions = w.new_zeros(len(elements), w.numel())
        directions[rows, elements] = 1
        columns = hessian_vector_products(f, w, directions.reshape(-1, *w.shape)).reshape(directions.shape)
        pieces.append(columns[rows, elements].double())
    return torch.cat(pieces).reshape(w.shape)
