"""ONNX, for ONNX Runtime and others: in floats, and in whole numbers of 8 bits with scales found on data."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from secateur.artifacts.exports.program import size_names
from secateur.structure.inputs import Call, InputSpec, tensors


def to_onnx(program: ExportedProgram, spec: InputSpec) -> bytes:
    """Return the content of an .onnx file that needs no other file, its free sizes named as in the inputs' form."""
    exported = torch.onnx.export(program, dynamo=True, verbose=False)
    assert exported is not None
    model, names = exported.model_proto, size_names(program, spec)
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param:
                size.dim_param = re.sub(r"\w+", lambda symbol: names.get(symbol[0], symbol[0]), size.dim_param)
    return _without_notes(model)


def to_int8_onnx(program: ExportedProgram, calibration: list[Call], spec: InputSpec) -> bytes:
    """Return the content of an .onnx file whose weights and values are whole numbers of 8 bits.

    Args:
        program: The program in floats.
        calibration: The inputs on which the ranges of values are found.
        spec: The form of the inputs.
    """
    import onnx
    import onnxruntime
    from onnxruntime.quantization import QuantFormat, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    onnxruntime.set_default_logger_severity(3)  # errors alone: it warns of its own quantiser's left-overs
    with tempfile.TemporaryDirectory() as folder:
        plain, prepared, quantised = (Path(folder) / f"{name}.onnx" for name in ("plain", "prepared", "quantised"))
        plain.write_bytes(to_onnx(program, spec))
        quant_pre_process(plain, prepared, skip_symbolic_shape=True)
        names = [value.name for value in onnx.load(plain).graph.input]
        quantize_static(
            prepared, quantised, _Reader(names, calibration), quant_format=QuantFormat.QDQ, per_channel=True
        )
        return _without_notes(onnx.load(quantised))


class _Reader:
    """The calibration inputs, one after the other, as ONNX Runtime asks for them."""

    def __init__(self, names: list[str], calibration: list[Call]) -> None:
        self._feeds: Iterator[dict[str, Any]] = (
            dict(zip(names, map(Tensor.numpy, tensors(call)), strict=True)) for call in calibration
        )

    def get_next(self) -> dict[str, Any] | None:
        """Return the next inputs by name; None at the end."""
        return next(self._feeds, None)


def _without_notes(model: Any) -> bytes:
    """Return a model without what the exporter notes of each node's origin: most of a small file."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    content: bytes = model.SerializeToString()
    return content
