"""Orders of removal of single weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from secateur.curvature.weight_loss import WeightLoss
from secateur.planning.weight_order import FixedWeightOrder, SurgeonWeightOrder, WeightOrder
from secateur.saliency.weights.obs import WeightSurgeon
from secateur.structure.capture import capture

INF = float("inf")
SETS = torch.tensor([0, 0, 0, 0, 1, 1])
U = torch.tensor([1.0, -2.0, 3.0, -4.0, 5.0, -6.0], dtype=torch.float64)


def ordered(saliency: list[float], kept: list[int] | None = None, limits: tuple[int, int] = (4, 2)) -> FixedWeightOrder:
    there = torch.tensor([1] * 6 if kept is None else kept, dtype=torch.bool)
    return FixedWeightOrder(torch.tensor(saliency, dtype=torch.float64), U, there, SETS, torch.tensor(limits))


def surgeon(left: Tensor | None = None) -> WeightSurgeon:
    """Of a dense layer with three inputs and two outputs; its weights are those of six numbers."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2, bias=False).double()
    x, t = torch.randn(20, 3, dtype=torch.float64), torch.randn(20, 2, dtype=torch.float64)
    return WeightSurgeon(WeightLoss(model, capture(model, ((x,), {})), (x, t), "squared_error"), left)


@pytest.mark.parametrize(
    ("saliency", "kept", "limits", "order"),
    [
        ([5, 3, 4, 1, 2, 0], None, (4, 2), [5, 3, 4, 1, 2, 0]),
        ([-5, 3, -4, 1, 2, 0], None, (4, 2), [0, 2, 5, 3, 4, 1]),
        ([1, 1, 1, 1, 1, 1], None, (4, 2), [0, 1, 2, 3, 4, 5]),
        ([5, 3, 4, 1, 2, 0], [1, 0, 1, 0, 1, 1], (4, 2), [5, 4, 2, 0]),
        ([5, 3, 4, 1, 2, 0], None, (2, 1), [5, 3, 1]),
        ([5, 3, 4, 1, 2, 0], [1, 1, 1, 0, 1, 0], (1, 1), [4, 1]),
        ([5, 3, 4, 1, 2, 0], None, (0, 2), [5, 4]),
        ([5, 3, 4, 1, 2, 0], None, (0, 0), []),
        ([5, 3, 4, 1, 2, 0], [0] * 6, (4, 2), []),
        ([INF, 3, 4, INF, 2, 0], [0, 1, 1, 1, 1, 1], (4, 2), [5, 4, 1, 2, 3]),
    ],
)
def test_the_least_salient_that_are_there_go_first_up_to_what_each_parameter_may_lose(
    saliency: list[float], kept: list[int] | None, limits: tuple[int, int], order: list[int]
) -> None:
    removals = ordered(saliency, kept, limits)
    assert len(removals) == len(order)
    for n in (len(order), 0, min(2, len(order))):
        assert removals.gone(n).tolist() == order[:n]
        assert removals.predicted(n) == sum(saliency[q] for q in order[:n])
        expected = [0 if q in order[:n] else u for q, u in enumerate(U.tolist())]
        assert removals.after(n).tolist() == expected
    assert U.tolist() == [1, -2, 3, -4, 5, -6]


def test_the_surgeon_takes_the_least_salient_of_those_left_and_what_each_cost_is_added_up() -> None:
    removals, alone = SurgeonWeightOrder(surgeon(), SETS, torch.tensor([4, 2])), surgeon()
    assert len(removals) == 6
    order, costs, weights = list[int](), list[float](), [alone.u.clone()]
    for _ in range(6):
        saliency = alone.saliency()
        order.append(int(saliency.argmin()))
        costs.append(saliency.min().item())
        alone.remove(order[-1])
        weights.append(alone.u.clone())
    held = removals.after(2)
    for n in (4, 6, 1, 3, 0, 6):
        assert removals.gone(n).tolist() == order[:n]
        assert removals.predicted(n) == pytest.approx(sum(costs[:n]), rel=1e-12)
        torch.testing.assert_close(removals.after(n), weights[n], rtol=1e-9, atol=1e-12)
        assert not removals.after(n)[order[:n]].any()
    torch.testing.assert_close(held, weights[2], rtol=1e-9, atol=1e-12)  # what was given stays as it was
    assert removals.kept.all()


@pytest.mark.parametrize(
    ("left", "limits", "number"),
    [
        ([1] * 6, (1, 2), 3),
        ([1] * 6, (1, 1), 2),
        ([1] * 6, (2, 2), 4),
        ([1] * 6, (3, 1), 4),
        ([1, 1, 1, 1, 0, 1], (4, 2), 5),
        ([1, 0, 0, 0, 1, 1], (4, 1), 2),
        ([1] * 6, (0, 0), 0),
    ],
)
def test_the_surgeon_too_takes_no_more_of_a_parameter_than_it_may_lose(
    left: list[int], limits: tuple[int, int], number: int
) -> None:
    there, most = torch.tensor(left, dtype=torch.bool), torch.tensor(limits)
    removals: WeightOrder = SurgeonWeightOrder(surgeon(there), SETS, most)
    assert len(removals) == number
    gone = removals.gone(number)
    assert len(set(gone.tolist())) == number
    assert there[gone].all()
    assert (torch.bincount(SETS[gone], minlength=2) <= torch.tensor(limits)).all()
    assert torch.equal(removals.kept, there)
    assert tuple(most.tolist()) == limits


def test_the_least_salient_goes_only_where_its_parameter_may_lose_one() -> None:
    least = int(surgeon().saliency().argmin())
    limits = torch.tensor([0, 2] if least < 4 else [4, 0])
    removals = SurgeonWeightOrder(surgeon(), SETS, limits)
    assert (SETS[removals.gone(len(removals))] == (1 if least < 4 else 0)).all()
