"""The curvature of the loss in a batch's outputs as a sum of squares, L_n = Σ_v λ_nv u_nv u_nvᵀ, exact or sampled.

L_n is the Hessian of sample n's loss in its own outputs. Pulled back through the network, each u is one backward pass:
Jᵀ L J = Σ_v λ_v (Jᵀu_v)(Jᵀu_v)ᵀ.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves, tree_structure, tree_unflatten

from secateur.errors import DataError
from secateur.objective.loss_inputs import logits_of
from secateur.objective.losses import LossFunction, binary_cross_entropy, cross_entropy, differentiable, squared_error

TINY = 2.0**-54  # below any draw but 0, whose normal would be infinite


class Factor(NamedTuple):
    """One term λ u uᵀ for every sample: λ [N], and u by the output tensors that it belongs to, [N, ...] each."""

    weight: Tensor
    tensors: list[Tensor]
    vectors: list[Tensor]


def exact_factors(loss: LossFunction, outputs: Any, targets: Any) -> Iterator[Factor]:
    """Yield terms whose sum is L_n: one per output of a sample, for a loss of the user's own by its eigenvectors.

    Args:
        loss: The mean over the batch.
        outputs: The model's, the samples along the first dimension.
        targets: What the loss takes.

    Yields:
        The terms; those that are zero for all samples may be left out.

    Raises:
        DataError: The loss does not take these outputs and targets, or ties samples to each other.

    >>> o = torch.tensor([[0.0, 0.0]])
    >>> [factor.vectors[0].tolist() for factor in exact_factors(squared_error, o, torch.tensor([1]))]
    [[[1.0, 0.0]], [[0.0, 1.0]]]
    """
    root = _ROOTS.get(loss)
    if root is None:
        yield from _eigenvectors(loss, outputs, targets)
        return
    out = logits_of(outputs).detach()
    for vector in root(out, targets):
        yield _factor(outputs, vector)


def sampled_factors(
    loss: LossFunction, outputs: Any, targets: Any, generator: torch.Generator, draws: int
) -> Iterator[Factor]:
    """Yield terms u uᵀ with E[u uᵀ] = L_n: u is the loss's gradient for targets drawn from the model's distribution.

    Softmax, Bernoulli, N(o, I) for the three losses with a name. Where a loss is a mean over m of a sample's outputs or
    positions, its gradient is multiplied by √m: the squares of m independent terms add up to 1/m of the curvature.

    Args:
        loss: A loss with a name.
        outputs: The model's.
        targets: The targets, of which the form alone is used.
        generator: The generator of the draws, on the CPU.
        draws: Number of draws for each sample.

    Yields:
        One term for each draw.

    Raises:
        DataError: Another loss: no distribution is known that it belongs to.
    """
    draw = _DRAWS.get(loss)
    if draw is None:
        raise DataError(
            "fisher: targets are drawn from the model's own distribution, which is known for cross_entropy, "
            "binary_cross_entropy and squared_error; use criterion='ggn' for a loss of your own"
        )
    out = logits_of(outputs).detach()
    for _ in range(draws):
        factor = _factor(outputs, draw(out, targets, generator))
        yield factor._replace(weight=factor.weight / draws)


def _factor(outputs: Any, vector: Tensor) -> Factor:
    return Factor(vector.new_ones(len(vector)), [logits_of(outputs)], [vector])


def float_outputs(returned: Any) -> list[Tensor]:
    """Return the tensors among the outputs that can have a derivative."""
    return [o for o in tree_leaves(returned) if isinstance(o, Tensor) and o.is_floating_point()]


def backward(tensors: Sequence[Tensor], vectors: Sequence[Tensor], wanted: Sequence[Tensor]) -> list[Tensor]:
    """Return Σ uᵀ ∂o/∂x for each x; zero where nothing depends on it."""
    pairs = [(t, u.to(t.dtype)) for t, u in zip(tensors, vectors, strict=True) if t.requires_grad]
    if not pairs or not wanted:
        return [torch.zeros_like(x) for x in wanted]
    ends, starts = zip(*pairs, strict=True)
    return list(torch.autograd.grad(ends, wanted, starts, retain_graph=True, allow_unused=True, materialize_grads=True))


def only(vectors: Sequence[Tensor], i: int) -> list[Tensor]:
    """Return the vectors with zeros for all samples but sample i."""
    kept = [torch.zeros_like(u) for u in vectors]
    for whole, u in zip(kept, vectors, strict=True):
        whole[i] = u[i]
    return kept


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


_ROOTS: dict[LossFunction, Callable[[Tensor, Any], Iterator[Tensor]]] = {
    squared_error: _root_of_squared_error,
    binary_cross_entropy: _root_of_binary,
    cross_entropy: _root_of_softmax,
}
_DRAWS: dict[LossFunction, Callable[[Tensor, Any, torch.Generator], Tensor]] = {
    squared_error: _drawn_normal,
    binary_cross_entropy: _drawn_bernoulli,
    cross_entropy: _drawn_softmax,
}


# ------------------------------------------------------------ a loss of the user's own


def _eigenvectors(loss: LossFunction, outputs: Any, targets: Any) -> Iterator[Factor]:
    """Yield a term for each eigenvector of L_n [C, C], found by one backward pass through the loss for each output.

    Raises:
        DataError: The loss ties samples to each other, or its second derivative is NaN.
    """
    tensors, own, first = _slopes(loss, outputs, targets)
    if not first.requires_grad:
        return
    if _ties(own, first):
        raise DataError(
            "loss: it ties samples to each other, so that no sample has a curvature of its own; use criterion='hessian'"
        )
    rows = [_row(first[:, i].sum(), own) for i in range(first.shape[1])]
    curvature = torch.stack(rows, 1).double()
    if bool(curvature.isnan().any()):
        raise DataError("loss: its second derivative is NaN on this data")
    values, vectors = torch.linalg.eigh(curvature)
    for v in range(values.shape[1]):
        if bool(values[:, v].any()):
            parts = vectors[:, :, v].to(first.dtype).split([o[0].numel() for o in own], 1)
            yield Factor(values[:, v], tensors, [u.reshape(o.shape) for u, o in zip(parts, own, strict=True)])


def ties_samples(loss: LossFunction, outputs: Any, targets: Any) -> bool:
    """Return whether the loss has a second derivative across samples, tried on the first and all others.

    Raises:
        DataError: Not all outputs hold the samples along the first dimension.

    >>> ties_samples(lambda o, t: o.mean() ** 2, torch.ones(3, 1), None)
    True
    """
    if loss in _ROOTS:
        return False
    _, own, first = _slopes(loss, outputs, targets)
    return first.requires_grad and _ties(own, first)


def _ties(own: list[Tensor], first: Tensor) -> bool:
    others = _row(first[0].square().sum(), own)[1:]
    return bool((others.isfinite() & (others != 0)).any())


def _slopes(loss: LossFunction, outputs: Any, targets: Any) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Return the outputs, copies of them, and the derivative of each sample's loss in these [N, C]."""
    returned = tree_leaves(outputs)
    tensors = list({id(o): o for o in returned if isinstance(o, Tensor) and o.is_floating_point()}.values())
    leaves = {id(o): o.detach().requires_grad_() for o in tensors}
    copied = tree_unflatten([leaves.get(id(o), o) for o in returned], tree_structure(outputs))
    n, own = _samples(tensors), list(leaves.values())
    mean = differentiable(loss, copied, targets)
    return tensors, own, _row(n * mean, own, create_graph=True)


def _row(y: Tensor, own: list[Tensor], **options: Any) -> Tensor:
    """Return ∂y/∂o [N, C]."""
    pieces = torch.autograd.grad(y, own, retain_graph=True, allow_unused=True, materialize_grads=True, **options)
    return torch.cat([piece.reshape(len(leaf), -1) for piece, leaf in zip(pieces, own, strict=True)], 1)


def _samples(tensors: list[Tensor]) -> int:
    """Return how many samples the outputs hold.

    Raises:
        DataError: Not all outputs hold them along the first dimension.
    """
    sizes = {tuple(o.shape[:1]) for o in tensors}
    if len(sizes) != 1 or () in sizes:
        shapes = ", ".join(str(tuple(o.shape)) for o in tensors)
        raise DataError(f"outputs of shapes {shapes}: expected the samples along the first dimension of each")
    return int(tensors[0].shape[0])
