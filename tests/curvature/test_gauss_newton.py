"""Gauss-Newton matrices of the gates against dense references.

Covers secateur.curvature.gauss_newton, secateur.curvature.gate_vjp and secateur.saliency.units.ggn.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from cases import CASES, in_batches, randomise, targets
from random_networks import RandomArchitecture
from secateur import find_units, reference, score
from secateur.curvature.gauss_newton import expansion
from secateur.curvature.loss_factors import exact_factors
from secateur.errors import DataError
from secateur.objective.gated_loss import GatedLoss, ones
from secateur.objective.losses import LOSSES
from secateur.saliency.units.ggn import ggn


def own_loss(outputs: Tensor, t: Tensor) -> Tensor:
    """Convex in some directions, concave in others, all outputs of a sample tied."""
    return (F.softplus(outputs).prod(1) + outputs.sin().sum(1) * t.sum(1)).mean()


def matrix(gated: GatedLoss, g: Tensor) -> tuple[Tensor, Tensor]:
    return expansion(gated, g, lambda out, t: exact_factors(gated.loss_function, out, t), full=True)


def assert_same(got: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    assert got.dtype == torch.float64
    assert got.shape == expected.shape
    assert (got - expected).abs().max() <= tolerance * expected.abs().max()


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    loss=st.sampled_from(["binary_cross_entropy", "squared_error", "cross_entropy", "own"]),
    cuts=st.lists(st.integers(0, 4), max_size=2),
)
def test_the_matrix_is_that_of_dense_jacobians(seed: int, loss: str, cuts: list[int]) -> None:
    network = reference.RandomNetwork(seed).double()
    x = network.sample(4, seed)
    t = targets(loss, network(x), seed)
    units = find_units(network, x)
    function = own_loss if loss == "own" else LOSSES[loss]
    given_loss: Any = own_loss if loss == "own" else loss
    gradient, got = matrix(GatedLoss(network, units, in_batches(x, t, cuts), given_loss), ones(network, units))
    expected = reference.dense_gauss_newton(network, units, (x,), t, function)
    slope = reference.dense_hessian(network, units, (x,), t, function)[0].detach()
    rounding = 1e-24  # of saturated units, whose slopes of 1e-10 and less have few digits
    assert (got - expected).abs().max() <= 1e-10 * max(expected.abs().max(), slope.abs().max()) + rounding
    assert (gradient - slope).abs().max() <= 1e-10 * slope.abs().max() + 1e-14
    saliency = ggn(GatedLoss(network, units, in_batches(x, t, cuts), given_loss), ones(network, units))
    assert (saliency - (-slope + 0.5 * expected.diagonal())).abs().max() <= 1e-10 * saliency.abs().max() + 1e-13


@pytest.mark.parametrize("loss", ["cross_entropy", "squared_error"])
@pytest.mark.parametrize("name", [name for name in CASES if name != "tied"])
def test_the_matrix_on_the_table(name: str, loss: str) -> None:
    case = CASES[name]()
    units = find_units(case.model, case.x)
    gated = GatedLoss(case.model, units, in_batches(case.x, case.y, [2]), loss)
    assert_same(
        matrix(gated, ones(case.model, units))[1],
        reference.dense_gauss_newton(case.model, units, (case.x,), case.y, LOSSES[loss]),
    )
    assert gated.samples_independent


@pytest.mark.parametrize("seed", range(20))
def test_the_matrix_of_convolutions_residuals_and_attention(seed: int) -> None:
    network = RandomArchitecture(seed)
    x = network.sample(5)
    units = find_units(network, x)
    if not units or any(unit_set.outgoing is None for unit_set in units):
        pytest.skip("a unit has no weights of its own to put gates on")
    t = torch.linspace(-1, 1, network(x).numel()).double().reshape(network(x).shape)
    gated = GatedLoss(network, units, (x, t), "squared_error")
    with sdpa_kernel(SDPBackend.MATH):  # the only attention that vmap takes without a warning
        expected = reference.dense_gauss_newton(network, units, (x,), t, LOSSES["squared_error"])
    assert_same(matrix(gated, ones(network, units))[1], expected)


def test_with_units_removed_the_others_have_the_smaller_networks_matrix() -> None:
    case = CASES["two_hidden"]()
    units = find_units(case.model, case.x)
    g = torch.tensor([1.0, 0, 1, 0, 0, 0, 1, 1, 0, 1]).double()
    layers = case.model[0], case.model[2], case.model[4]

    def outputs(g: Tensor) -> Tensor:
        first = torch.sigmoid(layers[0](case.x)) * g[:6]
        return layers[2](torch.tanh(layers[1](first)) * g[6:])

    jacobian = torch.func.jacrev(outputs)(g).flatten(0, 1).detach()
    there = g != 0
    got = matrix(GatedLoss(case.model, units, (case.x, case.y), "squared_error"), g)[1]
    assert_same(got[there][:, there], (jacobian.T @ jacobian / 6)[there][:, there])
    estimate = ggn(GatedLoss(case.model, units, (case.x, case.y), "squared_error"), g)  # on the narrowed graph
    slope = GatedLoss(case.model, units, (case.x, case.y), "squared_error").gradient(g)
    assert_same((estimate + slope)[there], 0.5 * (jacobian.square().sum(0) / 6)[there])


class Centred(nn.Module):
    """Samples know each other: what it returns is centred over the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.last(torch.tanh(self.first(x)))
        return torch.sin(x - 0.5 * x.mean(0))


