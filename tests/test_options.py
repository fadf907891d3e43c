"""Options that belong together: what is refused, what is filled in, and that plans and files keep them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

import secateur as sc
from secateur.errors import ArgumentError
from secateur.options import Ranking, compensation_of
from secateur.structure import capture


def network(bias: bool = True) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    first, norm = [nn.Linear(4, 8), nn.Sigmoid()], nn.BatchNorm1d(6)
    layers = *first, nn.Linear(8, 6, bias), norm, nn.Sigmoid(), nn.Linear(6, 3, bias)
    model = nn.Sequential(*layers).double().eval()
    x = torch.randn(80, 4).double()
    return model, (x, model(x).argmax(1))


def shrink(**options: Any) -> Any:
    model, data = network()
    given = {"budget": sc.Budget(remove_fraction=0.4), "progress": False} | options
    return sc.shrink(model, data, "cross_entropy", **given)


# ---------------------------------------------------------------- a typo costs no capture


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"criterion": "orcale"}, "unknown criterion 'orcale'; one of: "),
        ({"ranking": "best"}, "unknown ranking 'best'; one of: single, iterative, quadratic, layerwise"),
        ({"threshold": "max"}, "unknown threshold 'max'; one of: mean, median"),
        ({"weighting": "all"}, "unknown weighting 'all'; one of: ggn, none"),
        ({"granularity": "layer"}, "unknown granularity 'layer'; one of: unit, weight"),
        ({"shortlist": 0}, "shortlist: expected a number of units above 0, got 0"),
        ({"refresh": -1}, "refresh: expected a number of removals above 0, got -1"),
        ({"ridge": 1e300}, "ridge: expected at most 1e+06, got 1e+300"),
        ({"ridge": -1}, "ridge: expected a number above 0, or None to choose it, got -1"),
        ({"swaps": 1}, "swaps: expected True or False, got 1"),
        ({"recalibrate": "no"}, "recalibrate: expected True or False, got 'no'"),
        ({"add_bias": 1}, "add_bias: expected True or False, got 1"),
        ({"max_memory": "much"}, "max_memory: expected an int or a size such as"),
        ({"seed": "a"}, "seed: expected a whole number from -2**63 to 2**64 - 1, got 'a'"),
        ({"seed": 2**70}, "seed: expected a whole number from -2**63 to 2**64 - 1, got 1180591620717411303424"),
        ({"budget": 5}, "budget: expected secateur.Budget(...), got 5"),
        ({"rounds": 0}, "rounds: expected a number above 0, got 0"),
        ({"retrain": 5}, "retrain: expected a function of the model, got 5"),
        ({"swaps": True}, "swaps: is for ranking='quadratic', not 'iterative'"),
        (
            {"refresh": 2, "compensate": False},
            "refresh: is for ranking='quadratic' or compensate=True, not 'iterative'",
        ),
        (
            {"refresh": 2, "ranking": "layerwise"},
            "refresh: is for the other rankings; 'layerwise' fits all weights once",
        ),
        ({"shortlist": 2, "ranking": "layerwise"}, "shortlist: is for ranking='iterative' without threshold"),
        ({"threshold": "mean", "ranking": "layerwise"}, "threshold: is for ranking='single' or 'iterative'"),
        ({"shortlist": 2, "criterion": "taylor1"}, "shortlist: is for ranking='iterative' without threshold"),
    ],
)
def test_what_is_no_option_is_refused_before_the_model_is_captured(
    options: dict[str, Any], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def export(*_: Any, **__: Any) -> None:
        pytest.fail("the model was captured")

    monkeypatch.setattr(capture, "export_model", export)
    with pytest.raises(ArgumentError) as raised:
        shrink(**options)
    assert str(raised.value).startswith(text)


# ---------------------------------------------------------------- compensate


@pytest.mark.parametrize("value", ["yes", 1, None, (torch.ones(2, 4), torch.ones(2)), sc.Compensation])
def test_compensate_is_a_bool_or_a_compensation(value: Any) -> None:
    model, data = network()
    expected = f"compensate: expected True, False or secateur.Compensation(...), got {type(value).__name__}"
    for call in (lambda: shrink(compensate=value), lambda: sc.rank(model, data, "cross_entropy", compensate=value)):
        with pytest.raises(ArgumentError) as raised:
            call()
        assert str(raised.value) == expected


@pytest.mark.parametrize("value", [True, False, sc.Compensation()])
def test_compensate_in_cut_is_data(value: Any) -> None:
    model, data = network()
    with pytest.raises(ArgumentError) as raised:
        sc.cut(model, sc.Plan.from_kept({"0": [0]}, data[0]), compensate=value)
    assert str(raised.value) == (
        "compensate: in cut it is the data to fit on, (inputs, targets) or batches, and how to fit is in the plan; "
        f"got {value!r}"
    )


def test_loose_options_and_a_compensation_are_the_same_settings() -> None:
    assert compensation_of(True) == sc.Compensation()
    assert compensation_of(False, weighting="ggn") is None
    assert compensation_of(True, ridge=0.5, recalibrate=True) == sc.Compensation(ridge=0.5, recalibrate=True)
    assert compensation_of(False, recalibrate=True) == sc.Compensation(recalibrate=True, fit=False)
    with pytest.raises(ArgumentError, match=r"^ridge: already in compensate=Compensation\(.*; give it in one place$"):
        compensation_of(sc.Compensation(), ridge=0.5)
    loose, together = shrink(ridge=0.01, recalibrate=True), shrink(compensate=sc.Compensation(0.01, recalibrate=True))
    assert loose.plan == together.plan


@pytest.mark.parametrize("name", ["ridge", "weighting", "add_bias"])
def test_what_only_a_fit_does_is_refused_without_one(name: str) -> None:
    value: Any = {"ridge": 0.1, "weighting": "none", "add_bias": True}[name]
    with pytest.raises(ArgumentError) as raised:
        shrink(compensate=False, **{name: value})
    assert str(raised.value) == f"{name}: is for compensate=True"


def test_settings_without_data_to_fit_on_are_refused() -> None:
    model, (x, _) = network()
    options = {"example_inputs": x, "criterion": "magnitude", "progress": False}
    for given in ({"compensate": sc.Compensation()}, {"ridge": 0.1}, {"recalibrate": True}):
        with pytest.raises(ArgumentError, match=r"^compensate: Compensation\(.*\) needs data to fit on, got None$"):
            sc.shrink(model, None, None, sc.Budget(remove_units=2), **options, **given)
    assert sc.shrink(model, None, None, sc.Budget(remove_units=2), **options).plan.compensation is None


def test_batchnorm_alone_is_recalibrated_and_not_called_compensated() -> None:
    result = shrink(compensate=False, recalibrate=True)
    plan = result.plan
    assert plan.compensation == sc.Compensation(recalibrate=True, fit=False)
    assert not plan.compensated
    assert "compensated" not in str(result)
    assert str(plan).startswith(f"{len(plan.steps)} of 14 units removed, oracle / iterative, BatchNorm recalibrated")
    model, data = network()
    first, kept = (torch.tensor(plan.kept[name]) for name in ("0", "2"))
    assert torch.equal(result.model[2].weight, model[2].weight[kept][:, first])  # type: ignore[index]
    assert not torch.equal(result.model[3].running_mean, model[3].running_mean[kept])  # type: ignore[index]
    text = "refresh: is for ranking='quadratic' or compensate=True, not 'iterative' without it"
    for options in ({}, {"recalibrate": True}):
        with pytest.raises(ArgumentError) as raised:
            sc.rank(model, data, "cross_entropy", refresh=2, **options)  # type: ignore[arg-type]
        assert str(raised.value) == text


# ---------------------------------------------------------------- the plan keeps them


@pytest.mark.parametrize(
    ("ranking", "fitted", "criterion"),
    [
        (None, False, "oracle"), (None, True, "obs"), ("iterative", True, "obs"), ("layerwise", True, "obs"),
        ("layerwise", False, "taylor1"), ("quadratic", True, "ggn"),
    ],
)  # fmt: skip
def test_a_ranking_without_a_criterion_takes_its_own(ranking: str | None, fitted: bool, criterion: str) -> None:
    resolved = Ranking(ranking=ranking).resolved(fitted)
    assert resolved == Ranking(criterion, ranking)
    assert Ranking.from_json(resolved.to_json()) == Ranking(criterion, ranking or "iterative")


def test_a_plan_and_its_file_say_how_it_was_made(tmp_path: Path) -> None:
    settings = sc.Compensation(ridge=0.01, recalibrate=True)
    result = shrink(compensate=settings, refresh=3)
    plan = result.plan
    assert (plan.made_by, plan.compensation) == (Ranking("obs", "iterative", refresh=3), settings)
    assert sc.Plan.from_json(plan.to_json()) == plan
    assert {key: json.loads(plan.to_json())[key] for key in ("made_by", "compensation")} == {
        "made_by": {"criterion": "obs", "refresh": 3}, "compensation": {"ridge": 0.01, "recalibrate": True},
    }  # fmt: skip
    result.save(tmp_path / "a.safetensors")
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        said = json.loads(file.metadata()["secateur"])
    assert (said["made_by"], said["compensation"]) == (
        {"criterion": "obs", "refresh": 3}, {"ridge": 0.01, "recalibrate": True},
    )  # fmt: skip
    by_hand = sc.Plan.from_kept({"0": [0]})
    assert (by_hand.made_by, by_hand.compensation, by_hand.compensated) == (None, None, False)


@pytest.mark.parametrize(
    "settings",
    [
        sc.Compensation(), sc.Compensation(ridge=1e-2, recalibrate=True), sc.Compensation(weighting="none"),
        sc.Compensation(add_bias=True), sc.Compensation(recalibrate=True, fit=False),
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("budget", [sc.Budget(remove_fraction=0.4), sc.Budget(max_loss_increase=0.1)], ids=str)
def test_cut_makes_the_network_of_the_result_again(settings: sc.Compensation, budget: sc.Budget) -> None:
    model, data = network(bias=False)
    result = sc.shrink(model, data, "cross_entropy", budget, compensate=settings, progress=False)
    again = sc.cut(model, result.plan, compensate=data, loss="cross_entropy")  # type: ignore[arg-type]
    tensors = again.state_dict()
    assert tensors.keys() == result.model.state_dict().keys()
    for name, tensor in result.model.state_dict().items():
        torch.testing.assert_close(tensors[name], tensor, rtol=1e-10, atol=1e-12)


def test_settings_of_a_cut_go_before_those_of_the_plan() -> None:
    model, data = network()
    plan = shrink(ridge=1e-2).plan
    mine = sc.cut(model, plan, compensate=data, loss="cross_entropy", ridge=10.0)
    wanted = shrink(ridge=1e-2)
    assert not torch.allclose(mine[5].weight, wanted.model[5].weight)  # type: ignore[index]


def test_a_bias_of_zero_is_not_written_where_nothing_is_fitted() -> None:
    model, data = network(bias=False)
    with pytest.raises(ArgumentError, match=r"^add_bias: is for compensate=True$"):
        sc.shrink(model, data, "cross_entropy", sc.Budget(remove_units=2), compensate=False, add_bias=True)
