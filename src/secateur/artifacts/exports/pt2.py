"""Programs of `torch.export`, which PyTorch loads without the model's code."""

from __future__ import annotations

import io

import torch
from torch.export import ExportedProgram


def to_pt2(program: ExportedProgram) -> bytes:
    """Return the content of a .pt2 file, without the lines and paths of the code that each call came from."""
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    file = io.BytesIO()
    torch.export.save(program, file)
    return file.getvalue()
