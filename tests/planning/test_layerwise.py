"""Layerwise plans: each set's curve against networks fitted anew, and plans that any budget makes of the curves.

Also covers secateur.planning.set_curves.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import secateur as sc
from cases import CASES, Heads, gated_units, randomise
from secateur.errors import ArgumentError, BudgetError
from secateur.planning import set_curves
from secateur.planning.curves import Curve
from secateur.planning.plan import Plan

RIDGE = 1e-3
MEASURED = (0.2, 0.4, 0.6, 0.8, 0.9)  # of a set of ten


def one_set(noise: float = 0.0) -> tuple[nn.Sequential, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 3)).double()
    x = torch.randn(60, 6).double()
    return model, (x, model(x).detach() + noise * torch.randn(60, 3).double())


def classifier(dtype: torch.dtype = torch.float64) -> tuple[nn.Sequential, tuple[Tensor, Tensor]]:
    """Two convolutions and a dense layer, with the labels that it gives but for some."""
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(24, 12), nn.Sigmoid(), nn.Linear(12, 4),
    ).double()  # fmt: skip
    x = torch.randn(100, 2, 4, 4).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
        model[7].bias -= model(x).mean(0)
    y = model(x).argmax(1)
    y[::9] = (y[::9] + 1) % 4
    return model.to(dtype), (x.to(dtype), y)


def rank(model: nn.Module, data: Any, loss: Any = "cross_entropy", **options: Any) -> Plan:
    given = {"ranking": "layerwise", "compensate": True, "progress": False} | options
    return sc.rank(model, data, loss, **given)


def curves(plan: Plan) -> dict[str, Curve]:
    assert plan.curves is not None
    return {curve.set: curve for curve in plan.curves.sets}


def without(
    model: nn.Sequential, x: Tensor, gone: list[int], of_those_left: bool = False
) -> tuple[nn.Sequential, float]:
    """The network of `one_set` fitted without some units, and the ridge objective there.

    The ridge is relative to the mean square of all units, or of those left alone, as in the last fit.
    """
    left = [i for i in range(model[0].out_features) if i not in gone]
    hidden, weight = model[:2](x).detach(), model[2].weight.detach().T
    a = hidden - hidden.mean(0)
    second = a.T @ a / len(x)
    squares = second.diagonal()[left if of_those_left else slice(None)]
    matrix = second + RIDGE * squares.mean() * torch.eye(len(second)).to(second)
    fitted = torch.linalg.solve(matrix[left][:, left], (matrix @ weight)[left])
    small = copy.deepcopy(model)
    with torch.no_grad():
        small[2].weight.zero_()
        small[2].weight[:, left] = fitted.T
        small[2].bias.copy_(model(x).mean(0) - hidden[:, left].mean(0) @ fitted)
    change = small[2].weight.detach().T - weight
    return small, 0.5 * torch.trace(change.T @ matrix @ change).item()


# ---------------------------------------------------------------- one curve


def test_a_set_loses_the_unit_next_whose_removal_costs_least_after_a_fit() -> None:
    model, data = one_set()
    plan = rank(model, data, "squared_error", ridge=RIDGE, weighting="none")
    gone: list[int] = []
    while len(gone) < 9:
        costs = {k: without(model, data[0], [*gone, k])[1] for k in range(10) if k not in gone}
        gone.append(min(costs, key=costs.__getitem__))
    assert curves(plan)["0"].order == tuple(gone)
    assert [step.index for step in plan.steps] == gone
    assert plan.kept == {"0": tuple({*range(10)} - {*gone})}


def test_a_curve_is_the_rise_of_the_loss_where_it_is_measured_with_the_weights_fitted_there() -> None:
    model, (x, y) = one_set()
    plan = rank(model, (x, y), "squared_error", ridge=RIDGE, weighting="none")
    curve, loss = curves(plan)["0"], lambda network: 0.5 * (network(x) - y).square().sum(1).mean().item()
    for share in MEASURED:
        n = round(share * 10)
        small, _ = without(model, x, list(curve.order[:n]))
        assert curve.rises[n] == pytest.approx(loss(small) - loss(model), rel=1e-8)
    assert list(curve.rises) == sorted(curve.rises)
    assert [step.predicted for step in plan.steps] == pytest.approx(
        [after - before for before, after in zip(curve.rises, curve.rises[1:], strict=False)]
    )


def test_a_criterion_gives_the_order_and_compensation_the_rises() -> None:
    model, (x, y) = one_set()
    plan = rank(model, (x, y), "squared_error", criterion="magnitude", ridge=RIDGE, weighting="none")
    magnitude = sc.score(model, None, None, criterion="magnitude", units=sc.find_units(model, x))["0"]
    assert curves(plan)["0"].order == tuple(magnitude.argsort()[:-1].tolist())
    small, _ = without(model, x, list(curves(plan)["0"].order[:6]))
    rise = 0.5 * ((small(x) - y).square() - (model(x) - y).square()).sum(1).mean().item()
    assert curves(plan)["0"].rises[6] == pytest.approx(rise, rel=1e-8)


def test_without_compensation_a_curve_is_the_rise_with_the_weights_as_they_are() -> None:
    model, (x, y) = one_set(noise=0.1)
    plan = rank(model, (x, y), "squared_error", compensate=False)
    assert (plan.criterion, plan.ranking, plan.compensation) == ("taylor1", "layerwise", None)
    curve, loss = curves(plan)["0"], lambda out: 0.5 * (out - y).square().sum(1).mean().item()
    saliency = sc.score(model, (x, y), "squared_error", criterion="taylor1")["0"]
    assert curve.order == tuple(saliency.argsort()[:-1].tolist())
    measured = [0.0]
    for share in MEASURED:
        g = torch.ones(10).double()
        g[list(curve.order[: round(10 * share)])] = 0
        measured.append(loss(model[2](model[:2](x) * g)) - loss(model(x)))
    rising = [n for n in range(1, 6) if measured[n] > 1.1 * max(measured[:n])]  # elsewhere the curve hardly rises
    assert len(rising) >= 3
    for n in rising:
        assert curve.rises[round(10 * MEASURED[n - 1])] == pytest.approx(measured[n], rel=1e-8)


def test_without_data_the_order_is_that_of_the_magnitude_and_nothing_is_measured() -> None:
    model, (x, _) = classifier()
    units = sc.find_units(model, x)
    plan = rank(model, None, None, units=units, criterion="magnitude", compensate=False, budget=sc.Budget(params=600))
    magnitudes = sc.score(model, None, None, criterion="magnitude", units=units)
    for name, curve in curves(plan).items():
        assert curve.order == tuple(magnitudes[name].argsort()[:-1].tolist())
        assert curve.rises == pytest.approx((0.0, *magnitudes[name].sort().values[:-1].cumsum(0).tolist()))
    assert plan.start is not None
    assert {state.loss for state in plan.states} == {step.predicted for step in plan.steps} == {None}
    assert plan.basis is None
    assert str(plan).splitlines()[0] == f"{len(plan.steps)} of 26 units removed, magnitude / layerwise"
    assert Plan.from_json(plan.to_json()) == plan
    assert plan.steps[-1].params <= 600 < plan.steps[-2].params


def test_units_that_no_layer_makes_up_for_go_by_their_slope_and_the_others_are_fitted() -> None:
    torch.manual_seed(1)
    model = randomise(Heads().double().eval())
    x, y = torch.randn(40, 5, 3).double(), torch.randn(40, 5, 2).double()
    units = gated_units(model, x)
    plan = rank(model, (x, y), "squared_error", units=units)
    slopes = sc.score(model, (x, y), "squared_error", criterion="taylor1", units=units)
    widths, heads = curves(plan)["q[1]"], curves(plan)["q[0]"]  # of queries and keys, which a product sums up
    assert widths.order == (int(slopes["q[1]"].argmin()),) == (1,)
    assert heads.order != tuple(slopes["q[0]"].argsort()[:-1].tolist())
    result = sc.shrink(
        model, (x, y), "squared_error", sc.Budget(remove_fraction=0.4), ranking="layerwise", progress=False, units=units
    )
    assert result.max_difference < 1e-9


# ---------------------------------------------------------------- a plan


@pytest.mark.parametrize("name", ["two_hidden", "normalised", "flattened_units", "branches", "functional", "tied"])
def test_the_loss_at_the_end_is_that_of_the_network_cut_and_fitted_there(name: str) -> None:
    case = CASES[name]()
    x = torch.randn(40, *case.x.shape[1:], dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = case.model(x).argmax(1)
    plan = rank(case.model, (x, y), budget=sc.Budget(remove_fraction=0.4))
    small = sc.cut(case.model, plan, compensate=(x, y), loss="cross_entropy")
    assert plan.steps[-1].loss == pytest.approx(F.cross_entropy(small(x), y).item(), rel=1e-6)
    assert plan.steps[-1].accuracy == (small(x).argmax(1) == y).double().mean().item()
    assert [step.loss for step in plan.steps[:-1]] == [None] * (len(plan.steps) - 1)
    assert plan.states[0].loss == pytest.approx(F.cross_entropy(case.model(x), y).item())


BUDGETS = [
    sc.Budget(remove_units=9),
    sc.Budget(remove_units=0),
    sc.Budget(remove_fraction=0.7),
    sc.Budget(remove_fraction=0.5, scope="set"),
    sc.Budget(params=400),
    sc.Budget(bytes="5 kB"),
    sc.Budget(bytes="7 kB", remove_units=4, min_units=3),
    sc.Budget(params=700, protect="5"),
]


@pytest.fixture(scope="module")
def ranked() -> dict[str, Any]:
    model, data = classifier()
    return {"model": model, "data": data, "plan": rank(model, data, budget=sc.Budget(remove_units=5))}


@pytest.mark.parametrize("budget", BUDGETS, ids=str)
def test_curves_make_the_plan_for_any_budget_that_data_would(budget: sc.Budget, ranked: dict[str, Any]) -> None:
    measured = rank(ranked["model"], ranked["data"], budget=budget)
    curves = dataclasses.replace(ranked["plan"].curves, priced=measured.curves.priced)  # which data alone can tell
    plan = dataclasses.replace(ranked["plan"], curves=curves).at(budget)
    assert plan.kept == measured.kept
    for predicted, step in zip(plan.steps, measured.steps, strict=True):
        assert (predicted.set, predicted.index, predicted.params) == (step.set, step.index, step.params)
    assert {step.loss for step in plan.steps} <= {None}
    assert (plan.basis, plan.start) == (None, measured.start)
    assert measured.at(budget) is measured
    again = Plan.from_json(plan.to_json())
    assert again == plan
    assert again.at(sc.Budget(remove_units=5)).kept == ranked["plan"].kept


def test_fewer_units_are_the_beginning_of_more_and_the_whole_order_leaves_one_of_each_set(
    ranked: dict[str, Any],
) -> None:
    plan, whole = ranked["plan"], rank(ranked["model"], ranked["data"])
    assert {name: len(kept) for name, kept in whole.kept.items()} == dict.fromkeys(plan.kept, 1)
    assert {step.loss for step in whole.steps} == {None}
    for n in (0, 3, 11, len(whole.steps)):
        assert plan.at(sc.Budget(remove_units=n)).kept == whole.prefix(n).kept


def test_what_curves_cannot_tell_is_refused(ranked: dict[str, Any]) -> None:
    plan = rank(ranked["model"], ranked["data"], budget=sc.Budget(remove_units=5), validation=ranked["data"])
    with pytest.raises(
        BudgetError, match=r"^Budget\(params=3\) cannot be met: at most 23 of 26 units can be removed, "
    ):
        plan.at(sc.Budget(params=3))
    for budget in (sc.Budget(max_loss_increase=1e-9), sc.Budget(max_accuracy_drop=0.02, remove_units=7)):
        with pytest.raises(ArgumentError) as caught:
            plan.at(budget)
        assert str(caught.value) == (
            f"{budget}: along curves the loss is predicted, not measured; make the plan with rank(..., budget=budget)"
        )
    assert plan.at(sc.Budget(remove_units=5, max_loss_increase=9)) is plan


def test_a_size_out_of_reach_is_refused_before_any_curve_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = classifier()
    monkeypatch.setattr(set_curves, "removal_path", lambda *_: pytest.fail("a curve was made"))
    with pytest.raises(
        BudgetError, match=r"^Budget\(params=3\) cannot be met: at most 23 of 26 units can be removed, "
    ):
        rank(model, data, budget=sc.Budget(params=3))


# ---------------------------------------------------------------- budgets of quality


@pytest.mark.parametrize("fields", [{"max_loss_increase": 0.05}, {"max_accuracy_drop": 0.1}], ids=str)
def test_a_budget_of_quality_is_kept_on_samples_held_back_from_the_fit(fields: dict[str, float]) -> None:
    model, (x, y) = classifier()
    result = sc.shrink(model, (x, y), "cross_entropy", sc.Budget(**fields), ranking="layerwise", progress=False)  # type: ignore[arg-type]
    held, plan = slice(4, None, 5), result.plan
    assert isinstance(plan, Plan)
    assert str(plan.basis) == "20 samples held back from the fit"
    loss, accuracy = F.cross_entropy(result.model(x[held]), y[held]), result.model(x[held]).argmax(1) == y[held]
    start, right = F.cross_entropy(model(x[held]), y[held]), model(x[held]).argmax(1) == y[held]
    assert plan.steps[-1].loss == pytest.approx(loss.item(), rel=1e-6)
    assert 0 < len(plan.steps) < 23
    if "max_loss_increase" in fields:
        assert loss <= start + 0.05
    else:
        assert accuracy.double().mean() >= right.double().mean() - 0.1 - 1e-9
    longer = plan.curves and plan.at(sc.Budget(remove_units=len(plan.steps) + 1))
    assert longer
    fitted = (x[[i for i in range(100) if i % 5 != 4]], y[[i for i in range(100) if i % 5 != 4]])
    small = sc.cut(model, longer, compensate=fitted, loss="cross_entropy")
    worse, wrong = F.cross_entropy(small(x[held]), y[held]), small(x[held]).argmax(1) != y[held]
    drop = right.double().mean() - 1 + wrong.double().mean()
    assert worse > start + 0.05 if "max_loss_increase" in fields else drop > 0.1


def test_a_size_out_of_reach_within_the_quality_says_how_far_one_gets() -> None:
    model, data = classifier()
    budget = sc.Budget(remove_units=20, max_loss_increase=0.05)
    with pytest.raises(
        BudgetError, match=r"units can be removed within max_loss_increase=0.05, which leaves"
    ) as caught:
        rank(model, data, budget=budget)
    removed = int(str(caught.value).split("at most ")[1].split(" of 26")[0])
    plan = rank(model, data, budget=sc.Budget(remove_units=removed, max_loss_increase=0.05))
    assert len(plan.steps) == removed > 0


def test_where_nothing_may_go_within_the_quality_nothing_does() -> None:
    model, data = one_set()
    plan = rank(model, data, "squared_error", budget=sc.Budget(max_loss_increase=0.0), compensate=False)
    assert (plan.steps, plan.at(sc.Budget(max_loss_increase=0.0))) == ((), plan)


# ---------------------------------------------------------------- what a plan depends on


def in_batches(x: Tensor, y: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    return list(zip(x.split(size), y.split(size), strict=True))


@pytest.mark.parametrize("few", [False, True])
def test_a_plan_depends_neither_on_batches_nor_on_the_memory(
    few: bool, ranked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    if few:  # measured on some of the samples alone
        monkeypatch.setattr(set_curves, "CHEAP", 10**6)
    model, (x, y) = ranked["model"], ranked["data"]
    budget = sc.Budget(remove_units=12)
    whole = rank(model, (x, y), budget=budget)
    assert (curves(whole)["0"].rises == curves(ranked["plan"])["0"].rises) is not few
    options: Iterator[tuple[Any, dict[str, Any]]] = iter(
        [(in_batches(x, y, 7), {}), (in_batches(x, y, 64), {}), ((x, y), {"max_memory": "400 kB"})]
    )
    for data, more in options:
        plan = rank(model, data, budget=budget, **more)
        assert plan.kept == whole.kept
        for name, curve in curves(plan).items():
            assert curve.order == curves(whole)[name].order
            assert curve.rises == pytest.approx(curves(whole)[name].rises, rel=1e-6, abs=1e-9)


def test_a_seed_changes_random_orders_and_no_others(ranked: dict[str, Any]) -> None:
    model, data = ranked["model"], ranked["data"]
    assert curves(rank(model, data, seed=1)) == curves(rank(model, data, seed=2))
    random = [curves(rank(model, data, criterion="random", seed=seed))["5"].order for seed in (1, 1, 2)]
    assert random[0] == random[1] != random[2]


def test_float32_makes_the_plan_that_float64_makes() -> None:
    budget = sc.Budget(remove_units=10)
    single, double = (rank(*classifier(dtype), budget=budget) for dtype in (torch.float32, torch.float64))
    assert single.kept == double.kept
    assert single.steps[-1].loss == pytest.approx(double.steps[-1].loss, rel=1e-3)


def test_data_without_targets_keep_the_outputs_as_they_were() -> None:
    model, (x, _) = one_set()
    plan = rank(model, x, "output", budget=sc.Budget(remove_units=6), ridge=RIDGE, weighting="none")
    small, _ = without(model, x, list(curves(plan)["0"].order[:6]), of_those_left=True)
    assert plan.start is not None
    assert plan.start.loss == pytest.approx(0, abs=1e-12)
    cut = sc.cut(model, plan, compensate=x, loss="output")
    torch.testing.assert_close(cut(x), small(x), rtol=1e-6, atol=1e-8)


# ---------------------------------------------------------------- what it says


def test_a_plan_says_whether_its_end_was_measured(ranked: dict[str, Any]) -> None:
    plan = ranked["plan"]
    assert str(plan).splitlines()[0] == (
        "5 of 26 units removed, obs / layerwise, compensated; loss and accuracy on 100 samples of the data, on which "
        "the weights were fitted"
    )
    assert len(str(plan).splitlines()) == 2 + 6
    other = str(plan.at(sc.Budget(remove_units=7))).splitlines()
    assert other[0] == (
        "7 of 26 units removed, obs / layerwise, compensated; how the loss rises is predicted, not measured"
    )
    assert len(other) == 2 + 8


def test_the_file_of_a_network_is_as_large_as_the_plan_says(ranked: dict[str, Any]) -> None:
    budget = sc.Budget(bytes="6 kB")
    result = sc.shrink(ranked["model"], ranked["data"], "cross_entropy", budget, ranking="layerwise", progress=False)
    assert result.after.bytes == result.plan.steps[-1].bytes <= 6000
    assert result.max_difference < 1e-9


# ---------------------------------------------------------------- odd networks and settings


def test_where_no_set_may_lose_a_unit_there_is_nothing_to_allot() -> None:
    case = CASES["one_unit"]()
    plan = rank(case.model, (case.x, case.y))
    assert (plan.steps, plan.kept, curves(plan)) == ((), {"0": (0,)}, {})
    model, data = one_set()
    protected = rank(model, data, "squared_error", budget=sc.Budget(remove_units=0, protect="*"))
    assert (protected.steps, curves(protected)) == ((), {})
    assert Plan.from_json(protected.to_json()) == protected


@pytest.mark.parametrize("rows", [1, 2])
def test_one_or_two_samples_are_enough_for_an_order(rows: int) -> None:
    model, (x, y) = one_set()
    result = sc.shrink(
        model, (x[:rows], y[:rows]), "squared_error", sc.Budget(remove_units=8), ranking="layerwise", progress=False
    )
    assert result.max_difference < 1e-9
    torch.testing.assert_close(result.model(x[:rows]), model(x[:rows]), rtol=1e-3, atol=1e-3)  # two units fit two rows


def test_units_that_give_nothing_or_the_same_as_others_go_first_and_cost_nothing() -> None:
    model, (x, y) = one_set()
    with torch.no_grad():
        model[0].weight[3], model[0].bias[3] = 0.0, 0.0
        model[0].weight[7], model[0].bias[7] = model[0].weight[2], model[0].bias[2]
        y = model(x)
    plan = rank(model, (x, y), "squared_error", ridge=1e-9)
    assert set(curves(plan)["0"].order[:2]) in ({3, 7}, {3, 2})
    assert curves(plan)["0"].rises[2] < 1e-9 * curves(plan)["0"].rises[4]


@pytest.mark.parametrize(
    "options",
    [{"recalibrate": True}, {"compensate": False, "recalibrate": True}, {"add_bias": True}, {"weighting": "none"}],
    ids=str,
)
def test_other_settings_of_the_fit_go_with_it(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(5, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 6, bias=False), nn.Tanh(),
        nn.Linear(6, 3, bias=False),
    )  # fmt: skip
    randomise(model.double().eval())
    x = torch.randn(50, 5).double()
    data = x, model(x).argmax(1)
    result = sc.shrink(
        model, data, "cross_entropy", sc.Budget(remove_units=6), ranking="layerwise", progress=False, **options
    )
    assert result.plan.steps[-1].loss == pytest.approx(F.cross_entropy(result.model(x), data[1]).item(), rel=1e-9)
    assert result.max_difference < 1e-9
    assert sc.cut(model, result.plan, compensate=data, loss="cross_entropy")(x).shape == (50, 3)  # type: ignore[arg-type]


def own_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return 0.5 * (outputs - targets).square().sum(1).mean()


@pytest.mark.parametrize(("loss", "criterion"), [("squared_error", "fisher"), (own_loss, "taylor1")])
def test_units_that_nothing_makes_up_for_go_by_curvature_or_slope(loss: Any, criterion: str) -> None:
    torch.manual_seed(0)

    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.head = nn.LSTM(3, 5, batch_first=True), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.lstm(x)[0][:, -1])

    model, x = Last().double(), torch.randn(20, 4, 3).double()
    data = x, torch.randn(20, 2).double()
    plan = rank(model, data, loss, budget=sc.Budget(remove_units=3))
    saliency = sc.score(model, data, loss, criterion=criterion)["lstm"]
    assert curves(plan)["lstm"].order == tuple(saliency.argsort()[:-1].tolist())
    small = sc.cut(model, plan, compensate=data, loss=loss)
    assert plan.steps[-1].loss == pytest.approx(0.5 * (small(x) - data[1]).square().sum(1).mean().item())
