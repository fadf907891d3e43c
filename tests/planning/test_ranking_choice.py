"""Which ranking is taken where none is asked for, by counted work and settings, and what a plan says of it."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.planning.plan import Plan


@cache
def network(width: int) -> tuple[nn.Module, tuple[Tensor, Tensor], sc.Units]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 3))
    x = torch.randn(100, 4)
    return model, (x, model(x).argmax(1)), sc.find_units(model, x)


def rank(width: int = 12, **options: Any) -> Plan:
    model, data, units = network(width)
    return sc.rank(model, data, "cross_entropy", **{"units": units, "progress": False} | options)


def test_a_thousand_units_evaluated_again_after_each_removal_are_much_work_and_make_a_layerwise_plan() -> None:
    plan = rank(1024)
    assert (plan.ranking, plan.criterion) == ("layerwise", "taylor1")
    assert plan.reason == "an iterative ranking takes some 4e+11 multiplications, and 2e+11 count as few"
    assert str(plan).splitlines()[-1] == f"layerwise: {plan.reason}"
    asked = rank(1024, ranking="layerwise")
    assert (asked.steps, asked.curves, asked.reason) == (plan.steps, plan.curves, None)
    assert "layerwise: " not in str(asked)


@pytest.mark.parametrize(
    ("width", "options", "criterion"),
    [
        (1024, {"budget": sc.Budget(remove_units=0)}, "oracle"),
        (12, {}, "oracle"),
        (12, {"compensate": True}, "obs"),
        (12, {"criterion": "magnitude"}, "magnitude"),
    ],
)
def test_few_removals_and_small_networks_are_little_work_and_make_an_iterative_plan(
    width: int, options: dict[str, Any], criterion: str
) -> None:
    plan = rank(width, **options)
    assert (plan.ranking, plan.criterion, plan.curves) == ("iterative", criterion, None)
    assert (plan.reason or "").startswith("an iterative ranking takes some ")
    assert rank(width, ranking="iterative", **options) == plan


@pytest.mark.parametrize(
    ("width", "options"),
    [
        (1024, {"threshold": "mean", "criterion": "magnitude", "budget": sc.Budget(remove_units=1)}),
        (1024, {"shortlist": 1, "budget": sc.Budget(remove_units=1)}),
        (12, {"refresh": 1, "compensate": True}),
    ],
    ids=["threshold", "shortlist", "refresh"],
)
def test_a_setting_of_an_iterative_ranking_asks_for_one(width: int, options: dict[str, Any]) -> None:
    plan = rank(width, **options)
    assert (plan.ranking, plan.reason) == ("iterative", f"it has a {next(iter(options))}")


def test_the_reason_is_kept_in_json_and_no_plans_differ_by_it() -> None:
    plan = rank()
    again = Plan.from_json(plan.to_json())
    assert again.reason == plan.reason is not None
    assert again.at(sc.Budget(remove_units=1)).reason == plan.reason
    assert again == rank(ranking="iterative")


def test_the_memory_that_may_be_used_does_not_decide() -> None:
    little, much = (rank(1024, max_memory=memory) for memory in ("300 kB", "1 GB"))
    assert (little.kept, little.reason) == (much.kept, much.reason)


def test_a_result_and_its_page_say_which_ranking_was_taken_and_why() -> None:
    from secateur.reporting.result_page import result_page  # Matplotlib is slow to import

    model, data, _ = network(12)
    result = sc.shrink(model, data, "cross_entropy", sc.Budget(remove_units=3), progress=False)
    why = f"iterative: {result.plan.reason}"  # type: ignore[union-attr]
    assert why in str(result).splitlines()
    page = result_page(result.plan, result.before, result.after, result.max_difference, "a form")
    assert page.settings["Ranking"] == why
