"""Optimal Brain Damage by every second derivative, and scores of weights in general.

Covers secateur.saliency.weights.obd, secateur.saliency.weights.obd_ggn, secateur.saliency.weights.obd_fisher,
secateur.saliency.weights.obd_recursion, secateur.saliency.weights.magnitude, secateur.saliency.weights.random and
secateur.saliency.weight_score.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import secateur as sc
from cases import randomise, targets
from secateur.errors import ArgumentError, DataError, ModelError
from secateur.objective.losses import find_loss
from secateur.reference import IDENTITY, Activation, second_derivatives_of_weights, weight_ggn, weight_hessian


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 2, 3, padding=1, bias=False), nn.BatchNorm2d(2)
        self.conv2, self.short, self.last = nn.Conv2d(2, 2, 3, 2, 1), nn.Conv2d(1, 2, 1, 2), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = F.gelu(self.conv2(torch.tanh(self.bn1(self.conv1(x)))) + self.short(x))
        return self.last(h.mean((2, 3)))


class Attentive(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.last = nn.MultiheadAttention(2, 1, batch_first=True), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x + self.attention(x, x, x, need_weights=False)[0]).mean(1)


class Tied(nn.Module):
    """One parameter under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


def dense() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Sigmoid(), nn.Linear(4, 2))


def convolutional() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(8, 2))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "dense": (dense, (3,)),
    "convolutional": (convolutional, (1, 4, 4)),
    "residual": (Residual, (1, 4, 4)),
    "attentive": (Attentive, (3, 2)),
    "tied": (Tied, (3,)),
}


@cache
def made(name: str) -> tuple[nn.Module, Tensor, Any]:
    """A network, five samples and its units; nothing changes them."""
    torch.manual_seed(0)
    build, shape = NETWORKS[name]
    model, x = randomise(build().double().eval()), torch.randn(5, *shape, dtype=torch.float64)
    return model, x, sc.find_units(model, x)


def score(name: str, loss: str, criterion: str | None, **options: Any) -> tuple[dict[str, Tensor], Tensor]:
    """The saliencies, and the targets that they are for."""
    model, x, units = made(name)
    t = targets(loss, model(x).detach(), 1)
    given = {"units": units} | options
    return sc.score(model, (x, t), loss, criterion=criterion, granularity="weight", **given), t


def damage(model: nn.Module, diagonal: Tensor) -> dict[str, Tensor]:
    """½ u² ∂²E/∂u² of a diagonal over all parameters, for those with two dimensions or more."""
    pieces = torch.split(diagonal, [p.numel() for p in model.parameters()])
    named = zip(model.named_parameters(), pieces, strict=True)
    return {name: 0.5 * p.detach() ** 2 * piece.view(p.shape) for (name, p), piece in named if p.ndim > 1}


def assert_same(got: dict[str, Tensor], expected: dict[str, Tensor], rtol: float = 1e-9) -> None:
    assert list(got) == list(expected)
    for name, values in expected.items():
        assert got[name].dtype == torch.float64
        torch.testing.assert_close(got[name], values.double(), rtol=rtol, atol=rtol * float(values.abs().max()))


@pytest.mark.parametrize("loss", ["squared_error", "cross_entropy"])
@pytest.mark.parametrize("name", NETWORKS)
def test_obd_is_half_the_square_of_the_weight_times_the_dense_hessians_diagonal(name: str, loss: str) -> None:
    scores, t = score(name, loss, "obd")
    model, x, _ = made(name)
    with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's, of a batched loop
        diagonal = weight_hessian(model, (x,), t, find_loss(loss))[1].diagonal()
    assert_same(scores, damage(model, diagonal))
    assert_same(score(name, loss, None)[0], scores, rtol=0)


@pytest.mark.parametrize("loss", ["squared_error", "cross_entropy"])
@pytest.mark.parametrize("name", NETWORKS)
def test_obd_ggn_is_the_same_with_gauss_and_newtons_matrix(name: str, loss: str) -> None:
    scores, t = score(name, loss, "obd_ggn")
    model, x, _ = made(name)
    with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        diagonal = weight_ggn(model, (x,), t, find_loss(loss)).diagonal()
    assert_same(scores, damage(model, diagonal))
    assert all((one >= 0).all() for one in scores.values())


