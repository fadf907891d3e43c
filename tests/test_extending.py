"""The examples of docs/extending.md, installed as a package of their own and used from outside."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest

from installed import ROOT, install, run_commands, run_with

TEXT = (ROOT / "docs" / "extending.md").read_text()
FILES = dict(re.findall(r"\*\*(\w+)\.py\*\*\n\n```python\n(.*?)```", TEXT, re.DOTALL))
POINTS = tomllib.loads("".join(re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL)))["project"]["entry-points"]
EXAMPLE = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("installed")
    install(made, "examples", FILES, POINTS)
    return made


def test_a_criterion_is_one_short_file() -> None:
    assert set(FILES) == {"my_criteria", "my_weights", "my_network", "my_rules"}
    assert len(FILES["my_criteria"].splitlines()) <= 30


def test_the_commands_of_the_page_find_all_of_it(folder: Path) -> None:
    lines = re.findall(r"^\$ secateur (.*)$", TEXT, re.MULTILINE)
    weights = f"{lines[0].replace('wanda', 'snip')} --loss squared_error --granularity weight --json"
    scored, inspected, snipped = run_commands(folder, f"{lines[0]} --json", f"{lines[1]} --json", weights)
    assert [code for code, *_ in (scored, inspected, snipped)] == [0, 0, 0]
    assert {name: len(values) for name, values in json.loads(scored[1]).items()} == {"0": 6, "2": 5}
    sets = json.loads(inspected[1])["sets"]
    assert [(s["name"], s["size"], s["removal"], s["consumers"]) for s in sets] == [
        ("0", 6, "gated", ["2"]), ("2", 5, "gated", ["4"]),
    ]  # fmt: skip
    assert {name: len(rows) for name, rows in json.loads(snipped[1]).items()} == {"0.weight": 6, "2.weight": 5}


def test_the_examples_hold_what_the_page_says_they_must(folder: Path) -> None:
    done = run_with(folder, "-W", "ignore", str(ROOT / "tests" / "outside.py"), EXAMPLE)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for expected in ("by hand", "doubled", "in parts"):
        for name, mine, other in zip(("wanda", "snip"), found["as told"], found[expected], strict=True):
            assert mine == pytest.approx(other, rel=1e-10), (name, expected)
    assert found["slope"] == pytest.approx([abs(value) for value in found["taylor1"]], rel=1e-10)
    assert found["unjudged"] == [True] * 4
    *kept, params = found["shrunk"]
    assert sum(kept) == 5
    assert params == 4 * kept[0] + (kept[0] + 2) * kept[1]
