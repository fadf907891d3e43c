"""Weights to prove with: random ones hide no error, as zeros and small values beside large ones would."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from secateur.structure.inputs import named_tensors
from secateur.structure.sliced_graph import in_format_of


def probe_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return every parameter and buffer in float64: w u with u from 0.5 to 1.5, and a small number where w is 0.

    Signs and sizes stay, since code may rely on them; buffers that are 0 and integers stay as they are. A
    model always gets the same ones.
    """
    generator = torch.Generator().manual_seed(0)
    return {name: _varied(tensor, generator) for name, tensor in named_tensors(model).items()}


def _varied(tensor: Tensor, generator: torch.Generator) -> Tensor:
    parameter, tensor = isinstance(tensor, nn.Parameter), tensor.detach()
    if not tensor.is_floating_point():
        return tensor
    u = torch.rand(tensor.shape, generator=generator, dtype=torch.float64).to(tensor.device).add_(0.5)
    value = u * tensor
    if parameter:
        zeros = tensor == 0
        value[zeros] = (u[zeros] - 1) / max(1, tensor.shape[1:].numel()) ** 0.5
    return value


@contextlib.contextmanager
def holding(model: nn.Module, values: Mapping[str, Tensor] | None) -> Iterator[None]:
    """Let the model hold other values in its parameters and buffers; afterwards they are what they were.

    Their memory format is that of what they replace.
    """
    named = named_tensors(model)
    replaced = [
        (named[name], named[name].data, in_format_of(named[name].data, value)) for name, value in (values or {}).items()
    ]
    try:
        for tensor, _, value in replaced:
            tensor.data = value
        yield
    finally:
        for tensor, before, _ in replaced:
            tensor.data = before
