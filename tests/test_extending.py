"""What docs/extending.md shows works as it is written, in packages outside Secateur."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from installed import ROOT, install, run_with
from rounding import assert_close_ulps

TEXT = (ROOT / "docs" / "extending.md").read_text()
MODULES: dict[str, str] = dict(re.findall(r"`(\w+)\.py`[^`]*\n\n```python\n(.*?)```", TEXT, re.DOTALL))
POINTS: dict[str, dict[str, str]] = {
    group: named
    for block in re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL)
    for group, named in tomllib.loads(block)["project"]["entry-points"].items()
}

# Of a sample x the neurons give x, 2x, -3x and nothing. Both logits are 0 and both classes as likely, so that the loss
# of class 0 has the slopes -1/2 and 1/2 in them: -x/2, -x and 3x/2 in the first three gates, and 0 in the last.
FACTORY = """
import torch

def factory():
    model = torch.nn.Sequential(torch.nn.Linear(1, 4, bias=False), torch.nn.Linear(4, 2, bias=False))
    model[0].weight.data = torch.tensor([[1.0], [2.0], [-3.0], [0.0]])
    model[1].weight.data = torch.tensor([[1.0] * 4, [0.0] * 4])
    return model
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The packages of the documentation as they are installed, and one of networks."""
    (tmp_path / "package").mkdir()
    install(tmp_path, "extensions", {**MODULES, "package/module": FACTORY}, POINTS)
    return tmp_path


def run_json(folder: Path, source: str) -> Any:
    """What a program prints as JSON, in a process of its own."""
    done = run_with(folder, "-W", "error::RuntimeWarning", "-c", source)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_block_of_code_is_one_of_these() -> None:
    assert list(MODULES) == ["steepness", "mykernels", "mykernels_rules", "mynetwork"]
    assert len(MODULES) == TEXT.count("```python")
    assert POINTS.keys() == {"secateur.criteria", "secateur.rules"}


def test_the_criterion_is_at_most_30_lines() -> None:
    assert 5 < len(MODULES["steepness"].splitlines()) <= 30


# ------------------------------------------------------------ the criterion


def score(folder: Path, samples: list[float]) -> list[float | None]:
    """What the command line in the documentation prints for these samples of class 0."""
    (command,) = re.findall(r"^secateur (score .*--json)$", TEXT, re.MULTILINE)
    labels = np.zeros(len(samples), dtype=np.int64)
    np.savez(folder / "x.npz", x=np.array(samples, dtype=np.float32)[:, None], y=labels)
    done = run_with(folder, "-m", "secateur", *command.split())
    assert (done.returncode, done.stderr) == (0, "")
    printed: dict[str, list[float | None]] = json.loads(done.stdout)
    assert printed.keys() == {"0"}
    return printed["0"]


def test_the_criterion_is_found_by_the_command_line(folder: Path) -> None:
    *slopes, unjudged = score(folder, [2.0, 4.0])
    assert unjudged is None  # infinite, for which JSON has no number
    assert_close_ulps(slopes, [1.5, 3.0, 4.5], 8, torch.float32)


HOLDS = """
import json
import torch, secateur as sc
from package.module import factory
x, y = torch.randn(12, 1, generator=torch.Generator().manual_seed(0)) + 1, torch.arange(12) % 2
answers = []
for dtype in (torch.float32, torch.float64):
    model, x = factory().to(dtype), x.to(dtype)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    whole = x, y
    twice = x.repeat(2, 1), y.repeat(2)
    batches = [(x[:5], y[:5]), (x[5:], y[5:])]
    scores = [sc.score(model, data, "cross_entropy", criterion="steepness")["0"] for data in (whole, twice, batches)]
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    plan = sc.rank(model, whole, "cross_entropy", criterion="steepness", progress=False)
    answers.append({
        "dtypes": [str(values.dtype) for values in scores],
        "values": [values[:3].tolist() for values in scores],
        "last": [float(values[3]) for values in scores],
        "order": [step.index for step in plan.steps],
        "predicted": [step.predicted for step in plan.steps],
    })
