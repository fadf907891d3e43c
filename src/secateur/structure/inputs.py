"""A model's inputs: the form of example inputs, and a specification that outlives them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from secateur.errors import ArgumentError, DataError, ModelError
from secateur.structure.calls.tensor_spec import Free, TensorSpec, describe_tensor
from secateur.structure.calls.trees import leaves_of, map_leaves, pack, tree_from_json, tree_to_json, unpack

Call = tuple[tuple[Any, ...], dict[str, Any]]


def as_call(inputs: Any) -> Call:
    """Return example inputs as (args, kwargs): a tensor, a tuple of positional or a dict of keyword inputs.

    Each input may hold tensors at any depth, in lists, tuples, dicts, dataclasses and mappings, which are packed
    (see `secateur.structure.calls.trees`). A dataclass alone is the one positional input.

    Raises:
        ArgumentError: They have another form.
    """
    if isinstance(inputs, Tensor):
        return (inputs,), {}
    if isinstance(inputs, Mapping):
        return (), {name: pack(value) for name, value in inputs.items()}
    if is_dataclass(inputs) and not isinstance(inputs, type):
        return (pack(inputs),), {}
    if isinstance(inputs, Sequence) and not isinstance(inputs, str):
        return tuple(map(pack, inputs)), {}
    raise ArgumentError(
        "example_inputs: expected a tensor, a tuple of positional inputs or a dict of keyword inputs, "
        f"got {type(inputs).__name__}"
    )


def map_tensors(call: Call, change: Callable[[Tensor], Any]) -> Call:
    """Return the call with `change(tensor)` in place of each tensor."""
    mapped: Call = tree_map_only(Tensor, change, call)
    return mapped


def call_on_copies(model: nn.Module, call: Call) -> Any:
    """Return what the model returns; a forward that works in place does so on copies of the inputs."""
    args, kwargs = unpack(map_tensors(call, Tensor.clone))
    return model(*args, **kwargs)


def map_inputs(call: Call, change: Callable[[str, Any], Any]) -> Call:
    """Return the call with `change(path, leaf)` in place of each tensor and plain value."""
    return map_leaves(change, call[0]), map_leaves(change, call[1])


def input_leaves(call: Call) -> dict[str, Any]:
    """Return the tensors and plain values of a call by their path, the positional ones first: "[0]", "['x'].mask"."""
    return leaves_of(call[0]) | leaves_of(call[1])


def tensors(call: Call) -> list[Tensor]:
    """Return the tensors of a call, in order."""
    return [value for value in input_leaves(call).values() if isinstance(value, Tensor)]


def first_dimensions(call: Call) -> dict[str, int]:
    """Return the size of the first dimension of each tensor that has one, by its path."""
    return {path: len(leaf) for path, leaf in input_leaves(call).items() if isinstance(leaf, Tensor) and leaf.ndim}


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


@dataclass(frozen=True)
class InputSpec:
    """The inputs' form: positional and keyword ones, packed, each leaf a `TensorSpec` or a plain value.

    Attributes:
        args: The positional ones.
        kwargs: The keyword ones.
        fixed: The only number of samples, where the model's code fixes it; 1 where inputs cannot be divided into
            samples (a graph), and all tensors are shared.
        samples: The number that the example had; not part of what is written.
    """

    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...]
    fixed: int | None = None
    samples: int | None = field(default=None, compare=False)

    @classmethod
    def of(cls, call: Call, per_sample: Collection[str] | None = None) -> InputSpec:
        """Return the specification of example inputs.

        Args:
            call: The inputs.
            per_sample: The paths of the tensors whose first dimension is that of the samples; none where the inputs
                cannot be divided; None for all, or where these are not as many for none.

        Raises:
            ArgumentError: One of them is neither a tensor nor a plain value, or there is no tensor.
        """
        sizes = first_dimensions(call)
        if per_sample is None:
            per_sample = sizes if len(set(sizes.values())) == 1 else ()

        def described(path: str, leaf: Any) -> Any:
            if isinstance(leaf, Tensor):
                return describe_tensor(leaf, shared=path not in per_sample)
            if not isinstance(leaf, int | float | str | None):
                raise ArgumentError(f"inputs{path}: expected a tensor or a plain value, got {type(leaf).__name__}")
            return leaf

        args, kwargs = map_inputs(call, described)
        if not tensors(call):
            raise ArgumentError("example_inputs: there is no tensor among them")
        samples = next((sizes[path] for path in sizes if path in per_sample), 1 if sizes else None)
        return cls(args, tuple(kwargs.items()), None if per_sample or not sizes else 1, samples)

    @property
    def leaves(self) -> dict[str, Any]:
        """The `TensorSpec`s and plain values by their path."""
        return input_leaves((self.args, dict(self.kwargs)))

    @property
    def tensors(self) -> dict[str, TensorSpec]:
        """The tensors by their path."""
        return {path: leaf for path, leaf in self.leaves.items() if isinstance(leaf, TensorSpec)}

    @property
    def undivided(self) -> bool:
        """Whether inputs cannot be divided into samples: no tensor has them in the first dimension."""
        return not any(tensor.per_sample for tensor in self.tensors.values())

    @property
    def free(self) -> dict[str, int]:
        """The sizes that the example has in dimensions of any size, by their name."""
        return {free.name: free.size for tensor in self.tensors.values() for free in tensor.free.values()}

    def with_sizes(self, change: Callable[[str, int, int | Free], int | Free]) -> InputSpec:
        """Return the form with other sizes.

        Args:
            change: The new size, of path, dimension and size.
        """

        def changed(path: str, leaf: Any) -> Any:
            if not isinstance(leaf, TensorSpec):
                return leaf
            return leaf.with_sizes({dim: change(path, dim, size) for dim, size in leaf.sizes.items()})

        args, kwargs = map_inputs((self.args, dict(self.kwargs)), changed)
        return replace(self, args=args, kwargs=tuple(kwargs.items()))

    def without_free(self) -> InputSpec:
        """Return the form with the example's sizes in place of free ones."""
        return self.with_sizes(lambda path, dim, size: size.size if isinstance(size, Free) else size)  # noqa: ARG005

    def per_sample(self, call: Call) -> dict[str, Tensor]:
        """Return the tensors of a call that have the samples in the first dimension, by their path."""
        inputs = input_leaves(call)
        found = {path: inputs.get(path) for path, tensor in self.tensors.items() if tensor.per_sample}
        return {path: tensor for path, tensor in found.items() if isinstance(tensor, Tensor) and tensor.ndim}

    def count(self, call: Call, where: str = "") -> int:
        """Return the number of samples of a call; 1 where it cannot be divided.

        Raises:
            DataError: It differs from tensor to tensor, or there is none.
        """
        if self.undivided and self.fixed:
            return 1
        sizes = {len(tensor) for tensor in self.per_sample(call).values()}
        if len(sizes) != 1:
            got = sorted(sizes) or "none"
            raise DataError(f"{where}inputs: expected one number of samples in the first dimension, got {got}")
        return sizes.pop()

    def map_samples(self, call: Call, change: Callable[[Tensor], Tensor]) -> Call:
        """Return the call with `change(tensor)` in place of each tensor that has the samples in the first dimension."""
        changed = self.per_sample(call)
        return map_inputs(call, lambda path, leaf: change(leaf) if path in changed else leaf)

    def take(self, call: Call, rows: slice | Tensor) -> Call:
        """Return some samples of a call."""
        return self.map_samples(call, lambda t: t[rows.to(t.device) if isinstance(rows, Tensor) else rows])

    def match(self, call: Call, where: str = "", sizes: dict[str, tuple[int, str]] | None = None) -> Call:
        """Return the call if it has the form of the example.

        Args:
            call: On the model's device and in its dtype.
            where: The beginning of an error's text.
            sizes: A place for the sizes that free dimensions have, and where.

        Raises:
            DataError: There are other inputs, or one has another shape or holds another kind of numbers.
        """
        self.in_order(call, where)
        form, known = self.leaves, {} if sizes is None else sizes
        names = {path: f"{where}inputs{path}" if len(form) > 1 else f"{where}inputs" for path in form}
        matched = map_inputs(call, lambda path, now: _match(form[path], now, names[path], known))
        if self.fixed and self.count(call, where) != self.fixed:
            got = self.count(call, where)
            raise DataError(
                f"{where}inputs: the model's code fixes the batch at {self.fixed} samples, got {got}; "
                "give all data in batches of that size"
            )
        return matched

    def in_order(self, call: Call, where: str = "") -> list[Any]:
        """Return the tensors and plain values of a call in the order of these.

        Raises:
            DataError: There are other inputs than in the example, or they hold other entries.
        """
        (args, kwargs), form = call, dict(self.kwargs)
        if len(args) != len(self.args) or kwargs.keys() != form.keys():
            got = f"{len(args)} positional, keywords {sorted(kwargs)}"
            wanted = f"{len(self.args)} positional, keywords {sorted(form)}"
            raise DataError(f"{where}inputs: expected {wanted} as in the example, got {got}")
        wanted_paths, inputs = self.leaves.keys(), input_leaves(call)
        paths = inputs.keys()
        if wanted_paths != paths:
            lists = [
                ", ".join(f"inputs{path}" for path in some) for some in (wanted_paths - paths, paths - wanted_paths)
            ]
            raise DataError(
                f"{where}inputs: other entries than in the example: without {lists[0] or 'none'}, "
                f"with {lists[1] or 'none'} beside the others"
            )
        return [inputs[path] for path in wanted_paths]

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
        generator, n = torch.Generator().manual_seed(seed), self.fixed or n
        form: Call = self.args, dict(self.kwargs)
        return like_model(model, tree_map_only(TensorSpec, lambda tensor: tensor.sample(n, generator), form))

    def to_json(self) -> dict[str, Any]:
        """Return plain data; `from_json` reads it."""
        plain = {
            "args": [tree_to_json(value, _plain) for value in self.args],
            "kwargs": {name: tree_to_json(value, _plain) for name, value in self.kwargs},
        }
        return plain if self.fixed is None else plain | {"samples": self.fixed}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> InputSpec:
        """Return the specification that `to_json` wrote.

        Raises:
            ArgumentError: It holds objects of a class that is not known in this process.
        """
        args = tuple(tree_from_json(value, _parse) for value in data["args"])
        kwargs = tuple((name, tree_from_json(value, _parse)) for name, value in data["kwargs"].items())
        return cls(args, kwargs, data.get("samples"))


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


def _plain(leaf: Any) -> dict[str, Any]:
    return leaf.to_json() if isinstance(leaf, TensorSpec) else {"value": leaf}


def _parse(data: Mapping[str, Any]) -> Any:
    return data["value"] if "value" in data else TensorSpec.from_json(data)
