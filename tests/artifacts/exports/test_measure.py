"""Sizes of files; covers also secateur.commands.files."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.artifacts.exports.measure import measure_file
from secateur.artifacts.exports.write import write
from secateur.errors import ArgumentError, ArtifactError
from secateur.planning.details.file_formats import FORMATS
from secateur.structure.inputs import InputSpec

MODEL = nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 3))
X = torch.zeros(4, 10)
PARAMS = 10 * 20 + 20 + 20 * 3 + 3


def saved(path: Path) -> Path:
    for library in FORMATS[path.suffix].libraries:
        pytest.importorskip(library)
    write(MODEL, InputSpec.of(((X,), {})), path)
    return path


def test_a_pt2_says_its_parameters_multiplications_and_overhead(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pt2")
    sizes = measure_file(path)
    assert (sizes.params, sizes.macs, sizes.bytes) == (PARAMS, 260, path.stat().st_size)
    assert sizes.overhead == path.stat().st_size - 4 * PARAMS
    assert sizes.macs == sc.measure(MODEL, X).macs


def test_an_onnx_file_says_its_parameters(tmp_path: Path) -> None:
    sizes = measure_file(saved(tmp_path / "a.onnx"))
    assert (sizes.params, sizes.macs, sizes.overhead) == (PARAMS, None, sizes.bytes - 4 * PARAMS)


def test_a_pte_says_what_memory_it_plans(tmp_path: Path) -> None:
    sizes = measure_file(saved(tmp_path / "a.pte"))
    assert sizes.params is None
    assert sizes.planned_memory is not None
    assert sizes.planned_memory >= 4 * 8 * (10 + 3)  # inputs and outputs of eight samples


def test_a_safetensors_file_on_the_command_line(tmp_path: Path, command_line: Any) -> None:
    result = sc.shrink(
        MODEL, (torch.rand(8, 10), torch.arange(8) % 3), "cross_entropy", sc.Budget(remove_units=5), progress=False
    )
    path = tmp_path / "a.safetensors"
    size = result.save(path)
    code, out, _ = command_line("measure", str(path), "--json")
    assert code == 0
    (sizes,) = json.loads(out)["files"]
    assert (sizes["bytes"], sizes["params"]) == (size, result.after.params)
    assert sizes["overhead"] == size - 4 * result.after.params
    code, out, _ = command_line("measure", str(path))
    assert (code, out.splitlines()[0].split()) == (
        0,
        ["file", "bytes", "overhead", "parameters", "MACs", "planned", "memory"],
    )
    assert result.after.params == 15 * 10 + 15 + 15 * 3 + 3


def test_what_is_no_such_file_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.pt2").write_bytes(b"no file")
    with pytest.raises(ArtifactError, match=r"a\.pt2: cannot be read as \.pt2 \("):
        measure_file(tmp_path / "a.pt2")
    with pytest.raises(ArtifactError, match=r"b\.pt2: there is no such file$"):
        measure_file(tmp_path / "b.pt2")
    with pytest.raises(ArgumentError, match=r"a\.bin: files are written as"):
        measure_file(tmp_path / "a.bin")
