"""∂²E/∂w² of every single weight, exact, by products with the Hessian."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from secateur.curvature.hessian_products import HELD, hessian_vector_products
from secateur.curvature.loss_factors import ties_samples
from secateur.curvature.per_sample import Uses, summed_squares
from secateur.curvature.weight_vjp import recompute, run_graph
from secateur.objective.data import Batch
from secateur.objective.gated_graph import downstream
from secateur.objective.losses import LossFunction, loss_of_batch
from secateur.objective.memory import bytes_of


def second_derivatives(
    fast: Uses, names: Sequence[str], values: list[Any], batch: Batch, loss: LossFunction, memory: int
) -> Iterator[tuple[str, Tensor]]:
    """∂²E/∂w² of each parameter for one batch, float64.

    A dense layer's z_n = W a_n + b, where z_n reaches sample n's loss alone, has ∂²E/∂w_ij² = Σ_n a_nj² ∂²E/∂z_ni²: one
    product with the Hessian in z for each neuron i, in the direction of z_ni for all samples n.

    Args:
        fast: Of parameters for which samples are apart.
        names: The parameters.
        values: Of the graph's placeholders.
        batch: The samples.
        loss: Their mean loss.
        memory: Bytes that may be used.
    """
    captured = fast.captured
    with torch.no_grad():
        known, out = run_graph(captured, values)
        loss_of_batch(loss, out, batch.targets)

    def at(changed: list[fx.Node], value: Tensor) -> Tensor:
        mean = loss(recompute(captured, known, dict.fromkeys(changed, value)), batch.targets).reshape(())
        return batch.size * mean  # the derivatives of a mean leave the range of float16

    apart = bool(fast.of) and not ties_samples(loss, out, batch.targets)
    of_neurons: dict[fx.Node, Tensor] = {}
    placeholders = Uses(captured, names, {}).placeholders
    for name in names:
        use = fast.dense(name) if apart and name in fast.of else None
        given = placeholders[name]
        at_once = _at_once([use.node] if use else given, batch.size, memory)
        if use is None:
            found = _elements(partial(at, given), known[given[0]], at_once)
        else:
            node = use.node
            if node not in of_neurons:
                of_neurons[node] = _neurons(partial(at, [node]), known[node], at_once)
            found = summed_squares(use, known, of_neurons[node])
        yield name, found / batch.size


def _at_once(changed: list[fx.Node], n: int, memory: int) -> int:
    """How many products fit into memory."""
    return max(1, memory // 8 // max(1, HELD * n * bytes_of(downstream(changed))))


def _neurons(f: Callable[[Tensor], Tensor], z: Tensor, at_once: int) -> Tensor:
    """∂²f/∂z_ni² [N, O]."""
    found = []
    for some in torch.split(torch.arange(z.shape[1], device=z.device), at_once):
        rows = torch.arange(len(some), device=z.device)
        directions = z.new_zeros(len(some), *z.shape)
        directions[rows, :, some] = 1
        found.append(hessian_vector_products(f, z, directions)[rows, :, some].double())
    return torch.cat(found).T


def _elements(f: Callable[[Tensor], Tensor], w: Tensor, at_once: int) -> Tensor:
    """∂²f/∂w_i² in w's shape."""
    found = [w.new_zeros(0, dtype=torch.float64)]
    for some in torch.split(torch.arange(w.numel(), device=w.device), at_once):
        rows = torch.arange(len(some), device=w.device)
        directions = w.new_zeros(len(some), w.numel())
        directions[rows, some] = 1
        columns = hessian_vector_products(f, w, directions.reshape(-1, *w.shape)).reshape(directions.shape)
        found.append(columns[rows, some].double())
    return torch.cat(found).reshape(w.shape)
