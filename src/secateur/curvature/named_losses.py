"""The curvature of the losses with a name, in a batch's outputs: a root of each sample's L_n, exact or drawn.

Roots are taken in the form in which a loss sees the outputs, a `View`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from secateur.objective.kept_outputs import Kept, by_class, distribution, flat, has_classes_last, output
from secateur.objective.loss_inputs import logits_of, outputs_of
from secateur.objective.losses import LossFunction, binary_cross_entropy, cross_entropy, squared_error

TINY = 2.0**-54  # below any draw but 0, whose normal would be infinite


class View(NamedTuple):
    """Outputs as a loss with a name sees them: its tensor, those that this is made of, and the way back."""

    seen: Tensor
    tensors: list[Tensor]
    back: Callable[[Tensor], list[Tensor]]


def view_of(loss: LossFunction, outputs: Any) -> View:
    """Return the outputs as a loss sees them, detached."""
    if loss is output:
        tensors = outputs_of(outputs)
        return View(flat(tensors).detach(), tensors, lambda rows: split(rows, tensors))
    logits = logits_of(outputs)
    if loss is distribution:
        last = has_classes_last(outputs)
        return View(by_class(outputs).detach(), [logits], lambda v: [v.mT if last else v.reshape(logits.shape)])
    return View(logits.detach(), [logits], lambda vector: [vector])


def split(rows: Tensor, tensors: list[Tensor]) -> list[Tensor]:
    """Return vectors [N, C] in the form of some outputs."""
    parts = torch.split(rows, [tensor[0].numel() for tensor in tensors], 1)
    return [part.reshape(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


# ------------------------------------------------------------ one column at a time of a root of L_n


def _root_of_squared_error(out: Tensor, targets: Any) -> Iterator[Tensor]:
    """Yield the columns of a root of L = I."""
    yield from _unit_vectors(torch.ones_like(out))


def _root_of_output(out: Tensor, kept: Kept) -> Iterator[Tensor]:
    """Yield the columns of a root of L = I, where numbers count."""
    yield from _unit_vectors(torch.ones_like(out) if kept.weight is None else kept.weight)


def _root_of_binary(out: Tensor, targets: Any) -> Iterator[Tensor]:
    """Yield the columns of a root of L = diag(p (1 − p)) / m, the mean over m outputs."""
    p = out.sigmoid()
    yield from _unit_vectors((p * (1 - p) * len(out) / out.numel()).sqrt())


def _root_of_cross_entropy(out: Tensor, targets: Tensor) -> Iterator[Tensor]:
    yield from _root_of_softmax(out, _positions_scale(out, targets))


def _root_of_distribution(out: Tensor, kept: Kept) -> Iterator[Tensor]:
    assert kept.weight is not None
    yield from _root_of_softmax(out, kept.weight)


def _root_of_softmax(out: Tensor, scale: Tensor) -> Iterator[Tensor]:
    """Yield the columns √p_v (e_v − p) of a root of L = diag(p) − p pᵀ at each position, times its scale [N, m]."""
    p = out.softmax(1).flatten(2) if out.ndim > 2 else out.softmax(1)[..., None]
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


def _drawn_output(out: Tensor, kept: Kept, generator: torch.Generator) -> Tensor:
    normal = _drawn_normal(out, None, generator)
    return normal if kept.weight is None else normal * kept.weight


def _drawn_bernoulli(out: Tensor, targets: Any, generator: torch.Generator) -> Tensor:
    p = out.sigmoid()
    y = torch.rand(out.shape, generator=generator, dtype=torch.float64).to(out.device) < p
    return (p - y.to(p)) * math.sqrt(len(out) / out.numel())


def _drawn_cross_entropy(out: Tensor, targets: Tensor, generator: torch.Generator) -> Tensor:
    return _drawn_softmax(out, _positions_scale(out, targets), generator)


def _drawn_distribution(out: Tensor, kept: Kept, generator: torch.Generator) -> Tensor:
    assert kept.weight is not None
    return _drawn_softmax(out, kept.weight, generator)


def _drawn_softmax(out: Tensor, scale: Tensor, generator: torch.Generator) -> Tensor:
    p = out.softmax(1)
    positions = p.movedim(1, -1)
    chosen = torch.rand(positions.shape[:-1], generator=generator, dtype=torch.float64).to(out.device)
    y = (positions.double().cumsum(-1) < chosen[..., None]).sum(-1).clamp(max=p.shape[1] - 1)
    return (p - F.one_hot(y, p.shape[1]).movedim(-1, 1)) * scale.sqrt().reshape(len(out), 1, *out.shape[2:])


ROOTS: dict[LossFunction, Callable[[Tensor, Any], Iterator[Tensor]]] = {
    squared_error: _root_of_squared_error,
    binary_cross_entropy: _root_of_binary,
    cross_entropy: _root_of_cross_entropy,
    output: _root_of_output,
    distribution: _root_of_distribution,
}
DRAWS: dict[LossFunction, Callable[[Tensor, Any, torch.Generator], Tensor]] = {
    squared_error: _drawn_normal,
    binary_cross_entropy: _drawn_bernoulli,
    cross_entropy: _drawn_cross_entropy,
    output: _drawn_output,
    distribution: _drawn_distribution,
}
