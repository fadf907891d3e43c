"""The quadratic ranking and its swaps."""

from __future__ import annotations

import itertools
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cases import CASES
from secateur import Budget, Plan, find_units, interactions, rank, reference, shrink
from secateur.errors import ArgumentError
from secateur.objective.gated_loss import GatedLoss, ones
from secateur.objective.losses import LOSSES
from secateur.planning.quadratic import Quadratic
from secateur.planning.state import Swaps
from secateur.structure.units import Units

LOSS = "squared_error"


@cache
def setting(seed: int = 0) -> tuple[nn.Module, tuple[Tensor, Tensor], Units]:
    """Two unit sets of 8 and 5, some of them nearly copies of others."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 8), nn.Sigmoid(), nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    with torch.no_grad():
        model[0].weight[:4] = model[0].weight[4:] + 0.1 * torch.randn(4, 4).double()
    data = torch.randn(20, 4).double(), torch.randn(20, 3).double()
    return model, data, find_units(model, data[0])


def parabola(gradient: Tensor, matrix: Tensor, gone: list[int]) -> float:
    """−1_Sᵀ∇ + ½ 1_SᵀH1_S."""
    s = torch.zeros_like(gradient)
    s[gone] = 1
    return (-s @ gradient + 0.5 * s @ matrix @ s).item()


@cache
def derivatives(seed: int) -> tuple[Tensor, Tensor]:
    model, data, units = setting(seed)
    gradient = reference.dense_hessian(model, units, (data[0],), data[1], LOSSES[LOSS])[0].detach()
    return gradient, interactions(model, data, LOSS, units=units)


def numbers(plan: Plan, units: Units) -> list[int]:
    return [units.places.index((step.set, step.index)) for step in plan.steps]


@pytest.mark.parametrize("seed", range(5))
def test_it_takes_the_unit_of_least_predicted_rise_given_those_gone(seed: int) -> None:
    model, data, units = setting(seed)
    gradient, matrix = derivatives(seed)
    plan = rank(model, data, LOSS, units=units, ranking="quadratic", progress=False)
    assert (plan.criterion, plan.ranking) == ("ggn", "quadratic")
    again = rank(
        model, data, LOSS, units=units, ranking="quadratic", refresh=9, budget=Budget(remove_units=1), progress=False
    )
    assert again.criterion == "hessian"
    gone: list[int] = []
    for k, step in zip(numbers(plan, units), plan.steps, strict=True):
        here = parabola(gradient, matrix, gone)
        left = [j for j in range(13) if j not in gone and (set(range(8)) if j < 8 else set(range(8, 13))) - {*gone, j}]
        rises = {j: parabola(gradient, matrix, [*gone, j]) - here for j in left}
        assert min(rises, key=rises.__getitem__) == k
        assert step.predicted == pytest.approx(rises[k], rel=1e-9, abs=1e-14)
        gone.append(k)
    assert len(gone) == 11


def test_the_first_removal_is_that_of_the_criterion() -> None:
    model, data, units = setting()
    for criterion in ("ggn", "hessian"):
        first = rank(model, data, LOSS, units=units, criterion=criterion, ranking="single", progress=False).steps[0]
        again = rank(model, data, LOSS, units=units, criterion=criterion, ranking="quadratic", progress=False).steps[0]
        assert (first.set, first.index) == (again.set, again.index)
        assert again.predicted == pytest.approx(first.predicted, rel=1e-9)


@pytest.mark.parametrize("criterion", ["ggn", "hessian"])
def test_refreshed_after_each_removal_it_is_the_iterative_ranking(criterion: str) -> None:
    model, data, units = setting()
    a = rank(model, data, LOSS, units=units, criterion=criterion, ranking="quadratic", refresh=1, progress=False)
    b = rank(model, data, LOSS, units=units, criterion=criterion, ranking="iterative", progress=False)
    assert numbers(a, units) == numbers(b, units)
    assert [s.predicted for s in a.steps] == pytest.approx([s.predicted for s in b.steps], rel=1e-8, abs=1e-13)


def test_refreshing_begins_again_at_the_gates_reached() -> None:
    model, data, units = setting()
    whole = rank(model, data, LOSS, units=units, ranking="quadratic", progress=False)
    plan = rank(model, data, LOSS, units=units, criterion="ggn", ranking="quadratic", refresh=4, progress=False)
    same = ((s.set, s.index, s.predicted, s.loss, s.params) for s in whole.steps[:4])
    assert [(s.set, s.index, s.predicted, s.loss, s.params) for s in plan.steps[:4]] == [*same]
    g = ones(model, units)
    for k in numbers(plan, units)[:4]:
        g[k] = 0
    fresh = Quadratic(GatedLoss(model, units, data, LOSS), g, "ggn")
    assert plan.steps[4].predicted == pytest.approx(fresh.saliency()[numbers(plan, units)[4]].item(), rel=1e-9)
    assert plan.steps[4].predicted != pytest.approx(whole.steps[4].predicted, rel=1e-3)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 40), n=st.integers(1, 10), refresh=st.sampled_from([None, 3]),
    scope=st.sampled_from(["global", "set"]),
)  # fmt: skip
def test_swaps_lower_the_prediction_until_no_swap_does(seed: int, n: int, refresh: int | None, scope: Any) -> None:
    model, data, units = setting(seed % 4)
    budget = Budget(remove_fraction=n / 13, scope=scope, min_units=1)
    greedy, plan = (
        rank(
            model, data, LOSS, units=units, ranking="quadratic", refresh=refresh, swaps=s, budget=budget, progress=False
        )
        for s in (False, True)
    )
    swaps = plan.swaps
    assert greedy.swaps is None
    assert isinstance(swaps, Swaps)
    assert swaps.after <= swaps.before
    assert (swaps.number == 0) == (swaps.after == swaps.before)
    assert {name: len(kept) for name, kept in plan.kept.items()} == {
        name: len(kept) for name, kept in greedy.kept.items()
    } or scope == "global"
    assert len(plan.steps) == len(greedy.steps)
    if swaps.number or refresh is None:  # else earlier parabolas made some of the predictions
        assert sum(step.predicted or 0 for step in plan.steps) == pytest.approx(swaps.after, rel=1e-9, abs=1e-13)
    if refresh is None:
        gradient, matrix = derivatives(seed % 4)
        gone = numbers(plan, units)
        assert swaps.before == pytest.approx(parabola(gradient, matrix, numbers(greedy, units)), abs=1e-12)
        assert swaps.after == pytest.approx(parabola(gradient, matrix, gone), abs=1e-12)
        for i, j in itertools.product(gone, set(range(13)) - set(gone)):
            other = [*(k for k in gone if k != i), j]
            left = [8 - sum(k < 8 for k in other), 5 - sum(k >= 8 for k in other)]
            if min(left) >= 1 and (scope == "global" or (i < 8) == (j < 8)):
                assert parabola(gradient, matrix, other) >= swaps.after - 1e-12


def test_swaps_find_what_greed_misses() -> None:
    """Greed takes the cheapest unit first, although the other two would stand in for each other."""
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 1, bias=False)).double()
    x = torch.eye(3).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 0, 0.2], [-0.9, 0, 0.6], [0.0, 0.7, 0.6]]))
        model[1].weight.fill_(1)
    data = x, model(x).detach()
    budget = Budget(remove_units=2)
    greedy = rank(model, data, LOSS, ranking="quadratic", budget=budget, progress=False)
    plan = rank(model, data, LOSS, ranking="quadratic", budget=budget, swaps=True, progress=False)
    assert greedy.kept == {"0": (1,)}
    assert plan.kept == {"0": (2,)}
    assert plan.swaps is not None
    assert plan.swaps.number == 1
    assert (greedy.steps[-1].loss, plan.steps[-1].loss) == pytest.approx((plan.swaps.before, plan.swaps.after))
    assert str(plan).splitlines()[-1] == (
        f"1 swap lowered the predicted rise of the loss from {plan.swaps.before:.4g} to {plan.swaps.after:.4g}"
    )
    assert Plan.from_json(plan.to_json()) == plan
    assert plan.prefix(1).swaps is None


def test_a_byte_budget_still_holds_after_swaps() -> None:
    model, data, units = setting(1)
    start = rank(model, data, LOSS, units=units, criterion="random", ranking="single", progress=False).states[0]
    for size in range(start.bytes - 600, start.bytes, 60):
        result = shrink(
            model, data, LOSS, Budget(bytes=size), units=units, ranking="quadratic", swaps=True, progress=False
        )
        assert result.after.bytes <= size
        assert result.plan.criterion == "ggn"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"refresh": 3}, "refresh: is for ranking='quadratic' or compensate=True, not 'iterative' without it"),
        ({"swaps": True, "ranking": "single"}, "swaps: is for ranking='quadratic', not 'single'"),
        (
            {"ranking": "quadratic", "criterion": "oracle"},
            "ranking='quadratic' takes a criterion with interactions: ggn, fisher, hessian; got 'oracle'",
        ),
        ({"ranking": "quadratic", "refresh": 0}, "refresh: expected a number of removals above 0, got 0"),
        ({"ranking": "quadratic", "refresh": True}, "refresh: expected a number of removals above 0, got True"),
        (
            {"ranking": "quadratic", "swaps": True},
            "swaps: improve what a budget of size removes; give bytes, params, remove_fraction ...",
        ),
        (
            {"ranking": "quadratic", "swaps": True, "budget": Budget(max_loss_increase=1.0)},
            "swaps: improve what a budget of size removes; give bytes, params, remove_fraction ...",
        ),
        (
            {"ranking": "quadratic", "threshold": "mean"},
            "threshold: is for ranking='single' or 'iterative', where units are estimated apart",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(options: dict[str, Any], text: str) -> None:
    case = CASES["one_hidden"]()
    with pytest.raises(ArgumentError) as caught:
        rank(case.model, (case.x, case.y), LOSS, progress=False, **options)
    assert str(caught.value) == text
