"""Data as batches: (inputs, targets) in the forms that users have them, checked once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import is_dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from secateur.errors import DataError
from secateur.objective.mask import data_and_mask, find_mask
from secateur.structure.capture import Captured
from secateur.structure.inputs import (
    Call,
    InputSpec,
    as_call,
    first_dimensions,
    like_model,
    map_tensors,
    tensor_like_model,
    tensors,
)
from secateur.structure.lookups import Lookups

CHUNK = 2**14  # samples of a dataset given whole that are run at a time, at most


class Batch(NamedTuple):
    """Some samples, on the model's device, which of their positions count [N, L], None for all, and the inputs' form.

    Where inputs cannot be divided into samples, those of a batch are counted by its targets: a graph's nodes.
    """

    call: Call
    targets: Any
    size: int
    mask: Tensor | None = None
    spec: InputSpec | None = None

    def take(self, rows: slice | Tensor) -> Call:
        """Return the inputs of some samples."""
        return (self.spec or InputSpec.of(self.call)).take(self.call, rows)


def batches(
    model: nn.Module, data: Any, chunk: int = CHUNK, captured: Captured | None = None, name: str = "data"
) -> Iterator[Batch]:
    """Yield the data batch by batch, on the model's device and in its dtype, without empty batches.

    Args:
        model: The model that takes the data.
        data: A pair of tensors is one dataset, (inputs, targets); anything else an iterable of such pairs, or
            of Hugging Face batches (a dict with ``labels``), that can be iterated again. Either may be `masked`.
        chunk: Samples of a dataset given whole that make a batch.
        captured: The model's graph, whose inputs those of every batch must be like; None where there is none yet.
        name: What an error calls the data.

    Yields:
        The batches that hold samples.

    Raises:
        DataError: There is no sample, the data can be read only once, it holds NaN, or a batch does not fit the graph.
    """
    n, lookups = 0, None if captured is None else Lookups(captured)
    data, mask = data_and_mask(data)
    items = _items(data, name)
    for position, item in enumerate(_chunks(data, chunk, name, captured) if is_pair(data) else items):
        batch = _counted(_batch(model, item, position, name), lookups, f"{name}: batch {position}")
        n += batch.size
        if batch.size:
            yield batch._replace(mask=find_mask(batch.call, batch.size, mask, f"{name}: batch {position}: "))
    if not n:
        raise DataError(f"{name}: there is no sample in it")


def first_inputs(data: Any) -> Any:
    """Return the inputs of the first batch, as `find_units` takes them.

    Raises:
        DataError: There is none.
    """
    if data is None:
        raise DataError("pass units=find_units(model, example_inputs): without data the inputs are unknown")
    data, _ = data_and_mask(data)
    for position, item in enumerate(_items(data)):
        if any(first_dimensions(_batch(nn.Identity(), item, position, "data").call).values()):
            return data[0] if is_pair(data) else _split(item, f"data: batch {position}")[0]
    raise DataError("data: there is no sample in it")


def _items(data: Any, name: str = "data") -> Iterable[Any]:
    """Return an iterable of the batches as the caller gave them, or of a dataset given whole.

    Raises:
        DataError: They are no data, or can be read only once.
    """
    iterable = require_batches(data, name)
    if is_pair(data):
        return [data]
    if isinstance(data, tuple | list) and len(data) == 2 and not isinstance(data[0], Mapping | tuple | list):
        raise DataError(f"{_expected(name)} ({type(data[0]).__name__}, {type(data[1]).__name__})")
    return iterable


def _expected(name: str) -> str:
    return f"{name}: expected (inputs, targets) as tensors, or an iterable of such pairs; got"


def require_batches(data: Any, name: str) -> Iterable[Any]:
    """Return an iterable that can be iterated again.

    Raises:
        DataError: It is none, or can be read only once.
    """
    if isinstance(data, Dataset) and not hasattr(data, "__iter__"):
        raise DataError(
            f"{_expected(name)} single samples, a {type(data).__name__}: put it into a torch.utils.data.DataLoader"
        )
    if isinstance(data, Tensor | Mapping) or not hasattr(data, "__iter__"):
        raise DataError(f"{_expected(name)} {type(data).__name__}")
    if iter(data) is data:
        raise DataError(
            f"{name}: a {type(data).__name__} can be read only once; give a list, a DataLoader or a pair of tensors"
        )
    iterable: Iterable[Any] = data
    return iterable


def is_pair(data: Any) -> bool:
    """Return whether this is one dataset and no iterable of batches."""
    if not isinstance(data, tuple | list) or len(data) != 2:
        return False
    inputs, targets = data
    return isinstance(targets, Tensor | None) and (isinstance(inputs, Tensor | Mapping | tuple) or is_dataclass(inputs))


def _chunks(data: Any, chunk: int, name: str, captured: Captured | None) -> Iterator[tuple[Any, Any]]:
    """Yield the pieces of a dataset given whole; all of it where it cannot be divided into samples."""
    call = map_tensors(as_call(data[0]), lambda t: _dense(t, name))
    targets = None if data[1] is None else _dense(data[1], name)
    spec = _spec(call) if captured is None else captured.spec
    n = spec.count(call, f"{name}: ")
    if spec.undivided:
        yield data
        return
    _check_number(n, targets, name)
    for start in range(0, n, chunk):
        rows = slice(start, start + chunk)
        part = spec.take(call, rows)
        yield part[1] or part[0], None if targets is None else targets[rows]


def _spec(call: Call) -> InputSpec:
    """Return the form of inputs that no graph was captured with yet: every first dimension is that of the samples."""
    return InputSpec.of(call, first_dimensions(call))


def _split(item: Any, where: str) -> tuple[Any, Any]:
    if isinstance(item, Mapping) and "labels" in item:
        return {name: value for name, value in item.items() if name != "labels"}, item["labels"]
    if isinstance(item, tuple | list) and len(item) == 2:
        return item[0], item[1]
    form = f"{type(item).__name__}{_contents(item)}"
    raise DataError(f"{where} is a {form}; expected (inputs, targets) or a dict with labels")


def _contents(item: Any) -> str:
    if isinstance(item, Mapping):
        return f" with {', '.join(map(str, item)) or 'nothing'}"
    return f" of {len(item)}" if isinstance(item, tuple | list) else ""


def _batch(model: nn.Module, item: Any, position: int, name: str) -> Batch:
    """Return one batch, its samples not counted yet, detached from whatever computed it.

    Raises:
        DataError: Its inputs are no tensors, or it holds NaN.
    """
    where = f"{name}: batch {position}"
    inputs, targets = _split(item, where)
    if not (isinstance(inputs, Tensor | Mapping | tuple | list) or is_dataclass(inputs)):
        form = "a tensor, a tuple of positional inputs or a dict of keyword inputs"
        raise DataError(f"{where}: expected as inputs {form}, got {type(inputs).__name__}")
    call = like_model(model, map_tensors(as_call(inputs), lambda t: _dense(t, where)))
    targets = tensor_like_model(model, _dense(targets, where)) if isinstance(targets, Tensor) else targets
    for tensor in (*tensors(call), targets):
        if isinstance(tensor, Tensor) and tensor.is_floating_point() and not _finite(tensor):
            which = "targets" if tensor is targets else "inputs"
            if which == "inputs" and _is_mask(tensor):
                continue
            raise DataError(f"{name}: the {which} of batch {position} hold NaN or infinite values")
    return Batch(call, targets, 0)


def _counted(batch: Batch, lookups: Lookups | None, where: str) -> Batch:
    """Return the batch as the graph takes it, with its number of samples.

    Raises:
        DataError: It does not fit the graph, or inputs and targets are not as many.
    """
    call, sizes = batch.call, first_dimensions(batch.call)
    if sizes and not any(sizes.values()):
        return batch
    spec = _spec(call) if lookups is None else lookups.captured.spec
    if lookups is not None:
        call = lookups.captured.match(call, f"{where}: ")
        lookups.check(call, f"{where}: ")
    n = spec.count(call, f"{where}: ")
    if spec.undivided:
        n = len(batch.targets) if isinstance(batch.targets, Tensor) and batch.targets.ndim else 1
    _check_number(n, batch.targets, where)
    return Batch(call, batch.targets, n, None, spec)


def _check_number(n: int, targets: Any, where: str) -> None:
    if isinstance(targets, Tensor) and targets.shape[:1] != (n,):
        got = f"{len(targets)} targets" if targets.ndim else "targets without a first dimension"
        raise DataError(f"{where}: {n} inputs, but {got}")


def _dense(tensor: Tensor, where: str) -> Tensor:
    """Return a tensor whose values alone matter: without what computed it, and made outside of inference mode.

    Raises:
        DataError: It is sparse or nested.
    """
    if tensor.layout != torch.strided:
        raise DataError(f"{where}: expected dense tensors, got one of layout {tensor.layout}")
    return tensor.clone() if tensor.is_inference() else tensor.detach()


def _finite(tensor: Tensor) -> bool:
    """Return whether all values are finite: their sum is, which is fast to tell, or it overflows."""
    return bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all())


def _is_mask(tensor: Tensor) -> bool:
    """Return whether a tensor is what is added to scores: 0 where they count, −∞ where they do not."""
    return bool((tensor == 0).any()) and bool(((tensor == 0) | tensor.isneginf()).all())
