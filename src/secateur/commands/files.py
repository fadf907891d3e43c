"""Files on the command line: the one that is written, and the sizes of those that are there."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from secateur.artifacts.exports.measure import FileSizes, measure_file
from secateur.artifacts.exports.write import write
from secateur.artifacts.resized_class import FILE as CODE_FILE
from secateur.artifacts.safetensors import SUFFIX, check_path
from secateur.cli_options import Json, print_json
from secateur.objective.kept_outputs import KEPT
from secateur.result import Result
from secateur.text import format_bytes, table


def write_artifact(result: Result, out: Path, data: Any, loss: str | None, most: int | None) -> dict[str, Any]:
    """Write the file that a command was asked for, and return what is known of it, as plain data.

    Args:
        result: The result of shrinking.
        out: The file.
        data: Inputs and targets: the file's own runtime is compared and measured on them.
        loss: The loss to measure; none where the targets are the original's outputs.
        most: How many bytes it may have; None for any number.
    """
    if check_path(out).suffix == SUFFIX:
        return {"path": str(out), "bytes": result.save(out)}
    return asdict(write(result.model, result.plan.inputs, out, data, None if loss in KEPT else loss, most=most))


def write_folder(result: Result, out: Path) -> dict[str, Any]:
    """Write the folder that a command was asked for, and return what is known of it, as plain data."""
    written = result.save_pretrained(out)
    files = sorted(file.name for file in out.iterdir())
    return {"path": str(out), "bytes": written, "files": files, "trust_remote_code": CODE_FILE in files}


def describe_artifact(artifact: dict[str, Any]) -> str:
    """Return what a command says of the file that it wrote."""
    text = f"written to {artifact['path']}"
    if "difference" in artifact:
        text += f", {format_bytes(artifact['bytes'])}; its own runtime differs by {artifact['difference']:.1e}"
    if "files" in artifact:
        text += f", {format_bytes(artifact['bytes'])} in {len(artifact['files'])} files"
        text += "; from_pretrained needs trust_remote_code=True" if artifact["trust_remote_code"] else ""
    for name in ("loss", "accuracy"):
        if artifact.get(name) is not None:
            text += f", {name} {artifact[name]:.4f} (the network's {artifact[f'module_{name}']:.4f})"
    if artifact.get("planned_memory") is not None:
        text += f", {format_bytes(artifact['planned_memory'])} of activations planned for one sample"
    return text


def measure(
    files: Annotated[list[Path], typer.Argument(metavar="FILE ...", help=".safetensors, .pt2, .onnx or .pte")],
    as_json: Json = False,
) -> None:
    """Print the sizes of written files: bytes, parameters, multiplications and memory, where a file says them."""
    sizes = [measure_file(file) for file in files]
    if as_json:
        print_json({"files": [asdict(one) for one in sizes]})
    else:
        columns = ["file", "bytes", "overhead", "parameters", "MACs", "planned memory"]
        typer.echo(table(columns, [_cells(one) for one in sizes]))


def _cells(sizes: FileSizes) -> list[str | None]:
    counts = (sizes.bytes, sizes.overhead, sizes.params, sizes.macs, sizes.planned_memory)
    return [sizes.path, *(None if count is None else f"{count:,}" for count in counts)]
