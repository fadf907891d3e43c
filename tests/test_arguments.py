"""What is not possible as an argument is refused by its name: each parameter of each public function in turn.

Also covers secateur.errors and secateur.options.
"""

from __future__ import annotations

import functools
import inspect
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

import secateur as sc
from secateur import SecateurError
from secateur.arguments import (
    describe,
    require_flag,
    require_instance,
    require_model,
    require_number,
    require_path,
    require_seed,
    require_whole,
)
from secateur.errors import ArgumentError
from secateur.optim import curvature_of

WRONG: dict[str, Any] = {
    "None": None, "a class": nn.Linear, "a list": [], "a dict": {}, "a text": "no such thing", "a float": 1.5,
    "NaN": math.nan, "a large number": 2**70,
}  # fmt: skip
X, Y = torch.randn(6, 3), torch.tensor([0, 1] * 3)


class Checked(NamedTuple):
    """A function that is tried with something wrong in place of each of its arguments.

    Attributes:
        function: This.
        usual: Arguments that it takes.
        possible: By argument, which of the wrong values are right there, or wrong for another reason than their type.
        names: What the error calls an argument, where that is not its name.
    """

    function: Callable[..., object]
    usual: Callable[[], dict[str, Any]]
    possible: Mapping[str, set[str]] = {}
    names: Mapping[str, str] = {}


@functools.cache
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Sigmoid(), nn.Linear(4, 2))


@functools.cache
def units() -> sc.Units:
    return sc.find_units(model(), X)


@functools.cache
def result() -> Any:
    return sc.shrink(model(), (X, Y), "cross_entropy", sc.Budget(remove_units=1), progress=False)


def question(**more: Any) -> dict[str, Any]:
    return {"model": model(), "data": (X, Y), "loss": "cross_entropy", "units": units()} | more


ASKED = {"data": {"None"}, "loss": {"None", "a class"}, "units": {"None"}, "max_memory": {"None", "a large number"}}
ORDERED = ASKED | {
    name: {"None"}
    for name in (
        "criterion",
        "ranking",
        "budget",
        "threshold",
        "validation",
        "shortlist",
        "refresh",
        "ridge",
        "mask",
        "metric",
    )
}
NAMES = {"mask": "(data: batch 0: )?mask"}
FUNCTIONS = {
    "find_units": Checked(sc.find_units, lambda: {"model": model(), "example_inputs": X}),
    "measure": Checked(sc.measure, lambda: {"model": model(), "example_inputs": X}),
    "score": Checked(
        sc.score, lambda: question(criterion="taylor1"), {**ASKED, "criterion": {"None"}, "threshold": {"None"}}
    ),
    "score of weights": Checked(
        functools.partial(sc.score, granularity="weight"), question,
        {**ASKED, "criterion": {"None"}, "threshold": {"None"}}, {"criterion": "(unknown weight )?criterion"},
    ),
    "interactions": Checked(sc.interactions, question, ASKED),
    "rank": Checked(sc.rank, lambda: question(criterion="taylor1", progress=False), ORDERED, NAMES),
    "shrink": Checked(
        sc.shrink, lambda: question(budget=sc.Budget(remove_units=1), criterion="taylor1", progress=False),
        {**ORDERED, "budget": set(), "example_inputs": {"None"}, "retrain": {"None"},
         "refresh": {"None", "a large number"}, "ridge": {"None", "a float"}, "refine": {"a large number"},
         "unlabelled": {"None"}, "augment": {"None"}},
        NAMES | {"example_inputs": "(example_)?inputs"},
    ),
    "cut": Checked(
        sc.cut, lambda: {"model": model(), "plan": result().plan, "compensate": (X, Y), "loss": "cross_entropy"},
        {
            "compensate": {"None"}, "loss": {"None", "a class"}, "max_memory": {"None", "a large number"},
            "ridge": {"None", "a float"}, "weighting": {"None"}, "recalibrate": {"None"}, "add_bias": {"None"},
            "refine": {"None", "a large number"}, "mask": {"None"}, "unlabelled": {"None"}, "augment": {"None"},
        },
        NAMES | {"compensate": "(compensate|data)"},
    ),
    "load": Checked(sc.load, lambda: {"path": "no.safetensors", "model": model()}, {"path": {"a text"}}),
    "Result.save": Checked(lambda path: result().save(path), lambda: {"path": "a"}, {"path": {"a text"}}),
    "Result.report": Checked(lambda path: result().report(path), lambda: {"path": "a"}, {"path": {"a text"}}),
    "Units[]": Checked(lambda name: units()[name], lambda: {"name": "0"}, names={"name": "(unknown )?unit set"}),
    "Plan.at": Checked(lambda budget: result().plan.at(budget), lambda: {"budget": sc.Budget(remove_units=1)}),
    "Plan.from_json": Checked(sc.Plan.from_json, lambda: {"text": result().plan.to_json()}, names={"text": "plan"}),
    "Plan.from_kept": Checked(
        sc.Plan.from_kept, lambda: {"kept": {"0": [1]}}, {"kept": {"a dict"}, "example_inputs": {"None"}}
    ),
    "Plan.from_kept of indices": Checked(
        lambda indices: sc.Plan.from_kept({"0": indices}), lambda: {"indices": [1]}, names={"indices": r"kept\['0'\]"}
    ),
    "curvature_of": Checked(
        curvature_of, lambda: {"model": model(), "example_inputs": X, "loss": "squared_error"}, {"loss": {"a class"}}
    ),
    "Budget": Checked(
        sc.Budget, lambda: {"remove_units": 1},
        {
            "bytes": {"None", "a large number"}, "params": {"None", "a large number"},
            "macs": {"None", "a large number"}, "multiple_of": {"a large number"},
            "ram": {"None", "a large number"}, "kv_cache": {"None", "a large number"},
            "latency_ms": {"None", "a float", "a large number"},
            "remove_units": {"None", "a large number"}, "min_units": {"a large number"},
            "remove_fraction": {"None"}, "max_accuracy_drop": {"None"},
            "max_metric_drop": {"None", "a float", "a large number"},
            "max_loss_increase": {"None", "a float", "a large number"}, "protect": {"a list", "a text"},
        },
    ),
}  # fmt: skip

