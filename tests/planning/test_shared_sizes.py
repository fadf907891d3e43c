"""Budgets of multiplications, of multiples, of shares by set, and of equally many units from sets that are alike."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import secateur as sc
from secateur.errors import ArgumentError, BudgetError

RANKINGS = [("single", "magnitude"), ("iterative", "magnitude"), ("iterative", "obs"), ("layerwise", "magnitude")]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 16), nn.Linear(16, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(x)))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        Block(), Block(), nn.Sequential(Block()), nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 2)
    ).double()


X = torch.randn(60, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def plan(budget: sc.Budget, ranking: str = "layerwise", criterion: str | None = None) -> sc.Plan:
    model = network()
    options: dict[str, Any] = {"criterion": criterion, "compensate": criterion == "obs"}
    return sc.rank(model, X, "output", budget=budget, ranking=ranking, progress=False, **options)


def left(made: sc.Plan) -> dict[str, int]:
    return {name: len(kept) for name, kept in made.kept.items()}


@pytest.mark.parametrize(("ranking", "criterion"), RANKINGS)
def test_alike_sets_lose_equally_many_units_each_its_own(ranking: str, criterion: str | None) -> None:
    made = plan(sc.Budget(params=500, scope="uniform"), ranking, criterion)
    sizes = left(made)
    assert sizes["0.up"] == sizes["1.up"] < 16
    assert made.states[-1].params <= 500
    assert made.kept["0.up"] != made.kept["1.up"]
    small = sc.cut(network(), made)
    assert sum(p.numel() for p in small.parameters()) == made.states[-1].params


@pytest.mark.parametrize(("ranking", "criterion"), RANKINGS)
@pytest.mark.parametrize("scope", ["global", "uniform"])
def test_what_is_left_is_a_multiple_and_the_budget_is_used_up(ranking: str, criterion: str | None, scope: Any) -> None:
    made = plan(sc.Budget(params=520, multiple_of={"*.up": 4, "*": 8}, scope=scope), ranking, criterion)
    sizes = left(made)
    assert all(sizes[name] % 4 == 0 for name in ("0.up", "1.up", "2.0.up"))
    assert sizes["3"] in (8, 16, 20)
    most = 4 * 13 * (2 if scope == "uniform" else 1)
    assert 520 - max(most, 8 * 9) < made.states[-1].params <= 520


@pytest.mark.parametrize(("ranking", "criterion"), RANKINGS)
def test_shares_are_of_the_first_name_that_matches(ranking: str, criterion: str | None) -> None:
    made = plan(sc.Budget(remove_fraction={"0.*": 0.5, "3": 0.3, "1.up": 0.0}), ranking, criterion)
    assert left(made) == {"0.up": 8, "1.up": 16, "2.0.up": 16, "3": 14}


@pytest.mark.parametrize(("ranking", "criterion"), RANKINGS)
def test_multiplications_are_bounded_alone_and_beside_parameters(ranking: str, criterion: str | None) -> None:
    made = plan(sc.Budget(macs=500), ranking, criterion)
    assert 500 - 12 < made.states[-1].macs <= 500
    both = plan(sc.Budget(macs=600, params=500), ranking, criterion)
    assert both.states[-1].params <= 500
    assert both.states[-1].macs <= 600


@settings(max_examples=25, deadline=None)
@given(
    params=st.integers(100, 800),
    multiple=st.integers(1, 9),
    scope=st.sampled_from(["global", "uniform"]),
    ranking=st.sampled_from(RANKINGS),
)
def test_any_of_these_holds_or_the_error_says_how_far_one_can_get(
    params: int, multiple: int, scope: Any, ranking: tuple[str, str | None]
) -> None:
    budget = sc.Budget(params=params, multiple_of=multiple, scope=scope)
    least = plan(sc.Budget(remove_units=0, multiple_of=multiple, scope=scope), *ranking).sizes
    limits = budget.removable(least)
    smallest = network()  # of which as much goes as may
    units = sc.find_units(smallest, X)
    if units.params({name: size - limits[name] for name, size in least.items()}) > params:
        with pytest.raises(BudgetError, match="cannot be met: at most"):
            plan(budget, *ranking)
        return
    made = plan(budget, *ranking)
    gone = Counter(step.set for step in made.steps)
    assert all((made.sizes[name] - n) % multiple == 0 for name, n in gone.items())
    assert made.states[-1].params <= params
    if scope == "uniform":
        assert gone["0.up"] == gone["1.up"]


def test_an_order_is_cut_for_another_budget_of_the_kind() -> None:
    made = plan(sc.Budget(params=300, multiple_of=4))
    assert all(size % 4 == 0 for size in left(made.at(sc.Budget(params=500, multiple_of=4))).values())


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"macs": 1.5}, "Budget: macs must be a whole number from 0, got 1.5"),
        ({"macs": 9, "multiple_of": 0}, "Budget: multiple_of must be a whole number from 1, got 0"),
        ({"macs": 9, "multiple_of": {"a": True}}, "Budget: multiple_of must be a whole number from 1, got True"),
        ({"remove_fraction": {"a": 1.5}}, "Budget: remove_fraction must be from 0 to 1, got 1.5"),
        ({"macs": 9, "scope": "layer"}, "Budget: scope must be 'global', 'set' or 'uniform', got 'layer'"),
        (
            {"remove_fraction": {"a": 0.5}, "scope": "uniform"},
            "Budget: remove_fraction by unit set goes with scope='set'",
        ),
    ],
)
def test_what_is_no_budget_is_refused(given: dict[str, Any], text: str) -> None:
    with pytest.raises(ArgumentError) as raised:
        sc.Budget(**given)
    assert str(raised.value) == text


@pytest.mark.parametrize("what", ["remove_fraction", "multiple_of"])
def test_a_name_that_is_no_unit_set_is_refused(what: str) -> None:
    asked: dict[str, Any] = {"remove_fraction": {"4.*": 0.5}} if what == "remove_fraction" else {
        "params": 500, "multiple_of": {"4.*": 2},
    }  # fmt: skip
    with pytest.raises(ArgumentError) as raised:
        plan(sc.Budget(**asked))
    assert str(raised.value) == f"Budget: {what}='4.*' is no unit set; there are: 0.up, 1.up, 2.0.up, 3"


def test_multiplications_out_of_reach_are_said() -> None:
    with pytest.raises(BudgetError, match=r"Budget\(macs=10\) cannot be met: at most 64 of 68 units .* 44 MACs$"):
        plan(sc.Budget(macs=10))
