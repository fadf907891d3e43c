"""The loss along an order: at which points it is measured, and what is made of an order that was measured at some."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from cases import CASES
from secateur.errors import BudgetError
from secateur.planning import loss_curve
from secateur.planning.loss_curve import CHEAP, MEASURED, spacing
from secateur.planning.plan import Plan
from secateur.planning.state import State, Step

WAYS: list[dict[str, Any]] = [
    {"criterion": "oracle"},
    {"criterion": "taylor1", "ranking": "single"},
    {"ranking": "quadratic"},
    {"compensate": True},
]


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure three times, as if each cost much."""
    monkeypatch.setattr(loss_curve, "CHEAP", 0)
    monkeypatch.setattr(loss_curve, "MEASURED", 3)


def ranked(**options: Any) -> Plan:
    case = CASES["two_hidden"]()
    return sc.rank(case.model, (case.x, case.y), "cross_entropy", progress=False, **options)


def measured(plan: Plan) -> list[int]:
    return [n for n, state in enumerate(plan.states) if state.loss is not None]


def summing(units: int) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """The sum of 1, 2, 3 ... for one sample, and that sum: its squared error grows with each unit that goes."""
    model = nn.Sequential(nn.Linear(1, units, bias=False), nn.ReLU(), nn.Linear(units, 1, bias=False)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.arange(1.0, units + 1)[:, None])
        model[2].weight.fill_(1)
    one = torch.ones(1, 1, dtype=torch.float64)
    return model, (one, model(one).detach())


@pytest.mark.parametrize(
    ("removals", "macs", "every"),
    [
        (100, CHEAP // 100, 1),
        (100, CHEAP // 100 + 1, 2),
        (MEASURED, CHEAP, 1),
        (MEASURED + 1, CHEAP, 2),
        (19_008, CHEAP, 381),
        (0, CHEAP, 1),
    ],
)
def test_it_is_measured_at_every_removal_where_that_is_cheap_and_fifty_times_elsewhere(
    removals: int, macs: int, every: int
) -> None:
    assert spacing(removals, macs) == every
    assert every == 1 or removals // every <= MEASURED


@pytest.mark.parametrize("options", WAYS)
@pytest.mark.usefixtures("few")
def test_an_order_measured_at_some_points_is_the_one_measured_at_all(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = ranked(**options)
    monkeypatch.setattr(loss_curve, "CHEAP", CHEAP)
    whole = ranked(**options)
    assert len(whole.steps) == 8
    assert measured(whole) == list(range(9))
    assert measured(plan) == [0, 3, 6, 8]
    for n, (state, full) in enumerate(zip(plan.states, whole.states, strict=True)):
        known = n in (0, 3, 6, 8)
        assert state.loss == (pytest.approx(full.loss, rel=1e-12) if known else None)
        assert state.accuracy == (full.accuracy if known else None)
        assert replace(state, loss=None, accuracy=None) == replace(full, loss=None, accuracy=None)
    assert plan.kept == whole.kept
    assert Plan.from_json(plan.to_json()) == plan


@pytest.mark.usefixtures("few")
def test_an_order_is_measured_where_it_ends() -> None:
    plan = ranked(budget=sc.Budget(remove_units=4))
    assert measured(plan) == [0, 3, 4]
    assert [step.loss is None for step in plan.at(sc.Budget(remove_units=2)).steps] == [True, True]


@pytest.mark.parametrize("removed", range(40))
@pytest.mark.usefixtures("few")
def test_a_budget_of_quality_ends_where_it_would_if_all_were_measured(removed: int) -> None:
    model, data = summing(40)
    rise = 0.5 * (removed * (removed + 1) / 2) ** 2
    budget = sc.Budget(max_loss_increase=rise)
    plan = sc.rank(model, data, "squared_error", criterion="magnitude", ranking="single", budget=budget, progress=False)
    assert len(plan.steps) == 39
    assert len(plan.at(budget).steps) == removed
    assert plan.at(budget).states[-1].loss == rise
    assert len(measured(plan)) <= 4 + 4  # halving thirteen


@pytest.mark.parametrize("rise", [0.001, 0.01, 0.1])
@pytest.mark.usefixtures("few")
def test_a_budget_of_quality_holds_for_fitted_weights(rise: float) -> None:
    case = CASES["two_hidden"]()
    budget, data = sc.Budget(max_loss_increase=rise), (case.x, case.y)
    result = sc.shrink(case.model, data, "cross_entropy", budget, validation=data, progress=False)
    assert isinstance(result.plan, Plan)
    assert result.before.loss is not None
    assert result.after.loss is not None
    assert result.after.loss <= result.before.loss + rise
    assert len(result.plan.steps) > 0
    assert result.curve[-1].loss == result.after.loss


@pytest.mark.usefixtures("few")
def test_where_a_budget_of_quality_ends_the_weights_are_those_that_cut_fits() -> None:
    case = CASES["two_hidden"]()
    data = case.x, case.y
    plan = ranked(compensate=True, validation=data, budget=sc.Budget(max_loss_increase=0.003))
    between = [n for n in measured(plan) if n % 3 and n != 8]
    assert len(between) > 0
    for n in between:
        small = sc.cut(case.model, plan.prefix(n), compensate=data, loss="cross_entropy")
        loss = nn.functional.cross_entropy(small(case.x), case.y).item()
        assert plan.steps[n - 1].loss == pytest.approx(loss, rel=1e-9)


@pytest.mark.usefixtures("few")
def test_with_a_size_it_is_measured_where_that_holds_first() -> None:
    model, data = summing(40)
    budget = sc.Budget(remove_units=5, max_loss_increase=1000)
    plan = sc.rank(model, data, "squared_error", criterion="magnitude", budget=budget, progress=False)
    assert measured(plan) == [0, 5]
    assert len(plan.at(budget).steps) == 5
    missed = sc.Budget(remove_units=5, max_loss_increase=100)
    with pytest.raises(BudgetError, match="at most 0 of 40 units can be removed within max_loss_increase=100"):
        sc.rank(model, data, "squared_error", criterion="magnitude", budget=missed, progress=False).at(missed)


@pytest.mark.usefixtures("few")
def test_a_result_has_the_losses_that_were_measured() -> None:
    case = CASES["two_hidden"]()
    budget = sc.Budget(remove_units=5)
    result = sc.shrink(case.model, (case.x, case.y), "cross_entropy", budget, compensate=False, progress=False)
    assert isinstance(result.plan, Plan)
    assert [row.removed for row in result.curve if row.loss is not None] == [3, 5]
    assert result.after.loss == result.plan.steps[-1].loss
    assert [line.split()[0] for line in str(result.plan).splitlines()[2:-1]] == ["0", "3", "5"]


def test_a_printed_plan_shows_some_twenty_of_the_points_measured_and_its_end() -> None:
    steps = tuple(Step(0.5 if n % 20 == 0 else None, None, 1, 1, 1, "a", n, None) for n in range(1, 995))
    plan = Plan((("a", (0,)),), State(0.5, None, 1, 1, 1), steps)
    shown = [int(line.split()[0]) for line in str(plan).splitlines()[2:]]
    assert shown == [*range(0, 994, 60), 994]
