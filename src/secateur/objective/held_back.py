"""Samples that are held back, so that others judge than those that weights are fitted on."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from secateur.errors import DataError
from secateur.objective.data import Batch
from secateur.objective.kept_outputs import Kept

EVERY = 5  # every fifth sample is held back where weights are fitted and a budget bounds the quality


def hold_back(batches: list[Batch], whole: bool) -> tuple[list[Batch], list[Batch]]:
    """Return the data to fit on, and the data to judge the fit by: every fifth sample.

    Args:
        batches: All data.
        whole: Whether batches cannot be divided, since the model's code fixes their size: every fifth batch judges.

    Raises:
        DataError: There is none to judge by.
    """
    if whole:
        parts = [[b for i, b in enumerate(batches, 1) if (i % EVERY == 0) == judges] for judges in (False, True)]
        fitted, held = parts
    else:
        fitted, held = _by_samples(batches)
    if not held:
        raise DataError(
            "budget of quality: where weights are fitted it is measured on every fifth sample, held back from the fit, "
            f"and there are fewer than {EVERY} {'batches' if whole else 'samples'}; give validation=, or more data"
        )
    return fitted, held


def some_samples(batches: list[Batch], most: int, whole: bool) -> list[Batch]:
    """Return at most so many samples, but one or one batch, evenly taken from all batches.

    Args:
        batches: All data.
        most: The number.
        whole: Whether batches cannot be divided.
    """
    if whole:
        count = len(batches)
        chosen_batches = evenly(torch.arange(count), count, max(1, most // batches[0].size))
        return list(itertools.compress(batches, chosen_batches.tolist()))
    sizes = [batch.size for batch in batches]
    chosen_samples = evenly(torch.arange(sum(sizes)), sum(sizes), most)
    rows = (chosen.nonzero()[:, 0] for chosen in torch.split(chosen_samples, sizes))
    return [_rows(batch, some) for batch, some in zip(batches, rows, strict=True) if len(some)]


def evenly(numbers: Tensor, total: int, most: int) -> Tensor:
    """Return which of some numbers below the total are taken, so that of all at most so many are, evenly."""
    return (numbers + 1) * most // total > numbers * most // total


def _by_samples(batches: list[Batch]) -> tuple[list[Batch], list[Batch]]:
    fitted, held, first = list[Batch](), list[Batch](), 0
    for batch in batches:
        back = (torch.arange(first, first + batch.size) % EVERY) == EVERY - 1
        first += batch.size
        for part, rows in ((fitted, ~back), (held, back)):
            if bool(rows.any()):
                part.append(_rows(batch, rows.nonzero()[:, 0]))
    return fitted, held


def _rows(batch: Batch, rows: Tensor) -> Batch:
    """Return some samples of a batch."""

    def select(tensor: Tensor) -> Tensor:
        return tensor[rows.to(tensor.device)] if tensor.ndim else tensor

    mask = None if batch.mask is None else select(batch.mask)
    return Batch(batch.take(rows), _some_targets(batch.targets, batch.size, rows, select), len(rows), mask, batch.spec)


def _some_targets(targets: Any, size: int, rows: Tensor, select: Callable[[Tensor], Tensor]) -> Any:
    """Return the targets of some samples: rows of tensors, however nested, or entries of a list for each sample."""
    if isinstance(targets, Kept):
        return Kept(*(_some_targets(part, size, rows, select) for part in targets))
    if isinstance(targets, list) and len(targets) == size:
        return [targets[i] for i in rows.tolist()]
    return tree_map(lambda leaf: select(leaf) if isinstance(leaf, Tensor) else leaf, targets)
