"""Plans: prefixes, JSON, text.

Also covers secateur.planning.details.plan_text and secateur.planning.state.
"""

from __future__ import annotations

import dataclasses
import json
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import secateur as sc
from cases import CASES
from secateur.errors import PlanError
from secateur.options import Ranking
from secateur.planning.plan import FORMAT, Plan
from secateur.planning.state import State, Step
from secateur.reference import RandomNetwork
from secateur.structure.inputs import InputSpec, TensorSpec

START = State(0.5, 0.9, 100, 1000, 70)
STEPS = (
    Step(0.6, 0.8, 90, 950, 60, "a", 2, 0.125),
    Step(0.4, 1.0, 83, 900, 55, "b", 0, -0.2),
    Step(0.7, 0.7, 73, 850, 45, "a", 0, 0.3),
)
PLAN = Plan((("a", (1, 3)), ("b", (1, 2))), START, STEPS, None, Ranking("oracle", "iterative"))


def random_plan(seed: int, measured: bool) -> Plan:
    network = RandomNetwork(seed).double()
    x = network.sample(4)
    if not measured:
        units = sc.find_units(network, x)
        return sc.rank(network, None, None, units=units, criterion="random", progress=False)
    data = x, torch.zeros_like(network(x)).detach()
    return sc.rank(network, data, "squared_error", criterion="taylor1", ranking="single", progress=False)


# ---------------------------------------------------------------- reading it


def test_a_plan_knows_what_is_kept_what_there_was_and_every_state() -> None:
    assert PLAN.kept == {"a": (1, 3), "b": (1, 2)}
    assert PLAN.sizes == {"a": 4, "b": 3}
    assert PLAN.states == (START, *STEPS)


@pytest.mark.parametrize(
    ("n", "kept"),
    [
        (0, {"a": (0, 1, 2, 3), "b": (0, 1, 2)}),
        (1, {"a": (0, 1, 3), "b": (0, 1, 2)}),
        (2, {"a": (0, 1, 3), "b": (1, 2)}),
        (3, {"a": (1, 3), "b": (1, 2)}),
    ],
)
def test_a_prefix_keeps_what_only_later_steps_remove(n: int, kept: dict[str, tuple[int, ...]]) -> None:
    prefix = PLAN.prefix(n)
    assert (prefix.kept, prefix.steps, prefix.sizes) == (kept, STEPS[:n], PLAN.sizes)
    assert (prefix.start, prefix.inputs, prefix.made_by) == (START, None, Ranking("oracle", "iterative"))
    assert (prefix.criterion, prefix.ranking) == ("oracle", "iterative")
    assert prefix.prefix(0) == PLAN.prefix(0)


def test_a_plan_is_frozen() -> None:
    for thing, field in ((PLAN, "steps"), (PLAN, "kept_indices"), (PLAN.steps[0], "index"), (START, "loss")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(thing, field, None)
    PLAN.kept["a"] = (9,)
    PLAN.sizes["a"] = 9
    assert PLAN.kept["a"] == (1, 3)
    assert PLAN.sizes["a"] == 4
    assert hash(PLAN) == hash(dataclasses.replace(PLAN))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.booleans())
def test_a_ranked_plan_removes_every_unit_but_one_of_each_set_once(seed: int, measured: bool) -> None:
    sets = RandomNetwork(seed).sets
    plan = random_plan(seed, measured)
    assert plan.sizes == sets
    for name, size in sets.items():
        gone = [step.index for step in plan.steps if step.set == name]
        assert len(plan.kept[name]) == 1
        assert sorted([*gone, *plan.kept[name]]) == list(range(size))
    for before, after in pairwise(plan.states):
        assert before.params > after.params
        assert before.macs > after.macs
        assert before.bytes >= after.bytes


# ---------------------------------------------------------------- JSON


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.booleans(), st.integers(0, 30))
def test_json_gives_the_same_plan_again(seed: int, measured: bool, n: int) -> None:
    plan = random_plan(seed, measured).prefix(n)
    again = Plan.from_json(plan.to_json())
    assert again == plan
    assert again.to_json() == plan.to_json()
    assert str(again) == str(plan)


