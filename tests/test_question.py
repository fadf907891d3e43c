"""How much one call makes, and that what is fitted on samples is not judged on them.

Covers secateur.objective.question, secateur.objective.held_back and secateur.cutting.final_fit.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import secateur as sc
from secateur.compensation.compensator import Compensator
from secateur.errors import ArgumentError, BudgetError, DataError
from secateur.objective.gated_loss import GatedLoss
from secateur.planning.state import Basis
from secateur.structure import capture


def network(seed: int = 0) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    torch.manual_seed(seed)
    layers = nn.Linear(4, 8), nn.Sigmoid(), nn.Linear(8, 6), nn.Sigmoid(), nn.Linear(6, 3)
    model = nn.Sequential(*layers).double()
    x = torch.randn(60, 4).double()
    return model, (x, model(x).argmax(1))


def shrink(data: Any, budget: sc.Budget, **options: Any) -> Any:
    model = network()[0]
    return sc.shrink(model, data, "cross_entropy", budget, progress=False, **options)


# ---------------------------------------------------------------- one of each


@pytest.mark.parametrize(
    ("options", "gated", "compensators"),
    [({}, 1, 1), ({"validation": network(1)[1]}, 1, 1), ({"compensate": False}, 1, 0)],
    ids=["default", "validation", "without compensation"],
)
def test_one_call_makes_one_of_each(
    options: dict[str, Any], gated: int, compensators: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = {"exports": 0, "gated losses": 0, "compensators": 0}

    def counted(what: str, function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            counts[what] += 1
            return function(*args, **kwargs)

        return call

    monkeypatch.setattr(capture, "export_model", counted("exports", capture.export_model))
    monkeypatch.setattr(GatedLoss, "__init__", counted("gated losses", GatedLoss.__init__))
    monkeypatch.setattr(Compensator, "__init__", counted("compensators", Compensator.__init__))
    shrink(network()[1], sc.Budget(remove_fraction=0.4), **options)
    assert counts == {"exports": 1, "gated losses": gated, "compensators": compensators}


# ---------------------------------------------------------------- who judges


@pytest.mark.parametrize(
    ("budget", "options", "basis"),
    [
        (sc.Budget(remove_units=3), {}, Basis("data", 60, True, 60)),
        (sc.Budget(remove_units=3), {"compensate": False}, Basis("data", 60, False, 60)),
        (sc.Budget(max_loss_increase=0.1), {}, Basis("held back", 12, False, 12)),
        (sc.Budget(max_loss_increase=9, remove_units=3), {}, Basis("held back", 12, False, 12)),
        (sc.Budget(max_loss_increase=0.1), {"compensate": False}, Basis("data", 60, False, 60)),
        (sc.Budget(max_loss_increase=0.1), {"validation": network(1)[1]}, Basis("validation", 60, False, 60)),
    ],
)
def test_a_plan_says_on_which_samples_it_was_measured(budget: sc.Budget, options: dict[str, Any], basis: Basis) -> None:
    plan = shrink(network()[1], budget, **options).plan
    assert plan.basis == basis
    assert f"loss and accuracy on {basis}" in str(plan)
    assert sc.Plan.from_json(plan.to_json()).basis == basis


@pytest.mark.parametrize("form", ["pair", "batches", "one by one"])
def test_every_fifth_sample_is_never_fitted_on(form: str) -> None:
    (x, y), model = network()[1], network()[0]
    data: Any = {
        "pair": (x, y), "batches": [(x[:7], y[:7]), (x[7:30], y[7:30]), (x[30:], y[30:])],
        "one by one": [(x[i : i + 1], y[i : i + 1]) for i in range(60)],
    }[form]  # fmt: skip
    result = shrink(data, sc.Budget(max_loss_increase=0.05))
    held = torch.arange(60) % 5 == 4
    with torch.no_grad():
        before, after = (F.cross_entropy(m(x[held]), y[held]).item() for m in (model, result.model))
    assert result.plan.steps
    assert (result.before.loss, result.after.loss) == (pytest.approx(before), pytest.approx(after))
    assert after - before <= 0.05
    alone = sc.cut(model, sc.Plan.from_kept(result.plan.kept, x), compensate=(x[~held], y[~held]), loss="cross_entropy")
    for name, tensor in alone.state_dict().items():
        torch.testing.assert_close(result.model.state_dict()[name], tensor, rtol=1e-9, atol=1e-11)


def test_targets_of_any_form_are_held_back_with_their_samples() -> None:
    x, y = network()[1]

    def loss(outputs: Tensor, targets: Any) -> Tensor:
        classes = targets["y"] if isinstance(targets, dict) else torch.stack(targets)
        return F.cross_entropy(outputs, classes)

    def shrunk(targets: Any) -> Any:
        model = network()[0]
        return sc.shrink(model, [(x, targets)], loss, sc.Budget(max_loss_increase=0.05), progress=False)

    kept = shrunk({"y": y}).plan.kept
    assert kept == shrunk([*y]).plan.kept
    assert any(len(indices) < size for indices, size in zip(kept.values(), (8, 6), strict=True))


def test_too_few_samples_to_hold_any_back_are_refused() -> None:
    x, y = network()[1]
    with pytest.raises(DataError) as raised:
        shrink((x[:4], y[:4]), sc.Budget(max_loss_increase=0.1))
    assert str(raised.value) == (
        "budget of quality: where weights are fitted it is measured on every fifth sample, held back from the fit, and "
        "there are fewer than 5 samples; give validation=, or more data"
    )
    assert shrink((x[:4], y[:4]), sc.Budget(max_loss_increase=0.1), compensate=False).plan.basis.samples == 4


@pytest.mark.parametrize(("drop", "fits"), [(0.05, False), (1 / 12, True), (0.0, True)])
def test_a_drop_that_so_few_samples_cannot_tell_is_refused(drop: float, fits: bool) -> None:
    budget = sc.Budget(max_accuracy_drop=drop)
    if fits:
        assert shrink(network()[1], budget).plan.basis.samples == 12
        return
    with pytest.raises(BudgetError) as raised:
        shrink(network()[1], budget)
    assert str(raised.value) == (
        "Budget: max_accuracy_drop=0.05 cannot be told on 12 predictions, of which each is 0.083; measure on 20 or "
        "more, or allow more"
    )


def test_quality_is_not_read_off_a_plan_that_was_measured_on_what_it_was_fitted_on() -> None:
    model, data = network()
    plan = sc.rank(model, data, "cross_entropy", compensate=True, progress=False)
    assert len(plan.at(sc.Budget(remove_units=3)).steps) == 3
    with pytest.raises(ArgumentError) as raised:
        plan.at(sc.Budget(max_loss_increase=0.1))
    assert str(raised.value) == (
        "Budget(max_loss_increase=0.1): quality cannot be judged on the samples that weights were fitted on; make the "
        "plan with rank(..., budget=budget), which holds every fifth sample back, or with validation="
    )
    held = sc.rank(
        model, data, "cross_entropy", compensate=True, budget=sc.Budget(max_loss_increase=0.1), progress=False
    )
    assert held.at(sc.Budget(max_loss_increase=0.1)).basis == Basis("held back", 12, False, 12)


def test_an_accuracy_has_its_standard_error_beside_it() -> None:
    plan = shrink(network()[1], sc.Budget(max_accuracy_drop=0.5)).plan
    accuracy = plan.states[-1].accuracy
    error = (accuracy * (1 - accuracy) / 12) ** 0.5
    assert f"{accuracy:.4f} ± {error:.4f}" in str(plan)
    assert plan.basis.standard_error(accuracy) == pytest.approx(error)


# ---------------------------------------------------------------- memory


@pytest.mark.parametrize("loss", ["squared_error", "cross_entropy"])
def test_a_cap_on_memory_changes_no_weight_and_no_order(loss: str) -> None:
    model, (x, y) = network()
    results = [
        sc.shrink(model, (x, y), loss, sc.Budget(remove_units=8), max_memory=cap, progress=False)
        for cap in (None, 60_000, 40_000)
    ]
    for result in results[1:]:
        assert result.plan.kept == results[0].plan.kept  # type: ignore[union-attr]
        for name, tensor in results[0].model.state_dict().items():
            torch.testing.assert_close(result.model.state_dict()[name], tensor, rtol=1e-9, atol=1e-11)
    little = sc.shrink(model, (x, y), loss, sc.Budget(remove_units=8), max_memory=2_000, progress=False)
    weights = {name for name, parameter in model.named_parameters() if parameter.ndim == 2}
    assert {name for name, _ in little.plan.unfitted} <= weights  # type: ignore[union-attr]
    assert {why[-22:] for _, why in little.plan.unfitted} == {", max_memory is 2.0 kB"}  # type: ignore[union-attr]


@pytest.mark.parametrize("loss", ["squared_error", "binary_cross_entropy", "cross_entropy"])
@pytest.mark.parametrize("cap", [2_000, 5_000])
def test_drawn_targets_are_the_same_however_memory_cuts_the_data(loss: str, cap: int) -> None:
    model, (x, y) = network()
    targets = torch.rand(60, 3).double() if loss == "binary_cross_entropy" else y
    whole = sc.score(model, (x, targets), loss, criterion="fisher")
    capped = sc.score(model, (x, targets), loss, criterion="fisher", max_memory=cap)
    for name, values in whole.items():
        torch.testing.assert_close(capped[name], values, rtol=1e-9, atol=1e-12)
