"""The distance to the original's outputs and its Gauss-Newton matrix, against dense ones by autograd.

Covers also secateur.refinement.kronecker, secateur.refinement.small_network and secateur.refinement.teacher.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.functional import hessian, jacobian
from torch.func import functional_call

import secateur as sc
from secateur.cutting.slices import gates
from secateur.objective.gated_loss import GatedLoss
from secateur.refinement.distance import Distance
from secateur.refinement.kronecker import Kronecker
from secateur.refinement.small_network import SmallNetwork
from secateur.refinement.teacher import Teacher

KEPT = {"0": (0, 2, 3)}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4)).double()


def distance(loss: str, n: int = 7) -> tuple[nn.Module, Distance, Tensor]:
    model = network()
    x = torch.randn(n, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    y = torch.zeros(n, dtype=torch.long) if loss == "cross_entropy" else None
    gated = GatedLoss(
        model, sc.find_units(model, x), [(x[:3], y if y is None else y[:3]), (x[3:], y if y is None else y[3:])], loss
    )
    g = gates(model, gated.units, KEPT)
    return model, Distance(SmallNetwork(gated, g, {}), Teacher(gated), gated.batches), x


def dense(loss: str, model: nn.Module, x: Tensor) -> tuple[Any, Tensor]:
    """The distance as a function of all parameters in a row, and those of the cut network."""
    small, wanted = sc.cut(model, sc.Plan.from_kept(KEPT)), model(x).detach()
    shapes = {name: p.shape for name, p in small.named_parameters()}

    def outputs(row: Tensor) -> Tensor:
        pieces = torch.split(row, [shape.numel() for shape in shapes.values()])
        return functional_call(small, {k: v.reshape(shapes[k]) for k, v in zip(shapes, pieces, strict=True)}, (x,))

    def gap(out: Tensor) -> Tensor:
        if loss == "output":
            return 0.5 * (out - wanted).square().sum(1).mean()
        p = wanted.softmax(1)
        return (p * (p.log() - out.log_softmax(1))).sum(1).mean()

    return (outputs, gap), torch.cat([p.detach().flatten() for p in small.parameters()])


@pytest.mark.parametrize(("loss", "kind"), [("output", "output"), ("cross_entropy", "classes")])
def test_value_slope_and_products_are_those_of_the_dense_matrix(loss: str, kind: str) -> None:
    model, small, x = distance(loss)
    (outputs, gap), row = dense(kind, model, x)
    parameters = small.network.parameters
    assert small.value(parameters) == pytest.approx(gap(outputs(row)).item(), rel=1e-12)
    slope = jacobian(lambda r: gap(outputs(r)), row)
    torch.testing.assert_close(_row(small.slope(parameters)), slope, rtol=1e-10, atol=1e-14)
    j = jacobian(outputs, row)
    curved = hessian(gap, outputs(row))
    g = torch.einsum("ncp,ncmd,mdq->pq", j, curved, j)
    v = torch.randn(len(row), dtype=torch.float64)
    product = small.product(parameters, _named(v, parameters))
    torch.testing.assert_close(_row(product), g @ v, rtol=1e-10, atol=1e-14)


def test_of_one_layer_the_factors_are_the_matrix_but_for_the_draws() -> None:
    """A linear layer's outputs as they are: B is about 1, A the second moments of the inputs that are left."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5, bias=False), nn.Linear(5, 4)).double()
    model[0].requires_grad_(False)
    x = torch.randn(4000, 3, dtype=torch.float64)
    gated = GatedLoss(model, sc.find_units(model, x), [(x, None)], "output")
    small = Distance(SmallNetwork(gated, gates(model, gated.units, KEPT), {}), Teacher(gated), gated.batches)
    parameters = small.network.parameters
    assert {name: tuple(p.shape) for name, p in parameters.items()} == {"1.weight": (4, 3), "1.bias": (4,)}
    kronecker = Kronecker.of(small, parameters)
    v = {name: torch.randn_like(p) for name, p in parameters.items()}
    back = kronecker.solve(small.product(parameters, v), 1e-9)
    for name in v:
        torch.testing.assert_close(back[name], v[name], rtol=0.2, atol=0.2)
    a = torch.cat([x @ model[0].weight.T[:, [0, 2, 3]], torch.ones(4000, 1)], 1)
    mean = a.square().mean(0)
    assert kronecker.mean(parameters) == pytest.approx(mean.mean().item(), rel=0.3)


def test_weights_go_back_to_the_places_of_what_is_left() -> None:
    _, small, _ = distance("output")
    changed = {name: p + 1 for name, p in small.network.parameters.items()}
    whole = small.network.in_original(changed)
    original = network()
    for name, dims in (("0.weight", 0), ("0.bias", 0), ("2.weight", 1)):
        moved = (whole[name] - original.get_parameter(name).detach()).movedim(dims, 0).reshape(5, -1).mean(1)
        torch.testing.assert_close(moved, torch.tensor([1.0, 0, 1, 1, 0], dtype=torch.float64))


def _row(tensors: dict[str, Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors.values()])


def _named(row: Tensor, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    pieces = torch.split(row, [p.numel() for p in parameters.values()])
    return {name: piece.reshape(p.shape) for piece, (name, p) in zip(pieces, parameters.items(), strict=True)}
