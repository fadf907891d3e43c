"""The command line: what it prints, writes and exits with.

Also covers secateur.cli_options.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from secateur import load
from secateur_experiments.networks import logistic_network

FACTORY = """
import torch
from secateur_experiments.networks import logistic_network

def network():
    return logistic_network([4, 6, 3]).double()

def data():
    g = torch.Generator().manual_seed(0)
    return torch.rand(20, 4, generator=g), torch.randint(3, (20,), generator=g)

def normed():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.LayerNorm(5), torch.nn.Linear(5, 3))

def nothing():
    return None

def noisy():
    print("building")
    return network()

def train(model):
    print("training")
    with torch.no_grad():
        model[2].bias += 1

def count(model):
    return sum(p.numel() for p in model.parameters())

def shift(inputs, generator):
    return inputs + torch.rand(inputs.shape, generator=generator, dtype=inputs.dtype)

def crop(inputs, generator):
    return inputs[:, 1:]

def stop(model):
    raise KeyboardInterrupt

def stopped():
    raise KeyboardInterrupt

def wide(width):
    return torch.nn.Linear(width, 2)

value = 3
"""
SHRINK = [
    "shrink",
    "my_models:network",
    "--data",
    "my_models:data",
    "--loss",
    "squared_error",
    "--out",
    "small.safetensors",
]
WEIGHTS = [*SHRINK, "--remove-fraction", "0.5", "--granularity", "weight"]
SCORE = ["score", *SHRINK[1:6]]
PAIRS = ["interactions", *SHRINK[1:6]]


@pytest.fixture
def run(tmp_path, monkeypatch, command_line):
    """Call the command line as the console script does: (exit code, stdout, stderr)."""
    (tmp_path / "my_models.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    sys.modules.pop("my_models", None)

    return command_line


def test_shrink_writes_a_network_within_the_budget_and_prints_the_trade_off(run, tmp_path):
    code, out, err = run(*SHRINK, "--remove-fraction", "0.5")
    assert (code, err) == (0, "")
    assert "3 of 6 units removed, obs / iterative, compensated" in out
    small = load(tmp_path / "small.safetensors", logistic_network([4, 6, 3]).double())
    assert small[0].out_features == 3


def test_shrink_prints_one_json_object_and_nothing_else(run, tmp_path):
    code, out, err = run(*SHRINK, "--bytes", "900", "--criterion", "taylor1", "--ranking", "single", "--json")
    data = json.loads(out)
    assert (code, err) == (0, "")
    assert data["artifact"]["bytes"] == (tmp_path / "small.safetensors").stat().st_size == data["after"]["bytes"] <= 900
    assert len(data["kept"]["0"]) + data["removed"] == 6
    assert data["verified"] is True
    assert data["before"]["params"] == 4 * 6 + 6 + 18 + 3


@pytest.mark.parametrize("granularity", ["unit", "weight"])
def test_shrink_writes_a_report_where_asked_to(run, tmp_path, granularity):
    words = [*SHRINK, "--remove-fraction", "0.5", "--granularity", granularity, "--report", "small.html"]
    code, out, err = run(*words)
    assert (code, err) == (0, "")
    assert out.endswith("\nwritten to small.safetensors, the report to small.html\n")
    report = (tmp_path / "small.html").read_text()
    assert f"{granularity}s removed</h1>" in report
    code, out, _ = run(*words, "--json")
    assert (code, json.loads(out)["report"]) == (0, "small.html")
    assert (tmp_path / "small.html").read_text() == report
    assert json.loads(run(*SHRINK, "--remove-fraction", "0.5", "--json")[1])["report"] is None


@pytest.mark.parametrize(
    ("report", "code", "text"),
    [
        ("a.pdf", 2, "a.pdf: pages are written as .html or .htm, not as '.pdf'"),
        ("no/a.html", 2, "no/a.html: cannot be written (No such file or directory)"),
    ],
)
def test_a_report_that_cannot_be_written_is_refused_before_the_work(run, tmp_path, report, code, text):
    words = ["shrink", "my_models:not_looked_for", *SHRINK[2:], "--remove-fraction", "0.5", "--report", report]
    assert run(*words) == (code, "", f"secateur: {text}\n")
    assert not (tmp_path / "small.safetensors").exists()


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_data_come_from_files_with_x_and_y(run, tmp_path, suffix):
    x, y = torch.rand(9, 4), torch.randint(3, (9,))
    if suffix == "npz":
        np.savez(tmp_path / "data.npz", x=x.numpy(), y=y.numpy())
    else:
        save_file({"x": x, "y": y}, tmp_path / "data.safetensors")
    words = ("score", "my_models:network", "--data", f"data.{suffix}", "--loss", "squared_error", "--json")
    code, out, _ = run(*words)
    assert code == 0
    assert [len(values) for values in json.loads(out).values()] == [6]


def test_score_lists_the_lowest_first(run):
    code, out, _ = run("score", "my_models:network", "--data", "my_models:data", "--criterion", "magnitude")
    values = [float(line.split()[0]) for line in out.splitlines()[1:]]
    assert code == 0
    assert values == sorted(values)
    assert len(values) == 6


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        ((*SHRINK, "--bytes", "30"), 1, "secateur: Budget(bytes=30) cannot be met: at most 5 of 6 units"),
        ((*SHRINK, "--bytes", "much"), 2, "bytes: expected an int or a size such as '200 kB'"),
        (SHRINK, 2, "Budget: give at least one of bytes, params"),
        ((*SHRINK, "--remove-units", "2", "--criterion", "best"), 2, "unknown criterion 'best'; one of: activation,"),
        ((*SHRINK, "--remove-units", "2", "--protect", "9"), 2, "protect='9' is no unit set; there are: 0"),
        ((*SHRINK[:-1], "a.gguf", "--remove-units", "2"), 2, "a.gguf: files are written as .safetensors, .pt2, .onnx,"),
        ((*SHRINK[:-1], "no/a.safetensors", "--remove-units", "2"), 2, "no/a.safetensors: cannot be written"),
        (("score", "my_models", "--data", "x"), 2, "MODEL 'my_models': expected package.module:function"),
        (("score", "my_models:nothing", "--data", "x"), 2, "expected a torch.nn.Module, got None"),
        (("score", "my_models:none", "--data", "x"), 2, "module 'my_models' has no attribute 'none'"),
        (("score", "no_models:none", "--data", "x"), 2, "No module named 'no_models'"),
        (("score", "my_models:network", "--data", "x"), 2, "expected package.module:function or a .npz"),
        (("score", "my_models:network", "--data", "x.npz"), 2, "x.npz: cannot be read"),
        (("score", "my_models:network"), 2, "Missing option '--data'"),
        (("prune",), 2, "No such command 'prune'"),
        (
            (*SHRINK, "--remove-units", "2", "--refresh", "3", "--no-compensate"), 2,
            "refresh: is for ranking='quadratic' or compensate=True",
        ),
        ((*SHRINK, "--remove-units", "2", "--ridge", "0"), 2, "ridge: expected a number above 0"),
        ((*SHRINK, "--remove-units", "2", "--ridge", "1", "--no-compensate"), 2, "ridge: is for compensate=True"),
        ((*SHRINK, "--remove-units", "2", "--weighting", "all"), 2, "unknown weighting 'all'; one of: ggn, none"),
        ((*SHRINK, "--remove-units", "2", "--ranking", "quadratic", "--refresh", "0"), 2, "refresh: expected a number"),
        ((*SHRINK, "--max-loss-increase", "1", "--ranking", "quadratic", "--swaps"), 2, "swaps: improve what a budget"),
        ((*SHRINK, "--remove-units", "2", "--ranking", "quadratic", "--criterion", "oracle"), 2, "takes a criterion"),
        ((*SHRINK, "--remove-units", "2", "--retrain", "my_models:count"), 2, "retrain: expected a function that retu"),
        ((*SHRINK, "--remove-units", "2", "--retrain", "train"), 2, "'train': expected package.module:function"),
        ((*SHRINK, "--remove-units", "2", "--granularity", "layer"), 2, "Invalid value for '--granularity'"),
        ((*WEIGHTS, "--rounds", "0"), 2, "rounds: expected a number above 0, got 0"),
        ((*WEIGHTS, "--criterion", "taylor1"), 2, "unknown weight criterion 'taylor1'; one"),
        (("score", "my_models:wide", "--data", "x"), 2, "'my_models:wide': expected a function without arguments"),
        ((*SCORE, "--criterion", "best"), 2, "unknown criterion 'best'; one of: activation,"),
        ((*SCORE, "--threshold", "mode"), 2, "unknown threshold 'mode'; one of: mean, median"),
        ((*PAIRS, "--curvature", "oracle"), 2, "unknown curvature 'oracle'; one of: ggn, fisher, hessian"),
        ((*PAIRS, "--most", "0"), 2, "should be greater than or equal to 1"),
        ((*PAIRS[:-2],), 2, "a loss"),
        (("interactions", "my_models:none", "--data", "x", "--out", "a.svg"), 2, "a.svg: pictures are written as .png"),
        (("interactions", "my_models:none", "--data", "x", "--out", "no/a.png"), 2, "no/a.png: cannot be written (No"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_on_stderr_with_its_exit_code(run, tmp_path, words, code, text):
    before = set(tmp_path.iterdir())
    given, out, err = run(*words)
    assert (given, out) == (code, "")
    assert text in " ".join(err.replace("│", " ").split())
    assert {p for p in tmp_path.iterdir() if p.name != "__pycache__"} == before


def test_inspect_prints_the_table_of_unit_sets(run):
    code, out, _ = run("inspect", "my_models:network", "--data", "my_models:data")
    assert code == 0
    assert out.splitlines()[0] == "1 unit sets, 6 units"
    assert out.splitlines()[2].split() == ["0", "neuron", "6", "8", "64", "B", "7", "2", "gated"]
    assert [line.split(maxsplit=2) for line in out.splitlines()[-2:]] == [
        ["2.weight[0]", "3", "a model output"],
        ["0.weight[1]", "4", "a model input"],
    ]
    assert run("inspect", "my_models:network") == (0, out, "")  # a dense layer first: no example needed


def test_inspect_as_json(run):
    code, out, err = run("inspect", "my_models:network", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == {
        "sets": [
            {"name": "0", "kind": "neuron", "size": 6, "removal": "gated", "params_per_unit": 8, "bytes_per_unit": 64,
             "macs_per_unit": 7, "consumers": ["2"]}
        ],
        "fixed": [
            {"name": "2.weight[0]", "size": 3, "reason": "a model output"},
            {"name": "0.weight[1]", "size": 4, "reason": "a model input"},
        ],
        "params": 51, "bytes": 408, "macs": 42, "notes": [],
    }  # fmt: skip


def test_inspect_needs_an_example_where_no_dense_layer_comes_first(run, tmp_path):
    (tmp_path / "conv.py").write_text("from torch import nn\ndef net(): return nn.Conv1d(2, 3, 1)\n")
    code, out, err = run("inspect", "conv:net")
    assert (code, out) == (1, "")
    assert "--data" in err


def test_score_says_where_an_estimate_is_approximate(run):
    words = ("score", "my_models:normed", "--data", "my_models:data", "--loss", "cross_entropy", "--include", "all")
    code, out, _ = run(*words, "--criterion", "taylor1")
    assert (code, len(out.splitlines())) == (0, 8)
    assert out.endswith("\n\napproximate, since a norm is taken over the units: 0\n")
    for exact in ("oracle", "magnitude"):
        code, out, _ = run(*words, "--criterion", exact)
        assert (code, len(out.splitlines())) == (0, 6)


def test_shrink_removes_sliced_units_where_asked_to(run):
    words = ["shrink", "my_models:normed", *SHRINK[2:-1], "a.safetensors", "--remove-units", "2", "--json"]
    code, out, err = run(*words, "--include", "all")
    assert code == 0
    assert {name: len(kept) for name, kept in json.loads(out)["kept"].items()} == {"0": 3}
    assert json.loads(out)["captured"] == []
    code, out, err = run(*words)
    assert (code, out) == (1, "")
    assert "the model has no removable units: 0 (5): layer_norm averages over it; include='all' removes it as" in err


def test_arrays_of_other_names_are_refused(run, tmp_path):
    np.savez(tmp_path / "data.npz", a=np.zeros(3))
    code, _, err = run("score", "my_models:network", "--data", "data.npz")
    assert code == 2
    assert "data.npz: expected arrays x and y, found a" in err


@pytest.mark.parametrize("loss", ["output", "distribution"])
def test_a_loss_that_keeps_the_outputs_needs_inputs_alone(run, tmp_path, loss):
    x = torch.rand(20, 4)
    np.savez(tmp_path / "data.npz", x=x.numpy())
    words = ("--data", "data.npz", "--loss", loss)
    code, out, err = run(
        "shrink", "my_models:network", *words, "--remove-units", "2", "--out", "small.safetensors", "--json"
    )
    assert (code, err.count("secateur:")) == (0, 0)
    shrunk = json.loads(out)
    assert shrunk["after"]["accuracy"] is None
    assert 0 <= shrunk["before"]["loss"] < 1e-9 < shrunk["after"]["loss"]
    for command in ("score", "interactions"):
        assert run(command, "my_models:network", *words)[0] == 0
    code, _, err = run("score", "my_models:network", "--data", "data.npz", "--loss", "cross_entropy")
    assert code == 2
    assert "data.npz: expected arrays x and y, found x; without targets y the loss can be output or distribution" in err


def test_help_names_every_command(run):
    code, out, _ = run("--help")
    assert code == 0
    assert all(f"│ {name} " in out for name in ("shrink", "score", "inspect", "interactions"))


@pytest.mark.parametrize(
    ("words", "options"),
    [
        (
            ("shrink",),
            (
                "--refresh",
                "--swaps",
                "--granularity",
                "--retrain",
                "--rounds",
                "--no-compensate",
                "--no-compensate",
                "--ridge",
                "--weighting",
                "--recalibrate",
                "--add-bias",
                "--unlabelled",
                "--augment",
            ),
        ),
        (("score",), ("--granularity",)),
        (("interactions",), ("--curvature", "--out", "--most", "--json")),
    ],
)
def test_help_says_what_each_option_is_for(run, words, options):
    code, out, err = run(*words, "--help")
    lines = [line.strip("│ ") for line in out.splitlines()]
    assert (code, err) == (0, "")
    for option in options:
        (line,) = (line for line in lines if line.startswith(f"{option} "))
        assert len(line.split()) > 2


def test_the_quadratic_ranking_on_the_command_line(run):
    code, out, err = run(
        *SHRINK, "--remove-units", "3", "--ranking", "quadratic", "--swaps", "--refresh", "2", "--json"
    )
    data = json.loads(out)
    assert (code, err, data["removed"]) == (0, "", 3)
    assert data["swaps"].keys() == {"number", "before", "after"}
    assert data["swaps"]["after"] <= data["swaps"]["before"]
    code, out, _ = run(*SHRINK, "--remove-units", "3", "--ranking", "quadratic")
    assert code == 0
    assert "3 of 6 units removed, ggn / quadratic" in out


def test_single_weights_on_the_command_line(run, tmp_path):
    code, out, err = run(*WEIGHTS, "--rounds", "2", "--retrain", "my_models:train", "--json")
    data = json.loads(out)
    assert (code, data["removed"], data["swaps"]) == (0, 21, None)
    assert sum(map(len, data["kept"].values())) == 21
    assert data["artifact"]["bytes"] == (tmp_path / "small.safetensors").stat().st_size
    assert err == "training\n" * 2
    small = load(tmp_path / "small.safetensors", logistic_network([4, 6, 3]).double())
    assert sum(int((p == 0).sum()) for p in (small[0].weight, small[2].weight)) == 21
    assert (small[2].bias == 2).all()
    code, out, _ = run(*WEIGHTS)
    assert code == 0
    assert "21 of 42 weights removed, obd\n" in out


def test_units_in_rounds_on_the_command_line(run, tmp_path):
    code, out, err = run(*SHRINK, "--remove-units", "3", "--rounds", "2", "--retrain", "my_models:train", "--json")
    data = json.loads(out)
    assert (code, data["removed"], data["rounds"], data["retrained"]) == (0, 3, 2, True)
    assert data["artifact"]["bytes"] == (tmp_path / "small.safetensors").stat().st_size
    assert err == "training\n" * 2
    small = load(tmp_path / "small.safetensors", logistic_network([4, 6, 3]).double())
    assert small[0].out_features == 3
    code, out, _ = run(*SHRINK, "--remove-units", "3", "--rounds", "2")
    assert code == 0
    assert "3 of 6 units removed, obs / iterative, 2 rounds, compensated" in out


def test_more_inputs_on_the_command_line(run, tmp_path):
    np.savez(tmp_path / "more.npz", x=np.random.default_rng(0).random((50, 4)))
    words = [*SHRINK, "--remove-units", "3", "--refine", "1"]
    more = ["--unlabelled", "more.npz", "--augment", "my_models:shift"]
    written = {}
    for options in ([], more[:2], more, [*more, "--seed", "1"]):
        code, _, err = run(*words, *options)
        assert (code, err) == (0, "")
        written[tuple(options)] = (tmp_path / "small.safetensors").read_bytes()
    assert len(set(written.values())) == 4
    run(*words, *more)
    assert (tmp_path / "small.safetensors").read_bytes() == written[tuple(more)]
    sizes = "--out", "small-{bytes}.safetensors", "--bytes", "850", "--bytes", "800"
    several = []
    for options in ([], more):
        code, _, err = run(*SHRINK[:6], *sizes, "--refine", "1", *options)
        assert (code, err) == (0, "")
        several.append((tmp_path / "small-800.safetensors").read_bytes())
    assert several[0] != several[1]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--augment", "my_models:shift"), "augment: is for refine=, a number of steps or 'auto'"),
        (
            ("--unlabelled", "my_models:data", "--no-compensate"),
            "unlabelled: is for weights that are fitted, beside the data",
        ),
        (("--unlabelled", "none.npz"), "none.npz: cannot be read"),
        (("--augment", "shift"), "--augment 'shift': expected package.module:function"),
        (("--augment", "my_models:crop", "--refine", "1"), "augment: crop returns as inputs a tensor of shape (20, 3)"),
    ],
)
@pytest.mark.parametrize("bounds", [("--remove-units", "2"), ("--bytes", "850", "--bytes", "800")])
def test_more_inputs_that_cannot_be_used_are_refused(run, tmp_path, words, text, bounds):
    out = ("--out", "small-{bytes}.safetensors") if "--bytes" in bounds else ()
    code, _, err = run(*SHRINK[:6], *(out or SHRINK[6:]), *bounds, *words)
    assert code == 2
    assert err.startswith(f"secateur: {text}")
    assert not list(tmp_path.glob("small*"))


def test_what_the_users_code_prints_is_not_among_the_json(run):
    code, out, err = run("inspect", "my_models:noisy", "--json")
    assert (code, err) == (0, "building\n")
    assert len(json.loads(out)["sets"]) == 1
    assert run("inspect", "my_models:noisy")[1].startswith("building\n1 unit sets")


def test_an_interrupt_while_training_leaves_no_file(run, tmp_path):
    before = set(tmp_path.iterdir())
    code, out, err = run(*WEIGHTS, "--retrain", "my_models:stop", "--json")
    assert (code, out) == (130, "")
    assert re.fullmatch(r"secateur: interrupted while removing weights by obd, after \d+ s; nothing was written\n", err)
    assert {path for path in tmp_path.iterdir() if path.name != "__pycache__"} == before


def test_an_estimate_is_printed_and_nothing_else_is_done(run, tmp_path):
    before = set(tmp_path.iterdir())
    code, out, err = run(*SHRINK[:-2], "--remove-fraction", "0.5", "--estimate")
    assert (code, err) == (0, "")
    summary, head, *rows = out.splitlines()
    assert re.match(
        r"about \d+ s, [\d.]+ MB beside model and data; iterative: an iterative ranking takes some ", summary
    )
    assert head.split() == ["phase", "multiplications", "seconds", "memory"]
    assert [row.split("  ")[0] for row in rows] == [
        "capturing the model", "ranking by obs", "measuring along the order", "fitting layers", "measuring",
        "cutting and proving", "together",
    ]  # fmt: skip
    asked = (*SHRINK, "--remove-fraction", "0.5", "--estimate", "--rounds", "3")
    assert run(*asked)[1].startswith("each of 3 rounds, without the training: about ")
    code, out, _ = run(*asked, "--no-compensate", "--json")
    estimate = json.loads(out)
    assert (code, estimate["ranking"], estimate["phases"][1]["name"]) == (0, "iterative", "ranking by oracle")
    assert estimate["rounds"] == 3
    assert estimate["seconds"] == pytest.approx(sum(phase["seconds"] for phase in estimate["phases"]))
    assert {path for path in tmp_path.iterdir() if path.name != "__pycache__"} == before


def test_an_estimate_of_single_weights_and_a_network_without_a_file_are_refused(run):
    text = "secateur: --estimate: there is none with --granularity weight\n"
    assert run(*WEIGHTS, "--estimate") == (2, "", text)
    text = "secateur: --out: needs the file to write the small network to, or --estimate\n"
    assert run(*SHRINK[:-2], "--remove-fraction", "0.5") == (2, "", text)


def test_an_interrupt_before_the_work_exits_as_one_does(run, monkeypatch):
    assert run("inspect", "my_models:stopped") == (130, "", "secateur: interrupted\n")


def test_the_scores_of_weights_are_summed_up_by_parameter(run):
    code, out, _ = run(*SCORE, "--granularity", "weight")
    head, first, last = [line.split() for line in out.splitlines()]
    assert (code, head) == (0, ["parameter", "weights", "least", "quarter", "median", "three", "quarters", "largest"])
    assert (first[:2], last[:2]) == (["0.weight", "24"], ["2.weight", "18"])
    code, out, _ = run(*SCORE, "--granularity", "weight", "--json")
    scores = torch.tensor(json.loads(out)["2.weight"])
    assert scores.shape == (3, 6)
    assert [float(last[2]), float(last[-1])] == pytest.approx([scores.min().item(), scores.max().item()], rel=5e-3)


def test_drawn_scores_have_standard_errors_and_others_none(run):
    code, out, _ = run(*SCORE, "--criterion", "fisher")
    head, *rows = [line.split() for line in out.splitlines()]
    assert (code, head) == (0, ["fisher", "±", "standard", "error", "unit", "set", "unit"])
    assert all(0 < float(error) < 1 for _, error, *_ in rows)
    assert len(rows) == 6
    for options in (("--criterion", "ggn"), ("--criterion", "fisher", "--threshold", "mean")):
        assert "±" not in run(*SCORE, *options)[1]


def test_interactions_as_a_table_and_a_picture(run, tmp_path):
    code, out, err = run(*PAIRS, "--most", "4", "--out", "pairs.png")
    head, *rows = [line.split() for line in out.splitlines()]
    assert (code, err, head) == (0, "", ["correlation", "interaction", "unit", "and", "unit"])
    sizes = [abs(float(row[0])) for row in rows]
    assert len(rows) == 4
    assert sizes == sorted(sizes, reverse=True)
    assert (tmp_path / "pairs.png").read_bytes().startswith(b"\x89PNG")


def test_interactions_as_json(run):
    code, out, err = run(*PAIRS, "--curvature", "hessian", "--json")
    data = json.loads(out)
    matrix = torch.tensor(data["matrix"])
    assert (code, err, data["units"]) == (0, "", [["0", k] for k in range(6)])
    assert torch.equal(matrix, matrix.T)
    assert matrix.diagonal().all()


def test_interactions_of_one_unit_are_none(run, tmp_path):
    (tmp_path / "one.py").write_text(
        "from torch import nn\ndef net(): return nn.Sequential(nn.Linear(4, 1), nn.Linear(1, 3))\n"
    )
    code, out, _ = run("interactions", "one:net", *PAIRS[2:], "--out", "one.png")
    assert (code, len(out.splitlines())) == (0, 1)


COMMANDS = """
import typer

