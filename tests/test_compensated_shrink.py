"""Shrinking with weights that make up for the units removed, through the public interface alone.

Also covers secateur.cutting.final_fit and secateur.cutting.added_biases.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import secateur as sc
from cases import CASES, Case, random_kept
from random_networks import RandomArchitecture
from secateur.errors import ArgumentError, DataError, PlanError
from secateur.planning.plan import Plan
from secateur.result import Result

CHANGED = [name for name in CASES if name not in ("one_unit", "tied")]  # where a layer of its own sums units up


def data_of(case: Case, n: int = 60) -> tuple[Tensor, Tensor]:
    """More samples than the case has."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, *case.x.shape[1:], dtype=torch.float64, generator=generator)
    with torch.no_grad():
        return x, case.model(x).flatten(1).argmax(1)


def shrink(model: nn.Module, data: Any, loss: Any = "cross_entropy", **options: Any) -> Result:
    given = {"budget": sc.Budget(remove_fraction=0.4), "progress": False} | options
    return sc.shrink(model, data, loss, **given)


def snapshot(model: nn.Module) -> list[Any]:
    """Everything that could be changed by accident."""
    return [
        {name: tensor.detach().clone() for name, tensor in model.state_dict().items()},
        [(id(tensor), tensor.data_ptr()) for tensor in model.state_dict(keep_vars=True).values()],
        [module.training for module in model.modules()],
        [(p.requires_grad, p.grad) for p in model.parameters()],
        [(dict(m._forward_hooks), sorted(vars(m))) for m in model.modules()],
    ]


def same(before: list[Any], after: list[Any]) -> bool:
    equal = all(torch.equal(tensor, after[0][name]) for name, tensor in before[0].items())
    return equal and before[0].keys() == after[0].keys() and before[1:] == after[1:]


