"""Outputs and targets that losses with a name take."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from secateur.errors import DataError
from secateur.structure.exporting.outputs import flatten_outputs

SUM_TOLERANCE = 1e-3  # by which probabilities, often rounded ones, may miss a sum of 1


def logits_of(outputs: Any) -> Tensor:
    """Return the tensor that a named loss takes: the outputs' `logits`, else the only tensor among them.

    Raises:
        DataError: There is none, there are several, or it does not hold floating-point numbers.

    >>> logits_of((torch.zeros(1), {"state": torch.ones(1)}))
    Traceback (most recent call last):
    secateur.errors.DataError: loss: a loss with a name takes one tensor, the model returns 2 (outputs[0], outputs[1]);
    """
    entries = _entries(outputs)
    by_place = {place: tensors_of(value) for place, value in entries.items()}
    tensors = tensors_of(entries.get("['logits']")) or [tensor for entry in by_place.values() for tensor in entry]
    if not tensors:
        raise DataError(f"loss: expected a tensor of outputs, got {type(outputs).__name__}; pass a function instead")
    if len(tensors) > 1:
        places = [f"outputs{place}" for place, entry in by_place.items() if entry]
        raise DataError(
            f"loss: a loss with a name takes one tensor, the model returns {len(tensors)} ({', '.join(places)}); pick "
            f"one, loss=lambda outputs, targets: torch.nn.functional.cross_entropy({places[0]}, targets)"
        )
    if not tensors[0].is_floating_point():
        raise DataError(f"loss: expected outputs of floating-point numbers, got {tensors[0].dtype}")
    return tensors[0]


def has_logits(outputs: Any) -> bool:
    """Return whether the outputs come with a name, and there are `logits` among them."""
    return "['logits']" in _entries(outputs)


def outputs_of(outputs: Any) -> list[Tensor]:
    """Return the outputs' `logits`, else all tensors of floating-point numbers among them.

    Raises:
        DataError: There is none.
    """
    tensors = [tensor for tensor in tensors_of(outputs) if tensor.is_floating_point()]
    if has_logits(outputs):
        return [logits_of(outputs)]
    if not tensors:
        raise DataError(f"loss: expected outputs of floating-point numbers, got {type(outputs).__name__} without any")
    return tensors


def _entries(outputs: Any) -> dict[str, Any]:
    """Return what a model returns by where it is found: "[0]", "['logits']", "" for a single value."""
    outputs = outputs._asdict() if isinstance(outputs, tuple) and hasattr(outputs, "_asdict") else outputs
    if isinstance(outputs, Mapping):
        return {f"[{name!r}]": value for name, value in outputs.items()}
    if dataclasses.is_dataclass(outputs):
        return {f"[{field.name!r}]": getattr(outputs, field.name) for field in dataclasses.fields(outputs)}
    if isinstance(outputs, tuple | list):
        return {f"[{i}]": value for i, value in enumerate(outputs)}
    return {"": outputs}


def tensors_of(value: Any) -> list[Tensor]:
    """Return all tensors among what a model returns, or among targets."""
    return [leaf for leaf in flatten_outputs(value)[0] if isinstance(leaf, Tensor)]


def tensor_of(targets: Any, name: str) -> Tensor:
    """Return the targets of a loss with this name.

    Raises:
        DataError: They are no tensor, or one of complex numbers.
    """
    if not isinstance(targets, Tensor) or targets.is_complex():
        got = targets.dtype if isinstance(targets, Tensor) else type(targets).__name__
        raise DataError(f"{name}: expected a tensor of targets, got {got}")
    return targets


def classes_of(outputs: Tensor, targets: Tensor, name: str) -> Tensor:
    """Return the targets, whole numbers of any type, as int64.

    Raises:
        DataError: Their shape is not that of one class for each sample, or there is no such class.
    """
    if outputs.ndim < 2 or targets.shape != (outputs.shape[0], *outputs.shape[2:]):
        raise DataError(
            f"{name}: class targets of shape {tuple(targets.shape)} for outputs {tuple(outputs.shape)}; "
            "targets that are no classes must be floating-point numbers"
        )
    classes, targets = outputs.shape[1], targets.long()
    if targets.numel() and not (0 <= targets.min() and targets.max() < classes):
        span = f"{targets.min()} to {targets.max()}"
        raise DataError(f"{name}: class targets must be in 0 to {classes - 1} for {classes} outputs, got {span}")
    return targets


def check_probabilities(targets: Tensor) -> None:
    """Refuse probabilities [N, C, ...] below 0, or whose sum over the classes is not 1.

    Raises:
        DataError: There are such; it names the worst.
    """
    if not targets.numel():
        return
    sums = targets.sum(1, dtype=torch.promote_types(targets.dtype, torch.float32)).reshape(len(targets), -1)
    gaps, lowest = (sums - 1).abs().amax(1), targets.reshape(len(targets), -1).amin(1)
    rule = "cross_entropy: probabilities must be at least 0 and sum to 1 over the classes"
    if bool(lowest.min() < 0):
        raise DataError(f"{rule}; sample {int(lowest.argmin())} of a batch has one of {lowest.min():g}")
    if bool(gaps.max() > max(SUM_TOLERANCE, torch.finfo(targets.dtype).eps)):
        sample = int(gaps.argmax())
        total = sums[sample, (sums[sample] - 1).abs().argmax()]
        raise DataError(f"{rule}; those of sample {sample} of a batch sum to {total:g}")
