"""Budgets: which are possible, where they hold, what they refuse.

Covers also secateur.planning.details.budget_checks and secateur.planning.details.set_names.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import secateur as sc
from cases import CASES
from secateur.errors import ArgumentError, BudgetError
from secateur.options import Ranking
from secateur.planning.budget import Budget
from secateur.planning.plan import Plan
from secateur.planning.state import State, Step

ASKS = (
    "bytes, params, macs, ram, kv_cache, latency_ms, remove_fraction, remove_units, max_loss_increase, "
    "max_accuracy_drop, max_metric_drop"
)


def order(
    removals: str = "aaaababb",
    losses: list[float | None] | None = None,
    accuracies: list[float | None] | None = None,
    **sizes: int,
) -> Plan:
    """A plan over the sets a (6 units) and b (4): each step takes 10 parameters and 50 bytes away."""
    sizes = sizes or {"a": 6, "b": 4}
    n = len(removals) + 1
    losses, accuracies = losses or [1.0] * n, accuracies or [0.9] * n
    states = [
        State(loss, accuracy, 100 - 10 * i, 1000 - 50 * i, 500 - i)
        for i, (loss, accuracy) in enumerate(zip(losses, accuracies, strict=True))
    ]
    gone: Counter[str] = Counter()
    steps = []
    for name, state in zip(removals, states[1:], strict=True):
        steps.append(Step(**dataclasses.asdict(state), set=name, index=gone[name], predicted=0.0))
        gone[name] += 1
    kept = tuple((name, tuple(range(gone[name], size))) for name, size in sizes.items())
    return Plan(kept, states[0], tuple(steps), None, Ranking("oracle"))


# ---------------------------------------------------------------- the fields


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, f"Budget: give at least one of {ASKS}"),
        ({"min_units": 2, "protect": "a"}, f"Budget: give at least one of {ASKS}"),
        ({"bytes": -1}, "Budget: bytes must be a whole number from 0, got -1"),
        ({"bytes": "many"}, "bytes: expected an int or a size such as '200 kB', '64 KiB' or '1.5 MB', got 'many'"),
        ({"bytes": 1.5}, "bytes: expected an int or a size such as '200 kB', '64 KiB' or '1.5 MB', got 1.5"),
        ({"params": -3}, "Budget: params must be a whole number from 0, got -3"),
        ({"params": 3.0}, "Budget: params must be a whole number from 0, got 3.0"),
        ({"params": True}, "Budget: params must be a whole number from 0, got True"),
        ({"params": "3"}, "Budget: params must be a whole number from 0, got '3'"),
        ({"remove_units": -1}, "Budget: remove_units must be a whole number from 0, got -1"),
        ({"remove_units": 0.5}, "Budget: remove_units must be a whole number from 0, got 0.5"),
        ({"remove_fraction": 1.5}, "Budget: remove_fraction must be from 0 to 1, got 1.5"),
        ({"remove_fraction": -0.1}, "Budget: remove_fraction must be from 0 to 1, got -0.1"),
        ({"remove_fraction": math.nan}, "Budget: remove_fraction must be from 0 to 1, got nan"),
        ({"remove_fraction": "0.5"}, "Budget: remove_fraction must be from 0 to 1, got '0.5'"),
        ({"max_accuracy_drop": 2}, "Budget: max_accuracy_drop must be from 0 to 1, got 2"),
        ({"max_accuracy_drop": -0.01}, "Budget: max_accuracy_drop must be from 0 to 1, got -0.01"),
        ({"max_loss_increase": -1}, "Budget: max_loss_increase must be at least 0, got -1"),
        ({"max_metric_drop": -1}, "Budget: max_metric_drop must be at least 0, got -1"),
        ({"max_metric_drop": "0.1"}, "Budget: max_metric_drop must be at least 0, got '0.1'"),
        ({"max_loss_increase": math.nan}, "Budget: max_loss_increase must be at least 0, got nan"),
        ({"ram": "much"}, "ram: expected an int or a size such as '200 kB', '64 KiB' or '1.5 MB', got 'much'"),
        ({"kv_cache": -1}, "Budget: kv_cache must be a whole number from 0, got -1"),
        ({"latency_ms": -1}, "Budget: latency_ms must be at least 0, got -1"),
        (
            {"bytes": 1, "artifact": "gguf"},
            "Budget: artifact must be one of safetensors, pt2, onnx, int8.onnx, pte, int8.pte; got 'gguf'",
        ),
        ({"params": 1, "artifact": "onnx"}, "Budget: artifact='onnx' goes with bytes, the size of that file"),
        ({"remove_units": 1, "min_units": 0}, "Budget: min_units must be at least 1, got 0"),
        ({"remove_units": 1, "min_units": 1.5}, "Budget: min_units must be a whole number from 0, got 1.5"),
        ({"remove_units": 1, "scope": "layer"}, "Budget: scope must be 'global', 'set' or 'uniform', got 'layer'"),
        (
            {"remove_units": 1, "scope": "set"},
            "Budget: scope='set' goes with remove_fraction, the share of each unit set",
        ),
    ],
)
def test_a_field_out_of_its_range_is_refused(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        Budget(**fields)
    assert str(caught.value) == text


@pytest.mark.parametrize(
    "fields",
    [
        {"remove_units": 1, "min_units": None},
        {"remove_units": 1, "protect": 5},
        {"remove_units": 1, "protect": (5,)},
        {"remove_units": 1, "protect": None},
        {"remove_fraction": True},
        {"max_accuracy_drop": True},
    ],
)
def test_a_field_of_the_wrong_type_is_refused(fields: dict[str, Any]) -> None:
    name, value = list(fields.items())[-1]
    with pytest.raises(ArgumentError, match=f"Budget: {name} .*{value}"):
        Budget(**fields)


def test_a_budget_is_frozen_takes_keywords_only_and_prints_what_was_asked() -> None:
    budget = Budget(bytes="1.5 kB", protect="fc*", remove_fraction=0.5)
    assert (budget.bytes, budget.protect) == (1500, ("fc*",))
    assert str(budget) == "Budget(bytes=1500, remove_fraction=0.5, protect=('fc*',))"
    with pytest.raises(dataclasses.FrozenInstanceError):
        budget.bytes = 2  # type: ignore[misc]
    with pytest.raises(TypeError):
        Budget(1500)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("fields", "removable"),
    [
        ({}, {"fc.a": 6, "fc.b": 3, "out": 0}),
        ({"min_units": 3}, {"fc.a": 4, "fc.b": 1, "out": 0}),
        ({"min_units": 9}, {"fc.a": 0, "fc.b": 0, "out": 0}),
        ({"protect": "fc.a"}, {"fc.a": 0, "fc.b": 3, "out": 0}),
        ({"protect": "fc.?"}, {"fc.a": 0, "fc.b": 0, "out": 0}),
        ({"protect": ("*b", "out")}, {"fc.a": 6, "fc.b": 0, "out": 0}),
        ({"protect": ["fc.a"]}, {"fc.a": 0, "fc.b": 3, "out": 0}),
        ({"remove_fraction": 0.3, "scope": "set"}, {"fc.a": 3, "fc.b": 2, "out": 0}),
        ({"remove_fraction": 1.0, "scope": "set"}, {"fc.a": 6, "fc.b": 3, "out": 0}),
        ({"remove_fraction": 0.9, "scope": "set", "min_units": 2}, {"fc.a": 5, "fc.b": 2, "out": 0}),
        ({"remove_fraction": 0.3, "scope": "set", "protect": "fc.b"}, {"fc.a": 3, "fc.b": 0, "out": 0}),
    ],
)
def test_each_set_may_lose_what_min_units_protect_and_scope_allow(
    fields: dict[str, Any], removable: dict[str, int]
) -> None:
    budget = Budget(**{"remove_units": 0} | fields)
    assert budget.removable({"fc.a": 7, "fc.b": 4, "out": 1}) == removable


@given(st.integers(1, 1000), st.integers(1, 5000), st.data())
def test_a_share_is_rounded_up_without_the_trouble_of_floats(n: int, size: int, data: st.DataObject) -> None:
    i = data.draw(st.integers(0, n))
    wanted = math.ceil(Fraction(i, n) * size)
    budget = Budget(remove_fraction=i / n, scope="set")
    assert budget.removable({"a": size + 1, "b": size})["b"] == min(wanted, size - 1)


# ---------------------------------------------------------------- the prefix


@pytest.mark.parametrize(
    ("fields", "removed"),
    [
        ({"remove_units": 0}, 0),
        ({"remove_units": 3}, 3),
        ({"remove_fraction": 0.0}, 0),
        ({"remove_fraction": 0.1}, 1),
        ({"remove_fraction": 0.11}, 2),
        ({"remove_fraction": 0.7}, 7),
        ({"params": 100}, 0),
        ({"params": 99}, 1),
        ({"params": 60}, 4),
        ({"params": 59}, 5),
        ({"bytes": 1000}, 0),
        ({"bytes": "0.8 kB"}, 4),
        ({"bytes": 799}, 5),
        ({"bytes": 800, "params": 70}, 4),
        ({"bytes": 900, "params": 70}, 3),
        ({"bytes": 900, "params": 70, "remove_units": 6}, 6),
        ({"remove_fraction": 0.5, "remove_units": 2}, 5),
        ({"max_loss_increase": math.inf}, 8),
        ({"max_loss_increase": math.inf, "remove_units": 2}, 2),
    ],
)
def test_the_least_is_removed_that_satisfies_all_that_is_asked(fields: dict[str, Any], removed: int) -> None:
    plan = order()
    assert plan.at(Budget(**fields)) == plan.prefix(removed)


@pytest.mark.parametrize(
    ("fraction", "units", "removed"), [(0.1, 30, 3), (0.7, 10, 7), (0.07, 100, 7), (0.29, 100, 29)]
)
def test_a_share_of_all_units_is_rounded_up(fraction: float, units: int, removed: int) -> None:
    a, b = units - units // 2, units // 2
    plan = order("a" * (a - 1) + "b" * (b - 1), a=a, b=b)
    assert len(plan.at(Budget(remove_fraction=fraction)).steps) == removed


LOSSES = [1.0, 1.2, 0.9, 1.05, 1.3, 1.1, 1.4, 1.2, 2.0]
ACCURACIES = [0.9, 0.88, 0.91, 0.89, 0.85, 0.89, 0.8, 0.7, 0.6]


@pytest.mark.parametrize(
    ("fields", "removed"),
    [
        ({"max_loss_increase": 0.0}, 2),
        ({"max_loss_increase": 0.05}, 3),
        ({"max_loss_increase": 0.1}, 5),
        ({"max_loss_increase": 0.39}, 7),
        ({"max_loss_increase": 5}, 8),
        ({"max_accuracy_drop": 0.0}, 2),
        ({"max_accuracy_drop": 0.01}, 5),
        ({"max_accuracy_drop": 0.1}, 6),
        ({"max_accuracy_drop": 1}, 8),
        ({"max_accuracy_drop": 0.01, "max_loss_increase": 0.06}, 3),
        ({"max_loss_increase": 0.1, "remove_units": 1}, 2),
        ({"max_loss_increase": 0.1, "remove_units": 4}, 5),
        ({"max_accuracy_drop": 0.01, "params": 80}, 2),
        ({"max_accuracy_drop": 0.01, "bytes": 800, "max_loss_increase": 0.2}, 5),
    ],
)
def test_quality_alone_takes_the_longest_prefix_and_with_a_size_the_shortest(
    fields: dict[str, Any], removed: int
) -> None:
    plan = order(losses=LOSSES, accuracies=ACCURACIES)
    assert plan.at(Budget(**fields)) == plan.prefix(removed)


@pytest.mark.parametrize("more", [{}, {"params": 80}, {"bytes": 800, "max_loss_increase": 0.2}], ids=str)
@pytest.mark.parametrize("drop", [0.01, 0.1, 0.9])
def test_a_metric_is_bounded_as_the_accuracy_is(drop: float, more: dict[str, Any]) -> None:
    plan = order(losses=LOSSES, accuracies=ACCURACIES)
    start, *steps = (dataclasses.replace(state, metric=-5 + state.accuracy) for state in plan.states)  # type: ignore[operator]
    plan = dataclasses.replace(plan, start=start, steps=tuple(steps))  # type: ignore[arg-type]
    for budget in (Budget(max_metric_drop=drop, **more), Budget(max_metric_drop=drop, max_accuracy_drop=1, **more)):
        assert plan.at(budget) == plan.at(Budget(max_accuracy_drop=drop, **more))
        assert budget.bounds_quality
        assert budget.least == bool(more)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        (
            {"params": 10},
            "Budget(params=10) cannot be met: at most 8 of 10 units can be removed, "
            "which leaves 20 parameters and a file of 600 bytes (600 B)",
        ),
        (
            {"bytes": "0.1 kB", "params": 50},
            "Budget(bytes=100, params=50) cannot be met: at most 8 of 10 units can be removed, "
            "which leaves 20 parameters and a file of 600 bytes (600 B)",
        ),
        (
            {"remove_units": 6, "max_loss_increase": 0.1},
            "Budget(remove_units=6, max_loss_increase=0.1) cannot be met: at most 5 of 10 units can be removed "
            "within max_loss_increase=0.1, which leaves 50 parameters and a file of 750 bytes (750 B)",
        ),
        (
            {"remove_fraction": 0.7, "max_loss_increase": 0.06, "max_accuracy_drop": 0.1},
            "Budget(remove_fraction=0.7, max_loss_increase=0.06, max_accuracy_drop=0.1) cannot be met: at most 3 of "
            "10 units can be removed within max_loss_increase=0.06 and max_accuracy_drop=0.1, "
            "which leaves 70 parameters and a file of 850 bytes (850 B)",
        ),
    ],
)
def test_a_budget_that_no_prefix_meets_says_how_far_one_can_get(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(BudgetError) as caught:
        order(losses=LOSSES, accuracies=ACCURACIES).at(Budget(**fields))
    assert str(caught.value) == text


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        (
            {"remove_units": 1, "protect": "b"},
            "the plan removes 3 of 4 units of 'b', Budget(remove_units=1, protect=('b',)) allows 0; "
            "make the plan with rank(..., budget=budget)",
        ),
        (
            {"remove_units": 1, "min_units": 2},
            "the plan removes 5 of 6 units of 'a', Budget(remove_units=1, min_units=2) allows 4; "
            "make the plan with rank(..., budget=budget)",
        ),
        (
            {"remove_fraction": 0.5, "scope": "set"},
            "the plan removes 5 of 6 units of 'a', Budget(remove_fraction=0.5, scope='set') allows 3; "
            "make the plan with rank(..., budget=budget)",
        ),
        ({"remove_units": 1, "protect": "c*"}, "Budget: protect='c*' is no unit set; there are: a, b"),
    ],
)
def test_a_plan_that_removes_what_the_budget_keeps_is_refused(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        order().at(Budget(**fields))
    assert str(caught.value) == text


@pytest.mark.parametrize(
    ("name", "what"),
    [("max_loss_increase", "loss"), ("max_accuracy_drop", "accuracy"), ("max_metric_drop", "metric")],
)
@pytest.mark.parametrize("size", [{}, {"remove_units": 1}])
def test_a_budget_of_quality_needs_a_measured_plan(name: str, what: str, size: dict[str, Any]) -> None:
    plan = order(losses=[None] * 9, accuracies=[None] * 9)
    with pytest.raises(ArgumentError) as caught:
        plan.at(Budget(**{name: 0.1}, **size))
    assert str(caught.value) == f"Budget: {name} needs the {what} after each step, and it was not measured"


def test_a_plan_written_by_hand_has_no_prefixes() -> None:
    with pytest.raises(ArgumentError) as caught:
        Plan.from_kept({"a": [0]}).at(Budget(remove_units=1))
    assert str(caught.value) == "a plan written by hand has no order to take a prefix of"


# ---------------------------------------------------------------- while ranking


def ranked(budget: Budget | None, **options: Any) -> Plan:
    """Two hidden layers, "0" of 6 units and "2" of 4."""
    case = CASES["two_hidden"]()
    options = {"criterion": "magnitude"} | options
    return sc.rank(case.model, (case.x, case.y), "cross_entropy", budget=budget, progress=False, **options)


@pytest.mark.parametrize(
    ("fields", "gone"),
    [
        ({"remove_fraction": 0.5, "scope": "set"}, {"0": 3, "2": 2}),
        ({"remove_fraction": 0.4, "scope": "set"}, {"0": 3, "2": 2}),
        ({"remove_fraction": 0.1, "scope": "set"}, {"0": 1, "2": 1}),
        ({"remove_fraction": 1.0, "scope": "set"}, {"0": 5, "2": 3}),
        ({"remove_fraction": 1.0, "scope": "set", "min_units": 2}, {"0": 4, "2": 2}),
        ({"remove_fraction": 0.5, "scope": "set", "protect": "0"}, {"2": 2}),
        ({"remove_fraction": 0.3, "protect": "0"}, {"2": 3}),
        ({"remove_units": 4, "min_units": 2, "protect": "2"}, {"0": 4}),
        ({"max_loss_increase": math.inf, "min_units": 3}, {"0": 3, "2": 1}),
        ({"max_loss_increase": math.inf, "protect": "[0]"}, {"2": 3}),
    ],
)
def test_ranking_removes_so_many_of_each_set(fields: dict[str, Any], gone: dict[str, int]) -> None:
    budget = Budget(**fields)
    plan = ranked(budget)
    assert Counter(step.set for step in plan.steps) == gone
    assert plan.at(budget) == plan


@pytest.mark.parametrize(
    ("fields", "most", "params"),
    [
        ({"remove_fraction": 0.5, "protect": "0"}, 3, 6 * 6 + 7 + 6),
        ({"remove_fraction": 1.0}, 8, 6 + 2 + 6),
        ({"remove_units": 9}, 8, 6 + 2 + 6),
        ({"params": 13}, 8, 6 + 2 + 6),
        ({"params": 40, "min_units": 3}, 4, 3 * 6 + 3 * 4 + 3 * 4),
        ({"bytes": 100}, 8, 6 + 2 + 6),
        ({"remove_units": 6, "scope": "set", "remove_fraction": 0.5}, 5, 3 * 6 + 2 * 4 + 3 * 3),
    ],
)
def test_a_size_out_of_reach_is_refused_before_any_scoring(fields: dict[str, Any], most: int, params: int) -> None:
    losses = []

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        losses.append(1)
        return outputs.square().mean()

    case = CASES["two_hidden"]()
    budget = Budget(**fields)
    with pytest.raises(BudgetError) as caught:
        sc.rank(case.model, (case.x, case.y), loss, budget=budget, progress=False)
    assert str(caught.value).startswith(
        f"{budget} cannot be met: at most {most} of 10 units can be removed, "
        f"which leaves {params} parameters and a file of "
    )
    assert len(losses) <= 1  # the start


def test_the_smallest_file_named_in_the_error_can_be_had() -> None:
    with pytest.raises(BudgetError, match="a file of 688 bytes") as caught:
        ranked(Budget(bytes=100))
    assert "(688 B)" in str(caught.value)
    assert ranked(Budget(bytes=688)).steps[-1].bytes <= 688


def test_a_protected_name_that_matches_nothing_is_refused_while_ranking() -> None:
    with pytest.raises(ArgumentError) as caught:
        ranked(Budget(remove_units=1, protect=("0", "fc*")))
    assert str(caught.value) == "Budget: protect='fc*' is no unit set; there are: 0, 2"


@pytest.mark.parametrize("size", [{}, {"params": 60}])
def test_a_budget_of_quality_is_refused_where_nothing_is_measured(size: dict[str, Any]) -> None:
    case = CASES["two_hidden"]()
    budget = Budget(max_loss_increase=0.1, **size)
    units = sc.find_units(case.model, case.x)
    with pytest.raises(ArgumentError, match="max_loss_increase needs the loss after each step, and it was not"):
        sc.rank(case.model, None, None, units=units, criterion="magnitude", budget=budget, progress=False).at(budget)


def test_quality_with_a_size_that_is_never_both_says_how_far_one_can_get() -> None:
    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return (outputs - targets).square().mean()  # zero as trained, so that every removal raises it

    case = CASES["two_hidden"]()
    budget = Budget(remove_units=4, max_loss_increase=1e-9)
    with torch.no_grad():
        data = case.x, case.model(case.x)
    plan = sc.rank(case.model, data, loss, budget=budget, progress=False)
    with pytest.raises(BudgetError) as caught:
        plan.at(budget)
    assert str(caught.value).startswith(
        "Budget(remove_units=4, max_loss_increase=1e-09) cannot be met: at most 0 of 10 units can be removed "
        "within max_loss_increase=1e-09, which leaves 79 parameters and a file of "
    )


def test_without_its_bounds_of_quality_a_budget_has_the_others() -> None:
    sizes = {"params": 9, "protect": "a", "min_units": 2}
    assert Budget(**sizes, max_loss_increase=0.1, max_accuracy_drop=0.2, max_metric_drop=3).without_quality() == Budget(  # type: ignore[arg-type]
        **sizes  # type: ignore[arg-type]
    )
