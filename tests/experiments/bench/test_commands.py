"""`secateur bench`: what it prints, draws and refuses."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
import torch

from experiments.studies import FEW
from secateur_experiments import datasets
from secateur_experiments.bench import curvature, optimisers, oracle, quadratic, single_weights

QUADRATIC = quadratic.Row("4-6-3", "oracle", 0.9512, 0.9, 0.8, 0.7, 34.0, 0.01234, 5678.9, 2.0, 0.5, 0.25)
WEIGHTS = single_weights.Row("obd", 0, 0.9512, 0.9, 0.8, 0.7, 0.6, 0.5, 65.31, 12257, 39.79)


@pytest.mark.parametrize(
    ("name", "module", "row", "cell"),
    [("quadratic", quadratic, QUADRATIC, "5,679"), ("weights", single_weights, WEIGHTS, "12,257")],
)
def test_a_benchmark_prints_what_was_measured_and_its_rows(command_line, monkeypatch, name, module, row, cell):
    monkeypatch.setattr(module, "compare", lambda *_, **__: [row])
    code, out, err = command_line("bench", name)
    title, _, head, line = out.splitlines()
    assert (code, err) == (0, "")
    assert title.startswith(f"{name}: test accuracy on digits with that share of the ")
    assert f"torch {torch.__version__}" in title
    assert "50 %" in head
    assert "0.951" in line
    assert cell in line
    assert json.loads(command_line("bench", name, "--json")[1]) == {"rows": [asdict(row)]}


def test_the_oracle_prints_both_sides(command_line, tmp_path):
    options = ("--samples", "50", "--runs", "1", "--only", "784-100-10", "--out", str(tmp_path / "growth.png"))
    code, out, _ = command_line("bench", "oracle", *options, "--json")
    data = json.loads(out)
    assert code == 0
    assert [(row["network"], row["task"], row["passes"]) for row in data["rows"]] == [
        ("784-100-10", "single", 100),
        ("784-100-10", "iterative", 5049),
    ]
    for row in data["rows"]:
        assert row["ratio"] == pytest.approx(row["naive_s"] / row["ours_s"])
        assert row["max_difference"] <= 1e-9
    assert data["sweep_s"] > 0
    assert list(data["growth_s"]) == ["50", "100", "200", "400", "800"]
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")


def test_the_oracle_as_text(command_line, monkeypatch):
    row = oracle.Row("784-100-10", "single", 100, 100, 2.0, 0.5, 4.0, 1e-16)
    monkeypatch.setattr(oracle, "compare", lambda *_: [row])
    monkeypatch.setattr(oracle, "growth", lambda *_: ({50: 0.5}, 0.987))
    monkeypatch.setattr(oracle, "sweep", lambda *_: 12.34)
    code, out, err = command_line("bench", "oracle", "--samples", "7", "--dtype", "float32", "--runs", "3")
    assert (code, err) == (0, "")
    assert out.startswith("oracle: 7 samples, float32, medians of 3, ")
    assert "log-log slope 0.99" in out
    assert out.endswith("10,001 gains each: 12.3 seconds\n")


def test_curvature_says_where_backpack_is_missing(command_line, monkeypatch):
    row = curvature.Row("784-100-10", "hessian, gates", "torch.func.hessian", 8, 2.0, 0.5, 4.0, None)
    monkeypatch.setattr(curvature, "compare", lambda *_: iter([row]))
    for there, end in ((True, "4"), (False, curvature.WITHOUT_BACKPACK)):
        monkeypatch.setattr(curvature, "has_backpack", lambda _, there=there: there)
        code, out, _ = command_line("bench", "curvature")
        assert (code, out.rstrip().endswith(end)) == (0, True)
    assert json.loads(command_line("bench", "curvature", "--json")[1]) == {"rows": [asdict(row)]}


def test_optimisers_are_drawn_and_printed(command_line, monkeypatch, tmp_path):
    run = optimisers.Run(0.3, [0, 10], [1.0, 0.25], [0.1, 0.9], 0.02)
    monkeypatch.setattr(optimisers, "compare", lambda _: {"SGD": run})
    code, out, _ = command_line("bench", "optimisers", "--out", str(tmp_path / "a.png"))
    assert (code, out) == (0, f"{optimisers.summary({'SGD': run})}\n")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads(command_line("bench", "optimisers", "--json")[1]) == {"SGD": asdict(run)}


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (("oracle", "--out", "no/a.png"), 2, "no/a.png: cannot be written (No such file or directory)"),
        (("optimisers", "--out", "no/a.png"), 2, "no/a.png: cannot be written (No such file or directory)"),
        (("oracle", "--runs", "0"), 2, "should be greater than or equal to 1"),
        (("curvature", "--samples", "0"), 2, "should be greater than or equal to 1"),
        (("quadratic", "--seeds", "0"), 2, "should be greater than or equal to 1"),
        (("quadratic", "--mnist", "nowhere"), 2, "nowhere/train-images-idx3-ubyte.gz: expected a gzipped"),
        (("weights", "--mnist", "nowhere"), 2, "nowhere/train-images-idx3-ubyte.gz: expected a gzipped"),
        (
            ("oracle", "--only", "nope"), 2,
            "unknown only 'nope'; one of: 784-100-10, 784-50-50-10, LeNet-5, ResNet-18, ViT-tiny",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_on_stderr_with_its_exit_code(command_line, tmp_path, monkeypatch, words, code, text):
    monkeypatch.chdir(tmp_path)
    exit_code, out, err = command_line("bench", *words)
    assert (exit_code, out) == (code, "")
    assert text in " ".join(err.replace("│", " ").split())
    assert list(tmp_path.iterdir()) == []


def test_the_data_and_the_number_of_networks_are_those_asked_for(command_line, monkeypatch):
    seen = []
    monkeypatch.setattr(datasets, "digits_or_mnist", lambda _: (FEW, 7))
    monkeypatch.setattr(quadratic, "compare", lambda study: seen.append(study) or [QUADRATIC])
    assert command_line("bench", "quadratic", "--seeds", "2", "--json")[0] == 0
    assert [(study.data, study.epochs, list(study.seeds)) for study in seen] == [(FEW, 7, [0, 1])]


def test_help_names_every_comparison_and_what_each_option_is_for(command_line):
    code, out, _ = command_line("bench", "--help")
    assert code == 0
    names = (
        "oracle", "curvature", "quadratic", "weights", "compensation", "optimisers", "architectures", "suite", "scale",
    )  # fmt: skip
    assert all(f"│ {name} " in out for name in names)
    code, out, err = command_line("bench", "quadratic", "--help")
    lines = [line.strip("│ ") for line in out.splitlines()]
    assert (code, err) == (0, "")
    for option in ("--seeds", "--mnist", "--json"):
        (line,) = (line for line in lines if line.startswith(f"{option} "))
        assert len(line.split()) > 2