def same_outputs(one: nn.Module, other: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        torch.testing.assert_close(one(x), other(x), rtol=1e-9, atol=1e-9)


# ---------------------------------------------------------------- defaults


def test_units_go_by_what_they_cost_once_the_others_make_up_for_them() -> None:
    parameters = inspect.signature(sc.shrink).parameters
    assert parameters["compensate"].default is True
    assert {name: parameters[name].default for name in ("ridge", "weighting", "recalibrate", "add_bias")} == {
        "ridge": None, "weighting": "ggn", "recalibrate": False, "add_bias": False,
    }  # fmt: skip
    assert inspect.signature(sc.rank).parameters["compensate"].default is False
    assert inspect.signature(sc.cut).parameters["compensate"].default is None
    case = CASES["two_hidden"]()
    plan = shrink(case.model, data_of(case)).plan
    assert isinstance(plan, Plan)
    assert (plan.criterion, plan.ranking, plan.compensated, plan.biases) == ("obs", "iterative", True, ())
    assert " ".join(str(plan).split()).startswith("4 of 10 units removed, obs / iterative, compensated")
    off = shrink(case.model, data_of(case), compensate=False).plan
    assert (off.criterion, off.ranking, off.compensated) == ("oracle", "iterative", False)  # type: ignore[union-attr]


# ---------------------------------------------------------------- the result


@pytest.mark.parametrize("name", [name for name in CASES if name != "one_unit"])
def test_the_result_is_what_cut_makes_of_the_plan_and_the_model_stays(name: str, tmp_path: Path) -> None:
    case = CASES[name]()
    data, before = data_of(case), snapshot(case.model)
    result = shrink(case.model, data)
    assert same(before, snapshot(case.model))
    again = sc.cut(case.model, result.plan, compensate=data, loss="cross_entropy")  # type: ignore[arg-type]
    assert same(before, snapshot(case.model))
    for key, tensor in again.state_dict().items():
        torch.testing.assert_close(result.model.state_dict()[key], tensor, rtol=1e-9, atol=1e-9)
    same_outputs(result.model, again, data[0])

    with torch.no_grad():
        out, original = result.model(data[0]), case.model(data[0])
    assert result.after.loss == pytest.approx(F.cross_entropy(out, data[1]).item(), rel=1e-9)
    assert result.after.accuracy == (out.argmax(1) == data[1]).sum().item() / len(data[1])
    assert result.before.loss == pytest.approx(F.cross_entropy(original, data[1]).item(), rel=1e-9)
    assert result.curve[-1].loss == result.after.loss == result.plan.states[-1].loss  # type: ignore[union-attr]
    assert 0 <= result.max_difference < 1e-9

    path = tmp_path / "a.safetensors"
    assert result.save(path) == path.stat().st_size == result.after.bytes
    assert torch.equal(sc.load(path, CASES[name]().model)(data[0]), out)


def test_a_result_shares_no_memory_with_the_model() -> None:
    case = CASES["two_hidden"]()
    before, data = snapshot(case.model), data_of(case)
    result = shrink(case.model, data, budget=sc.Budget(remove_units=1, protect="0"))
    assert torch.equal(result.model.get_parameter("0.weight"), case.model.get_parameter("0.weight"))
    with torch.no_grad():
        for parameter in result.model.parameters():
            parameter.zero_()
    assert same(before, snapshot(case.model))


@pytest.mark.parametrize("name", CHANGED)
def test_without_compensation_no_weight_that_stays_changes(name: str) -> None:
    case = CASES[name]()
    data = data_of(case)
    off = shrink(case.model, data, compensate=False)
    by_hand = sc.cut(case.model, off.plan)  # type: ignore[arg-type]
    for key, tensor in off.model.state_dict().items():
        assert torch.equal(tensor, by_hand.state_dict()[key])
        assert bool(torch.isin(tensor, case.model.state_dict()[key]).all())
    on = sc.cut(case.model, off.plan, compensate=data, loss="cross_entropy")  # type: ignore[arg-type]
    assert any(not torch.equal(tensor, on.state_dict()[key]) for key, tensor in off.model.state_dict().items())


# ---------------------------------------------------------------- what it is for


def squared(out: Tensor, wanted: Tensor) -> float:
    return 0.5 * (out - wanted).flatten(1).square().sum(1).mean().item()


@pytest.mark.parametrize("name", CHANGED)
@pytest.mark.parametrize("seed", range(3))
def test_the_same_units_cost_less_in_every_network(name: str, seed: int) -> None:
    case = CASES[name]()
    x = data_of(case)[0]
    with torch.no_grad():
        t = case.model(x)
        units = sc.find_units(case.model, x)
        plan = Plan.from_kept(random_kept(units, seed), x)
        plain, fitted = sc.cut(case.model, plan), sc.cut(case.model, plan, compensate=(x, t), loss="squared_error")
        assert squared(fitted(x), t) <= squared(plain(x), t) * (1 + 1e-9)


def test_the_same_units_cost_less_in_random_architectures() -> None:
    better = worse = 0
    before, after = 0.0, 0.0
    for seed in range(12):
        model = RandomArchitecture(seed).eval()
        x = model.sample(60)
        with torch.no_grad():
            t = model(x)
            units = sc.find_units(model, x)
            plan = Plan.from_kept(random_kept(units, seed), x)
            plain, fitted = sc.cut(model, plan), sc.cut(model, plan, compensate=(x, t), loss="squared_error")
            losses = squared(plain(x), t), squared(fitted(x), t)
        before, after = before + losses[0], after + losses[1]
        better, worse = better + (losses[1] < losses[0]), worse + (losses[1] > losses[0])
    assert (better, worse) >= (10, 0)
    assert worse <= 1
    assert after < 0.5 * before


# ---------------------------------------------------------------- budgets


@pytest.mark.parametrize("refresh", [None, 1, 5])
@pytest.mark.parametrize("name", ["two_hidden", "normalised", "branches"])
@pytest.mark.parametrize("rise", [0.0, 0.02, 0.3])
def test_a_budget_of_quality_holds_of_the_model_at_the_end(name: str, rise: float, refresh: int | None) -> None:
    case = CASES[name]()
    data = data_of(case)
    result = shrink(case.model, data, budget=sc.Budget(max_loss_increase=rise), refresh=refresh)
    x, y = data[0][4::5], data[1][4::5]  # held back from the fit
    with torch.no_grad():
        before, after = (F.cross_entropy(model(x), y).item() for model in (case.model, result.model))
    assert after - before <= rise + 1e-12
    assert result.after.loss == pytest.approx(after, rel=1e-9)


def test_a_budget_of_quality_holds_on_the_validation_data() -> None:
    case = CASES["two_hidden"]()
    x, y = data_of(case, 120)
    fit, held = (x[:60], y[:60]), (x[60:], y[60:])
    budget = sc.Budget(max_loss_increase=0.1, max_accuracy_drop=0.05)
    result = shrink(case.model, fit, budget=budget, refresh=5, validation=held)
    with torch.no_grad():
        old, new = case.model(held[0]), result.model(held[0])
    assert F.cross_entropy(new, held[1]) - F.cross_entropy(old, held[1]) <= 0.1 + 1e-12
    drop = (old.argmax(1) == held[1]).double().mean() - (new.argmax(1) == held[1]).double().mean()
    assert drop <= 0.05 + 1e-12
    assert result.after.loss == pytest.approx(F.cross_entropy(new, held[1]).item(), rel=1e-9)
    same_outputs(result.model, sc.cut(case.model, result.plan, compensate=fit, loss="cross_entropy"), x)  # type: ignore[arg-type]


# ---------------------------------------------------------------- biases


def no_bias() -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Linear(4, 8), nn.Sigmoid(), nn.Linear(8, 6, bias=False), nn.Sigmoid(), nn.Linear(6, 3, bias=False)
    return nn.Sequential(*layers).double()


def test_biases_are_added_and_survive_files_and_plans(tmp_path: Path) -> None:
    model, x = no_bias(), torch.randn(80, 4).double()
    y = model(x).argmax(1)
    before = snapshot(model)
    result = shrink(model, (x, y), add_bias=True)
    plan = result.plan
    assert isinstance(plan, Plan)
    assert same(before, snapshot(model))
    assert plan.biases == ("2", "4")
    assert {"2.bias", "4.bias"} <= {*result.model.state_dict()}
    assert all(result.model.get_parameter(name).abs().max() > 0 for name in ("2.bias", "4.bias"))
    assert Plan.from_json(plan.to_json()) == plan
    assert json.loads(plan.to_json())["biases"] == ["2", "4"]
    assert result.save(tmp_path / "a.safetensors") == result.after.bytes == plan.states[-1].bytes
    loaded = sc.load(tmp_path / "a.safetensors", no_bias())
    assert torch.equal(loaded(x), result.model(x))
    assert result.after.params == sum(p.numel() for p in result.model.parameters())
    again = sc.cut(model, Plan.from_json(plan.to_json()), compensate=(x, y), loss="cross_entropy")
    same_outputs(again, result.model, x)

    without = shrink(model, (x, y))
    assert without.plan.biases == ()  # type: ignore[union-attr]
    assert "2.bias" not in without.model.state_dict()
    bare = dataclasses.replace(plan, biases=())
    same_outputs(sc.cut(model, bare, compensate=(x, y), loss="cross_entropy", add_bias=True), result.model, x)
    t = model(x).detach()
    off = [squared(sc.cut(model, bare, (x, t), "squared_error", add_bias=added)(x), t) for added in (False, True)]
    assert off[1] < off[0]


@pytest.mark.parametrize("name", ["0", "1", "nothing", ""])
def test_a_plan_with_a_bias_for_something_else_is_refused(name: str) -> None:
    plan = dataclasses.replace(Plan.from_kept({"0": [0, 1]}), biases=("2", name))
    with pytest.raises(PlanError) as raised:
        sc.cut(no_bias(), plan)
    expected = f"the plan adds a bias to {name!r}, which is no dense or convolutional layer without one"
    assert str(raised.value) == expected


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize("given", [{"ridge": 1e-3}, {"weighting": "none"}, {"recalibrate": True}, {"add_bias": True}])
def test_settings_without_data_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError) as raised:
        sc.cut(no_bias(), Plan.from_kept({"0": [0, 1]}), **given)
    assert str(raised.value) == "ridge, weighting, recalibrate, add_bias and refine: are for compensate=data"


