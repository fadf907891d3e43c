"""A model's inputs: the form of example inputs, and a specification that outlives them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from secateur.errors import ArgumentError, DataError, ModelError

Call = tuple[tuple[Any, ...], dict[str, Any]]


def as_call(inputs: Any) -> Call:
    """Return example inputs as (args, kwargs): a tensor, a tuple of positional or a dict of keyword inputs.

    Raises:
        ArgumentError: They have another form.
    """
    if isinstance(inputs, Tensor):
        return (inputs,), {}
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    if isinstance(inputs, Sequence) and not isinstance(inputs, str):
        return tuple(inputs), {}
    raise ArgumentError(
        "example_inputs: expected a tensor, a tuple of positional inputs or a dict of keyword inputs, "
        f"got {type(inputs).__name__}"
    )


def map_tensors(call: Call, change: Any) -> Call:
    """Return the call with `change(tensor)` in place of each tensor."""
    args, kwargs = call

    def changed(value: Any) -> Any:
        return change(value) if isinstance(value, Tensor) else value

    return tuple(map(changed, args)), {name: changed(value) for name, value in kwargs.items()}


def tensors(call: Call) -> list[Tensor]:
    """Return the tensors of a call, in order."""
    return [value for value in (*call[0], *call[1].values()) if isinstance(value, Tensor)]


def batch_size(call: Call, where: str = "") -> int:
    """Return the number of samples: the first dimension of every tensor that has one.

    Raises:
        DataError: It differs from tensor to tensor, or there is none.
    """
    sizes = {len(tensor) for tensor in tensors(call) if tensor.ndim}
    if len(sizes) != 1:
        got = sorted(sizes) or "none"
        raise DataError(f"{where}inputs: expected one number of samples in the first dimension, got {got}")
    return sizes.pop()


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return every parameter and buffer by name, tied ones under the first."""
    return dict(model.named_parameters()) | dict(model.named_buffers())


def sample_weight(model: nn.Module) -> Tensor:
    """Return the model's first floating-point parameter: device and dtype follow it."""
    sized = (p for p in model.parameters() if not nn.parameter.is_lazy(p))
    return next((p.detach() for p in sized if p.is_floating_point()), torch.empty(0))


def tensor_like_model(model: nn.Module, tensor: Tensor) -> Tensor:
    """Return the tensor on the model's device, in the model's dtype if it is of floating-point numbers."""
    like = sample_weight(model)
    return tensor.to(like.device, like.dtype if tensor.is_floating_point() else tensor.dtype)


def like_model(model: nn.Module, call: Call) -> Call:
    """Return the call with all its tensors on the model's device and in its dtype."""
    return map_tensors(call, lambda tensor: tensor_like_model(model, tensor))


class Free(NamedTuple):
    """A dimension of any size: the same size wherever the name is the same."""

    name: str
    size: int  # the example's


@dataclass(frozen=True)
class TensorSpec:
    """One tensor: its dtype, its shape without the batch (None: no batch either), its range if of integers."""

    dtype: str
    shape: tuple[int | Free, ...] | None
    low: int = 0
    high: int = 0
    rows: Tensor | None = field(default=None, compare=False, repr=False)  # integers of the example; not written

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Return random normal values; of integers, which often mean something, the example's, or any in range."""
        if self.rows is not None:
            return self.rows[torch.arange(n) % len(self.rows)]
        dtype = getattr(torch, self.dtype)
        shape = (
            () if self.shape is None else (n, *(size.size if isinstance(size, Free) else size for size in self.shape))
        )
        if dtype.is_floating_point:
            return torch.randn(shape, generator=generator, dtype=dtype)
        return torch.randint(self.low, self.high + 1, shape, generator=generator).to(dtype)

    @property
    def free(self) -> dict[int, Free]:
        """The dimensions of any size, counted with that of the samples."""
        return {dim: size for dim, size in enumerate(self.shape or (), 1) if isinstance(size, Free)}

    def match(self, tensor: Tensor, name: str, sizes: dict[str, tuple[int, str]]) -> Tensor:
        """Return a tensor of this form, whole numbers of a smaller type in this one.

        Args:
            tensor: Any tensor.
            name: What errors call it.
            sizes: The sizes that free dimensions have so far, and where; those of this tensor are added.

        Raises:
            DataError: It has another shape, or holds another kind of numbers.
        """
        dtype = getattr(torch, self.dtype)
        if not self._fits(tensor.shape):
            wanted = () if self.shape is None else ("samples", *self.shape)
            described = ", ".join("any" if isinstance(size, Free) else str(size) for size in wanted)
            raise DataError(f"{name} of shape {tuple(tensor.shape)}, the model was captured for ({described})")
        for dim, free in self.free.items():
            size, place = sizes.setdefault(free.name, (tensor.shape[dim], f"dimension {dim} of {name}"))
            if tensor.shape[dim] != size:
                raise DataError(f"dimension {dim} of {name} is {tensor.shape[dim]}, it must be that of {place}, {size}")
        if tensor.dtype == dtype or (tensor.is_floating_point() and dtype.is_floating_point):
            return tensor
        if not _holds(dtype, tensor.dtype):
            raise DataError(f"{name} of {tensor.dtype}, the model was captured for {dtype}")
        return tensor.to(dtype)

    def _fits(self, shape: torch.Size) -> bool:
        if self.shape is None or not shape:
            return self.shape is None and not shape
        pairs = zip(self.shape, shape[1:], strict=False)
        return len(self.shape) == len(shape) - 1 and all(isinstance(size, Free) or size == now for size, now in pairs)


