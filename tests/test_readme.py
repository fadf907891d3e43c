"""What the README shows works as it is written."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_python_in_the_readme_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    names: dict[str, object] = {}
    for block in blocks:
        exec(block, names)
    assert len(blocks) == 6
    assert sum(parameter.numel() for parameter in names["smaller"].parameters()) <= 2000
    assert (tmp_path / "small.safetensors").stat().st_size <= 15_000
    assert "units removed, obs / iterative, compensated" in capsys.readouterr().out


def test_every_picture_and_file_the_readme_points_to_is_there():
    for target in re.findall(r"\]\(([^)]+)\)", (ROOT / "README.md").read_text()):
        assert (ROOT / target).is_file(), target


def test_the_commands_of_the_readme_are_in_the_makefile():
    made = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake (\w+)", (ROOT / "README.md").read_text())) <= made
