"""The sizes of files that were written, by Secateur or by others."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from torch.export import ExportedProgram
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from secateur.errors import ArtifactError
from secateur.planning.details.file_formats import format_of, require_libraries
from secateur.structure.export import first_line
from secateur.structure.exporting.tracing import quiet


@dataclass(frozen=True)
class FileSizes:
    """The sizes of a file.

    Attributes:
        path: The file.
        bytes: Its size.
        params: The values of its weights; None where the file does not say.
        overhead: The bytes beside those of its weights; None where the file does not say.
        macs: The multiplications with addition for one sample, of layers; None where the file does not say.
        planned_memory: The bytes that ExecuTorch plans for its largest batch; None for other files.
    """

    path: str
    bytes: int
    params: int | None = None
    overhead: int | None = None
    macs: int | None = None
    planned_memory: int | None = None


def measure_file(path: Path) -> FileSizes:
    """Return the sizes of a file.

    Raises:
        ArgumentError: Its ending stands for no kind of file, or what reads that is not installed.
        ArtifactError: It is not there, or is no such file.
    """
    form = require_libraries(format_of(path), path)
    read = {".safetensors": _safetensors, ".pt2": _pt2, ".onnx": _onnx, ".pte": _pte}[path.suffix]
    if not path.is_file():
        raise ArtifactError(f"{path}: there is no such file")
    try:
        with quiet():
            sizes = read(path)
    except Exception as error:
        raise ArtifactError(f"{path}: cannot be read as {form.suffix} ({first_line(error)})") from error
    size = path.stat().st_size
    weights = sizes.pop("weights", None)
    return FileSizes(str(path), size, overhead=None if weights is None else size - weights, **sizes)


def _safetensors(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        tensors = [file.get_tensor(name) for name in file.keys()]  # noqa: SIM118 - it is no dictionary
    return {"params": sum(map(Tensor.numel, tensors)), "weights": sum(tensor.nbytes for tensor in tensors)}


def _pt2(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        program: ExportedProgram = torch.export.load(file)
    tensors = [tensor for tensor in program.state_dict.values() if isinstance(tensor, Tensor)]
    parameters = [program.state_dict[name] for name in program.graph_signature.parameters]
    return {
        "params": sum(map(Tensor.numel, parameters)),
        "weights": sum(tensor.nbytes for tensor in tensors),
        "macs": _macs(program),
    }


def _macs(program: ExportedProgram) -> int | None:
    """Return the multiplications of layers for one sample of the example's; None where it has no example."""
    if program.example_inputs is None:
        return None
    args, kwargs = program.example_inputs
    samples = next((len(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf.ndim), 1)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        program.module()(*args, **kwargs)
    return int(counter.get_total_flops()) // 2 // samples


def _onnx(path: Path) -> dict[str, Any]:
    import onnx

    graph = onnx.load(path).graph
    arrays = [onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer if math.prod(tensor.dims) > 0]
    return {"params": sum(array.size for array in arrays), "weights": sum(array.nbytes for array in arrays)}


def _pte(path: Path) -> dict[str, Any]:
    from executorch.exir._serialize._program import deserialize_pte_binary

    plan = deserialize_pte_binary(path.read_bytes()).program.execution_plan[0]
    return {"planned_memory": sum(plan.non_const_buffer_sizes)}
