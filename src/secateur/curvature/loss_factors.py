"""The curvature of the loss in a batch's outputs as a sum of squares, L_n = Σ_v λ_nv u_nv u_nvᵀ, exact or sampled.

L_n is the Hessian of sample n's loss in its own outputs. Pulled back through the network, each u is one backward pass:
Jᵀ L J = Σ_v λ_v (Jᵀu_v)(Jᵀu_v)ᵀ.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from secateur.curvature.named_losses import DRAWS, ROOTS, View, split, view_of
from secateur.errors import DataError
from secateur.objective.loss_inputs import tensors_of
from secateur.objective.losses import LossFunction, differentiable
from secateur.structure.exporting.outputs import flatten_outputs

DRAWN = 1  # directions for each sample, of a loss of the user's own with many outputs


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

    >>> from secateur.objective.losses import squared_error
    >>> o = torch.tensor([[0.0, 0.0]])
    >>> [factor.vectors[0].tolist() for factor in exact_factors(squared_error, o, torch.tensor([1]))]
    [[[1.0, 0.0]], [[0.0, 1.0]]]
    """
    root = ROOTS.get(loss)
    if root is None:
        yield from _eigenvectors(loss, outputs, targets)
        return
    view = view_of(loss, outputs)
    for vector in root(view.seen, targets):
        yield _factor(view, vector)


def sampled_factors(
    loss: LossFunction, outputs: Any, targets: Any, generator: torch.Generator, draws: int
) -> Iterator[Factor]:
    """Yield terms u uᵀ with E[u uᵀ] = L_n: u is the loss's gradient for targets drawn from the model's distribution.

    Softmax, Bernoulli, N(o, I) for the losses with a name. Where a loss is a mean over m of a sample's outputs or
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
    draw = DRAWS.get(loss)
    if draw is None:
        raise DataError(
            "fisher: targets are drawn from the model's own distribution, which is known for cross_entropy, "
            "binary_cross_entropy and squared_error; use criterion='ggn' for a loss of your own"
        )
    view = view_of(loss, outputs)
    for _ in range(draws):
        factor = _factor(view, draw(view.seen, targets, generator))
        yield factor._replace(weight=factor.weight / draws)


def _factor(view: View, vector: Tensor) -> Factor:
    return Factor(vector.new_ones(len(vector)), view.tensors, view.back(vector))


def float_outputs(returned: Any) -> list[Tensor]:
    """Return the tensors among the outputs that can have a derivative."""
    return [o for o in tensors_of(returned) if o.is_floating_point()]


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


# ------------------------------------------------------------ a loss of the user's own


def _eigenvectors(loss: LossFunction, outputs: Any, targets: Any) -> Iterator[Factor]:
    """Yield a term for each eigenvector of L_n [C, C], found by one backward pass through the loss for each output.

    Raises:
        DataError: The loss ties samples to each other, or its second derivative is NaN.
    """
    tensors, own, first = _untied_slopes(loss, outputs, targets)
    if not first.requires_grad:
        return
    rows = [_row(first[:, i].sum(), own) for i in range(first.shape[1])]
    curvature = _without_nan(torch.stack(rows, 1).double())
    values, vectors = torch.linalg.eigh(curvature)
    for v in range(values.shape[1]):
        if bool(values[:, v].any()):
            yield Factor(values[:, v], tensors, split(vectors[:, :, v].to(first.dtype), own))


def drawn_factors(
    loss: LossFunction, outputs: Any, targets: Any, generator: torch.Generator, draws: int = DRAWN
) -> Iterator[Factor]:
    """Yield terms ± u uᵀ whose sum is L_n in expectation, for any loss: the cost does not grow with the outputs.

    For v of random signs E[L v vᵀ] = L, and with w = L v

        ½ (w vᵀ + v wᵀ) = ¼ (c v + w/c)(c v + w/c)ᵀ − ¼ (c v − w/c)(c v − w/c)ᵀ.

    The sum is the same for any c; c² = ‖w‖ / ‖v‖ makes both parts as long, which rounding asks for. One backward pass
    through the loss for each draw, and terms in pairs of opposite signs.

    Args:
        loss: The mean over the batch.
        outputs: The model's, the samples along the first dimension.
        targets: What the loss takes.
        generator: The generator of the draws, on the CPU; the same signs are drawn however samples come in batches.
        draws: Number of draws for each sample.

    Raises:
        DataError: As `exact_factors`.
    """
    tensors, own, first = _untied_slopes(loss, outputs, targets)
    if not first.requires_grad:
        return
    bits = torch.randint(2, (len(first), draws, first.shape[1]), generator=generator, dtype=torch.int8)
    for draw in bits.unbind(1):
        v = draw.to(first).mul_(2).sub_(1)
        w = _without_nan(_row((first * v).sum(), own))
        length = (w.norm(dim=1, keepdim=True) / v.norm(dim=1, keepdim=True)).sqrt()
        c = torch.where(length > 0, length, 1)
        for sign in (1, -1):
            yield Factor(w.new_full((len(w),), sign / (4 * draws)), tensors, split(c * v + sign * w / c, own))


def _untied_slopes(loss: LossFunction, outputs: Any, targets: Any) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Return what `_slopes` does.

    Raises:
        DataError: The loss ties samples to each other.
    """
    tensors, own, first = _slopes(loss, outputs, targets)
    if first.requires_grad and _ties(own, first):
        raise DataError(
            "loss: it ties samples to each other, so that no sample has a curvature of its own; use criterion='hessian'"
        )
    return tensors, own, first


def _without_nan(second: Tensor) -> Tensor:
    """Return a second derivative of the loss.

    Raises:
        DataError: It is NaN.
    """
    if bool(second.isnan().any()):
        raise DataError("loss: its second derivative is NaN on this data")
    return second


def ties_samples(loss: LossFunction, outputs: Any, targets: Any) -> bool:
    """Return whether the loss has a second derivative across samples, tried on the first and all others.

    Raises:
        DataError: Not all outputs hold the samples along the first dimension.

    >>> ties_samples(lambda o, t: o.mean() ** 2, torch.ones(3, 1), None)
    True
    """
    if loss in ROOTS:
        return False
    _, own, first = _slopes(loss, outputs, targets)
    return first.requires_grad and _ties(own, first)


def _ties(own: list[Tensor], first: Tensor) -> bool:
    others = _row(first[0].square().sum(), own)[1:]
    return bool((others.isfinite() & (others != 0)).any())


def _slopes(loss: LossFunction, outputs: Any, targets: Any) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Return the outputs, copies of them, and the derivative of each sample's loss in these [N, C]."""
    returned, form = flatten_outputs(outputs)
    tensors = list({id(o): o for o in returned if isinstance(o, Tensor) and o.is_floating_point()}.values())
    leaves = {id(o): o.detach().requires_grad_() for o in tensors}
    copied = form.unflatten(leaves.get(id(o), o) for o in returned)
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
