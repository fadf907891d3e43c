"""The page of files; covers also secateur_experiments.bench.artifacts_command."""

from pathlib import Path
from typing import Any

import pytest

from secateur.planning.details.file_formats import FORMATS
from secateur_experiments.bench.artifacts import Row, page, text

ROWS = [
    Row("whole", ".onnx", 12_345, 345, 2e-7, 0.96, None),
    Row("cut", ".int8.pte", 2_000, -1_000, 0.0123, 0.9512, 4_096),
]


def test_a_page_names_its_command_and_has_a_line_for_each_file() -> None:
    content = page(ROWS, "secateur bench artifacts --out a.md", "the digits")
    assert "Written by `secateur bench artifacts --out a.md`: a convolutional network trained on the digits" in content
    assert content.splitlines()[-2:] == [
        "| whole | `.onnx` | 12,345 | 345 | 2.0e-07 | 0.9600 |  |",
        "| cut | `.int8.pte` | 2,000 | -1,000 | 1.2e-02 | 0.9512 | 4,096 |",
    ]


def test_a_row_as_text() -> None:
    wanted = "cut .int8.pte: 2,000 bytes, -1,000 beside the weights, differs by 1.2e-02, accuracy 0.9512"
    assert text(ROWS[1]) == wanted


def test_where_a_library_is_missing_the_command_says_so_before_it_trains(
    monkeypatch: pytest.MonkeyPatch, command_line: Any
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    code, out, err = command_line("bench", "artifacts")
    assert (code, out) == (2, "")
    assert err.startswith("secateur: network.onnx: needs onnx")


@pytest.mark.slow
def test_the_digits(tmp_path: Path, command_line: Any) -> None:
    for form in FORMATS.values():
        for library in form.libraries:
            pytest.importorskip(library)
    code, out, _ = command_line("bench", "artifacts", "--epochs", "10", "--out", str(tmp_path / "a.md"))
    assert code == 0
    assert len(out.splitlines()) == 2 * len(FORMATS)
    assert (tmp_path / "a.md").read_text().count("| cut |") == len(FORMATS)