@pytest.mark.parametrize(("given", "name"), [({"ridge": 1e-3}, "ridge"), ({"weighting": "none"}, "weighting")])
def test_settings_without_compensation_are_refused(given: dict[str, Any], name: str) -> None:
    case = CASES["two_hidden"]()
    with pytest.raises(ArgumentError) as raised:
        shrink(case.model, (case.x, case.y), compensate=False, **given)
    assert str(raised.value) == f"{name}: is for compensate=True"


def test_settings_that_are_none_are_refused() -> None:
    case = CASES["two_hidden"]()
    with pytest.raises(ArgumentError, match="ridge: expected a number above 0, or None to choose it, got -1"):
        shrink(case.model, (case.x, case.y), ridge=-1)
    with pytest.raises(ArgumentError, match="unknown weighting 'all'; one of: ggn, none"):
        sc.cut(case.model, Plan.from_kept({"0": [0]}), compensate=(case.x, case.y), weighting="all")


def test_layers_that_memory_has_no_room_for_stay_as_they_are_and_are_listed() -> None:
    case = CASES["two_hidden"]()
    result = shrink(case.model, (case.x, case.y), max_memory=1000)
    weights = [name for name, _ in result.plan.unfitted]  # type: ignore[union-attr]
    assert weights == [name for name, p in case.model.named_parameters() if p.ndim == 2][1:]
    for name, why in result.plan.unfitted:  # type: ignore[union-attr]
        assert re.fullmatch(r"its fit takes [\d.]+ kB, max_memory is 1\.0 kB", why)
        assert f"{name} stays as it is: {why}" in str(result)
    assert Plan.from_json(result.plan.to_json()) == result.plan  # type: ignore[union-attr]