CASES = [
    pytest.param(checked, argument, value, id=f"{name}({argument}={what})")
    for name, checked in FUNCTIONS.items()
    for argument in inspect.signature(checked.function).parameters
    for what, value in WRONG.items()
    if what not in checked.possible.get(argument, ())
]


@pytest.mark.parametrize(("checked", "argument", "value"), CASES)
def test_what_is_wrong_is_refused_by_its_name(checked: Checked, argument: str, value: Any) -> None:
    front = checked.names.get(argument, rf"(unknown |Budget: )?{argument}")
    with pytest.raises(SecateurError, match=rf"^{front}(?!\w)"):
        checked.function(**checked.usual() | {argument: value})


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (
            lambda: sc.find_units(nn.Linear, X),
            "model: expected a torch.nn.Module, got the class Linear; call it first",
        ),
        (lambda: sc.find_units([nn.Linear(3, 2)], X), "model: expected a torch.nn.Module, got list"),
        (lambda: sc.measure(None, X), "model: expected a torch.nn.Module, got None"),
        (lambda: sc.score(**question(units=[])), "units: expected what secateur.find_units returns, got list"),
        (lambda: sc.interactions(**question(units="0")), "units: expected what secateur.find_units returns, got '0'"),
        (lambda: sc.score(**question(seed="a")), "seed: expected a whole number from -2**63 to 2**64 - 1, got 'a'"),
        (
            lambda: sc.interactions(**question(seed=2**70)),
            "seed: expected a whole number from -2**63 to 2**64 - 1, got 1180591620717411303424",
        ),
        (lambda: sc.score(**question(threshold="max")), "unknown threshold 'max'; one of: mean, median"),
        (lambda: result().plan.at(None), "budget: expected secateur.Budget(...), got None"),
        (
            lambda: result().plan.at(sc.Budget),
            "budget: expected secateur.Budget(...), got the class Budget; call it first",
        ),
        (
            lambda: sc.Plan.from_kept([1, 2]),
            "kept: expected a dict of unit sets' names and the indices kept, got list",
        ),
        (lambda: sc.Plan.from_kept({0: [1]}), "kept: expected names of unit sets, each a str, got 0"),
        (lambda: sc.load([], model()), "path: expected a path, a str or an os.PathLike, got list"),
        (lambda: sc.load(b"a", model()), "path: expected a path, a str or an os.PathLike, got b'a'"),
        (lambda: result().save(None), "path: expected a path, a str or an os.PathLike, got None"),
        (lambda: result().report({}), "path: expected a path, a str or an os.PathLike, got dict"),
        (lambda: units()[0], "unit set: expected its name, a str, got 0"),
        (lambda: sc.find_units(model(), []), "example_inputs: there is no tensor among them"),
    ],
)
def test_the_error_says_what_is_possible_and_what_was_given(call: Callable[[], object], text: str) -> None:
    with pytest.raises(ArgumentError) as refused:
        call()
    assert str(refused.value) == text


