"""Data as batches: (inputs, targets) in the forms that users have them, checked once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from secateur.errors import DataError
from secateur.structure.inputs import Call, as_call, batch_size, like_model, map_tensors, tensor_like_model, tensors

CHUNK = 2**14  # samples of a dataset given whole that are run at a time, at most


class Batch(NamedTuple):
    """Some samples, on the model's device."""

    call: Call
    targets: Any
    size: int


def batches(model: nn.Module, data: Any, chunk: int = CHUNK) -> Iterator[Batch]:
    """The data batch by batch, on the model's device and in its dtype; empty batches are left out.

    Args:
        model: What it is for.
        data: A pair of tensors is one dataset, (inputs, targets); anything else an iterable of such pairs, or
            of Hugging Face batches (a dict with ``labels``), that can be iterated again.
        chunk: Samples of a dataset given whole that make a batch.

    Yields:
        The batches that hold samples.

    Raises:
        DataError: There is no sample, the data can be read only once, or it holds NaN.
    """
    n = 0
    for position, item in enumerate(_items(data, chunk)):
        batch = _batch(model, item, position)
        n += batch.size
        if batch.size:
            yield batch
    if not n:
        raise DataError("data: there is no sample in it")


def first_inputs(data: Any) -> Any:
    """The inputs of the first batch, as `find_units` takes them.

    Raises:
        DataError: There is none.
    """
    if data is None:
        raise DataError("pass units=find_units(model, example_inputs): without data the inputs are unknown")
    for position, item in enumerate(_items(data)):
        if _batch(nn.Identity(), item, position).size:
            return data[0] if _is_pair(data) else _split(item, position)[0]
    raise DataError("data: there is no sample in it")


def _items(data: Any, chunk: int = CHUNK) -> Iterable[Any]:
    """The batches as they are given.

    Raises:
        DataError: They are no data, or can be read only once.
    """
    if isinstance(data, Tensor) or not hasattr(data, "__iter__"):
        what = "expected (inputs, targets) as tensors, or an iterable of such pairs"
        raise DataError(f"data: {what}; got {type(data).__name__}")
    if iter(data) is data:
        raise DataError(
            f"data: a {type(data).__name__} can be read only once; give a list, a DataLoader or a pair of tensors"
        )
    return _chunks(data, chunk) if _is_pair(data) else data


def _is_pair(data: Any) -> bool:
    """Whether this is one dataset and no iterable of batches."""
    if not isinstance(data, tuple | list) or len(data) != 2:
        return False
    inputs, targets = data
    return isinstance(targets, Tensor | None) and isinstance(inputs, Tensor | Mapping | tuple)


def _chunks(data: Any, chunk: int) -> Iterator[tuple[Any, Any]]:
    call, targets = as_call(data[0]), data[1]
    n = batch_size(call)
    _check_number(n, targets, "data")
    for start in range(0, n, chunk):
        here = slice(start, start + chunk)
        part = map_tensors(call, lambda t, here=here: t[here] if t.ndim else t)
        yield part[1] or part[0], targets[here] if isinstance(targets, Tensor) else targets


def _split(item: Any, position: int) -> tuple[Any, Any]:
    if isinstance(item, Mapping) and "labels" in item:
        return {name: value for name, value in item.items() if name != "labels"}, item["labels"]
    if isinstance(item, tuple | list) and len(item) == 2:
        return item[0], item[1]
    raise DataError(
        f"data: batch {position} is a {type(item).__name__}; expected (inputs, targets) or a dict with labels"
    )


def _batch(model: nn.Module, item: Any, position: int) -> Batch:
    inputs, targets = _split(item, position)
    call = like_model(model, as_call(inputs))
    for tensor in (*tensors(call), targets):
        if isinstance(tensor, Tensor) and tensor.is_floating_point() and not _finite(tensor):
            where = "targets" if tensor is targets else "inputs"
            raise DataError(f"data: the {where} of batch {position} hold NaN or infinite values")
    n = batch_size(call)
    _check_number(n, targets, f"data: batch {position}")
    return Batch(call, tensor_like_model(model, targets) if isinstance(targets, Tensor) else targets, n)


def _check_number(n: int, targets: Any, where: str) -> None:
    if isinstance(targets, Tensor) and targets.shape[:1] != (n,):
        given = f"{len(targets)} targets" if targets.ndim else "targets without a first dimension"
        raise DataError(f"{where}: {n} inputs, but {given}")


def _finite(tensor: Tensor) -> bool:
    """Whether all values are: their sum is, fast to tell, or it overflows."""
    return bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all())