# ---------------------------------------------------------------- with less


def test_without_data_nothing_is_made_up_for() -> None:
    case = CASES["two_hidden"]()
    result = shrink(case.model, None, None, criterion="magnitude", example_inputs=case.x)
    off = shrink(case.model, None, None, criterion="magnitude", example_inputs=case.x, compensate=False)
    assert result.plan == off.plan
    assert not result.plan.compensated  # type: ignore[union-attr]
    for key, tensor in off.model.state_dict().items():
        assert torch.equal(result.model.state_dict()[key], tensor)


@pytest.mark.parametrize("criterion", ["activation", "magnitude", "random"])
def test_inputs_alone_are_enough_to_fit_weights(criterion: str) -> None:
    case = CASES["two_hidden"]()
    x = data_of(case)[0]
    result = shrink(case.model, (x, None), None, criterion=criterion)
    assert result.plan.compensated  # type: ignore[union-attr]
    assert result.after.loss is None
    with torch.no_grad():
        t = case.model(x)
        plain = sc.cut(case.model, result.plan)  # type: ignore[arg-type]
        assert squared(result.model(x), t) < squared(plain(x), t)
    same_outputs(result.model, sc.cut(case.model, result.plan, compensate=(x, None)), x)  # type: ignore[arg-type]


def test_a_loss_without_targets_is_refused() -> None:
    case = CASES["two_hidden"]()
    with pytest.raises(DataError):
        shrink(case.model, (data_of(case)[0], None))


