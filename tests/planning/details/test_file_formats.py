"""Endings and the libraries that they need."""

import sys
from pathlib import Path

import pytest

from secateur.artifacts.safetensors import check_path
from secateur.errors import ArgumentError
from secateur.planning.details.file_formats import FORMATS, format_of, require_libraries


@pytest.mark.parametrize("suffix", FORMATS)
def test_an_ending_stands_for_its_kind(suffix: str) -> None:
    assert format_of(Path(f"a/small.v2{suffix}")).suffix == suffix


@pytest.mark.parametrize(
    ("name", "ending"),
    [("a.gguf", "'.gguf'"), ("a", "'no extension'"), ("a.int8.pt2", "'.int8.pt2'"), ("a.int8", "'.int8'")],
)
def test_another_ending_is_refused_with_those_that_there_are(name: str, ending: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        format_of(Path(name))
    kinds = ".safetensors, .pt2, .onnx, .int8.onnx, .pte or .int8.pte"
    assert str(caught.value) == f"{name}: files are written as {kinds}, not as {ending}"


@pytest.mark.parametrize(
    ("name", "missing", "text"),
    [
        ("small.onnx", ["onnx", "onnxscript"], 'needs onnx and onnxscript: pip install "secateur[onnx]"'),
        ("small.int8.onnx", ["onnxruntime"], 'needs onnxruntime: pip install "secateur[onnx]"'),
        ("small.pte", ["executorch", "torchao"], 'needs executorch and torchao: pip install "secateur[executorch]"'),
        ("small.int8.pte", ["torchao"], 'needs torchao: pip install "secateur[executorch]"'),
    ],
)
def test_where_libraries_are_missing_one_line_names_the_extra(
    name: str, missing: list[str], text: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for library in ("onnx", "onnxscript", "onnxruntime", "executorch", "torchao"):
        present = None if library in missing else sys.modules["pytest"]  # any module with a spec
        monkeypatch.setitem(sys.modules, library, present)
    with pytest.raises(ArgumentError) as caught:
        check_path(tmp_path / name)
    assert str(caught.value) == f"{tmp_path / name}: {text}"
    assert require_libraries(FORMATS[".pt2"], "small").suffix == ".pt2"