def _holds(dtype: torch.dtype, inner: torch.dtype) -> bool:
    """Return whether both are types of whole numbers, and one has all those of the other."""
    if any(either.is_floating_point or either.is_complex or either == torch.bool for either in (dtype, inner)):
        return False
    wide, narrow = torch.iinfo(dtype), torch.iinfo(inner)
    return wide.min <= narrow.min and narrow.max <= wide.max


@dataclass(frozen=True)
class InputSpec:
    """The inputs' form: positional and keyword ones, each a `TensorSpec` or a plain value.

    Attributes:
        args: The positional ones.
        kwargs: The keyword ones.
        fixed: The only number of samples, where the model's code fixes it.
        samples: The number that the example had; not part of what is written.
    """

    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...]
    fixed: int | None = None
    samples: int | None = field(default=None, compare=False)

    @classmethod
    def of(cls, call: Call) -> InputSpec:
        """Return the specification of example inputs.

        Raises:
            ArgumentError: One of them is neither a tensor nor a plain value, or there is no tensor.
        """
        args, kwargs = map_tensors(call, _describe)
        for where, value in (*enumerate(args), *kwargs.items()):
            if not isinstance(value, TensorSpec | int | float | str | None):
                raise ArgumentError(f"input {where!r}: expected a tensor or a plain value, got {type(value).__name__}")
        if not tensors(call):
            raise ArgumentError("example_inputs: there is no tensor among them")
        samples = next((len(tensor) for tensor in tensors(call) if tensor.ndim), None)
        return cls(args, tuple(kwargs.items()), samples=samples)

    def in_order(self, keywords: Sequence[str]) -> list[Any]:
        """Return the positional ones, then the keyword ones in this order."""
        return [*self.args, *(dict(self.kwargs)[name] for name in keywords)]

    @property
    def entries(self) -> dict[int | str, Any]:
        """All of them, by position or keyword."""
        return {**dict(enumerate(self.args)), **dict(self.kwargs)}

    @property
    def free(self) -> dict[str, int]:
        """The sizes that the example has in dimensions of any size, by their name."""
        return {f.name: f.size for v in self.entries.values() if isinstance(v, TensorSpec) for f in v.free.values()}

    def with_sizes(self, change: Callable[[int | str, int, int | Free], int | Free]) -> InputSpec:
        """Return the form with other sizes.

        Args:
            change: The new size, of position or keyword, dimension (0: the samples) and size.
        """

        def changed(key: int | str, value: Any) -> Any:
            if not isinstance(value, TensorSpec) or value.shape is None:
                return value
            return replace(value, shape=tuple(change(key, dim, size) for dim, size in enumerate(value.shape, 1)))

        args = tuple(changed(key, value) for key, value in enumerate(self.args))
        return replace(self, args=args, kwargs=tuple((key, changed(key, value)) for key, value in self.kwargs))

    def match(self, call: Call, where: str = "", sizes: dict[str, tuple[int, str]] | None = None) -> Call:
        """Return the call if it has the form of the example.

        Args:
            call: On the model's device and in its dtype.
            where: The beginning of an error's text.
            sizes: A place for the sizes that free dimensions have, and where.

        Raises:
            DataError: There are other inputs, or one has another shape or holds another kind of numbers.
        """
        (args, kwargs), form = call, dict(self.kwargs)
        if len(args) != len(self.args) or kwargs.keys() != form.keys():
            got = f"{len(args)} positional, keywords {sorted(kwargs)}"
            wanted = f"{len(self.args)} positional, keywords {sorted(form)}"
            raise DataError(f"{where}inputs: expected {wanted} as in the example, got {got}")
        many = len(args) + len(kwargs) > 1
        names = {key: f"{where}inputs[{key!r}]" if many else f"{where}inputs" for key in (*range(len(args)), *kwargs)}
        sizes = {} if sizes is None else sizes
        matched = (
            tuple(_match(then, args[i], names[i], sizes) for i, then in enumerate(self.args)),
            {key: _match(form[key], now, names[key], sizes) for key, now in kwargs.items()},
        )
        if self.fixed and batch_size(call) != self.fixed:
            raise DataError(
                f"{where}inputs: the model's code fixes the batch at {self.fixed} samples, got {batch_size(call)}; "
                "give all data in batches of that size"
            )
        return matched

    @classmethod
    def guess(cls, model: nn.Module) -> InputSpec:
        """Return [samples, features] of the only kind of model where that is no guess: one input, a dense layer first.

        Raises:
            ModelError: The model does not start with a dense layer, or has several inputs.
        """
        required = [p for p in inspect.signature(model.forward).parameters.values() if p.default is p.empty]
        first = next((m for m in model.modules() if next(m.parameters(recurse=False), None) is not None), None)
        if len(required) != 1 or not isinstance(first, nn.Linear):
            raise ModelError("the model's inputs are not known: give example inputs, to Plan.from_kept or as --data")
        return cls((TensorSpec("float32", (first.in_features,)),), ())

    def sample(self, model: nn.Module, n: int = 8, seed: int = 0) -> Call:
        """Return random inputs of this form, n samples where that is free, on the model's device and in its dtype."""
        generator = torch.Generator().manual_seed(seed)

        def sampled(value: Any) -> Any:
            return value.sample(self.fixed or n, generator) if isinstance(value, TensorSpec) else value

        return like_model(model, (tuple(map(sampled, self.args)), {k: sampled(v) for k, v in self.kwargs}))

    def to_json(self) -> dict[str, Any]:
        """Return plain data; `from_json` reads it."""
        plain = {"args": [_plain(v) for v in self.args], "kwargs": {k: _plain(v) for k, v in self.kwargs}}
        return plain if self.fixed is None else plain | {"samples": self.fixed}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> InputSpec:
        """Return the specification that `to_json` wrote."""
        kwargs = tuple((name, _parse(value)) for name, value in data["kwargs"].items())
        return cls(tuple(map(_parse, data["args"])), kwargs, data.get("samples"))


