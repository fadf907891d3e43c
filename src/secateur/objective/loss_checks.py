"""A loss of the user's own, tried before it is used: is it a mean over samples?"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from secateur.errors import DataError
from secateur.objective.data import Batch
from secateur.objective.kept_outputs import KEPT, keep
from secateur.objective.losses import LOSSES, LossFunction, value_of
from secateur.structure.capture import Captured
from secateur.structure.graph_run import run, tolerance
from secateur.structure.inputs import tensors

BATCHES = 8  # that samples are drawn from
SAMPLES = 32  # of each, and of all no more than the largest batch has, or 8: outputs may be large
PIECE = 7  # samples: a number by which classes that take turns are shared out unevenly


class NotSplitError(Exception):
    """Outputs or targets that do not hold the samples along the first dimension."""


def batches_for_loss(
    loss: LossFunction | None, captured: Captured, model: nn.Module, batches: Iterable[Batch]
) -> list[Batch]:
    """Return the batches with the targets of the loss, if it can be weighed between them by their numbers of samples.

    Of a loss that keeps the outputs as they were the targets are those of the network as trained.

    Of a loss of the user's own the first batch has a copy of its targets: where the loss changes targets in place,
    `loss_of_batch` finds it out there, and the caller's tensor is as it was.

    Args:
        loss: A function; None where there is none.
        captured: The model's graph.
        model: The network as trained.
        batches: All data.

    Raises:
        DataError: The loss is no mean over samples, and there are several batches.
    """
    held = list(batches)
    if loss is not None and loss in KEPT.values():
        with torch.no_grad():
            kept = (keep(loss, run(captured, model, b.call), b.mask) for b in held)
            return [b._replace(targets=k._replace(targets=b.targets)) for b, k in zip(held, kept, strict=True)]
    if loss is None or loss in LOSSES.values():
        return held
    if len(held) > 1:
        _check_mean(loss, captured, model, held)
    copy = tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, held[0].targets)
    return [held[0]._replace(targets=copy), *held[1:]]


def _check_mean(loss: LossFunction, captured: Captured, model: nn.Module, batches: list[Batch]) -> None:
    """Refuse a loss of some samples that is not the mean of the losses of their two parts.

    That cannot be told, and is not refused, where outputs or targets do not hold the samples along the first dimension,
    and where the loss does not take any number of samples.

    Raises:
        DataError: It is not: results would depend on how the samples come in batches.
    """
    try:
        with torch.no_grad():
            measured = _measure(loss, _drawn(captured, model, batches))
    except (NotSplitError, DataError):  # what is wrong with the loss besides is told where it is used
        return
    rounding = tolerance(model) * max((abs(one.parts) for one in measured if math.isfinite(one.parts)), default=0)
    for n, together, parts in measured:
        if math.isfinite(together) and not abs(parts - together) <= rounding:
            raise DataError(
                f"loss: it is not a mean over samples: {together:.6g} for {n} samples together, {parts:.6g} on average "
                "over them in two parts, so that results would depend on the batches. Divide by the number of samples "
                "(reduction='mean'); weigh classes by (weight[targets] * F.cross_entropy(outputs, targets, "
                "reduction='none')).mean(); or give all data as one batch, [(inputs, targets)]"
            )


class Measured(NamedTuple):
    """The loss of so many samples together, and the mean of their two parts' losses, by their numbers of samples."""

    samples: int
    together: float
    parts: float


def _measure(loss: LossFunction, samples: tuple[Any, Any]) -> list[Measured]:
    """Return what every two neighbouring pieces give.

    Raises:
        DataError: The loss does not take them.
        NotSplitError: There is no tensor.
    """
    n = _count(samples)
    pieces = torch.arange(n).tensor_split(max(2, n // PIECE))

    def of(rows: Tensor) -> float:
        return value_of(loss, *_take(samples, rows, n)).double().item()

    losses = [(len(rows), of(rows)) for rows in pieces]
    return [
        Measured(a + b, of(torch.cat(both)), (a * one + b * other) / (a + b))
        for both, ((a, one), (b, other)) in zip(pairwise(pieces), pairwise(losses), strict=True)
    ]


def _drawn(captured: Captured, model: nn.Module, batches: list[Batch]) -> tuple[Any, Any]:
    """Return outputs and targets of some samples of batches that are spread over all of one length: data may be sorted.

    Raises:
        NotSplitError: Samples cannot be told apart.
    """
    batches = [batch for batch in batches if _shapes(batch) == _shapes(batches[0])]
    chosen = sorted({i * (len(batches) - 1) // (BATCHES - 1) for i in range(BATCHES)})
    each = min(SAMPLES, max(8, *(batch.size for batch in batches)) // len(chosen))
    return _joined([_some(batches[i], each, captured, model, seed=i) for i in chosen])


def _shapes(batch: Batch) -> list[torch.Size]:
    return [tensor.shape[1:] for tensor in tensors(batch.call)]


def _some(batch: Batch, count: int, captured: Captured, model: nn.Module, seed: int) -> tuple[Any, Any]:
    """Return outputs and targets of samples drawn from a batch, which runs whole where its size is fixed."""
    rows = torch.randperm(batch.size, generator=torch.Generator().manual_seed(seed))[:count]
    targets = _take(batch.targets, rows, batch.size)
    if captured.spec.fixed is not None:
        return _take(run(captured, model, batch.call), rows, batch.size), targets
    outputs = run(captured, model, captured.spec.take(batch.call, rows))
    return _take(outputs, torch.arange(len(rows)), len(rows)), targets


def _take(values: Any, rows: Tensor, n: int) -> Any:
    """Return some of n samples.

    Raises:
        NotSplitError: A value does not hold them along the first dimension.
    """

    def of(leaf: Any) -> Any:
        if leaf is None:
            return None
        if not isinstance(leaf, Tensor) or leaf.shape[:1] != (n,):
            raise NotSplitError
        return leaf[rows]

    return tree_map(of, values)


def _joined(parts: list[tuple[Any, Any]]) -> tuple[Any, Any]:
    """Return the samples of all parts as one.

    Raises:
        NotSplitError: Parts differ in more than their number of samples.
    """
    try:
        joined: tuple[Any, Any] = tree_map(
            lambda *leaves: leaves[0] if leaves[0] is None else torch.cat(leaves), *parts
        )
    except (RuntimeError, ValueError) as error:
        raise NotSplitError from error
    return joined


def _count(samples: tuple[Any, Any]) -> int:
    """Return how many there are.

    Raises:
        NotSplitError: There is no tensor.
    """
    for leaf in tree_leaves(samples):
        if isinstance(leaf, Tensor):
            return len(leaf)
    raise NotSplitError
