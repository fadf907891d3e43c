"""Files run by their own runtimes, in a fresh process that cannot import Secateur."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from secateur.errors import ArtifactError
from secateur.structure.calls.trees import unpack
from secateur.structure.inputs import Call

_PROCESS = """
import io, sys
sys.modules["secateur"] = None  # an import of it fails
import torch
from torch.utils._pytree import tree_leaves
file, calls, outputs = sys.argv[1:]
with open(file, "rb") as opened:
    content = opened.read()
{loading}
with torch.no_grad():
    results = [[torch.as_tensor(leaf).clone() for leaf in run(call)] for call in torch.load(calls)]
torch.save(results, outputs)
"""

_LOADING = {
    ".pt2": """
module = torch.export.load(io.BytesIO(content)).module()
def run(call):
    return [leaf for leaf in tree_leaves(module(*call[0], **call[1])) if leaf is not None]
""",
    ".onnx": """
import onnxruntime
session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
names = [value.name for value in session.get_inputs()]
def run(call):
    arrays = [leaf.numpy() for leaf in tree_leaves(call) if isinstance(leaf, torch.Tensor)]
    return session.run(None, dict(zip(names, arrays, strict=True)))
""",
    ".pte": """
from executorch.runtime import Runtime
from executorch.kernels import quantized
program = Runtime.get().load_program(content)
method = program.load_method("forward")
def run(call):
    return method.execute(tree_leaves(call))
""",
}


def run_file(file: Path, suffix: str, calls: list[Call], name: str) -> list[list[Tensor]]:
    """Return the outputs of a file for several inputs, each a flat list.

    Args:
        file: The file.
        suffix: The ending that says which runtime loads it.
        calls: The inputs, on the CPU.
        name: What errors call the file.

    Raises:
        ArtifactError: The runtime does not load the file, or does not run it.
    """
    code = _PROCESS.format(loading=_LOADING[suffix])
    with tempfile.TemporaryDirectory() as folder:
        inputs, outputs = Path(folder) / "inputs.pt", Path(folder) / "outputs.pt"
        torch.save([unpack(call) for call in calls], inputs)
        words = [sys.executable, "-P", "-c", code, str(file.absolute()), str(inputs), str(outputs)]
        process = subprocess.run(words, capture_output=True, text=True, check=False)
        if process.returncode:
            lines = process.stderr.strip().splitlines() or [f"exit code {process.returncode}"]
            raise ArtifactError(f"{name}: its own runtime cannot run it ({lines[-1].strip()})")
        results: list[list[Tensor]] = torch.load(outputs)
    return results
