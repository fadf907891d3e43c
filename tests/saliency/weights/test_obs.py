from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from cases import randomise
from secateur.curvature.weight_loss import WeightLoss
from secateur.errors import ArgumentError, DataError
from secateur.objective.losses import find_loss
from secateur.reference import weight_ggn
from secateur.saliency.weights.obs import RIDGE, WeightSurgeon
from secateur.structure.capture import Captured, capture


@cache
def made(loss: str = "squared_error") -> tuple[nn.Module, tuple[Tensor, Tensor], Captured, Tensor]:
    """A network, its data, its graph and H with the ridge over all 20 weights of two dimensions."""
    torch.manual_seed(0)
    model = randomise(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2, bias=False)).double().eval())
    x, t = torch.randn(30, 3, dtype=torch.float64), torch.rand(30, 2, dtype=torch.float64)
    t /= t.sum(1, keepdim=True)  # probabilities
    whole = weight_ggn(model, (x,), t, find_loss(loss))
    matrices = torch.cat([torch.full((p.numel(),), p.ndim > 1) for p in model.parameters()])
    matrix = whole[matrices][:, matrices]
    matrix += RIDGE * matrix.diagonal().mean() * torch.eye(len(matrix), dtype=torch.float64)
    return model, (x, t), capture(model, ((x,), {})), matrix


def weights(loss: str = "squared_error", **options: Any) -> WeightLoss:
    model, data, captured, _ = made(loss)
    return WeightLoss(model, captured, data, loss, **options)


def minimiser(u: Tensor, matrix: Tensor, gone: list[int]) -> Tensor:
    """u + δ, δ of least ½ δᵀHδ with these elements of u + δ zero."""
    left = [i for i in range(len(u)) if i not in gone]
    delta = torch.zeros_like(u)
    delta[gone] = -u[gone]
    delta[left] = -torch.linalg.solve(matrix[left][:, left], matrix[left][:, gone] @ delta[gone])
    return u + delta


def cost(u: Tensor, other: Tensor, matrix: Tensor) -> Tensor:
    return 0.5 * (other - u) @ matrix @ (other - u)


@pytest.mark.parametrize("loss", ["squared_error", "cross_entropy"])
def test_obs_is_the_least_cost_of_removing_each_weight_alone(loss: str) -> None:
    model, (x, t), _, matrix = made(loss)
    scores = sc.score(model, (x, t), loss, criterion="obs", granularity="weight")
    u = weights(loss).flat()
    expected = [cost(u, minimiser(u, matrix, [q]), matrix) for q in range(len(u))]
    assert {name: one.shape for name, one in scores.items()} == {"0.weight": (4, 3), "2.weight": (2, 4)}
    got = torch.cat([one.flatten() for one in scores.values()])
    torch.testing.assert_close(got, torch.stack(expected), rtol=1e-8, atol=0)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("loss", ["squared_error", "cross_entropy"])
def test_weights_and_costs_after_any_removals_are_those_of_the_dense_minimum(loss: str, seed: int) -> None:
    matrix, surgeon = made(loss)[3], WeightSurgeon(weights(loss))
    start, order = surgeon.u.clone(), torch.randperm(20, generator=torch.Generator().manual_seed(seed)).tolist()
    total, expected = 0.0, [start]
    for n, q in enumerate(order[:16], 1):
        total += surgeon.saliency()[q].item()
        surgeon.remove(q)
        expected.append(minimiser(start, matrix, order[:n]))
        torch.testing.assert_close(surgeon.u, expected[-1], rtol=1e-7, atol=1e-9)
        assert total == pytest.approx(cost(start, expected[-1], matrix).item(), rel=1e-8)
        assert surgeon.order == order[:n]
        assert not surgeon.u[order[:n]].any()
        assert not surgeon.left[order[:n]].any()
        assert int(surgeon.left.sum()) == 20 - n
        assert surgeon.saliency()[order[:n]].isinf().all()
    for n in (16, 3, 9, 0):
        assert not surgeon.after(n)[order[:n]].any()
        torch.testing.assert_close(surgeon.after(n), expected[n], rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(surgeon.u, surgeon.after(16), rtol=1e-9, atol=1e-12)


def test_all_weights_can_go_one_after_the_other() -> None:
    surgeon = WeightSurgeon(weights())
    for q in range(20):
        surgeon.remove(q)
    assert not surgeon.u.any()
    assert not surgeon.after(20).any()
    assert surgeon.saliency().isinf().all()


def test_weights_that_are_not_left_have_no_part_in_it() -> None:
    matrix, gone = made()[3], [0, 5, 13]
    left = torch.ones(20, dtype=torch.bool)
    left[gone] = False
    there = weights()
    there.model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2, bias=False)).double()
    there.model.load_state_dict(made()[0].state_dict())
    there.put(torch.where(left, there.flat(), 0))

    def at_these_weights() -> Tensor:
        x, t = made()[1]
        whole = weight_ggn(there.model, (x,), t, find_loss("squared_error"))
        some = torch.cat([torch.full((p.numel(),), p.ndim > 1) for p in there.model.parameters()])
        return whole[some][:, some][left][:, left]

    surgeon = WeightSurgeon(there, left)
    assert torch.equal(surgeon.saliency().isinf(), ~left)
    inner = at_these_weights()
    inner += RIDGE * inner.diagonal().mean() * torch.eye(17, dtype=torch.float64)
    start = there.flat()[left]
    surgeon.remove(7)
    assert not left[gone].any()
    assert left[7]  # it is the surgeon's own copy that changes
    assert not surgeon.u[[*gone, 7]].any()
    place = int(left[:7].sum())
    torch.testing.assert_close(surgeon.u[left], minimiser(start, inner, [place]), rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(surgeon.after(1), surgeon.u, rtol=1e-12, atol=1e-14)
    assert matrix.shape == (20, 20)


def test_weights_without_curvature_cost_nothing_and_change_nothing() -> None:
    model, captured = made()[0], made()[2]
    zeros = WeightLoss(model, captured, (torch.zeros(3, 3).double(), torch.zeros(3, 2).double()), "squared_error")
    surgeon = WeightSurgeon(zeros)
    before, cheapest = surgeon.u.clone(), surgeon.saliency()
    first = torch.arange(20) < 12  # the first layer sees zeros alone
    assert (cheapest[first] < 1e-5).all()
    surgeon.remove(4)
    torch.testing.assert_close(surgeon.u[first][5:], before[first][5:], rtol=1e-9, atol=1e-12)


def test_more_weights_than_memory_holds_a_matrix_for_are_refused() -> None:
    WeightSurgeon(weights(max_memory=3 * 8 * 20**2))
    with pytest.raises(ArgumentError) as caught:
        WeightSurgeon(weights(max_memory=3 * 8 * 20**2 - 1))
    assert str(caught.value) == (
        "criterion 'obs': the inverse Hessian of 20 weights takes 9.6 kB, max_memory is 9.6 kB; "
        "use 'obd', or remove units"
    )


def test_a_loss_that_is_not_convex_in_the_outputs_is_refused() -> None:
    model, data, captured, _ = made()
    bent = WeightLoss(model, captured, data, lambda o, t: -(o - t).square().sum(1).mean())
    with pytest.raises(
        DataError, match="has no inverse on this data: it is NaN or infinite, or the loss is not convex"
    ):
        WeightSurgeon(bent)
