"""Losses by name, and accuracy."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from secateur.errors import ArgumentError, DataError, SecateurError, choose
from secateur.objective.kept_outputs import KEPT, distribution, divergences, gaps, output
from secateur.objective.loss_inputs import check_probabilities, classes_of, logits_of, tensor_of, tensors_of
from secateur.structure.exporting.outputs import flatten_outputs

LossFunction = Callable[[Any, Any], Tensor]


def cross_entropy(outputs: Any, targets: Tensor) -> Tensor:
    """Return −log softmax(o)_t, mean over samples; o are logits [N, C, ...], t classes in 0 … C − 1 or probabilities.

    Raises:
        DataError: A target is no class, probabilities do not sum to 1, or there are no targets.
    """
    logits = logits_of(outputs)
    if not tensor_of(targets, "cross_entropy").is_floating_point():
        return F.cross_entropy(_precise(logits), classes_of(logits, targets, "cross_entropy"))
    if targets.shape != logits.shape or logits.ndim < 2:
        raise DataError(
            f"cross_entropy: expected whole-number classes or probabilities of shape {tuple(logits.shape)}, "
            f"got {targets.dtype} of shape {tuple(targets.shape)}; targets.long() makes classes of whole numbers"
        )
    check_probabilities(targets)
    return F.cross_entropy(_precise(logits), _precise(targets))


def binary_cross_entropy(outputs: Any, targets: Tensor) -> Tensor:
    """Return −t log σ(o) − (1 − t) log(1 − σ(o)), mean over all outputs; o are logits, t in [0, 1].

    Raises:
        DataError: A target lies outside, or there is another number of them than of outputs.
    """
    logits = logits_of(outputs)
    column = logits.shape[:-1] if logits.shape[-1:] == (1,) else logits.shape
    if tensor_of(targets, "binary_cross_entropy").shape not in (logits.shape, column):
        raise DataError(f"binary_cross_entropy: {tuple(targets.shape)} targets for {tuple(logits.shape)} outputs")
    if targets.numel() and not (0 <= targets.min() and targets.max() <= 1):
        span = f"{targets.min().item():g} to {targets.max().item():g}"
        raise DataError(f"binary_cross_entropy: targets must be in 0 to 1, got {span}")
    precise = _precise(logits)
    return F.binary_cross_entropy_with_logits(precise, targets.reshape(logits.shape).to(precise.dtype))


def squared_error(outputs: Any, targets: Tensor) -> Tensor:
    """Return ½ Σ_i (o_i − t_i)², mean over samples (003 eq. 5); integer targets [N] are classes, taken as one-hot.

    Raises:
        DataError: A target is no class, or targets and outputs differ in shape.
    """
    logits = logits_of(outputs)
    return 0.5 * (_precise(logits) - _values(targets, logits)).square().reshape(len(logits), -1).sum(1).mean()


def _precise(values: Tensor) -> Tensor:
    """Return values of half precision in float32: in a mean of two digits no two units would differ."""
    return values.float() if values.element_size() < 4 else values


def _values(targets: Tensor, outputs: Tensor) -> Tensor:
    """Return targets of the outputs' shape; classes become one-hot.

    Raises:
        DataError: As `squared_error`.
    """
    if not tensor_of(targets, "squared_error").is_floating_point():
        classes = classes_of(outputs, targets, "squared_error")
        targets = F.one_hot(classes, outputs.shape[1]).movedim(-1, 1)
    if targets.shape != outputs.shape:
        raise DataError(f"squared_error: targets of shape {tuple(targets.shape)}, outputs of {tuple(outputs.shape)}")
    return targets


LOSSES: dict[str, LossFunction] = {
    "cross_entropy": cross_entropy,
    "binary_cross_entropy": binary_cross_entropy,
    "squared_error": squared_error,
}
NAMED: dict[str, LossFunction] = LOSSES | KEPT  # those whose targets are the original's outputs, too


def find_loss(loss: str | LossFunction) -> LossFunction:
    """Return a loss by name, or the function given.

    Raises:
        ArgumentError: There is none of this name, or it is a class.
    """
    if isinstance(loss, type):
        raise ArgumentError(f"loss: {loss.__name__} is a class; give an instance, {loss.__name__}()")
    return loss if callable(loss) else choose("loss", loss, NAMED)


def require_loss(loss: LossFunction | None) -> LossFunction:
    """Return the loss, or refuse to go on without one.

    Raises:
        DataError: There is none.
    """
    if loss is None:
        raise DataError("this needs a loss: a function(outputs, targets) or its name; None was given")
    return loss


def loss_of_batch(loss: LossFunction, outputs: Any, targets: Any) -> Tensor:
    """Return the loss of one batch.

    Raises:
        DataError: As `value_of`, or it is NaN.
    """
    value = value_of(loss, outputs, targets)
    if bool(value.isnan()):
        raise DataError("loss: it is NaN on this data")
    return value


def value_of(loss: LossFunction, outputs: Any, targets: Any) -> Tensor:
    """Return the loss of some samples, NaN or not.

    Raises:
        DataError: It is not one number; the function fails, or changes what it is given.
    """
    before = {"outputs": _versions(outputs), "targets": _versions(targets)}
    value = _call(loss, outputs, targets)
    if not isinstance(value, Tensor) or value.numel() != 1 or value.is_complex():
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        got = "a complex one" if isinstance(value, Tensor) and value.is_complex() else got
        raise DataError(f"loss: expected the mean over the batch, one number, got {got}")
    for name, after in (("outputs", _versions(outputs)), ("targets", _versions(targets))):
        if after != before[name]:
            raise DataError(f"loss: it changes its {name} in place; let it work on a copy, {name}.clone()")
    return value.reshape(())


def _call(loss: LossFunction, outputs: Any, targets: Any) -> Any:
    try:
        return loss(outputs, targets)
    except (SecateurError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        line = (str(error).strip() or type(error).__name__).split("\n")[0]
        raise DataError(f"loss: it fails on this data ({type(error).__name__}: {line})") from error


def _versions(value: Any) -> list[int]:
    """Return how often each tensor was changed in place; nobody counts it of those made in inference mode."""
    return [tensor._version for tensor in tensors_of(value) if not tensor.is_inference()]


def check_start(loss: float | None) -> None:
    """Refuse an infinite loss of the network as trained; with units removed it may become infinite.

    Raises:
        DataError: It is.
    """
    if loss is not None and not math.isfinite(loss):
        raise DataError("loss: it is infinite on this data")


def stacked(loss: LossFunction, outputs: Any, targets: Any, own: bool = False) -> Callable[[Any, int], Tensor]:
    """Return a function of C batches' outputs, as one batch, and C: it gives their losses [C] for shared targets.

    Args:
        loss: The loss of one batch.
        outputs: The outputs of one batch, checked by `loss_of_batch`.
        targets: The targets of one batch.
        own: Whether the outputs of the C batches may be overwritten.
    """
    if loss is squared_error:
        values = _precise(_values(targets, logits_of(outputs)).to(logits_of(outputs).dtype))
        return lambda out, count: _squared(_precise(logits_of(out)), values, count, own)
    if loss is cross_entropy:
        values = _precise(targets) if targets.is_floating_point() else targets.long()
        return lambda out, count: _means(F.cross_entropy, _precise(logits_of(out)), values, count)
    if loss is binary_cross_entropy:
        values = targets.reshape(logits_of(outputs).shape).to(_precise(logits_of(outputs)).dtype)
        return lambda out, count: _means(F.binary_cross_entropy_with_logits, _precise(logits_of(out)), values, count)
    if loss is output:
        return lambda out, count: _half_squares(gaps(out, targets).reshape(count, -1)) / len(targets.values)
    if loss is distribution:
        return lambda out, count: divergences(out, targets).reshape(count, -1).mean(1).double()
    return lambda out, count: _one_by_one(loss, out, targets, count)


def _squared(outputs: Tensor, values: Tensor, count: int, own: bool) -> Tensor:
    stacked = outputs.reshape(count, *values.shape)
    differences = stacked.sub_(values) if own else stacked - values
    return _half_squares(differences.reshape(count, -1)) / len(values)


def _half_squares(rows: Tensor) -> Tensor:
    """Return ½ Σ x² of each row."""
    if rows.element_size() < 4:
        rows = rows.float()  # the sum over a batch leaves the range of float16
    sums = [torch.dot(row, row) for row in rows]  # several times faster than square and sum
    return torch.stack(sums).double() * 0.5


def _means(loss: Callable[..., Tensor], outputs: Tensor, targets: Tensor, count: int) -> Tensor:
    repeated = targets.expand(count, *targets.shape).flatten(0, 1)
    return loss(outputs, repeated, reduction="none").reshape(count, -1).mean(1).double()


def _one_by_one(loss: LossFunction, outputs: Any, targets: Any, count: int) -> Tensor:
    leaves, form = flatten_outputs(outputs)
    pieces = [_pieces(leaf, count) for leaf in leaves]
    each = (loss_of_batch(loss, form.unflatten(p[i] for p in pieces), targets) for i in range(count))
    return torch.stack([value.double() for value in each])


def _pieces(value: Any, count: int) -> Sequence[Any]:
    return value.chunk(count) if isinstance(value, Tensor) and value.ndim else [value] * count


def differentiable(loss: LossFunction, outputs: Any, targets: Any) -> Tensor:
    """Return the loss of one batch whose outputs ask for a derivative.

    Raises:
        DataError: As `loss_of_batch`, or the loss has none, or is infinite.
    """
    value = loss_of_batch(loss, outputs, targets)
    if bool(value.isinf()):
        raise DataError("loss: it is infinite on this data")
    if not value.requires_grad and any(o.requires_grad for o in tensors_of(outputs)):
        raise DataError("loss: it has no derivative in the outputs; criterion='oracle' needs none")
    return value


def correct(loss: LossFunction, outputs: Any, targets: Any) -> Tensor | None:
    """Return which predictions are right: argmax over dimension 1, or logit > 0; None where there are no classes."""
    try:
        logits = logits_of(outputs)
    except DataError:
        return None
    if not isinstance(targets, Tensor) or targets.is_complex():
        return None
    if loss is not binary_cross_entropy and logits.ndim > 1 and logits.shape[1] > 1:
        if not targets.is_floating_point() and targets.shape == (logits.shape[0], *logits.shape[2:]):
            return logits.argmax(1) == targets.long()
        if targets.shape == logits.shape and _one_hot(targets):
            return logits.argmax(1) == targets.argmax(1)
        return None
    if loss is squared_error or logits.numel() != targets.numel() or not _binary(targets):
        return None
    return (logits > 0) == targets.reshape(logits.shape).to(torch.bool)


def _binary(targets: Tensor) -> bool:
    return bool(((targets == 0) | (targets == 1)).all())


def _one_hot(targets: Tensor) -> bool:
    return _binary(targets) and bool((targets.sum(1) == 1).all())