@pytest.mark.parametrize("mask", [[False, True], torch.tensor([False, True])])
def test_a_mask_is_no_list_of_indices(mask: Any) -> None:
    with pytest.raises(ArgumentError) as refused:
        sc.Plan.from_kept({"0": mask})
    text = "kept['0']: expected one or more different indices from 0, got a mask of True and False"
    assert str(refused.value) == text


def test_json_that_is_nested_too_deeply_is_no_plan() -> None:
    with pytest.raises(ArgumentError, match=r"^plan: not a plan's JSON \(RecursionError: "):
        sc.Plan.from_json("[" * 100_000)


@pytest.mark.parametrize("option", [{"seed": 1.5}, {"threshold": "max"}, {"granularity": "layer"}, {"units": []}])
def test_the_model_is_not_run_before_a_wrong_argument_is_refused(option: dict[str, Any]) -> None:
    class Counting(nn.Linear):
        calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return super().forward(x)

    counting = Counting(3, 2)
    with pytest.raises(ArgumentError):
        sc.score(counting, (X, Y), "cross_entropy", **option)
    assert counting.calls == 0


@pytest.mark.parametrize("seed", [0, -(2**63), 2**64 - 1, np.int64(7), np.uint8(7)])
def test_a_seed_is_what_a_generator_takes(seed: Any) -> None:
    assert require_seed(seed) == int(seed)
    torch.Generator().manual_seed(require_seed(seed))


@pytest.mark.parametrize("seed", [-(2**63) - 1, 2**64, True, np.bool_(True), 1.0, "1", None])
def test_anything_else_is_no_seed(seed: Any) -> None:
    with pytest.raises(ArgumentError, match=r"^seed: expected a whole number from -2\*\*63 to 2\*\*64 - 1, got "):
        require_seed(seed)


@pytest.mark.parametrize("value", [1, 5, np.int32(3), 2**70])
def test_a_whole_number_is_returned_as_an_int(value: Any) -> None:
    assert require_whole("n", value, 1, "a number above 0") == value
    assert type(require_whole("n", value, 1, "a number above 0")) is int


@pytest.mark.parametrize("value", [0, -1, True, 1.0, math.nan, "1", None, [1]])
def test_what_is_no_whole_number_or_too_little_is_refused(value: Any) -> None:
    with pytest.raises(ArgumentError) as refused:
        require_whole("n", value, 1, "a number above 0")
    assert str(refused.value) == f"n: expected a number above 0, got {'list' if value == [1] else repr(value)}"


@pytest.mark.parametrize("value", [1, 0.5, 1e6, 5e-324, np.float32(0.25)])
def test_a_number_is_returned_as_a_float(value: Any) -> None:
    assert require_number("ridge", value, 0, 1e6, "a number above 0, at most 1e6") == value
    assert type(require_number("ridge", value, 0, 1e6, "a number above 0, at most 1e6")) is float


@pytest.mark.parametrize("value", [0, -1.0, 1e300, 10**400, math.inf, math.nan, True, 1j, "1", None])
def test_what_is_no_number_or_out_of_bounds_is_refused(value: Any) -> None:
    with pytest.raises(ArgumentError) as refused:
        require_number("ridge", value, 0, 1e6, "a number above 0, at most 1e6")
    assert str(refused.value).startswith("ridge: expected a number above 0, at most 1e6, got ")


