"""Losses that keep the outputs as they were: the targets are what the original network gives for the same inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from secateur.errors import DataError
from secateur.objective.loss_inputs import has_logits, logits_of, outputs_of


class Kept(NamedTuple):
    """What the original gives for some samples.

    Attributes:
        values: The numbers that a loss compares [N, ...].
        weight: How much each of them counts, or each position of theirs; None for 1.
        targets: The targets that came with the inputs, for a metric; None where there are none.
    """

    values: Tensor
    weight: Tensor | None
    targets: Any = None


def output(outputs: Any, kept: Kept) -> Tensor:
    """Return ½ Σ_i (o_i − ô_i)², mean over samples; ô are the original's outputs, the sum is over all positions."""
    return 0.5 * gaps(outputs, kept).square().sum(1).mean()


def distribution(outputs: Any, kept: Kept) -> Tensor:
    """Return Σ_c p̂_c log (p̂_c / p_c), mean over samples' positions and over samples; p̂ is the original's softmax."""
    return divergences(outputs, kept).mean()


KEPT: dict[str, Callable[[Any, Any], Tensor]] = {"output": output, "distribution": distribution}


def suited_to(outputs: Any) -> str:
    """Return the name of the loss that suits what a network gives: for logits of classes their distribution."""
    if not has_logits(outputs) or logits_of(outputs).ndim < 2:
        return output.__name__
    return distribution.__name__ if by_class(outputs).shape[1] > 1 else output.__name__


def keep(loss: Callable[[Any, Any], Tensor], outputs: Any, mask: Tensor | None) -> Kept:
    """Return the targets of such a loss.

    Args:
        loss: One of `KEPT`.
        outputs: The original's.
        mask: Which positions count [N, L], of outputs [N, L, ...]; None for all.

    Raises:
        DataError: The loss does not take these outputs.
    """
    if loss is output:
        weight = None if mask is None else flat([_of_positions(mask, tensor) for tensor in outputs_of(outputs)])
        return Kept(flat(outputs_of(outputs)), weight)
    logits = by_class(outputs)
    if logits.shape[1] < 2:
        raise DataError(
            f"distribution: there is one class in outputs of shape {tuple(logits.shape)}; use loss='output'"
        )
    positions = logits_of(outputs).shape[1:2] if has_classes_last(outputs) else logits_of(outputs).shape[2:]
    counted = torch.ones_like(logits[:, 0])
    if mask is not None and positions == mask.shape[1:]:
        counted = mask.to(counted)
    return Kept(logits.log_softmax(1), counted / counted.sum(1, keepdim=True).clamp(min=1))


def flat(tensors: list[Tensor]) -> Tensor:
    """Return all numbers of each sample [N, C].

    Raises:
        DataError: Not all tensors hold the samples along the first dimension.
    """
    if len({tensor.shape[:1] for tensor in tensors}) != 1 or not tensors[0].ndim:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors)
        raise DataError(f"output: outputs of shapes {shapes}: expected the samples along the first dimension of each")
    return torch.cat([tensor.reshape(len(tensor), -1) for tensor in tensors], 1)


def _of_positions(mask: Tensor, tensor: Tensor) -> Tensor:
    """Return which numbers of an output [N, L, ...] count, all of one without these positions."""
    if tensor.ndim < 3 or tensor.shape[:2] != mask.shape:
        return torch.ones_like(tensor)
    return mask.to(tensor).reshape(*mask.shape, *[1] * (tensor.ndim - 2)).expand_as(tensor)


def gaps(outputs: Any, kept: Kept) -> Tensor:
    """Return o − ô of all numbers that count, 0 of the others; of several batches one after the other [C · N, ...]."""
    gap = _batches(flat(outputs_of(outputs)), kept) - kept.values
    return (gap if kept.weight is None else gap * kept.weight).flatten(0, 1)


def divergences(outputs: Any, kept: Kept) -> Tensor:
    """Return each sample's divergence; of several batches one after the other [C · N]."""
    assert kept.weight is not None
    p = kept.values.exp()
    differences = kept.values - _batches(by_class(outputs).log_softmax(1), kept)
    terms = (p * differences).masked_fill(p == 0, 0)  # of −∞ from −∞
    return (terms.sum(2) * kept.weight).sum(2).flatten()


def _batches(rows: Tensor, kept: Kept) -> Tensor:
    return rows.reshape(-1, *kept.values.shape)


def by_class(outputs: Any) -> Tensor:
    """Return logits [N, C, positions].

    Classes are dimension 1, and of `logits` with three dimensions, as language models give them, the last.

    Raises:
        DataError: There are no classes, or `logits_of` finds no logits.
    """
    logits = logits_of(outputs)
    if logits.ndim < 2:
        raise DataError(f"distribution: expected logits [N, C, ...], got outputs of shape {tuple(logits.shape)}")
    return (logits.mT if has_classes_last(outputs) else logits).flatten(2) if logits.ndim > 2 else logits[..., None]


def has_classes_last(outputs: Any) -> bool:
    """Return whether these are `logits` of three dimensions [N, L, C]."""
    return has_logits(outputs) and logits_of(outputs).ndim == 3
