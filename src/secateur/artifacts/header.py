"""The header of the written file, and from it the sizes of files that were not written."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx, nn

from secateur.errors import ArtifactError
from secateur.planning.network_sizes import NetworkSizes
from secateur.planning.plan import Plan
from secateur.structure.inputs import InputSpec
from secateur.structure.units import Units

FORMAT = 1
KEY = "secateur"  # one entry: safetensors writes several in no fixed order

# The dtypes as safetensors names them, in the order in which it writes them.
NAMES = {
    torch.uint64: "U64",
    torch.int64: "I64",
    torch.float64: "F64",
    torch.complex64: "C64",
    torch.float32: "F32",
    torch.uint32: "U32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.uint16: "U16",
    torch.int16: "I16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors to write: every parameter and persistent buffer once, tied ones under their first name.

    Raises:
        ArtifactError: A tensor is of a type that safetensors does not know.
    """
    first: dict[Tensor, str] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor):
            first.setdefault(tensor, name)
            if tensor.dtype not in NAMES:
                raise ArtifactError(f"{name}: safetensors holds no {tensor.dtype}")
    return {name: tensor for tensor, name in first.items()}


def metadata(plan: Plan) -> dict[str, str]:
    """Return a file's metadata: format version, kept indices, input specification, how the plan was made."""
    return metadata_of(plan.inputs, kept=plan.kept, **plan.options_to_json())


def metadata_of(inputs: InputSpec | None, **removed: Any) -> dict[str, str]:
    """Return a file's metadata: format version, input specification, what was removed."""
    content = {"format": FORMAT, "inputs": inputs and inputs.to_json(), **removed}
    return {KEY: json.dumps(content, separators=(",", ":"))}


def file_size(model: nn.Module, units: Units, plan: Plan) -> int:
    """Return the bytes of the file that the model will be written to when cut by a plan, without making it.

    The file consists of eight bytes of length, a JSON header padded to a multiple of eight, and the data.

    Args:
        model: The network, with the biases that the plan adds.
        units: The network's units.
        plan: Says which units are kept, what the inputs are, and how it was made: all of it is written.
    """
    length, data = _layout(model, units, plan)
    return 8 + -(-length // 8) * 8 + data


def network_sizes(
    model: nn.Module, units: Units, plan: Plan, cached: Mapping[fx.Node, int] = MappingProxyType({})
) -> NetworkSizes:
    """Return the sizes of the network and of its file for any units kept; the file's are exactly those of `file_size`.

    Args:
        model: The network, with the biases that the plan adds.
        units: The network's units.
        plan: Says all else that is written; its kept units do not matter.
        cached: The calls whose results are kept of earlier tokens, each with the number of tokens of the example.
    """
    whole = tuple((unit_set.name, tuple(range(unit_set.size))) for unit_set in units)
    length, _ = _layout(model, units, dataclasses.replace(plan, kept_indices=whole))
    return NetworkSizes.of(model, units, _in_order(model), length, cached)


def _in_order(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors to write as they lie in the file."""
    order = list(NAMES)
    return dict(sorted(tensors_of(model).items(), key=lambda item: (order.index(item[1].dtype), item[0])))


def _layout(model: nn.Module, units: Units, plan: Plan) -> tuple[int, int]:
    """Return the bytes of the JSON header and of the data."""
    shapes = units.shapes({name: len(indices) for name, indices in plan.kept_indices})
    offset = 0
    header: dict[str, object] = {"__metadata__": metadata(plan)}
    for name, tensor in _in_order(model).items():
        shape = shapes.get(name, tuple(tensor.shape))
        end = offset + tensor.dtype.itemsize * math.prod(shape)
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": shape, "data_offsets": [offset, end]}
        offset = end
    return len(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()), offset
