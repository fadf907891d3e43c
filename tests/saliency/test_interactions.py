from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cases import CASES, in_batches, targets
from random_networks import RandomArchitecture
from secateur import find_units, interactions, reference
from secateur.errors import ArgumentError, DataError
from secateur.objective.losses import LOSSES
from secateur.saliency.interactions import correlation


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), loss=st.sampled_from(sorted(LOSSES)), cuts=st.lists(st.integers(0, 4), max_size=2))
def test_the_exact_matrix_is_the_dense_hessian(seed: int, loss: str, cuts: list[int]) -> None:
    network = reference.RandomNetwork(seed).double()
    x = network.sample(4, seed)
    t = targets(loss, network(x), seed)
    units = find_units(network, x)
    got = interactions(
        network, in_batches(x, t, cuts), loss, units=units, curvature="hessian", max_memory="1 kB" if seed % 2 else None
    )
    first, second = reference.dense_hessian(network, units, (x,), t, LOSSES[loss])
    assert got.shape == second.shape
    assert got.dtype == torch.float64
    assert torch.equal(got, got.T)
    assert (got - second).abs().max() <= 1e-10 * (first.abs().max() + second.abs().max()) + 1e-15


@pytest.mark.parametrize("seed", range(12))
def test_the_exact_matrix_of_convolutions_residuals_and_attention(seed: int) -> None:
    network = RandomArchitecture(seed)
    x = network.sample(5)
    units = find_units(network, x)
    if not units or any(unit_set.outgoing is None for unit_set in units):
        pytest.skip("a unit has no weights of its own to put gates on")
    t = torch.linspace(-1, 1, network(x).numel()).double().reshape(network(x).shape)
    got = interactions(network, (x, t), "squared_error", units=units, curvature="hessian")
    first, second = reference.dense_hessian(network, units, (x,), t, LOSSES["squared_error"])
    assert (got - second).abs().max() <= 1e-9 * (first.abs().max() + second.abs().max())


def test_gauss_newton_by_default() -> None:
    case = CASES["branches"]()
    units = find_units(case.model, case.x)
    expected = reference.dense_gauss_newton(case.model, units, (case.x,), case.y, LOSSES["cross_entropy"])
    got = interactions(case.model, (case.x, case.y), "cross_entropy")
    assert (got - expected).abs().max() <= 1e-10 * expected.abs().max()


def test_removing_two_units_of_a_network_linear_in_them_costs_what_the_matrix_says() -> None:
    """With squared error and no activation behind the units the second order is exact."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    x, t = torch.randn(7, 3).double(), torch.randn(7, 2).double()
    units = find_units(model, x)
    matrix = interactions(model, (x, t), "squared_error", units=units)

    def loss(*gone: int) -> Tensor:
        g = torch.ones(4).double()
        g[list(gone)] = 0
        return reference.gated_loss(model, units, (x,), t, LOSSES["squared_error"], g).detach()

    for j in range(4):
        for k in range(j):
            both = loss(j, k) - loss(j) - loss(k) + loss()
            assert both.item() == pytest.approx(matrix[j, k].item(), rel=1e-9, abs=1e-12)


def test_the_sampled_matrix_comes_near_the_exact_one() -> None:
    case = CASES["two_hidden"]()
    x, y = case.x.repeat(4000, 1), case.y.repeat(4000)
    exact = interactions(case.model, (case.x, case.y), "cross_entropy")
    got = interactions(case.model, (x, y), "cross_entropy", curvature="fisher")
    assert (got - exact).abs().max() < 0.05 * exact.abs().max()
    again = interactions(case.model, (x, y), "cross_entropy", curvature="fisher")
    assert torch.equal(got, again)


def test_correlation_of_what_has_no_curvature_is_zero() -> None:
    got = correlation(torch.tensor([[4.0, 0.0, -2.0], [0.0, 0.0, 0.0], [-2.0, 0.0, 4.0]]))
    assert got.tolist() == [[1.0, 0.0, -0.5], [0.0, 0.0, 0.0], [-0.5, 0.0, 1.0]]


def test_bad_arguments_are_refused() -> None:
    case = CASES["one_hidden"]()
    with pytest.raises(ArgumentError) as caught:
        interactions(case.model, (case.x, case.y), "cross_entropy", curvature="best")
    assert str(caught.value) == "unknown curvature 'best'; one of: ggn, fisher, hessian"
    with pytest.raises(DataError) as failed:
        interactions(case.model, (case.x, case.y), None)
    assert str(failed.value) == "this needs a loss: a function(outputs, targets) or its name; None was given"
    with pytest.raises(DataError) as nan:  # √0 has a derivative without end
        interactions(case.model, (case.x, case.y), lambda o, _: (o - o).abs().sqrt().sum(1).mean())
    assert str(nan.value) == "loss: its second derivative is NaN on this data"
