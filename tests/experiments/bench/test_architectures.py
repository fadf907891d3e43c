"""Half of every unit set removed from the architectures of a small zoo."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from secateur import find_units
from secateur_experiments.bench import architectures

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


def run(*words: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "ZOO_DIR"}
    command = [sys.executable, "-m", "secateur", "bench", "architectures", *words]
    zoo = {} if folder is None else {"ZOO_DIR": str(folder)}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment | zoo)


def test_each_architecture_has_a_row_in_each_mode(zoo: Path) -> None:
    done = run("--json", "--out", str(zoo / "table.md"), folder=zoo)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert (done.returncode, [(row["name"], row["include"]) for row in rows]) == (
        0, [("dense", "gated"), ("dense", "all"), ("fixed", "gated"), ("fixed", "all")]
    )  # fmt: skip
    assert "building" in done.stderr
    dense, fixed = rows[0], rows[2]
    assert (dense["sets"], dense["units"], dense["params"], dense["left"]) == (1, 8, 67, 35)
    assert (dense["parts"], dense["coverage"]) == ({}, pytest.approx(64 / 67))
    assert dense["difference"] < 1e-9 < 1e-3 < dense["change"]
    assert fixed["error"].startswith("ModelError: ")
    page = (zoo / "table.md").read_text()
    assert f"Made by `secateur bench architectures --out {zoo / 'table.md'}`" in page
    assert "- `gated`: 1 of 2 proven, 1 as live modules, 1 of these by their own code alone" in page
    assert "| dense (gated) | 1 | 8 | 67 | 35 | 52% | live | 95.5% |" in page


def test_those_named_are_printed_as_lines(zoo: Path) -> None:
    done = run("--zoo", str(zoo), "dense")
    assert done.returncode == 0
    assert [line.split(",")[:2] for line in done.stdout.splitlines()] == [
        ["dense gated: live", " 35 of 67"], ["dense all: live", " 35 of 67"]
    ]  # fmt: skip


def test_a_folder_without_a_zoo_is_refused(tmp_path: Path) -> None:
    done = run(folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"secateur: zoo: there is no zoo.py in {tmp_path}\n"
    done = run()
    assert (done.returncode, done.stdout) == (2, "")
    assert "ZOO_DIR" in done.stderr