print(json.dumps(answers))
"""


def test_the_criterion_holds_its_contract(folder: Path) -> None:
    single, double = run_json(folder, HOLDS)
    for answer, dtype in ((single, torch.float32), (double, torch.float64)):
        whole, twice, batches = answer["values"]
        assert min(whole) > 0.01
        assert_close_ulps(twice, whole, 16, dtype)
        assert_close_ulps(batches, whole, 16, dtype)
        assert answer["dtypes"] == ["torch.float64"] * 3
        assert answer["last"] == [float("inf")] * 3
        assert answer["order"][0] == 0
        assert 3 not in answer["order"]  # what cannot be judged stays till the end
        assert answer["predicted"] == [None] * 3  # not in units of the loss


# ------------------------------------------------------------ the rules

SHRINK = """
import json
import torch, secateur as sc
from mynetwork import Network
torch.manual_seed(0)
model, x, y = Network(), torch.randn(20, 4), torch.arange(20) % 3
units = sc.find_units(model, x)
answers = []
for options in ({}, {"criterion": "taylor2"}, {"criterion": "steepness"}, {"compensate": True}):
    result = sc.shrink(
        model, (x, y), "cross_entropy", sc.Budget(remove_units=2), units=units, progress=False,
        **{"compensate": False} | options,
    )
    state, kept = model.state_dict(), list(result.plan.kept["hidden"])
    hidden = torch.tanh(x @ state["hidden.weight"][kept].T + state["hidden.bias"][kept]) * state["factor"][kept]
    answers.append({
        "shapes": {name: list(value.shape) for name, value in result.model.state_dict().items()},
        "captured": list(result.captured), "difference": result.max_difference,
        "outputs": result.model(x).tolist(), "by_hand": (hidden @ state["weight"][:, kept].T).tolist(),
        "second_layer": result.model.weight.tolist(), "as_before": state["weight"][:, kept].tolist(),
    })
sets = [(s.name, s.size, s.removal, s.params_per_unit, s.macs_per_unit) for s in units]
reasons = [one.reason for one in units.fixed if not one.reason.startswith("a model ")]
print(json.dumps([sets, reasons, answers]))
"""


def test_units_are_found_and_cut_through_the_operations(folder: Path) -> None:
    sets, reasons, answers = run_json(folder, SHRINK)
    assert sets == [["hidden", 6, "gated", 4 + 1 + 1 + 3, 4 + 3]]
    assert reasons == []
    assert len(answers) == 4
    for answer in answers:
        assert answer["shapes"] == {"hidden.weight": [4, 4], "hidden.bias": [4], "factor": [4], "weight": [3, 4]}
        assert answer["captured"] == []
        assert answer["difference"] < 1e-5
        assert answer["second_layer"] == answer["as_before"]  # no weight of its own operations is fitted
        assert_close_ulps(answer["outputs"], answer["by_hand"], 8, torch.float32)


CLAIMS = """
import json
import torch, secateur as sc
from torch import nn
import mykernels
from mykernels_rules import rule

def operation(name):
    schema = "(Tensor x) -> Tensor"
    made = torch.library.custom_op(f"others::{name}", lambda x: x.softmax(-1), mutates_args=(), schema=schema)
    made.register_fake(lambda x: torch.empty_like(x))
    return getattr(torch.ops.others, name)

class Applied(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function
    def forward(self, x):
        return self.function(x)

def network(function):
    return nn.Sequential(nn.Linear(3, 4), Applied(function), nn.Linear(4, 2))

def reason(function):
    (said,) = {one.reason for one in sc.find_units(network(function), x).fixed if "model " not in one.reason}
    return said

def refusal(function, *arguments):
    try:
        function(*arguments)
    except sc.SecateurError as error:
        return f"{type(error).__name__}: {error}"

x = torch.randn(5, 3)
rule("others::wrong")(lambda net, node, given: net.axes(given["x"]))
rule("others::turned")(lambda net, node, given: net.axes(given["x"])[::-1])
rule("others::broken")(lambda net, node, given: net.axes(given["input"]))
print(json.dumps({
    "unknown": reason(operation("unknown")),
    "one for all": reason(lambda h: torch.ops.mykernels.scale(h, torch.full((1,), 2.0))),
    "turned": reason(operation("turned")),
    "broken": refusal(sc.find_units, network(operation("broken")), x),
    "wrong": refusal(sc.cut, network(operation("wrong")), sc.Plan.from_kept({"0": [0, 2]}, x)),
}))
"""


def test_what_rules_do_not_cover_or_say_wrong_is_told(folder: Path) -> None:
    answer = run_json(folder, CLAIMS)
    assert answer["unknown"] == "no rule for others::unknown"
    assert answer["one for all"] == "the rule for mykernels::scale does not cover one factor for all"
    assert answer["turned"] == "the rule for others::turned does not cover this form of it"
    assert re.match(
        r"ModelError: the rule for others::broken failed at broken \(KeyError: 'input'\); it is .*\(line \d+ of .*\)$",
        answer["broken"],
    )
    assert answer["wrong"].startswith("VerificationError: the cut network differs from the gated one by ")
