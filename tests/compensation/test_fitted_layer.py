"""A fitted layer as the removal of its inputs sees it: its weights, and how much the loss minds what it gives."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from secateur import find_units
from secateur.compensation.fitted_layer import FittedLayer
from secateur.compensation.linear_layers import find_layers
from secateur.least_squares.ridge import RidgeFit

ROWS = torch.arange(5)[:, None]


def fitted(blocks: int = 1) -> tuple[FittedLayer, nn.Sequential]:
    """The second layer of a network with five units and four outputs."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4)).double()
    (layer,) = find_layers(find_units(model, torch.randn(6, 3).double()))
    weight = torch.randn(blocks, 5, 4 // blocks).double()
    second, mean = torch.eye(5).double().expand(blocks, 5, 5), torch.randn(blocks, 5).double()
    target, ridge = torch.randn(blocks, 4 // blocks).double(), torch.ones(blocks, 1, 1).double()
    return FittedLayer(layer, RidgeFit(weight, target, ridge, second, mean), torch.arange(5), torch.arange(4)), model


def from_eigenvalues(values: list[float]) -> tuple[Tensor, Tensor]:
    """A symmetric matrix, and what is left of it without its negative part."""
    torch.manual_seed(1)
    vectors, spectrum = torch.linalg.qr(torch.randn(4, 4).double())[0], torch.tensor(values).double()
    return (vectors * spectrum) @ vectors.T, (vectors * spectrum.clamp(min=0)) @ vectors.T


def test_what_is_concave_in_a_drawn_curvature_counts_as_nothing() -> None:
    layer, _ = fitted()
    drawn, positive = from_eigenvalues([2.0, 1.0, 0.0, -0.5])
    curvature = layer.summation(ROWS, drawn).curvature
    assert curvature is not None
    torch.testing.assert_close(curvature, positive[None], rtol=1e-12, atol=1e-12)


def test_a_curvature_without_a_negative_part_is_taken_as_it_is_or_by_its_diagonal() -> None:
    exact, _ = from_eigenvalues([2.0, 1.0, 0.5, 0.0])
    one, each = fitted()[0].summation(ROWS, exact), fitted(blocks=4)[0].summation(ROWS, exact)
    assert one.curvature is not None
    assert each.curvature is not None
    assert torch.equal(one.curvature, exact[None])
    assert torch.equal(each.curvature, exact.diagonal()[:, None, None])
    assert fitted()[0].summation(ROWS, None).curvature is None
    assert torch.equal(one.weight, fitted()[0].fit.weight)


def test_some_of_the_weights_come_with_the_bias_that_meets_the_same_means() -> None:
    layer, model = fitted()
    named, inputs, weight = dict(model.named_parameters()), torch.tensor([0, 2, 3]), torch.randn(1, 3, 4).double()
    tensors = layer.tensors(named, weight, inputs)
    expected = model[2].weight.detach().clone()
    expected[:, inputs] = weight[0].T
    assert torch.equal(tensors["2.weight"], expected)
    assert layer.fit.target is not None
    torch.testing.assert_close(tensors["2.bias"], (layer.fit.target - layer.fit.mean[:, inputs] @ weight[0])[0])
    assert torch.equal(layer.tensors(named, layer.fit.weight)["2.weight"], layer.fit.weight[0].T)