class Recurrent(nn.Module):
    """The units are summed up within the operation, by its own weights."""

    def __init__(self) -> None:
        super().__init__()
        self.cells, self.last = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.cells(x)[0][:, -1])


@pytest.mark.parametrize(("build", "shape"), [(Centred, (4,)), (Recurrent, (5, 3))])
def test_samples_that_cannot_have_gates_of_their_own(build: type[nn.Module], shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model = randomise(build().double().eval())
    x, y = torch.randn(6, *shape).double(), torch.randint(0, 3, (6,))
    units = find_units(model, x)
    gated = GatedLoss(model, units, (x, y), "cross_entropy")
    got = matrix(gated, ones(model, units))[1]
    assert gated.samples_independent is False

    def outputs(g: Tensor) -> Tensor:
        return gated.graph.run(next(gated.cached).frontier, g)

    jacobian = torch.func.jacrev(outputs)(ones(model, units)).detach()
    p = model(x).softmax(1).detach()
    curvature = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    assert_same(got, torch.einsum("nck,ncd,ndl->kl", jacobian, curvature, jacobian) / 6)


def test_positions_are_outputs_of_their_sample() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(2, 4, 3), nn.Tanh(), nn.Conv1d(4, 3, 1)).double()
    x, y = torch.randn(5, 2, 6).double(), torch.randint(0, 3, (5, 4))
    units = find_units(model, x)
    for loss in ("cross_entropy", lambda o, t: F.cross_entropy(o, t)):
        got = matrix(GatedLoss(model, units, (x, y), loss), ones(model, units))[1]
        assert_same(got, reference.dense_gauss_newton(model, units, (x,), y, LOSSES["cross_entropy"]))


def test_several_outputs_under_a_loss_of_ones_own() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(4, 1)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            x = torch.tanh(self.first(x))
            return {"a": self.a(x), "b": self.b(x)}

    torch.manual_seed(0)
    model, x, t = Two().double(), torch.randn(5, 3).double(), torch.randn(5, 2).double()
    units = find_units(model, x)
    loss = lambda o, t: ((o["a"] - t).square().sum(1) * o["b"][:, 0].exp()).mean()  # noqa: E731
    got = matrix(GatedLoss(model, units, (x, t), loss), ones(model, units))[1]
    joined = nn.Sequential(model.first, nn.Tanh(), nn.Linear(4, 3)).double()
    with torch.no_grad():
        joined[2].weight.copy_(torch.cat([model.a.weight, model.b.weight]))
        joined[2].bias.copy_(torch.cat([model.a.bias, model.b.bias]))
    flat = lambda o, t: loss({"a": o[:, :2], "b": o[:, 2:]}, t)  # noqa: E731
    assert_same(got, reference.dense_gauss_newton(joined, find_units(joined, x), (x,), t, flat))


def test_a_loss_that_ties_samples_is_refused() -> None:
    case = CASES["one_hidden"]()
    with pytest.raises(DataError) as caught:
        score(case.model, (case.x, case.y), lambda o, _: o.sum(0).square().mean(), criterion="ggn")
    assert str(caught.value) == (
        "loss: it ties samples to each other, so that no sample has a curvature of its own; use criterion='hessian'"
    )


def test_a_linear_loss_has_no_curvature() -> None:
    case = CASES["one_hidden"]()
    ways = [score(case.model, (case.x, case.y), lambda o, _: o.mean(), criterion=c)["0"] for c in ("ggn", "taylor1")]
    torch.testing.assert_close(*ways, rtol=1e-12, atol=0)


def test_one_sample_in_half_precision() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Sigmoid(), nn.Linear(4, 2)).to(torch.bfloat16)
    x, y = torch.randn(1, 3, dtype=torch.bfloat16), torch.tensor([1])
    low = score(model, (x, y), "cross_entropy", criterion="ggn")["0"]
    high = score(model.double(), (x.double(), y), "cross_entropy", criterion="ggn")["0"]
    assert low.dtype == torch.float64
    assert (low - high).abs().max() < 0.03 * high.abs().max()
