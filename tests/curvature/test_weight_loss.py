"""Derivatives in the weights against dense references, sample by sample and all together.

Covers secateur.curvature.weight_loss, secateur.curvature.factor_pullback, secateur.curvature.weight_hessian,
secateur.curvature.weight_vjp, secateur.curvature.sample_independence and secateur.curvature.per_sample.
"""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from cases import CASES, randomise, targets
from secateur import SecateurError
from secateur.curvature.sample_independence import find_sample_independence
from secateur.curvature.weight_loss import WeightLoss
from secateur.errors import ArgumentError, DataError, ModelError
from secateur.objective.losses import find_loss
from secateur.reference import random_networks, weight_ggn, weight_hessian
from secateur.structure.capture import capture
from secateur.structure.inputs import as_call

NAMED = ["squared_error", "cross_entropy", "binary_cross_entropy"]
Build = Callable[[], nn.Module]


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(2, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3)
        self.conv2, self.short, self.last = nn.Conv2d(3, 3, 3, 2, 1), nn.Conv2d(2, 3, 1, 2), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = F.gelu(self.conv2(torch.tanh(self.bn1(self.conv1(x)))) + self.short(x))
        return self.last(h.mean((2, 3)))


class Odd(nn.Module):
    """Groups, dilation, one dimension, a transposed convolution, padding by name, a learnt slope."""

    def __init__(self) -> None:
        super().__init__()
        self.grouped, self.up = (
            nn.Conv1d(2, 4, 3, stride=2, padding=1, dilation=2, groups=2),
            nn.ConvTranspose1d(4, 3, 2),
        )
        self.norm, self.same = nn.GroupNorm(3, 3), nn.Conv1d(3, 2, 3, padding="same")
        self.slope, self.last = nn.PReLU(), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.slope(self.same(self.norm(self.up(self.grouped(x))))).flatten(1))


class Attentive(nn.Module):
    """A class token and positions, samples along the second dimension and behind the positions within the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.token = nn.Linear(3, 4), nn.Parameter(torch.zeros(1, 1, 4))
        self.positions = nn.Parameter(torch.zeros(1, 4, 4))
        self.layer, self.last = nn.TransformerEncoderLayer(4, 2, 5, batch_first=True), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.cat([self.token.expand(x.shape[0], -1, -1), self.embed(x)], 1) + self.positions
        return self.last(self.layer(h)[:, 0])


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.last = nn.LSTM(3, 2, batch_first=True), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.lstm(x)[0][:, -1])


class Mixing(nn.Module):
    """Samples know each other."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        return self.last(h - h.mean(0))


class Fixed(Mixing):
    """Its code fixes the batch."""

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(x)).reshape(5, 3))