def check_as_captured(where: str, tensor: bool, then: Any, now: Any) -> None:
    """Check that what a graph was captured with is no other value later, only a tensor of other values.

    Raises:
        DataError: It is.
    """
    same = isinstance(now, Tensor) if tensor else not isinstance(now, Tensor) and now == then
    if not same:
        got = "a tensor" if isinstance(now, Tensor) else repr(now)
        raise DataError(f"{where}: captured with {'a tensor' if tensor else repr(then)}, got {got}")


def _match(then: Any, now: Any, name: str, sizes: dict[str, tuple[int, str]]) -> Any:
    """Return a value that has the form of what the graph was captured with.

    Raises:
        DataError: It has not.
    """
    check_as_captured(name, isinstance(then, TensorSpec), then, now)
    return then.match(now, name, sizes) if isinstance(then, TensorSpec) else now


def _describe(tensor: Tensor) -> TensorSpec:
    shape = tuple(tensor.shape[1:]) if tensor.ndim else None
    dtype = str(tensor.dtype).removeprefix("torch.")
    if tensor.is_complex():
        raise ArgumentError(f"inputs: {dtype} is not supported, only floating-point numbers, integers and bools")
    if tensor.is_floating_point() or not tensor.numel():
        return TensorSpec(dtype, shape)
    rows = tensor[:8].detach().cpu().clone() if tensor.ndim else None
    return TensorSpec(dtype, shape, int(tensor.long().min()), int(tensor.long().max()), rows)


def _plain(value: Any) -> Any:
    if not isinstance(value, TensorSpec):
        return {"value": value}
    span = {} if value.low == value.high == 0 else {"low": value.low, "high": value.high}
    return {"dtype": value.dtype, "shape": value.shape and list(value.shape), **span}


def _parse(data: Mapping[str, Any]) -> Any:
    if "value" in data:
        return data["value"]
    shape = (
        None
        if data["shape"] is None
        else tuple(Free(*size) if isinstance(size, list) else size for size in data["shape"])
    )
    return TensorSpec(**{**data, "shape": shape})
