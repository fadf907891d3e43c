"""Half of every unit set removed from the architectures of a small zoo."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from secateur import find_units
from secateur_experiments.bench import architectures

CommandLine = Callable[..., tuple[int, str, str]]
ZOO = """
import torch
from torch import nn

ZOO = ["dense", "fixed"]

def build(name):
    print("building")
    if name == "fixed":
        return nn.Linear(3, 2).eval(), (torch.zeros(2, 3),)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval(), (torch.zeros(2, 4),)
"""


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 3)).eval()


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    (tmp_path / "zoo.py").write_text(ZOO)
    return tmp_path


def test_the_larger_half_of_every_set_stays_and_is_that_of_its_seed() -> None:
    units = find_units(network(), torch.zeros(2, 4))
    kept = architectures.half(units)
    assert {name: len(indices) for name, indices in kept.items()} == {"0": 4}
    assert list(kept["0"]) == sorted(set(kept["0"]))
    assert kept == architectures.half(units)
    assert len({architectures.half(units, seed)["0"] for seed in range(10)}) > 1


def test_all_values_are_random_and_variances_positive() -> None:
    model = network()
    architectures.randomise(model)
    assert all(len(tensor.unique()) == tensor.numel() for tensor in model.state_dict().values() if tensor.ndim)
    assert 0.5 <= model[1].running_var.min() <= model[1].running_var.max() <= 1.5


def test_the_share_of_parameters_that_go_with_units_is_counted() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    assert architectures.coverage(find_units(model, torch.zeros(2, 4)), model) == pytest.approx(48 / 51)


def test_each_architecture_has_a_row_in_each_mode(zoo: Path) -> None:
    command = [sys.executable, "-m", "secateur", "bench", "architectures", "--json", "--out", str(zoo / "table.md")]
    environment = os.environ | {"ZOO_DIR": str(zoo)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert (done.returncode, [(row["name"], row["include"]) for row in rows]) == (
        0, [("dense", "gated"), ("dense", "all"), ("fixed", "gated"), ("fixed", "all")]
    )  # fmt: skip
    assert "building" in done.stderr
    dense, fixed = rows[0], rows[2]
    assert (dense["sets"], dense["units"], dense["params"], dense["left"]) == (1, 8, 67, 35)
    assert (dense["parts"], dense["coverage"]) == ([], pytest.approx(64 / 67))
    assert dense["difference"] < 1e-5 < 1e-3 < dense["change"]
    assert fixed["error"].startswith("ModelError: ")
    page = (zoo / "table.md").read_text()
    assert f"Made by `secateur bench architectures --out {zoo / 'table.md'}`" in page
    assert "- `gated`: 1 of 2 proven, 1 as live modules, 1 of these by their own code alone" in page
    assert "| dense (gated) | 1 | 8 | 67 | 35 | 52% | live | 95.5% |" in page


def test_those_named_are_printed_as_lines(
    command_line: CommandLine, zoo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compare(folder: str, names: list[str]) -> list[dict[str, Any]]:
        assert (folder, names) == (str(zoo), ["a", "b"])
        row = {"include": "all", "parts": ["", "x"], "left": 1000, "params": 2000, "total_s": 1.25}
        return [{"name": "a", **row}, {"name": "b", "include": "gated", "error": "ModelError: no"}]

    monkeypatch.setattr(architectures, "compare", compare)
    assert command_line("bench", "architectures", "a", "b", "--zoo", str(zoo)) == (
        0, "a all: live, 2 parts graph, 1,000 of 2,000, 1.2 s\nb gated: ModelError: no\n", "",
    )  # fmt: skip


def test_a_folder_without_a_zoo_is_refused(
    command_line: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ZOO_DIR", raising=False)
    code, out, err = command_line("bench", "architectures")
    assert (code, out) == (2, "")
    assert "ZOO_DIR" in err
    monkeypatch.setenv("ZOO_DIR", str(tmp_path))
    message = f"secateur: zoo: there is no zoo.py in {tmp_path}\n"
    assert command_line("bench", "architectures") == (2, "", message)