def test_obd_fisher_comes_to_obd_ggn_in_the_mean_over_seeds() -> None:
    exact, _ = score("dense", "cross_entropy", "obd_ggn")
    draws = [score("dense", "cross_entropy", "obd_fisher", seed=seed)[0] for seed in range(400)]
    assert not torch.equal(draws[0]["0.weight"], draws[1]["0.weight"])
    assert torch.equal(draws[3]["0.weight"], score("dense", "cross_entropy", "obd_fisher", seed=3)[0]["0.weight"])
    for name, values in exact.items():
        several = torch.stack([one[name] for one in draws])
        error = several.std(0) / len(draws) ** 0.5
        assert ((several.mean(0) - values).abs() < 4.5 * error + 1e-12).all()


SIGMOID = Activation(
    torch.sigmoid,
    lambda x: torch.sigmoid(x) * (1 - torch.sigmoid(x)),
    lambda x: torch.sigmoid(x) * (1 - torch.sigmoid(x)) * (1 - 2 * torch.sigmoid(x)),
)


@pytest.mark.parametrize("batched", [False, True])
def test_obd_recursion_is_second_derivative_back_propagation_as_the_paper_writes_it(batched: bool) -> None:
    torch.manual_seed(0)
    model = randomise(
        nn.Sequential(nn.Linear(3, 4), nn.Sigmoid(), nn.Linear(4, 3), nn.Sigmoid(), nn.Linear(3, 2)).double()
    )
    x, t = torch.randn(7, 3, dtype=torch.float64), torch.randn(7, 2, dtype=torch.float64)
    data: Any = [(x[:2], t[:2]), (x[2:], t[2:])] if batched else (x, t)
    got = sc.score(model, data, "squared_error", criterion="obd_recursion", granularity="weight")
    layers = [layer for layer in model if isinstance(layer, nn.Linear)]
    found = {f"{2 * i}.weight": torch.zeros_like(layer.weight) for i, layer in enumerate(layers)}
    for one, target in zip(x, t, strict=True):
        second, _ = second_derivatives_of_weights(
            [layer.weight.detach() for layer in layers],
            [layer.bias.detach() for layer in layers],
            [SIGMOID, SIGMOID, IDENTITY],
            one[None],
            lambda o, target=target: (o - target, torch.ones_like(o)),
        )
        for total, part in zip(found.values(), second, strict=True):
            total += part / len(x)
    expected = {name: 0.5 * dict(model.named_parameters())[name].detach() ** 2 * h for name, h in found.items()}
    assert_same(got, expected)


@pytest.mark.parametrize("name", ["convolutional", "residual"])
def test_obd_recursion_is_exact_for_the_last_layer_and_drops_cross_terms_before_it(name: str) -> None:
    exact, _ = score(name, "squared_error", "obd")
    got, _ = score(name, "squared_error", "obd_recursion")
    *early, last = exact
    torch.testing.assert_close(got[last], exact[last], rtol=1e-9, atol=1e-12)
    assert list(got) == list(exact)
    assert not torch.allclose(got[early[0]], exact[early[0]], rtol=1e-3)


def test_obd_recursion_names_the_operation_that_it_does_not_apply_to() -> None:
    with pytest.raises(ModelError, match="does not apply to scaled_dot_product_attention"):
        score("attentive", "squared_error", "obd_recursion")


def test_magnitude_and_random_need_neither_data_nor_loss() -> None:
    model, _, units = made("dense")
    magnitude = sc.score(model, None, None, units=units, criterion="magnitude", granularity="weight")
    assert_same(magnitude, {n: p.detach().abs() for n, p in model.named_parameters() if p.ndim > 1}, rtol=0)
    draws = [
        sc.score(model, None, None, units=units, criterion="random", granularity="weight", seed=seed)
        for seed in (1, 1, 2)
    ]
    assert_same(draws[0], draws[1], rtol=0)
    assert not torch.equal(draws[0]["0.weight"], draws[2]["0.weight"])
    assert all(0 <= one.min() and one.max() < 1 for one in draws[0].values())


