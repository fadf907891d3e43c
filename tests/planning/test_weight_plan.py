"""Plans of single weights."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch

from secateur.planning.state import State
from secateur.planning.weight_plan import WeightPlan, WeightStep
from secateur.structure.inputs import InputSpec, as_call

START = State(0.5, 0.9, 12, 2000, 10)
MASKS = {
    "0.weight": torch.tensor([[True, False, True], [False, False, True]]),
    "2.weight": torch.tensor([[True, True], [True, False]]),
}
STEPS = (
    WeightStep(0.51, 0.9, 10, 1500, 10, round=1, removed=2, predicted=0.0123, trained=False),
    WeightStep(0.6, 0.8, 8, 1200, 10, round=2, removed=4, predicted=0.1, trained=True),
)
PLAN = WeightPlan(MASKS, START, STEPS, InputSpec.of(as_call(torch.zeros(2, 3))), "obd", 2)


def test_a_plan_says_what_stays_of_each_parameter() -> None:
    assert PLAN.sizes == {"0.weight": 6, "2.weight": 4}
    assert PLAN.kept == {"0.weight": (0, 2, 5), "2.weight": (0, 1, 2)}
    assert PLAN.removed == 4


def test_a_plan_prints_the_whole_trade_off() -> None:
    rows = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in str(PLAN).splitlines()]
    assert rows == [
        ["4 of 10 weights removed, obd"],
        ["removed", "share", "round", "predicted", "loss", "accuracy", "params", "bytes"],
        ["0", "0.0 %", "0.5", "0.9000", "12", "2.0 kB"],
        ["2", "20.0 %", "1", "0.0123", "0.51", "0.9000", "10", "1.5 kB"],
        ["4", "40.0 %", "2, trained", "0.1", "0.6", "0.8000", "8", "1.2 kB"],
    ]


def test_what_was_not_measured_or_predicted_is_left_out_of_the_table() -> None:
    nothing = replace(START, loss=None, accuracy=None)
    step = replace(STEPS[0], loss=None, accuracy=None, predicted=None)
    lines = str(replace(PLAN, start=nothing, steps=(step,))).splitlines()
    assert "None" not in "".join(lines)
    assert lines[-1].split() == ["2", "20.0", "%", "1", "10", "1.5", "kB"]


def test_plans_can_be_compared_and_copied() -> None:
    twin = copy.deepcopy(PLAN)
    assert PLAN == PLAN
    assert twin != PLAN
    assert twin.kept == PLAN.kept
    assert len({PLAN, twin}) == 2