@pytest.mark.parametrize(
    "inputs",
    [
        None,
        torch.zeros(2, 3),
        (torch.zeros(2, 3, 4, dtype=torch.float16), torch.tensor([[3], [-5]])),
        {"ids": torch.tensor([[7, 9]]), "scale": 2.5, "flag": True, "mode": "sum", "mask": None},
        (torch.tensor([True, False]), torch.tensor(3)),
    ],
)
def test_a_plan_written_by_hand_keeps_its_inputs_through_json(inputs: Any) -> None:
    plan = Plan.from_kept({"0": [2, 0], 'ü."[x]': torch.tensor([1])}, inputs)
    again = Plan.from_json(plan.to_json())
    assert again == plan
    assert again.kept == {"0": (0, 2), 'ü."[x]': (1,)}


def test_the_inputs_of_a_plan_are_those_it_was_ranked_with() -> None:
    case = CASES["flattened"]()
    plan = sc.rank(case.model, (case.x, case.y), "cross_entropy", criterion="magnitude", progress=False)
    assert plan.inputs == InputSpec((TensorSpec("float64", (2, 3)),), ())
    assert Plan.from_json(plan.to_json()).inputs == plan.inputs


def plan_json(**changes: Any) -> str:
    return json.dumps(json.loads(PLAN.to_json()) | changes)


def test_further_steps_take_units_out_of_what_is_kept() -> None:
    whole = dataclasses.replace(PLAN.prefix(0), reason="so")
    assert whole.with_steps(STEPS[:2]).with_steps(STEPS[2:]) == PLAN
    assert whole.with_steps(STEPS[:1]).kept == {"a": (0, 1, 3), "b": (0, 1, 2)}
    assert whole.with_steps(()) == whole


def test_a_plan_written_before_there_were_curves_can_be_read() -> None:
    data = json.loads(PLAN.to_json())
    del data["curves"], data["reason"]
    assert Plan.from_json(json.dumps(data)) == PLAN


def test_json_is_plain_data_with_a_format() -> None:
    data = json.loads(PLAN.to_json())
    assert data["format"] == FORMAT == 1
    assert data["kept"] == {"a": [1, 3], "b": [1, 2]}
    assert data["steps"][1] == {
        "set": "b", "index": 0, "predicted": -0.2, "loss": 0.4, "accuracy": 1.0, "params": 83, "bytes": 900, "macs": 55
    }  # fmt: skip
    assert data["inputs"] is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "plan: not a plan's JSON (JSONDecodeError: Expecting value: line 1 column 1 (char 0))"),
        ("{", "plan: not a plan's JSON (JSONDecodeError: "),
        ("null", "plan: not a plan's JSON (TypeError: "),
        ("[]", "plan: not a plan's JSON (TypeError: "),
        ("{}", "plan: not a plan's JSON (KeyError: 'format')"),
        (None, "plan: not a plan's JSON (TypeError: "),
        (plan_json(format=2), "plan: format 2, this version reads 1"),
        (plan_json(format="1"), "plan: format '1', this version reads 1"),
        ('{"format": 1}', "plan: not a plan's JSON (KeyError: 'kept')"),
        (plan_json(kept=[]), "plan: not a plan's JSON (AttributeError: "),
        (plan_json(kept={"a": 5}), "plan: not a plan's JSON (TypeError: "),
        (plan_json(start={"loss": 1}), "plan: not a plan's JSON (TypeError: "),
        (plan_json(steps=7), "plan: not a plan's JSON (TypeError: "),
        (plan_json(steps=[{"set": "a"}]), "plan: not a plan's JSON (TypeError: "),
        (plan_json(inputs={"args": []}), "plan: not a plan's JSON (KeyError: 'kwargs')"),
        (plan_json(inputs={"args": [1], "kwargs": {}}), "plan: not a plan's JSON (TypeError: "),
        (plan_json(kept={"a": ["x"]}), "plan: not a plan's JSON ("),
        (plan_json(kept={"a": [0.5]}), "plan: not a plan's JSON ("),
    ],
)
def test_text_that_is_no_plan_is_refused(text: str, says: str) -> None:
    with pytest.raises(PlanError) as caught:
        Plan.from_json(text)
    assert str(caught.value).startswith(says)