@pytest.mark.parametrize("value", [0, 1, None, "yes", (X, Y), np.bool_(True)])
def test_a_flag_is_true_or_false_and_nothing_that_counts_as_such(value: Any) -> None:
    assert require_flag("swaps", True) is True
    assert require_flag("swaps", False) is False
    with pytest.raises(ArgumentError, match=r"^swaps: expected True or False, got "):
        require_flag("swaps", value)


class Place(os.PathLike):
    def __init__(self, path: Any) -> None:
        self.path = path

    def __fspath__(self) -> Any:
        return self.path


def test_a_path_is_a_text_or_knows_its_own() -> None:
    assert require_path("a/b") == require_path(Path("a", "b")) == require_path(Place("a/b")) == Path("a", "b")
    with pytest.raises(ArgumentError) as refused:
        require_path(Place(b"a"), "out")
    assert str(refused.value) == "out: expected a path, a str or an os.PathLike, got Place"


def test_an_instance_is_returned_as_it_is() -> None:
    network = model()
    assert require_model(network) is network


def scripted(network: nn.Module) -> nn.Module:
    script: nn.Module = torch.jit.script(network)
    return script


def traced(network: nn.Module) -> nn.Module:
    trace: nn.Module = torch.jit.trace(network, X)
    return trace


def exported(network: nn.Module) -> nn.Module:
    return torch.export.export(network, (X,)).module()


def unflattened(network: nn.Module) -> nn.Module:
    return torch.export.unflatten(torch.export.export(network, (X,)))


def quantised(network: nn.Module) -> nn.Module:
    quantised: nn.Module = torch.ao.quantization.quantize_dynamic(network, {nn.Linear})
    return quantised


TORCHSCRIPT = "TorchScript, which has no Python code to follow; hand in the module that was scripted or traced"
EXPORTED = "the graph of a torch.export, which is for the sizes of then; hand in the module that was exported"
QUANTISED = "quantised, its weights are packed integers; cut the network first, then quantise what is left"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("made_by", "part", "reason"),
    [
        (scripted, "it", TORCHSCRIPT),
        (traced, "it", TORCHSCRIPT),
        (exported, "it", EXPORTED),
        (unflattened, "it", EXPORTED),
        (quantised, "its part '0'", QUANTISED),
    ],
)
def test_a_model_without_code_is_refused_with_the_true_reason(
    made_by: Callable[[nn.Module], nn.Module], part: str, reason: str
) -> None:
    model = made_by(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval())
    with pytest.raises(ArgumentError) as caught:
        sc.find_units(model, X)
    assert str(caught.value) == f"model: {part} is {reason}"
    with pytest.raises(ArgumentError) as caught:
        sc.shrink(nn.Sequential(nn.Identity(), model), (X, Y), "cross_entropy", sc.Budget(remove_units=1))
    assert str(caught.value).startswith("model: its part '1")
    assert str(caught.value).endswith(reason)


def test_of_a_distributed_model_what_it_wraps_is_cut(tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        model = nn.parallel.DistributedDataParallel(network)
        assert [unit_set.name for unit_set in sc.find_units(model, X)] == ["0"]
        result = sc.shrink(model, (X, Y), "cross_entropy", sc.Budget(remove_units=1), progress=False)
        assert type(result.model) is nn.Sequential
        assert result.model[0].out_features == 3
        small = sc.cut(model, sc.Plan.from_kept({"0": [0]}, X))
        torch.testing.assert_close(small[0].weight, network[0].weight[:1])
    finally:
        torch.distributed.destroy_process_group()
    assert require_instance("units", units(), sc.Units, "units") is units()
    with pytest.raises(ArgumentError) as refused:
        require_instance("units", nn.Linear, sc.Units, "units")
    assert str(refused.value) == "units: expected units, got the class Linear"  # calling that makes none


def test_a_long_text_is_cut_short() -> None:
    assert describe("x" * 1000) == "'xxxxxxxxxxxx...xxxxxxxxxxxxx'"
    assert describe(X) == "Tensor"
