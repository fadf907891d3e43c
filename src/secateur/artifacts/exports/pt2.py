"""Programs of `torch.export`, which PyTorch loads without the model's code."""

from __future__ import annotations

import io

import torch
from torch.export import ExportedProgram


def to_pt2(program: ExportedProgram) -> bytes:
    """Return the content of a .pt2 file."""
    file = io.BytesIO()
    torch.export.save(program, file)
    return file.getvalue()
