"""Losses that keep the outputs as they were, and data without targets for them."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur import Budget, cut, interactions, rank, score, shrink
from secateur.errors import DataError
from secateur.objective.kept_outputs import KEPT, Kept, distribution, keep, output, suited_to
from secateur.objective.losses import correct, stacked

MASK = torch.tensor([[True, True, False], [True, False, False]])


class Returned(NamedTuple):
    logits: Tensor
    state: Tensor | None = None


def made(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def divergence(before: Tensor, now: Tensor) -> Tensor:
    """KL of logits [..., C]."""
    return F.kl_div(now.log_softmax(-1), before.log_softmax(-1), log_target=True, reduction="none").sum(-1)


# ---------------------------------------------------------------- values


@pytest.mark.parametrize(
    ("outputs", "loss"),
    [
        (Returned(made(2, 3, 4)), "distribution"),
        ({"logits": made(2, 3), "state": made(2, 4)}, "distribution"),
        (Returned(made(2, 4, 3, 5)), "distribution"),
        (Returned(made(2, 1)), "output"),
        (Returned(made(2)), "output"),
        (made(2, 3), "output"),
        ({"last_hidden_state": made(2, 3, 4)}, "output"),
    ],
)
def test_the_loss_that_suits_outputs_is_the_distribution_of_logits_of_classes(outputs: Any, loss: str) -> None:
    assert suited_to(outputs) == loss


def test_the_output_loss_is_half_the_squared_distance_of_all_outputs_and_a_mean_over_samples() -> None:
    a, b, c = made(2, 3, 4), made(2, 5), made(2, 3, 4, seed=1)
    assert output(c, keep(output, a, None)).item() == pytest.approx(0.5 * (a - c).square().sum().item() / 2)
    both = output((c, b + 2, 3, None), keep(output, (a, b, 3, None), None)).item()
    assert both == pytest.approx((0.5 * (a - c).square().sum().item() + 0.5 * 4 * 10) / 2)
    kept = keep(output, Returned(a, b), None)
    assert output(Returned(c, b + 9), kept).item() == output(c, keep(output, a, None)).item()


def test_positions_that_do_not_count_are_left_out_of_outputs_that_have_them() -> None:
    a, b, c, d = made(2, 3, 4), made(2, 3), made(2, 3, 4, seed=1), made(2, 3, seed=2)
    expected = 0.5 * ((a - c).square().sum(2) * MASK).sum() + 0.5 * (b - d).square().sum()
    assert output((c, d), keep(output, (a, b), MASK)).item() == pytest.approx(expected.item() / 2)


@pytest.mark.parametrize("form", ["classes", "positions", "logits", "logits of images"])
def test_the_divergence_is_a_mean_over_positions_and_samples(form: str) -> None:
    shape = {"classes": (2, 4), "positions": (2, 4, 3), "logits": (2, 3, 4), "logits of images": (2, 4, 3, 5)}[form]
    a, b = made(*shape), made(*shape, seed=1)
    as_given = Returned if form.startswith("logits") else lambda tensor: tensor
    found = distribution(as_given(b), keep(distribution, as_given(a), None))
    last = (a, b) if form == "logits" else (a.movedim(1, -1), b.movedim(1, -1))
    assert found.item() == pytest.approx(divergence(*last).mean().item())


@pytest.mark.parametrize("named", [False, True])
def test_each_samples_divergence_is_the_mean_over_the_positions_that_count(named: bool) -> None:
    a, b = made(2, 3, 4), made(2, 3, 4, seed=1)
    given = (Returned(a), Returned(b)) if named else (a.mT, b.mT)
    each = divergence(a, b)
    expected = (each[0, :2].mean() + each[1, 0]) / 2
    assert distribution(given[1], keep(distribution, given[0], MASK)).item() == pytest.approx(expected.item())


def test_classes_that_are_impossible_before_and_after_add_nothing() -> None:
    a, b = made(2, 3), made(2, 3, seed=1).requires_grad_()
    ruled_out = torch.tensor([0.0, 0.0, -torch.inf]).double()
    found = distribution(b + ruled_out, keep(distribution, a + ruled_out, None))
    assert found.item() == pytest.approx(divergence(a[:, :2], b[:, :2].detach()).mean().item())
    found.backward()
    assert bool(b.grad is not None and b.grad.isfinite().all())


@pytest.mark.parametrize("name", KEPT)
@pytest.mark.parametrize("mask", [None, MASK])
def test_losses_of_several_batches_are_those_of_each(name: str, mask: Tensor | None) -> None:
    kept = keep(KEPT[name], Returned(made(2, 3, 4)), mask)
    batches = [Returned(made(2, 3, 4, seed=seed)) for seed in (1, 2, 3)]
    found = stacked(KEPT[name], batches[0], kept)(Returned(torch.cat([b.logits for b in batches])), 3)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, torch.stack([KEPT[name](batch, kept) for batch in batches]), rtol=1e-12, atol=0)


def test_there_is_no_accuracy() -> None:
    for name, loss in KEPT.items():
        assert correct(loss, made(2, 3), keep(loss, made(2, 3), None)) is None, name


@pytest.mark.parametrize(
    ("name", "outputs", "text"),
    [
        ("output", torch.zeros(2).long(), "loss: expected outputs of floating-point numbers, got Tensor without any"),
        ("output", (made(2, 3), made(3)), r"output: outputs of shapes \(2, 3\), \(3,\): expected the samples along"),
        ("distribution", made(2), r"distribution: expected logits \[N, C, ...\], got outputs of shape \(2,\)"),
        ("distribution", made(2, 1), r"distribution: there is one class in outputs of shape \(2, 1, 1\); use loss='o"),
        ("distribution", (made(2, 3), made(2, 3)), "loss: a loss with a name takes one tensor, the model returns 2 "),
    ],
)
def test_outputs_that_cannot_be_kept_are_refused(name: str, outputs: Any, text: str) -> None:
    with pytest.raises(DataError, match=f"^{text}"):
        keep(KEPT[name], outputs, None)


# ---------------------------------------------------------------- the whole way


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3)).double()


@pytest.mark.parametrize("name", KEPT)
def test_a_network_is_shrunk_to_keep_its_outputs(name: str) -> None:
    model, x = network(), made(40, 3)
    result = shrink(model, [x[:13], (x[13:], None)], name, Budget(remove_units=5), progress=False)
    with torch.no_grad():
        kept = keep(KEPT[name], model(x), None)
        assert result.after.loss == pytest.approx(KEPT[name](result.model(x), kept).item(), rel=1e-9)
        plain = cut(model, result.plan)
        assert result.after.loss < 0.5 * KEPT[name](plain(x), kept).item()
    assert result.before.loss == pytest.approx(0, abs=1e-14)
    assert result.after.accuracy is None
    fitted = cut(model, result.plan, compensate=x, loss=name)
    for found, expected in zip(fitted.parameters(), result.model.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", KEPT)
def test_targets_are_those_of_the_original_whatever_the_gates(name: str) -> None:
    model, x = network(), made(20, 3)
    scores = score(model, x, name)
    with torch.no_grad():
        without = network()
        without[2].weight[:, 3] = 0
        expected = KEPT[name](without(x), keep(KEPT[name], model(x), None)).item()
    assert scores["0"][3].item() == pytest.approx(expected, rel=1e-9)
    again = score(model, [(x[:7], x[:7]), (x[7:], x[7:])], name)  # targets beside the inputs are left out
    torch.testing.assert_close(again["0"], scores["0"], rtol=1e-9, atol=1e-14)
    exact, drawn = interactions(model, x, name), interactions(model, x, name, curvature="hessian")
    torch.testing.assert_close(exact, drawn, rtol=1e-7, atol=1e-10)  # at the targets nothing but Gauss-Newton is left
    plan = rank(model, x, name, validation=made(9, 3, seed=5), budget=Budget(remove_units=1), progress=False)
    assert plan.start is not None
    assert plan.start.loss == pytest.approx(0, abs=1e-14)


def test_kept_outputs_are_plain_tensors() -> None:
    a = made(2, 3).requires_grad_()
    with torch.no_grad():
        kept = keep(output, a * 2, None)
    assert isinstance(kept, Kept)
    assert not kept.values.requires_grad