class Tokens(nn.Module):
    """A table used twice, the second time transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.mix = nn.Embedding(5, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.mix(self.table(x).mean(1))) @ self.table.weight.T


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.tanh(self.body(x))
        return self.a(h), self.b(h)


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(2, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(12, 3)
    )


def frames() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 2))


# name -> model, shape of five samples, parameters that take a pass for each sample
NETWORKS: dict[str, tuple[Build, tuple[int, ...], set[str]]] = {
    "convolutional": (convolutional, (1, 9, 9), set()),
    "residual": (Residual, (2, 4, 4), set()),
    "odd": (Odd, (2, 8), {"slope.weight"}),
    "attentive": (Attentive, (3, 3), set()),
    "frames": (frames, (4, 3), set()),
    "recurrent": (Recurrent, (3, 3), {f"lstm.{w}_{i}_l0" for w in ("weight", "bias") for i in ("ih", "hh")}),
    "mixing": (Mixing, (3,), {"first.weight", "first.bias"}),
    "fixed": (Fixed, (3,), {"first.weight", "first.bias", "last.weight", "last.bias"}),
    "one neuron": (lambda: nn.Linear(3, 1), (3,), set()),
}


def made(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    build, shape, _ = NETWORKS[name]
    return randomise(build().double().eval()), torch.randn(5, *shape, dtype=torch.float64)


def weights_of(model: nn.Module, x: Tensor, t: Any, loss: Any, **options: Any) -> WeightLoss:
    return WeightLoss(model, capture(model, ((x,), {})), (x, t), loss, **options)


def slow(weights: WeightLoss, x: Tensor) -> set[str]:
    """The parameters that take a backward pass for each sample."""
    return set(find_sample_independence(weights.captured, weights.model, weights.names, as_call(x)).slow)


def flat(values: dict[str, Tensor]) -> Tensor:
    return torch.cat([value.flatten() for value in values.values()])


def assert_close(got: Tensor, expected: Tensor) -> None:
    assert got.shape == expected.shape
    assert got.dtype == torch.float64
    assert (got - expected).abs().max() <= 1e-9 * expected.abs().max()


def assert_all_right(model: nn.Module, x: Tensor, t: Any, loss: Any, weights: WeightLoss) -> None:
    with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # vmap's about slow ways in the reference
        gradient, hessian = weight_hessian(model, (x,), t, find_loss(loss))
        ggn = weight_ggn(model, (x,), t, find_loss(loss))
    assert_close(flat(weights.gradient()), gradient)
    assert_close(flat(weights.hessian()), hessian.diagonal())
    assert_close(flat(weights.ggn()), ggn.diagonal())
    assert_close(weights.ggn_matrix(weights.names), ggn)


@pytest.mark.parametrize("loss", NAMED)
@pytest.mark.parametrize("name", CASES)
def test_on_every_case_all_are_those_of_the_dense_reference(name: str, loss: str) -> None:
    model, x, *_ = CASES[name]()
    t = targets(loss, model(x), 0)
    weights = weights_of(model, x, t, loss)
    assert_all_right(model, x, t, loss, weights)
    assert slow(weights, x) == set()


@pytest.mark.parametrize("name", NETWORKS)
def test_on_other_kinds_of_networks_too_and_what_is_slow_is_known(name: str) -> None:
    model, x = made(name)
    for loss in NAMED if name == "residual" else NAMED[2:]:
        t = targets(loss, model(x), 0)
        weights = weights_of(model, x, t, loss)
        assert_all_right(model, x, t, loss, weights)
        assert slow(weights, x) == NETWORKS[name][2]


@pytest.mark.parametrize("seed", range(12))
def test_on_random_networks(seed: int) -> None:
    (network,) = random_networks([seed])
    x = network.sample(4)
    t = targets("squared_error", network(x), seed)
    weights = weights_of(network, x, t, "squared_error")
    assert_all_right(network, x, t, "squared_error", weights)
    assert slow(weights, x) == set()


def test_a_table_used_twice() -> None:
    torch.manual_seed(0)
    model, x, y = randomise(Tokens().double()), torch.randint(0, 5, (6, 4)), torch.randint(0, 5, (6,))
    assert_all_right(model, x, y, "cross_entropy", weights_of(model, x, y, "cross_entropy"))


def soft(outputs: Any, t: Tensor) -> Tensor:
    return F.softplus(outputs * t).sum(1).mean()


def both(outputs: Any, t: Tensor) -> Tensor:
    a, b = outputs
    return (F.softplus(a) * b.square()).sum(1).mean() + F.softplus(b - t[:, :1]).mean()


@pytest.mark.parametrize(
    ("build", "loss"), [(lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), soft), (Two, both)]
)
def test_a_loss_of_ones_own(build: Build, loss: Any) -> None:
    torch.manual_seed(0)
    model, x, t = randomise(build().double()), torch.randn(5, 3).double(), torch.randn(5, 2).double()
    assert_all_right(model, x, t, loss, weights_of(model, x, t, loss))


def test_a_loss_that_ties_samples_has_a_hessian_only() -> None:
    torch.manual_seed(0)
    model, x = randomise(nn.Linear(3, 2).double()), torch.randn(5, 3).double()

    def spread(outputs: Tensor, t: Any) -> Tensor:
        return outputs.mean().square()

    weights = weights_of(model, x, torch.zeros(5), spread)
    assert_close(flat(weights.hessian()), weight_hessian(model, (x,), None, spread)[1].diagonal())
    with pytest.raises(DataError, match="ties samples to each other"):
        weights.ggn()


def test_fisher_converges_to_ggn_as_one_over_the_root_of_the_draws() -> None:
    torch.manual_seed(0)
    model, x = CASES["two_hidden"]()[:2]
    for loss in NAMED:
        weights = weights_of(model, x, targets(loss, model(x), 0), loss)
        ggn = flat(weights.ggn())
        errors = []
        for k in range(1, 5):
            tries = torch.stack([flat(weights.fisher(4**k)) - ggn for _ in range(12)])
            errors.append(float(tries.square().mean().sqrt() / ggn.square().mean().sqrt()) * 2**k)
        assert max(errors) < 2 * min(errors)
        assert errors[-1] < 16 * 0.2
    again = [flat(weights_of(model, x, torch.zeros(6, 3), NAMED[0], seed=3).fisher()) for _ in range(2)]
    assert again[0].equal(again[1])


def test_fisher_takes_named_losses_only() -> None:
    model, x = CASES["one_hidden"]()[:2]
    with pytest.raises(DataError, match="known for cross_entropy"):
        weights_of(model, x, torch.ones(6, 3), soft).fisher()


def test_little_memory_and_batches_change_nothing() -> None:
    for name in ("residual", "recurrent", "attentive"):
        model, x = made(name)
        t = targets("cross_entropy", model(x), 0)
        whole = weights_of(model, x, t, "cross_entropy")
        parts = WeightLoss(model, whole.captured, [(x[:1], t[:1]), (x[1:], t[1:])], "cross_entropy")
        for other in (weights_of(model, x, t, "cross_entropy", max_memory=3_000), parts):
            assert len([*other.shares()]) > 1
            for question in (
                WeightLoss.gradient,
                WeightLoss.ggn,
                WeightLoss.hessian,
                lambda w: {"": w.ggn_matrix(w.names)},
            ):
                assert_close(flat(question(other)), flat(question(whole)))


def test_removable_are_matrices_that_the_graph_uses() -> None:
    class Unused(Residual):
        def __init__(self) -> None:
            super().__init__()
            self.unused = nn.Linear(3, 3)

    model = Unused().double()
    x = torch.randn(3, 2, 4, 4).double()
    weights = weights_of(model, x, torch.zeros(3, dtype=torch.long), "cross_entropy")
    assert weights.removable == ["conv1.weight", "conv2.weight", "short.weight", "last.weight"]
    assert set(weights.gradient()) == {name for name, _ in model.named_parameters() if "unused" not in name}


def test_frozen_and_training_models_are_left_as_they_were() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2)).double()
    model[0].weight.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    x = torch.randn(5, 3).double()
    weights = weights_of(model, x, torch.zeros(5, 2).double(), "squared_error")
    with torch.no_grad():
        values = [weights.gradient(), weights.ggn(), weights.hessian()]
    assert all(value["0.weight"].any() for value in values)
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-4), (torch.bfloat16, 0.1), (torch.float16, 0.02)])
def test_in_other_dtypes(dtype: torch.dtype, most: float) -> None:
    for name in ("convolutional", "attentive", "recurrent"):
        model, x = made(name)
        t = targets("cross_entropy", model(x), 0)
        exact = weights_of(model, x, t, "cross_entropy")
        rough = weights_of(copy.deepcopy(model).to(dtype), x.to(dtype), t, "cross_entropy")
        for question in (WeightLoss.gradient, WeightLoss.ggn, WeightLoss.hessian):
            got, expected = flat(question(rough)), flat(question(exact))
            assert got.dtype == torch.float64
            assert (got - expected).abs().max() <= most * expected.abs().max()


def test_an_empty_parameter_and_one_sample() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2)).double()
    model.register_parameter("empty", nn.Parameter(torch.zeros(0, 2).double()))

    class Uses(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.empty = nn.Linear(3, 2), nn.Parameter(torch.zeros(0, 2))

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([self.body(x), x @ x.new_ones(3, 0) @ self.empty], 1)

    model, x = Uses().double(), torch.randn(1, 3).double()
    weights = weights_of(model, x, torch.zeros(1, 4).double(), "squared_error")
    assert_all_right(model, x, torch.zeros(1, 4).double(), "squared_error", weights)
    assert weights.ggn()["empty"].shape == (0, 2)
    assert weights.ggn_matrix([]).shape == (0, 0)
    assert weights.ggn_matrix(["body.bias"]).shape == (2, 2)


def refused(error: type[SecateurError], match: str, work: Callable[[], Any]) -> None:
    with pytest.raises(error, match=match):
        work()


def test_what_cannot_be_done_is_refused() -> None:
    model, x = CASES["one_hidden"]()[:2]
    t = torch.zeros(6, 3).double()
    refused(
        ArgumentError,
        "unknown parameter 'x'; one of: 0.weight",
        lambda: weights_of(model, x, t, NAMED[0]).ggn_matrix(["x"]),
    )
    refused(ArgumentError, "unknown loss 'x'", lambda: weights_of(model, x, t, "x"))
    refused(ArgumentError, "max_memory", lambda: weights_of(model, x, t, NAMED[0], max_memory=0))
    captured = capture(model, ((x,), {}))
    with torch.inference_mode():
        refused(ModelError, "inference_mode", lambda: WeightLoss(model, captured, (x, t), NAMED[0]))

    class Whole(Mixing):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).sum(0)

    whole, three = Whole().double(), torch.randn(4, 3).double()
    weights = weights_of(whole, three, None, lambda o, _: o.square().sum())
    assert weights.gradient().keys() == weights.hessian().keys()
    refused(DataError, "expected", weights.ggn)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", NETWORKS)
def test_on_a_gpu(name: str) -> None:
    model, x = made(name)
    t = targets("squared_error", model(x), 0)
    here, there = weights_of(model, x, t, NAMED[0]), weights_of(copy.deepcopy(model).cuda(), x, t, NAMED[0])
    for question in (WeightLoss.gradient, WeightLoss.ggn, WeightLoss.hessian, lambda w: {"": w.ggn_matrix(w.names)}):
        assert_close(flat(question(there)).cpu(), flat(question(here)))
