"""The program of `torch.export` that every exported file is made from: dynamic batch, on the CPU, in eval mode."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Iterator, Mapping
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, ShapesCollection

from secateur.structure.calls.tensor_spec import TensorSpec
from secateur.structure.calls.trees import unpack
from secateur.structure.capture import evaluating
from secateur.structure.inputs import Call, InputSpec, input_leaves, map_tensors, named_tensors

EXAMPLE = 2  # samples: torch.export takes a single one for the only number possible


def plain(outputs: Any) -> Any:
    """Return outputs in containers that every process knows, and without what is neither tensor nor plain value.

    >>> plain({"logits": 1.0, "cache": object()})
    {'logits': 1.0}
    """
    if isinstance(outputs, Mapping):
        return {name: plain(value) for name, value in outputs.items() if _is_plain(value)}
    if isinstance(outputs, tuple | list):
        return tuple(plain(value) for value in outputs if _is_plain(value))
    return outputs


def _is_plain(value: Any) -> bool:
    return isinstance(value, Tensor | Mapping | tuple | list | int | float)


@contextlib.contextmanager
def exportable(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the model on the CPU and in eval mode, returning plain containers; afterwards it is as it was."""
    on_cpu = all(tensor.device.type == "cpu" for tensor in named_tensors(model).values())
    model = model if on_cpu else copy.deepcopy(model).cpu()
    forward = model.forward

    @functools.wraps(forward)
    def plain_forward(*args: Any, **kwargs: Any) -> Any:
        return plain(forward(*args, **kwargs))

    with evaluating(model), patch.object(model, "forward", plain_forward):
        yield model


def export_program(model: nn.Module, spec: InputSpec, most: int | None = None) -> ExportedProgram:
    """Return the program for any number of samples, and any size where that is free.

    Args:
        model: A model that is `exportable`, or the graph of one.
        spec: The form of its inputs.
        most: The largest number of samples, and the example's sizes the largest of free dimensions; None for any.
    """
    # with the largest batch as the example, no kernel that is chosen for small ones narrows the range
    call = map_tensors(spec.sample(model, most or EXAMPLE), lambda tensor: tensor.clone().cpu())
    args, kwargs = unpack(call)
    shapes = ShapesCollection()  # type: ignore[no-untyped-call]
    batch = None if spec.fixed else Dim("batch", min=1, max=most)
    for path, tensor in input_leaves(call).items():
        form = spec.leaves[path]
        dimensions = _dynamic(form, batch, most is not None) if isinstance(form, TensorSpec) else {}
        if dimensions:
            shapes[tensor] = dimensions
    dynamic = shapes.dynamic_shapes(model, args, kwargs)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        return torch.export.export(model, args, kwargs, dynamic_shapes=dynamic, strict=False)


def single_program(model: nn.Module, spec: InputSpec) -> ExportedProgram:
    """Return the program for one sample alone."""
    args, kwargs = unpack(map_tensors(spec.sample(model, 1), lambda tensor: tensor.clone().cpu()))
    with torch.no_grad():
        return torch.export.export(model, args, kwargs, strict=False)


def size_names(program: ExportedProgram, spec: InputSpec) -> dict[str, str]:
    """Return what the program's symbols of sizes stand for: "batch", or the name of a free dimension."""
    values = {node.name: node.meta.get("val") for node in program.graph.find_nodes(op="placeholder")}
    names: dict[str, str] = {}
    for name, form in zip(program.graph_signature.user_inputs, spec.leaves.values(), strict=True):
        if isinstance(form, TensorSpec):
            free = {dim: size.name for dim, size in form.free.items()} | ({0: "batch"} if form.per_sample else {})
            names |= {str(values[str(name)].shape[dim]): meaning for dim, meaning in free.items()}
    return {symbol: meaning for symbol, meaning in names.items() if not symbol.isdigit()}


def _dynamic(form: TensorSpec, batch: Any, bounded: bool) -> dict[int, Any]:
    """Return the dimensions of an input that take any size."""
    free = {dim: Dim.AUTO(max=size.size) if bounded else Dim.AUTO for dim, size in form.free.items()}
    return ({0: batch} if form.per_sample and batch is not None else {}) | free


def outputs_of(model: nn.Module, calls: list[Call]) -> list[Any]:
    """Return what an `exportable` model returns, call by call."""
    with torch.no_grad():
        results = []
        for call in calls:
            args, kwargs = unpack(map_tensors(call, Tensor.clone))
            results.append(model(*args, **kwargs))
    return results