# ---------------------------------------------------------------- by hand


@pytest.mark.parametrize("indices", [[], [-1], [0, -2], [0, 0], [3, 1, 3]])
def test_a_plan_by_hand_keeps_different_indices_from_0(indices: list[int]) -> None:
    with pytest.raises(PlanError) as caught:
        Plan.from_kept({"good": [1], "fc": indices})
    assert str(caught.value) == f"kept['fc']: expected one or more different indices from 0, got {sorted(indices)}"


@pytest.mark.parametrize("indices", [[0.5], ["x"], 3, None])
def test_a_plan_by_hand_keeps_whole_numbers(indices: Any) -> None:
    with pytest.raises(PlanError, match=r"kept\['fc'\]: expected one or more different indices from 0, got "):
        Plan.from_kept({"fc": indices})


def test_a_plan_by_hand_is_sorted_and_has_no_steps() -> None:
    plan = Plan.from_kept({"fc": (4, 0, 2), "out": range(2)})
    assert plan.kept == {"fc": (0, 2, 4), "out": (0, 1)}
    assert (plan.start, plan.steps, plan.states, plan.inputs) == (None, (), (), None)
    assert [line.split() for line in str(plan).splitlines()] == [
        ["plan", "written", "by", "hand"],
        ["unit", "set", "kept", "indices"],
        ["fc", "3", "0", "2", "4"],
        ["out", "2", "0", "1"],
    ]


# ---------------------------------------------------------------- printing it


def test_a_printed_plan_is_the_table_of_its_trade_off() -> None:
    lines = str(PLAN).splitlines()
    assert lines[0] == "3 of 7 units removed, oracle / iterative"
    assert lines[1].split() == ["removed", "last", "predicted", "loss", "accuracy", "params", "bytes"]
    assert [line.split() for line in lines[2:]] == [
        ["0", "0.5", "0.9000", "100", "1.0", "kB"],
        ["1", "a[2]", "0.125", "0.6", "0.8000", "90", "950", "B"],
        ["2", "b[0]", "-0.2", "0.4", "1.0000", "83", "900", "B"],
        ["3", "a[0]", "0.3", "0.7", "0.7000", "73", "850", "B"],
    ]


def test_a_printed_plan_without_measurements_leaves_them_blank() -> None:
    case = CASES["one_hidden"]()
    units = sc.find_units(case.model, case.x)
    plan = sc.rank(case.model, None, None, units=units, criterion="magnitude", ranking="iterative", progress=False)
    rows = [line.split() for line in str(plan).splitlines()[2:]]
    assert [row[0] for row in rows] == [str(n) for n in range(7)]
    assert all(len(row) == 4 + (n > 0) for n, row in enumerate(rows))  # removed, (last,) params, bytes and unit


def test_the_printed_parameters_add_up_to_those_of_the_cut_network() -> None:
    case = CASES["branches"]()
    plan = sc.rank(
        case.model, (case.x, case.y), "cross_entropy", criterion="taylor1", ranking="iterative", progress=False
    )
    rows = [line.split() for line in str(plan).splitlines()[2:]]
    printed = [int(row[-3]) for row in rows]
    assert printed == [state.params for state in plan.states]
    per_step = [before - after for before, after in pairwise(printed)]
    small = sc.cut(case.model, plan)
    count = sum(p.numel() for p in case.model.parameters())
    assert count - sum(per_step) == sum(p.numel() for p in small.parameters())
    assert [row[1] for row in rows[1:]] == [f"{step.set}[{step.index}]" for step in plan.steps]


def test_a_long_plan_is_printed_at_some_steps_and_its_last() -> None:
    model = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 2)).double()
    units = sc.find_units(model, torch.zeros(2, 2))
    plan = sc.rank(model, None, None, units=units, criterion="magnitude", ranking="single", progress=False)
    rows = [line.split() for line in str(plan).splitlines()[2:]]
    shown = [int(row[0]) for row in rows]
    assert shown == [*range(0, 63, 4), 63]
    assert [int(row[-3]) for row in rows] == [5 * (64 - n) + 2 for n in shown]