def test_tied_weights_stay_tied_and_as_they_are() -> None:
    case = CASES["tied"]()
    data = data_of(case)
    on, off = shrink(case.model, data), shrink(case.model, data, compensate=False)
    assert on.plan.kept == off.plan.kept  # type: ignore[union-attr]
    for key, tensor in off.model.state_dict().items():
        assert torch.equal(on.model.state_dict()[key], tensor)

    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.d = nn.Linear(3, 6), nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)
            self.c.weight = self.b.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.d(torch.tanh(self.c(torch.tanh(self.b(torch.tanh(self.a(x)))))))

    torch.manual_seed(0)
    model, x = Chain().double(), torch.randn(40, 3).double()
    before = snapshot(model)
    result = shrink(model, (x, model(x).argmax(1)), budget=sc.Budget(remove_units=3))
    assert same(before, snapshot(model))
    small: Any = result.model
    assert small.b.weight is small.c.weight
    assert bool(torch.isin(small.b.weight, model.b.weight).all())
    with torch.no_grad():
        assert result.after.loss == pytest.approx(F.cross_entropy(small(x), model(x).argmax(1)).item(), rel=1e-9)


def test_one_unit_of_each_set_can_be_all_that_is_left() -> None:
    case = CASES["two_hidden"]()
    data = data_of(case)
    result = shrink(case.model, data, budget=sc.Budget(remove_units=8))
    assert {name: len(kept) for name, kept in result.plan.kept.items()} == {"0": 1, "2": 1}  # type: ignore[union-attr]
    with torch.no_grad():
        assert result.after.loss == pytest.approx(F.cross_entropy(result.model(data[0]), data[1]).item(), rel=1e-9)


@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("name", CHANGED)
def test_a_few_samples_are_enough(name: str, n: int) -> None:
    case = CASES[name]()
    x, y = data_of(case)
    result = shrink(case.model, (x[:n], y[:n]))
    with torch.no_grad():
        out = result.model(x[:n])
        assert bool(out.isfinite().all())
        assert result.after.loss == pytest.approx(F.cross_entropy(out, y[:n]).item(), rel=1e-8, abs=1e-9)


def wrong(outputs: Tensor, t: Tensor) -> Tensor:
    return (outputs.argmax(1) != t).double().mean()


def detached(outputs: Tensor, t: Tensor) -> Tensor:
    return F.cross_entropy(outputs.detach(), t)


def tying(outputs: Tensor, t: Tensor) -> Tensor:
    """No mean over samples."""
    return (outputs.mean(0) - t.double().mean()).square().sum()


@pytest.mark.parametrize("loss", [wrong, detached, tying])
def test_a_loss_without_a_curvature_of_samples_weighs_all_the_same(loss: Any) -> None:
    case = CASES["two_hidden"]()
    data = data_of(case)
    result = shrink(case.model, data, loss)
    plain = sc.cut(case.model, result.plan, compensate=data, loss=loss, weighting="none")  # type: ignore[arg-type]
    same_outputs(result.model, plain, data[0])
    with torch.no_grad():
        assert result.after.loss == pytest.approx(loss(result.model(data[0]), data[1]).item(), abs=1e-12)


# ---------------------------------------------------------------- interrupted


@pytest.mark.parametrize("where", ["cut_units", "measure_units"])
def test_an_interrupt_leaves_the_model_as_it_was(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES["two_hidden"]()
    data, before, changed = data_of(case), snapshot(case.model), list[bool]()

    def interrupt(*_: Any) -> Any:
        changed.append(not torch.equal(case.model.state_dict()["4.weight"], before[0]["4.weight"]))
        raise KeyboardInterrupt

    monkeypatch.setattr(f"secateur.shrinking.{where}", interrupt)
    with pytest.raises(KeyboardInterrupt):
        shrink(case.model, data)
    assert changed == [where == "cut_units"]  # what is measured at the end holds its own weights again
    assert same(before, snapshot(case.model))


def test_an_interrupt_of_a_cut_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> Any:
        raise KeyboardInterrupt

    case = CASES["two_hidden"]()
    before = snapshot(case.model)
    monkeypatch.setattr("secateur.cutting.cut.cut_units", interrupt)
    with pytest.raises(KeyboardInterrupt):
        sc.cut(case.model, Plan.from_kept({"0": [1, 2], "2": [0]}), compensate=data_of(case), loss="cross_entropy")
    assert same(before, snapshot(case.model))
