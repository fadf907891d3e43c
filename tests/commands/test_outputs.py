"""Several budgets on the command line: files, tables and pictures from one order.

Also covers secateur.reporting.size_curve.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import secateur as sc
from secateur.planning.plan import Plan

FACTORY = """
import torch

def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 20), torch.nn.Tanh(), torch.nn.Linear(20, 3))

def data():
    print("reading")
    g = torch.Generator().manual_seed(0)
    return torch.randn(60, 6, generator=g), torch.randint(3, (60,), generator=g)
"""
SHRINK = ("shrink", "nets:network", "--data", "nets:data", "--loss", "cross_entropy")
THREE = ("--bytes", "1250", "--bytes", "1.1 kB", "--bytes", "1kB")
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command_line: Run) -> Run:
    (tmp_path / "nets.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    sys.modules.pop("nets", None)
    return command_line


def new_files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"nets.py", "__pycache__"}


@pytest.mark.parametrize("options", [(), ("--no-compensate",), ("--ranking", "layerwise")])
def test_a_file_for_each_budget_is_within_it_and_keeps_what_the_smaller_ones_keep(
    run: Run, tmp_path: Path, options: tuple[str, ...]
) -> None:
    words = (*SHRINK, *THREE, *options, "--out", "small-{bytes}.safetensors", "--picture", "p.png", "--json")
    code, out, _ = run(*words)
    first, second, third = results = json.loads(out)
    assert code == 0
    names = [f"small-{size}.safetensors" for size in ("1250", "1.1kB", "1kB")]
    assert [result["artifact"]["path"] for result in results] == names
    assert new_files(tmp_path) == {*names, "p.png"}
    for result, name, most in zip(results, names, (1250, 1100, 1000), strict=True):
        assert result["artifact"]["bytes"] == (tmp_path / name).stat().st_size <= most
        assert most - result["artifact"]["bytes"] < 60  # a unit has 10 numbers, and its index in the header
        assert result["picture"] == "p.png"
        left = result["kept"]["0"]
        assert result["index_map"] == {"0.weight": [left, None], "0.bias": [left], "2.weight": [None, left]}
    kept = [set(result["kept"]["0"]) for result in results]
    assert kept[0] > kept[1] > kept[2]
    assert first["before"] == second["before"] == third["before"]
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_each_file_is_the_one_that_its_budget_alone_would_write_from_that_order(run: Run, tmp_path: Path) -> None:
    run(*SHRINK, *THREE, "--out", "small-{bytes}.safetensors")
    run(*SHRINK, "--bytes", "1kB", "--out", "alone-{bytes}.safetensors")
    alone = (tmp_path / "alone-1kB.safetensors").read_bytes()
    assert (tmp_path / "small-1kB.safetensors").read_bytes() == alone


@pytest.mark.parametrize("options", [(), ("--ranking", "layerwise"), ("--ranking", "layerwise", "--no-compensate")])
def test_the_loss_of_each_file_is_that_of_the_network_in_it(run: Run, tmp_path: Path, options: tuple[str, ...]) -> None:
    results = json.loads(run(*SHRINK, *THREE, *options, "--out", "{bytes}.safetensors", "--json")[1])
    nets = sys.modules["nets"]
    x, y = nets.data()
    for result in results:
        small = sc.load(tmp_path / result["artifact"]["path"], nets.network())
        assert result["after"]["loss"] == pytest.approx(torch.nn.functional.cross_entropy(small(x), y).item(), rel=1e-5)
        assert result["measured"]["samples"] == 60


def test_units_are_scored_once_for_all_budgets(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    scored = []
    make = sc.shrinking.make_order  # type: ignore[attr-defined]
    monkeypatch.setattr("secateur.shrinking.make_order", lambda job: scored.append(job.budget) or make(job))
    assert run(*SHRINK, *THREE, "--out", "{bytes}.safetensors")[0] == 0
    assert scored == [sc.Budget(bytes=1000)]


def test_the_table_has_a_row_for_each_file_and_the_original(run: Run, tmp_path: Path) -> None:
    words = (*SHRINK, *THREE, "--out", "{bytes}.safetensors", "--report", "{bytes}.html", "--picture", "p.png")
    code, out, _ = run(*words)
    title, head, whole, *rows = out.removeprefix("reading\n").splitlines()
    assert code == 0
    assert (
        title
        == "3 networks from one order; loss and accuracy on 60 samples of the data, on which the weights were fitted"
    )
    assert head.split() == ["asked", "written", "units", "removed", "parameters", "loss", "accuracy", "file"]
    assert whole.split()[2:4] == ["0", "203"]
    assert [row.split()[-1] for row in rows[:3]] == ["1250.safetensors", "1.1kB.safetensors", "1kB.safetensors"]
    assert rows[3:] == [*(f"written too: {size}.html" for size in ("1250", "1.1kB", "1kB")), "written too: p.png"]
    assert all((tmp_path / f"{size}.html").exists() for size in ("1250", "1.1kB", "1kB"))


def test_a_picture_needs_a_loss_and_single_weights_have_one(run: Run, tmp_path: Path) -> None:
    words = ("--bytes", "1.1kB", "--out", "s.safetensors", "--picture", "p.png")
    text = "secateur: --picture: shows the loss against bytes; give --loss\n"
    assert run(*SHRINK[:4], *words, "--criterion", "magnitude") == (2, "", text)
    assert new_files(tmp_path) == set()
    code, out, _ = run(*SHRINK, *words, "--granularity", "weight")
    assert (code, out.splitlines()[-1]) == (0, "written to s.safetensors, the picture to p.png")
    assert new_files(tmp_path) == {"s.safetensors", "p.png"}


def test_a_bound_of_quality_holds_for_every_size(run: Run, tmp_path: Path) -> None:
    words = (*SHRINK[:4], *THREE, "--out", "{bytes}.safetensors", "--json", "--loss", "output")
    results = json.loads(run(*words, "--max-loss-increase", "0.5")[1])
    assert [result["measured"]["on"] for result in results] == ["held back"] * 3
    assert all(result["after"]["loss"] <= result["before"]["loss"] + 0.5 for result in results)
    for path in tmp_path.glob("*.safetensors"):
        path.unlink()
    code, out, err = run(*words, "--max-loss-increase", "1e-9")
    assert (code, out, new_files(tmp_path)) == (1, "", set())
    assert "cannot be met" in err


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        ((*THREE, "--out", "a.safetensors"), 2,
         "--out a.safetensors: several --bytes need {bytes} in it, which stands for each of them"),
        ((*THREE, "--out", "{bytes}.safetensors", "--report", "a.html"), 2,
         "--report a.html: several --bytes need {bytes} in it, which stands for each of them"),
        ((*THREE, "--out", "{bytes}.safetensors", "--out", "b.safetensors"), 2,
         "--out: give it once; {bytes} in it stands for what each --bytes gives"),
        (("--params", "90", "--out", "{bytes}.safetensors"), 2,
         "--out {bytes}.safetensors: {bytes} stands for what --bytes gives, and there is none"),
        (("--bytes", "1kB", "--bytes", "1 kB", "--out", "{bytes}.safetensors"), 2,
         "--bytes: 1kB, 1 kB hold a size twice"),
        ((*THREE, "--rounds", "2", "--out", "{bytes}.safetensors"), 2,
         "--bytes: several are cut from one order; not with --rounds, --retrain or weights"),
        ((*THREE, "--granularity", "weight", "--out", "{bytes}.safetensors"), 2,
         "--bytes: several are cut from one order; not with --rounds, --retrain or weights"),
        ((*THREE, "--bytes", "10", "--out", "{bytes}.safetensors"), 1, "Budget(bytes=10) cannot be met"),
    ],
)  # fmt: skip
def test_several_budgets_that_cannot_be_written_are_refused_and_nothing_is(
    run: Run, tmp_path: Path, words: tuple[str, ...], code: int, text: str
) -> None:
    given, out, err = run(*SHRINK, *words, "--json")
    assert (given, out) == (code, "")
    assert err.splitlines()[-1].startswith(f"secateur: {text}")
    assert new_files(tmp_path) == set()


def test_a_plan_takes_a_list_of_budgets(run: Run) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 20), torch.nn.Tanh(), torch.nn.Linear(20, 3))
    plan = sc.rank(model, (torch.randn(30, 6), torch.arange(30) % 3), "cross_entropy", progress=False)
    budgets = [sc.Budget(bytes=1300), sc.Budget(remove_units=3), sc.Budget(params=100)]
    plans: list[Plan] = plan.at(budgets)
    assert plans == [plan.at(budget) for budget in budgets]
    assert [len(each.steps) for each in plans][1] == 3
    with pytest.raises(sc.SecateurError, match=r"budget: expected secateur\.Budget\(\.\.\.\), got 3"):
        plan.at([3])  # type: ignore[list-item]