@pytest.mark.parametrize("criterion", ["obd", "obd_ggn", "obd_fisher", "obd_recursion", "obs"])
def test_the_graph_is_captured_where_no_units_are_given_and_batches_count_by_their_samples(criterion: str) -> None:
    whole, t = score("dense", "squared_error", criterion)
    model, x, _ = made("dense")
    alone = sc.score(model, (x, t), "squared_error", criterion=criterion, granularity="weight")
    assert_same(alone, whole, rtol=1e-12)
    batches = [(x[:1], t[:1]), (x[1:], t[1:])]
    if criterion != "obd_fisher":
        several = sc.score(model, batches, "squared_error", criterion=criterion, granularity="weight")
        assert_same(several, whole, rtol=1e-7 if criterion == "obs" else 1e-9)


def test_scoring_leaves_the_model_as_it_was_and_works_without_gradients() -> None:
    model, x, units = made("residual")
    model.train()
    model.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    t = torch.zeros(5, 2, dtype=torch.float64)
    with torch.no_grad():
        got = sc.score(model, (x, t), "squared_error", units=units, granularity="weight")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())
    model.eval()
    model.requires_grad_(True)
    assert_same(got, sc.score(model, (x, t), "squared_error", units=units, granularity="weight"), rtol=0)


@pytest.mark.parametrize(("threshold", "statistic"), [("mean", torch.mean), ("median", lambda v: v.quantile(0.5))])
def test_estimates_above_the_threshold_over_all_weights_are_replaced_by_it(threshold: str, statistic: Any) -> None:
    plain, _ = score("dense", "squared_error", "obd")
    highest = statistic(torch.cat([one.flatten() for one in plain.values()]))
    got, _ = score("dense", "squared_error", "obd", threshold=threshold)
    assert_same(got, {name: one.clamp(max=highest) for name, one in plain.items()}, rtol=1e-14)


ALL = "magnitude, obd, obd_fisher, obd_ggn, obd_recursion, obs, random"


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"criterion": "oracle"}, ArgumentError, f"unknown weight criterion 'oracle'; one of: {ALL}"),
        ({"granularity": "layer"}, ArgumentError, "unknown granularity 'layer'; one of: unit, weight"),
        ({"threshold": "max"}, ArgumentError, "unknown threshold 'max'; one of: mean, median"),
        ({"loss": None}, DataError, "criterion 'obd' needs a loss; without them: magnitude, random"),
        ({"data": None}, DataError, "criterion 'obd' needs data; without them: magnitude, random"),
        (
            {"data": None, "loss": None, "criterion": "obs"},
            DataError,
            "criterion 'obs' needs data and a loss; without them: magnitude, random",
        ),
        ({"data": None, "criterion": "obd_recursion"}, DataError, "criterion 'obd_recursion' needs data;"),
        ({"data": None, "units": None, "criterion": "magnitude"}, DataError, "pass units=find_units"),
        ({"model": nn.Linear(2, 2)}, ModelError, "found on a model whose 0.weight is"),
        (
            {"loss": lambda o, t: (o - t).square().sum().sqrt() * 0 / 0, "criterion": "obd"},
            DataError,
            "it is NaN on this data",
        ),
        (
            {"loss": lambda o, _: (o - o.detach()).square().sum().sqrt(), "criterion": "obd"},
            DataError,
            "criterion 'obd' gave NaN: the loss or its derivative is NaN on this data",
        ),
    ],
)
def test_what_cannot_be_scored_is_refused(change: dict[str, Any], error: type[Exception], text: str) -> None:
    model, x, units = made("dense")
    given = {"model": model, "data": (x, torch.zeros(5, 2, dtype=torch.float64)), "loss": "squared_error"}
    with pytest.raises(error) as caught:
        sc.score(**(given | {"units": units, "criterion": "obd", "granularity": "weight"} | change))
    assert text in str(caught.value)


def test_a_model_without_a_weight_of_two_dimensions_is_refused() -> None:
    model, x = nn.BatchNorm1d(3).double().eval(), torch.randn(4, 3, dtype=torch.float64)
    with pytest.raises(ModelError, match="granularity='weight': the model uses no parameter of two dimensions or more"):
        sc.score(model, (x, x), "squared_error", granularity="weight")
