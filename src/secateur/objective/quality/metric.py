"""A metric of the user's own: a number for the outputs and targets of all samples at once, the higher the better."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

from secateur.arguments import describe
from secateur.errors import ArgumentError, DataError
from secateur.objective.kept_outputs import Kept
from secateur.structure.exporting.outputs import PLAIN, flatten_outputs

Metric = Callable[[Any, Any], Any]


class Run(NamedTuple):
    """A network's outputs for one batch.

    Attributes:
        size: The number of samples.
        share: Their share of all.
        outputs: What the network returns.
        targets: What the loss compares it with.
    """

    size: int
    share: float
    outputs: Any
    targets: Any


def require_metric(metric: Any) -> Metric | None:
    """Return the metric, or None where there is none.

    Raises:
        ArgumentError: It is no function.
    """
    if metric is not None and (not callable(metric) or isinstance(metric, type)):
        got = describe(metric)
        raise ArgumentError(f"metric: expected a function of outputs and targets that returns a number, got {got}")
    return metric


def value_of_metric(metric: Metric, runs: Sequence[Run]) -> float:
    """Return what the metric gives for all samples.

    It is called once, with copies: outputs and targets of all batches in one, along the samples, where the batches
    differ in nothing else; else with a list of the batches' outputs and a list of their targets.

    Args:
        metric: The function.
        runs: All batches.

    Raises:
        DataError: It fails, or gives no finite number.
        OutOfMemoryError: It needs more memory than there is on the device.
    """
    outputs, targets = _together(runs)
    name = getattr(metric, "__name__", type(metric).__name__)
    try:
        value = metric(outputs, targets)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        line = (str(error).strip() or type(error).__name__).split("\n")[0]
        raise DataError(f"metric {name}: it fails on this data ({type(error).__name__}: {line})") from error
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex():
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        got = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else describe(value)
        raise DataError(f"metric {name}: expected one finite number for the data, got {got}")
    return float(value)


def _together(runs: Sequence[Run]) -> list[Any]:
    """Return outputs and targets of all batches in one, or a list of each."""
    outputs = [flatten_outputs(run.outputs) for run in runs]
    targets = [tree_flatten(_own_targets(run), is_leaf=functools.partial(_by_sample, size=run.size)) for run in runs]
    sizes = [run.size for run in runs]
    sides: list[list[tuple[list[Any], Any]]] = [outputs, targets]
    if all(_alike(side, sizes) for side in sides):
        return [side[0][1].unflatten(map(_joined, zip(*(leaves for leaves, _ in side), strict=True))) for side in sides]
    return [[form.unflatten(_joined((leaf,)) for leaf in leaves) for leaves, form in side] for side in sides]


def _own_targets(run: Run) -> Any:
    """Return the caller's targets, also of a loss that compares with the original's outputs."""
    return run.targets.targets if isinstance(run.targets, Kept) else run.targets


def _by_sample(value: Any, size: int) -> bool:
    """Return whether this is a list with an entry for each sample."""
    return isinstance(value, list) and len(value) == size


def _alike(batches: list[tuple[list[Any], Any]], sizes: list[int]) -> bool:
    """Return whether the values of batches, each with their form, differ in nothing but the number of samples."""
    if len(batches) == 1:
        return True
    (first, form), *rest = batches
    if not all(other == form and len(leaves) == len(first) for leaves, other in rest):
        return False
    return all(_joinable(column, sizes) for column in zip(*(leaves for leaves, _ in batches), strict=True))


def _joinable(values: tuple[Any, ...], sizes: list[int]) -> bool:
    if all(isinstance(value, Tensor) for value in values):
        along = all(value.shape[:1] == (size,) for value, size in zip(values, sizes, strict=True))
        return along and len({value.shape[1:] for value in values}) == 1
    if all(_by_sample(value, size) for value, size in zip(values, sizes, strict=True)):
        return True
    return all(isinstance(value, PLAIN) and value == values[0] for value in values)


def _joined(values: tuple[Any, ...]) -> Any:
    """Return a copy of one batch's value, or of those of all batches, one after the other."""
    first, *rest = values
    if isinstance(first, list):
        return tree_map(_copy, [entry for value in values for entry in value])
    return torch.cat([value.detach() for value in values]) if rest and isinstance(first, Tensor) else _copy(first)


def _copy(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value
