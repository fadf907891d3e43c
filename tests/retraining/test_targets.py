"""The targets of rounds."""

from __future__ import annotations

from dataclasses import replace

import pytest

from secateur.planning.budget import Budget
from secateur.planning.plan import Plan
from secateur.planning.state import Basis, State, Step
from secateur.retraining.targets import RoundBudget, enough, round_budget, share_left


def state(params: int, size: int, loss: float | None = None, accuracy: float | None = None) -> State:
    return State(loss, accuracy, params, size, 0)


def step(unit_set: str, index: int, params: int, size: int, loss: float | None = None, **more: float) -> Step:
    return Step(loss, more.get("accuracy"), params, size, 0, unit_set, index, None)


START = Plan((("a", tuple(range(8))), ("b", tuple(range(4)))), state(80, 800, 1.0, 0.5))


@pytest.mark.parametrize(
    ("budget", "rounds", "target"),
    [
        (Budget(bytes=200), 2, RoundBudget(bytes=400, remove_units=0)),
        (Budget(bytes=200), 1, RoundBudget(bytes=200, remove_units=0)),
        (Budget(params=10), 3, RoundBudget(params=40, remove_units=0)),
        (Budget(remove_units=9), 2, RoundBudget(remove_units=6)),
        (Budget(remove_fraction=0.75), 1, RoundBudget(remove_units=9)),
        (Budget(params=90), 2, RoundBudget(params=90, remove_units=0)),
        (Budget(params=20, bytes=800, min_units=2, protect="b"), 2,
         RoundBudget(params=40, bytes=800, remove_units=0, min_units=2, protect=("b",))),
        (Budget(params=20, max_loss_increase=0.1), 2, RoundBudget(params=40, remove_units=0)),
        (Budget(remove_fraction=0.75, scope="set"), 2,
         RoundBudget(remove_fraction=0.75, scope="set", remove_units=0, quotas=(("a", 4), ("b", 2)))),
    ],
    ids=str,
)  # fmt: skip
def test_what_the_budget_counts_falls_by_the_same_share(budget: Budget, rounds: int, target: Budget) -> None:
    assert round_budget(budget, START, rounds) == target


def test_a_round_counts_from_what_the_one_before_left() -> None:
    after = START.with_steps((step("a", 0, 70, 700), step("a", 3, 60, 600), step("b", 1, 50, 500)))
    assert round_budget(Budget(remove_units=8), after, 2) == RoundBudget(remove_units=3)  # of 9 left 6, in the end 4
    assert round_budget(Budget(remove_fraction=0.5, scope="set"), after, 1) == RoundBudget(
        remove_fraction=0.5, scope="set", remove_units=0, quotas=(("a", 2), ("b", 1))
    )
    assert round_budget(Budget(remove_units=2), after, 1) == RoundBudget(remove_units=0)


def test_a_round_of_a_set_takes_its_quota_alone() -> None:
    budget = RoundBudget(remove_fraction=0.5, scope="set", remove_units=0, quotas=(("a", 2),), protect=("c",))
    assert budget.removable({"a": 6, "b": 6, "c": 6}) == {"a": 2, "b": 0, "c": 0}


@pytest.mark.parametrize(
    ("loss", "accuracy", "rise", "drop"),
    [(1.0, 0.5, 0.25, 0.25), (0.5, 0.75, 0.75, 0.5), (1.125, 0.375, 0.125, 0.125), (3.0, 0.0, 0.0, 0.0)],
)
def test_quality_that_is_left_counts_from_the_start(loss: float, accuracy: float, rise: float, drop: float) -> None:
    after = START.with_steps((step("a", 0, 70, 700, loss, accuracy=accuracy),))
    target = round_budget(Budget(max_loss_increase=0.25, max_accuracy_drop=0.25), after, 2)
    assert target == Budget(max_loss_increase=rise, max_accuracy_drop=drop)


@pytest.mark.parametrize(("metric", "drop"), [(-3.0, 0.25), (-2.5, 0.75), (-3.125, 0.125), (-9.0, 0.0)])
def test_so_does_the_metric(metric: float, drop: float) -> None:
    start = replace(state(80, 800, 1.0), metric=-3.0)
    plan = replace(START, start=start, steps=(replace(step("a", 0, 70, 700), metric=metric),))
    assert round_budget(Budget(max_metric_drop=0.25), plan, 2) == Budget(max_metric_drop=drop)


def test_a_drop_that_is_left_is_one_of_whole_predictions() -> None:
    after = Plan(
        START.kept_indices, state(80, 800, 1.0, 0.9), (step("a", 8, 70, 700, 1.0, accuracy=0.8),),
        basis=Basis("data", 10, False, 10),
    )  # fmt: skip
    for allowed, drop in ((0.1, 0.0), (0.15, 0.0), (0.2, 0.1), (0.35, 0.2)):
        assert round_budget(Budget(max_accuracy_drop=allowed), after, 1) == Budget(max_accuracy_drop=drop)


def test_a_round_ends_where_its_target_holds() -> None:
    steps = (step("a", 0, 70, 700), step("a", 1, 60, 600), step("b", 0, 50, 500), step("a", 2, 40, 400))
    states = (START.states[0], *steps)
    sizes = Budget(params=10)
    assert enough(sizes, RoundBudget(params=60, remove_units=0), 0, states) == 2
    assert enough(sizes, RoundBudget(params=60, remove_units=0), 3, states) == 3
    assert enough(sizes, RoundBudget(remove_units=2), 1, states) == 3
    assert enough(sizes, RoundBudget(params=60, bytes=450, remove_units=1), 0, states) == 4
    assert enough(sizes, RoundBudget(params=5, remove_units=0), 0, states) == 4
    by_set = RoundBudget(remove_fraction=0.5, scope="set", remove_units=0, quotas=(("a", 1), ("b", 1)))
    assert enough(sizes, by_set, 0, states) == 3
    assert enough(Budget(max_loss_increase=1.0), Budget(max_loss_increase=1.0), 0, states) == 4


def test_the_last_round_ends_at_the_end() -> None:
    assert [share_left(100, 7, rounds) for rounds in (1, 2)] == [7, 26]
