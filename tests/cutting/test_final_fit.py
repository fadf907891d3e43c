"""The end of a budget of quality alone: the network there keeps it, the next one of the same order does not."""

from __future__ import annotations

import dataclasses
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.cutting.final_fit import furthest
from secateur.planning import loss_curve
from secateur.planning.allotment import allotted_steps
from secateur.planning.plan import Plan

Data = tuple[Tensor, Tensor]


@pytest.mark.parametrize("good", [(True, *rest) for last in range(6) for rest in product((False, True), repeat=last)])
def test_the_end_is_a_good_one_whose_next_is_not(good: tuple[bool, ...]) -> None:
    for near in range(len(good)):
        asked: list[int] = []
        end = furthest(lambda place, asked=asked: asked.append(place) or good[place], near, len(good) - 1)  # type: ignore[misc]
        assert good[end]
        assert end == len(good) - 1 or not good[end + 1]
        assert [place for place in asked if good[place]][-1] == end
        assert len(set(asked)) == len(asked)


def test_few_places_are_asked_for() -> None:
    asked: list[int] = []

    def good(place: int) -> bool:
        asked.append(place)
        return place <= 700

    assert furthest(good, 200, 10**6) == 700
    assert len(asked) < 20


def network(seed: int) -> tuple[nn.Sequential, Data, Data]:
    """A classifier that uses all of its units, data to fit on and data to judge by."""
    torch.manual_seed(seed)
    layers = nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 5)
    model = nn.Sequential(*layers).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
        model[4].bias -= model(torch.randn(200, 4).double()).mean(0)
        x, other = torch.randn(200, 4).double(), torch.randn(100, 4).double()
        return model, (x, model(x).argmax(1)), (other, model(other).argmax(1))


def accuracy(model: nn.Module, data: Data) -> float:
    with torch.no_grad():
        return (model(data[0]).argmax(1) == data[1]).double().mean().item()


def whole_order(plan: Plan, budget: sc.Budget) -> Plan:
    """The plan with all removals: those that a layerwise one has for the budget on its curves."""
    if plan.curves is None:
        return plan
    steps = allotted_steps(plan.curves, budget)
    return dataclasses.replace(plan, kept_indices=plan.curves.whole, steps=()).with_steps(steps)


WAYS: dict[str, dict[str, Any]] = {
    "as it is": {"compensate": False},
    "fitted": {},
    "updated between fits": {"refresh": 12},
    "refined": {"refine": 1},
    "layerwise": {"ranking": "layerwise"},
    "layerwise and refined": {"ranking": "layerwise", "refine": 1},
    "layerwise as it is": {"ranking": "layerwise", "compensate": False},
}


@pytest.mark.parametrize("shape", [{}, {"multiple_of": 4}, {"scope": "uniform"}], ids=str)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_drop_of_the_accuracy_alone_leaves_the_smallest_network_that_keeps_it(
    seed: int, way: str, shape: dict[str, Any]
) -> None:
    model, data, judge = network(seed)
    budget = sc.Budget(max_accuracy_drop=0.1, **shape)
    options = {"validation": judge, "progress": False} | WAYS[way]
    result = sc.shrink(model, data, "cross_entropy", budget, **options)
    assert accuracy(result.model, judge) == result.after.accuracy
    assert result.after.accuracy >= 0.9 - 1e-12
    steps = options.pop("refine", 0)
    fitted = options.setdefault("compensate", True)
    order = whole_order(sc.rank(model, data, "cross_entropy", budget=budget, **options), budget)
    end = len(result.plan.steps)  # type: ignore[arg-type]
    assert [(s.set, s.index) for s in order.steps[:end]] == [(s.set, s.index) for s in result.plan.steps]  # type: ignore[union-attr]
    after = next(n for n in budget.ends(order.steps, order.sizes) if n > end)
    fit = {"compensate": data, "loss": "cross_entropy", "refine": steps} if fitted else {}
    assert accuracy(sc.cut(model, order.prefix(after), **fit), judge) < 0.9 - 1e-12


def summing(units: int) -> tuple[nn.Module, Data]:
    """The sum of 1, 2, 3 ... for one sample, and that sum: its squared error grows with each unit that goes."""
    model = nn.Sequential(nn.Linear(1, units, bias=False), nn.ReLU(), nn.Linear(units, 1, bias=False)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.arange(1.0, units + 1)[:, None])
        model[2].weight.fill_(1)
    one = torch.ones(1, 1, dtype=torch.float64)
    return model, (one, model(one).detach())


@pytest.mark.parametrize("removed", [0, 1, 1234, 3001, 4998])
def test_so_it_is_of_many_ends(removed: int) -> None:
    model, data = summing(5000)
    rise = 0.5 * (removed * (removed + 1) / 2) ** 2
    budget = sc.Budget(max_loss_increase=rise)
    result = sc.shrink(
        model, data, "squared_error", budget, ranking="layerwise", criterion="magnitude", compensate=False,
        progress=False,
    )  # fmt: skip
    assert len(result.plan.steps) == removed  # type: ignore[arg-type]


@pytest.mark.parametrize("removed", range(40))
def test_so_it_is_of_ends_that_lie_between_the_points_measured(removed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_curve, "CHEAP", 0)
    monkeypatch.setattr(loss_curve, "MEASURED", 3)
    model, data = summing(40)
    rise = 0.5 * (removed * (removed + 1) / 2) ** 2
    budget = sc.Budget(max_loss_increase=rise, multiple_of=4)
    result = sc.shrink(
        model, data, "squared_error", budget, ranking="single", criterion="magnitude", compensate=False, progress=False
    )
    assert len(result.plan.steps) == min(removed // 4 * 4, 36)  # type: ignore[arg-type]
