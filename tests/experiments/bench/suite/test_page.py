"""The suite's table and lines, its processes (secateur_experiments.bench.suite.run), the command
(secateur_experiments.bench.suite.commands) and the page that it shares (secateur_experiments.bench.sections)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from secateur_experiments.bench.sections import with_section, write_section
from secateur_experiments.bench.suite import page, run

CommandLine = Callable[..., tuple[int, str, str]]
CELLS = dict.fromkeys(page.COLUMNS, "yes") | {"free": "batch, length", "generate": ""}
GOOD = {"name": "A", "sets": 1, "units": 8, "params": 2000, "left": 1000, "captured": (), "seconds": 1.25, "note": ""}
BAD = GOOD | {"name": "B", "captured": ("x.y", "z"), "note": "with use_cache=False"}
ROWS: list[dict[str, Any]] = [
    GOOD | CELLS | {"generate": "dynamic, none"},
    BAD | CELLS | {"free": "no: 1 of 4, batch 1: a|b", "unequal": "captured x"},
    {"name": "C", "skipped": "transformers is not installed"},
    {"name": "D", "error": "ModelError: no"},
]


def test_a_row_is_a_line_with_its_failures_below() -> None:
    assert [page.text(row) for row in ROWS] == [
        "A: captured none, free batch, length, generate dynamic, none, 1,000 of 2,000, 1.2 s",
        "B: captured 2: x.y, free ?, 1,000 of 2,000, 1.2 s\n    with use_cache=False\n"
        "    unequal shares: captured x\n    free dimensions no: 1 of 4, batch 1: a|b",
        "C: skipped, transformers is not installed",
        "D: not cut: ModelError: no",
    ]
    assert page.captured({"captured": ("", "x")}) == "the whole"


def test_the_summary_counts_what_was_asked() -> None:
    lines = page.summary(ROWS)
    assert lines[0] == "- 2 of 3 networks were cut, 1 without a captured part."
    assert lines[1:4] == ["- equal: 2 of 2.", "- free dimensions: 1 of 2.", "- generate: 1 of 1."]
    assert lines[-1] == "- unequal shares without a captured part: 1 of 2."


def test_the_section_has_a_row_for_each_network_with_as_many_cells_as_its_head() -> None:
    section = page.section(ROWS, "secateur bench suite --out x.md")
    assert section.startswith("## Used as before\n")
    assert "Made by `secateur bench suite --out x.md` with PyTorch " in section
    table = [line for line in section.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1
    assert table[2].startswith("| A | 2,000 | 1,000 | 50% | none | yes | batch, length | dynamic, none | yes |")
    assert "no: 1 of 4, batch 1: a/b" in table[3]
    assert table[4].startswith("| C | | | | skipped: transformers is not installed | |")
    assert table[5].startswith("| D | | | | **ModelError: no** | |")


def test_a_section_takes_the_place_of_the_one_with_its_heading() -> None:
    before = "# Title\n\nwords\n\n## A\n\nold\n\n### A1\n\n## B\n\nstays\n"
    assert with_section(before, "## A\n\nnew\n") == "# Title\n\nwords\n\n## A\n\nnew\n\n## B\n\nstays\n"
    assert with_section("# Title\n", "## C\n\nnew\n") == "# Title\n\n## C\n\nnew\n"


def test_a_page_that_is_not_there_gets_its_title(tmp_path: Path) -> None:
    for section in ("## A\n\n1\n", "## B\n\n2\n", "## A\n\n3\n"):
        write_section(tmp_path / "a.md", section)
    assert (tmp_path / "a.md").read_text() == "# Architectures\n\n## A\n\n3\n\n## B\n\n2\n"


def test_the_command_prints_rows_and_writes_the_section(
    command_line: CommandLine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def rows(names: list[str], verbose: bool, folder: str | None) -> Iterator[dict[str, Any]]:
        assert (names, verbose, folder) == (["NeRF", "DiT"], True, str(tmp_path))
        yield from ROWS[:2]

    monkeypatch.setattr(run, "rows", rows)
    words = ("bench", "suite", "--only", "NeRF", "--only", "DiT", "--verbose", "--zoo", str(tmp_path))
    code, out, err = command_line(*words)
    assert (code, err) == (0, "")
    assert out.startswith("A: captured none, ")
    assert out.endswith("- unequal shares without a captured part: 1 of 2.\n")
    code, out, _ = command_line(*words, "--json", "--out", str(tmp_path / "page.md"))
    assert [json.loads(line)["name"] for line in out.splitlines()] == ["A", "B"]
    assert "## Used as before" in (tmp_path / "page.md").read_text()


def test_an_unknown_network_is_refused(command_line: CommandLine) -> None:
    code, out, err = command_line("bench", "suite", "--only", "nope")
    assert (code, out) == (2, "")
    assert err.startswith("secateur: unknown only 'nope'; one of: YOLOv8, YOLO11, ")


def test_a_network_runs_in_a_process_of_its_own() -> None:
    command = [sys.executable, "-m", "secateur", "bench", "suite", "--only", "TextCNN", "--json"]
    environment = {name: value for name, value in os.environ.items() if name != "ZOO_DIR"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    (row,) = [json.loads(line) for line in done.stdout.splitlines()]
    assert (done.returncode, row["name"], row["free"], row["captured"]) == (0, "TextCNN", "batch, length", [])


def test_what_ends_early_or_takes_too_long_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    (row,) = run.rows(["nope"])
    assert row == {"name": "nope", "error": "KeyError: 'nope'"}
    (row,) = run.rows(["nope"], verbose=True)
    assert row == {"name": "nope", "error": "the process ended with exit code 1"}
    monkeypatch.setattr(run, "LIMIT", 0)
    (row,) = run.rows(["NeRF"])
    assert row == {"name": "NeRF", "error": "more than 0 s"}


def test_a_library_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    row = run.attempt("BERT", False, None)
    assert row == {"name": "BERT", "skipped": "transformers is not installed"}
