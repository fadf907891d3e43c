"""The curvature of the losses with a name, in a batch's outputs: a root of each sample's L_n, exact or drawn."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from secateur.objective.losses import LossFunction, binary_cross_entropy, cross_entropy, squared_error

TINY = 2.0**-54  # below any draw but 0, whose normal would be infinite


# ------------------------------------------------------------ one column at a time of a root of L_n


def _root_of_squared_error(out: Tensor, targets: Any) -> Iterator[Tensor]:
    """Yield the columns of a root of L = I."""
    yield from _unit_vectors(torch.ones_like(out))


def _root_of_binary(out: Tensor, targets: Any) -> Iterator[Tensor]:
    """Yield the columns of a root of L = diag(p (1 − p)) / m, the mean over m outputs."""
    p = out.sigmoid()
    yield from _unit_vectors((p * (1 - p) * len(out) / out.numel()).sqrt())


def _root_of_softmax(out: Tensor, targets: Any) -> Iterator[Tensor]:
    """Yield the columns √p_v (e_v − p) of a root of L = diag(p) − p pᵀ at each position."""
    p = out.softmax(1).flatten(2) if out.ndim > 2 else out.softmax(1)[..., None]
    scale = _positions_scale(out, targets)
    for position in range(p.shape[2]):
        for v in range(p.shape[1]):
            column = -p[:, :, position]
            column[:, v] += 1
            vector = torch.zeros_like(p)
            vector[:, :, position] = column * (p[:, v, position] * scale[:, position]).sqrt()[:, None]
            yield vector.reshape(out.shape)


def _unit_vectors(diagonal: Tensor) -> Iterator[Tensor]:
    flat = diagonal.reshape(len(diagonal), -1)
    for i in range(flat.shape[1]):
        vector = torch.zeros_like(flat)
        vector[:, i] = flat[:, i]
        yield vector.reshape(diagonal.shape)


def _positions_scale(out: Tensor, targets: Tensor) -> Tensor:
    """Return 1/m for m positions, times the sum of the targets where those are probabilities; [N, m]."""
    positions = math.prod(out.shape[2:])
    scale = out.new_full((len(out), positions), 1 / positions)
    return scale * targets.sum(1).reshape(scale.shape) if targets.is_floating_point() else scale


# ------------------------------------------------------------ gradients for drawn targets


def _drawn_normal(out: Tensor, targets: Any, generator: torch.Generator) -> Tensor:
    uniform = torch.rand(out.shape, generator=generator, dtype=torch.float64)  # unlike randn the same in pieces
    normal: Tensor = torch.special.ndtri(uniform.clamp(min=TINY))
    return normal.to(out)


def _drawn_bernoulli(out: Tensor, targets: Any, generator: torch.Generator) -> Tensor:
    p = out.sigmoid()
    y = torch.rand(out.shape, generator=generator, dtype=torch.float64).to(out.device) < p
    return (p - y.to(p)) * math.sqrt(len(out) / out.numel())


def _drawn_softmax(out: Tensor, targets: Tensor, generator: torch.Generator) -> Tensor:
    p = out.softmax(1)
    positions = p.movedim(1, -1)
    chosen = torch.rand(positions.shape[:-1], generator=generator, dtype=torch.float64).to(out.device)
    y = (positions.double().cumsum(-1) < chosen[..., None]).sum(-1).clamp(max=p.shape[1] - 1)
    scale = _positions_scale(out, targets).sqrt().reshape(len(out), 1, *out.shape[2:])
    return (p - F.one_hot(y, p.shape[1]).movedim(-1, 1)) * scale


ROOTS: dict[LossFunction, Callable[[Tensor, Any], Iterator[Tensor]]] = {
    squared_error: _root_of_squared_error,
    binary_cross_entropy: _root_of_binary,
    cross_entropy: _root_of_softmax,
}
DRAWS: dict[LossFunction, Callable[[Tensor, Any, torch.Generator], Tensor]] = {
    squared_error: _drawn_normal,
    binary_cross_entropy: _drawn_bernoulli,
    cross_entropy: _drawn_softmax,
}
