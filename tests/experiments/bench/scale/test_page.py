"""The table, the page and the picture of the benchmark of scale."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
from matplotlib.figure import Figure

from secateur_experiments.bench.scale import growth, measure, page
from secateur_experiments.bench.scale.growth import Trend
from secateur_experiments.bench.scale.measure import Row, Settings

FIGURES = {"seconds": 200.0, "memory": 1.25e9, "floor": 0.5, "ratio": 8.04, "cosine": 0.9712, "neighbours": 0.75}
DONE = Row("MiniLM", 9672, 2765, 22_600_000, 19_000_000, FIGURES, ["seconds", "neighbours"])
SKIPPED = Row("deit_tiny", note="skipped: timm cannot be imported (No module named 'timm')")
TRENDS = [Trend("units", {256: 0.5, 512: 2.0}, 2.0, 2.3), Trend("layers", {2: 1.0, 4: 2.0}, 1.0, 1.2)]


def test_figures_and_bars_stand_side_by_side():
    head, done, skipped = page.figures_table([DONE, SKIPPED]).splitlines()
    assert head.split() == [
        "network", "units", "removed", "parameters", "left", "floor", "ratio", "seconds", "memory", "quality", "missed",
    ]  # fmt: skip
    cells = [
        "MiniLM", "9,672", "2,765", "22,600,000", "19,000,000", "0.5", "8.04 ≤ 10", "200 ≤ 90", "1.2 GB ≤ 2.0 GB",
        "cosine 0.971 ≥ 0.970, neighbours 0.750 ≥ 0.780", "seconds, neighbours",
    ]  # fmt: skip
    assert [cell.strip() for cell in done.split("  ") if cell.strip()] == cells
    assert skipped.split("  ", 1)[0] == "deit_tiny"
    assert [cell.strip() for cell in skipped.split("  ") if cell.strip()][1:] == ["≤ 10", "≤ 180", "≤ 3.0 GB"]
    assert page.notes([DONE, SKIPPED]) == f"- deit_tiny: {SKIPPED.note}"


def test_a_line_says_what_was_measured_or_why_it_was_not():
    assert page.line(SKIPPED) == "deit_tiny: skipped: timm cannot be imported (No module named 'timm')"
    assert page.line(DONE).startswith("MiniLM: seconds 200 ≤ 90, memory 1.2 GB ≤ 2.0 GB, floor 0.5, ratio 8.04 ≤ 10, ")


def test_the_page_says_how_it_was_made_and_shows_what_was_measured():
    text = page.document([DONE, SKIPPED], TRENDS, "secateur bench scale", "Two cores.", "growth.png")
    assert text.startswith(
        "# Scale: figures\n\nWritten by the command below. Two cores.\n\n```\n$ secateur bench scale\n```"
    )
    assert "8.04 ≤ 10" in text
    assert SKIPPED.note in text
    assert "units    2.00 ≤ 2.30  256: 0.50, 512: 2.00" in text
    assert "](growth.png)" in text
    without = page.document([DONE], [], "secateur bench scale", "Two cores.", "growth.png")
    assert "growth" not in without
    assert "skipped" not in without


def test_growth_is_drawn_beside_its_bar(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(page, "Figure", lambda **options: drawn.append(Figure(**options)) or drawn[-1])
    page.picture(TRENDS, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    units, layers = drawn[0].axes
    allowed, measured = units.lines
    assert list(measured.get_ydata()) == [0.5, 2.0]
    assert list(allowed.get_ydata()) == pytest.approx([0.5, 0.5 * 2**2.3])
    assert measured.get_label() == "measured, 2.00"
    assert (layers.get_xlabel(), layers.get_xscale(), layers.get_yscale()) == ("layers", "log", "log")


def test_the_command_prints_writes_and_passes_on_what_was_asked_for(command_line, monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(measure, "compare", lambda names, settings: asked.append((names, settings)) or [DONE, SKIPPED])
    monkeypatch.setattr(growth, "trends", lambda ranking, runs: asked.append((ranking, runs)) or TRENDS)
    words = ("--only", "MiniLM", "--only", "deit_tiny", "--only", "growth", "--runs", "3")
    code, out, err = command_line("bench", "scale", *words, "--out", str(tmp_path))
    assert (code, err) == (0, f"{page.line(DONE)}\n{page.line(SKIPPED)}\n")
    assert out.startswith("scale: medians of 3, ")
    assert page.text([DONE, SKIPPED], TRENDS) in out
    assert asked == [(["MiniLM", "deit_tiny"], Settings(3)), ("layerwise", 3)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scale-growth.png", "scale.md"]
    assert "$ secateur bench scale --only MiniLM --only deit_tiny --only growth --runs 3 --out DIR" in (
        tmp_path / "scale.md"
    ).read_text(encoding="utf-8")


def test_the_command_without_growth_and_as_json(command_line, monkeypatch):
    monkeypatch.setattr(measure, "compare", lambda *_: [DONE])
    monkeypatch.setattr(growth, "trends", None)
    code, out, _ = command_line("bench", "scale", "--quick", "--json")
    assert code == 0
    assert json.loads(out) == {"rows": [asdict(DONE)], "growth": []}
    assert command_line("bench", "scale", "--only", "nope")[0] == 2