group = typer.Typer(help="Do several things.")

@group.command()
def one() -> None:
    typer.echo("first")

@group.command()
def two(count: int = 2) -> None:
    typer.echo("second " * count)

def greet(name: str, loud: bool = False) -> None:
    \"""Say hello.\"""
    typer.echo(f"hello {name}".upper() if loud else f"hello {name}")
"""


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Install a package with these entry points of the group `secateur.commands`."""

    def install(**points: str) -> None:
        folder = tmp_path / "site" / "other-1.0.dist-info"
        folder.mkdir(parents=True)
        (tmp_path / "site" / "other_commands.py").write_text(COMMANDS)
        (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
        lines = [f"{name} = {value}" for name, value in points.items()]
        (folder / "entry_points.txt").write_text("\n".join(["[secateur.commands]", *lines]))
        monkeypatch.syspath_prepend(tmp_path / "site")
        sys.modules.pop("other_commands", None)

    return install


def test_other_packages_offer_commands_and_groups_of_them(run, installed):
    installed(**{"say-hello": "other_commands:greet", "more": "other_commands:group"})
    code, out, err = run("--help")
    assert (code, err) == (0, "")
    for words in (["say-hello", "Say", "hello."], ["more", "Do", "several", "things."]):
        assert words in [line.strip("│ ").split() for line in out.splitlines()]
    assert run("say-hello", "world", "--loud") == (0, "HELLO WORLD\n", "")
    assert run("more", "one") == (0, "first\n", "")
    assert run("more", "two", "--count", "3") == (0, "second second second \n", "")
    assert run("say-hello")[0] == 2


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("shrink", "other_commands:greet", "there is a command of that name already"),
        ("hello", "other_commands:absent", "cannot be imported (module 'other_commands' has no attribute 'absent')"),
        ("hello", "no_commands:greet", "cannot be imported (No module named 'no_commands')"),
    ],
)
def test_an_entry_point_that_is_no_new_command_is_an_error(run, installed, name, value, text):
    installed(**{name: value})
    message = f"secateur: entry point {name} = {value} of secateur.commands: {text}\n"
    assert run("inspect", "my_models:network") == (1, "", message)


DROPPED = """
import signal, threading, time, weakref
from secateur import cli
signal.signal(signal.SIGINT, cli.interrupt)
held = [threading.Event()]
watch = weakref.ref(held[0], lambda _: signal.raise_signal(signal.SIGINT))
held.clear()
print("dropped", flush=True)
for _ in range(1000):
    time.sleep(0.1)
"""


def test_an_interrupt_that_python_drops_is_raised_again():
    done = subprocess.run([sys.executable, "-c", DROPPED], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (-signal.SIGINT, "dropped\n")
    assert done.stderr.startswith("Exception ignored in: <function <lambda>")
    assert done.stderr.endswith("KeyboardInterrupt\n")
