"""ExecuTorch, with the kernels of XNNPACK: in floats, and in whole numbers of 8 bits with scales found on data."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from secateur.artifacts.exports.program import export_program
from secateur.structure.calls.trees import unpack
from secateur.structure.inputs import Call, InputSpec


def to_pte(program: ExportedProgram) -> bytes:
    """Return the content of a .pte file."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
    return bytes(lowered.to_executorch().buffer)


def to_int8_pte(program: ExportedProgram, calibration: list[Call], spec: InputSpec, most: int | None) -> bytes:
    """Return the content of a .pte file whose weights and values are whole numbers of 8 bits.

    Args:
        program: The program in floats.
        calibration: The inputs on which the ranges of values are found.
        spec: The form of the inputs.
        most: The largest number of samples.
    """
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from executorch.kernels import quantized  # noqa: F401 - registers what XNNPACK leaves to portable kernels
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    quantiser = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    observed: nn.Module = prepare_pt2e(program.module(), quantiser)
    for call in calibration:
        args, kwargs = unpack(call)
        observed(*args, **kwargs)
    return to_pte(export_program(convert_pt2e(observed), spec, most))


def planned_memory(program: ExportedProgram) -> int:
    """Return the bytes of activations that ExecuTorch plans, inputs and outputs with them, by its portable kernels.

    XNNPACK's workspace is in no plan, so that the program is lowered without it.
    """
    from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower

    config = EdgeCompileConfig(preserve_ops=[torch.ops.aten.linear.default])  # else transposed weights count
    lowered = to_edge_transform_and_lower(program, compile_config=config).to_executorch()
    plan: Any = lowered.executorch_program.execution_plan[0]
    return sum(plan.non_const_buffer_sizes)
