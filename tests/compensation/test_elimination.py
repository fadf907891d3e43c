"""Removal orders in closed form against ridge regression solved anew without the inputs that are gone, and `BlockOBS`.

Also covers secateur.compensation.removal_path.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from secateur.compensation import elimination
from secateur.compensation.block_obs import BlockOBS
from secateur.compensation.elimination import Elimination, Summation
from secateur.compensation.removal_path import Point, removal_path


class Form(NamedTuple):
    """Units, rows of W for each, rows of other sets, blocks, outputs of each block, rows of data."""

    units: int
    each: int = 1
    others: int = 0
    blocks: int = 1
    outputs: int = 3
    samples: int = 40
    curved: bool = True


FORMS = {
    "plain": Form(7),
    "without curvature": Form(7, curved=False),
    "several rows of each unit": Form(5, each=3, others=2),
    "rows of other sets in between": Form(6, others=4),
    "an own matrix for each output": Form(6, blocks=3, outputs=1),
    "blocks and several rows": Form(4, each=2, others=3, blocks=2, outputs=2),
    "one unit": Form(1, others=2),
    "one unit alone": Form(1),
    "one row of data": Form(6, samples=1),
    "fewer rows than inputs": Form(6, each=2, samples=5),
}


def summation(form: Form, seed: int = 0) -> Summation:
    """A layer at its optimum, its units' rows in random places."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    inputs = form.units * form.each + form.others
    a = normal(form.blocks, form.samples, inputs) @ (torch.eye(inputs).double() + 0.5 * normal(inputs, inputs))
    ridge = 1e-2 * (1 + torch.rand(form.blocks, 1, 1, dtype=torch.float64, generator=generator))
    root = normal(form.blocks, form.outputs, form.outputs + 1)
    rows = torch.randperm(inputs, generator=generator)[: form.units * form.each].reshape(form.units, form.each)
    weight = normal(form.blocks, inputs, form.outputs)
    return Summation(a.mT @ a / form.samples, ridge, weight, root @ root.mT if form.curved else None, rows)


def left_after(layer: Summation, gone: list[int]) -> list[int]:
    struck = set(layer.rows[gone].flatten().tolist())
    return [i for i in range(layer.weight.shape[1]) if i not in struck]


def solved(layer: Summation, gone: list[int]) -> Tensor:
    """The ridge regression on what W₀ makes of the inputs, about W₀, from the inputs that are left [C, n, o]."""
    left = left_after(layer, gone)
    matrix = layer.second + layer.ridge * torch.eye(layer.second.shape[1]).double()
    return torch.linalg.solve(matrix[:, left][:, :, left], (matrix @ layer.weight)[:, left])


def objective(layer: Summation, gone: list[int]) -> float:
    """½ tr(B ΔWᵀ (AᵀA + λI) ΔW) at the solution above."""
    change = -layer.weight
    change[:, left_after(layer, gone)] += solved(layer, gone)
    matrix = layer.second + layer.ridge * torch.eye(layer.second.shape[1]).double()
    product = change.mT @ matrix @ change
    minded = product if layer.curvature is None else layer.curvature @ product
    return 0.5 * minded.diagonal(dim1=1, dim2=2).sum().item()


def greedy(layers: list[Summation], removals: int) -> tuple[list[int], list[float]]:
    """The cheapest unit next, each one tried; what the objective of all layers rises by."""
    gone, costs, total = list[int](), list[float](), 0.0
    for _ in range(removals):
        trials = {
            unit: sum(objective(layer, [*gone, unit]) for layer in layers)
            for unit in range(len(layers[0].rows))
            if unit not in gone
        }
        gone.append(min(trials, key=trials.__getitem__))
        costs.append(trials[gone[-1]] - total)
        total = trials[gone[-1]]
    return gone, costs


def check(layers: list[Summation], path: list[Point], order: list[int], costs: list[float]) -> None:
    """Hold order, costs and weights of a path against the truth."""
    assert [point.unit for point in path] == order
    torch.testing.assert_close(torch.tensor([point.cost for point in path]), torch.tensor(costs), rtol=1e-7, atol=1e-10)
    for n, point in enumerate(path, 1):
        assert point.weights is not None
        for layer, (names, weight) in zip(layers, point.weights, strict=True):
            assert names.tolist() == left_after(layer, order[:n])
            torch.testing.assert_close(weight, solved(layer, order[:n]), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("columns", [1, 2, 3, 256])
@pytest.mark.parametrize("name", FORMS)
def test_the_path_is_that_of_ridge_regressions_solved_anew_for_each_unit(
    name: str, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(elimination, "COLUMNS", columns)
    layer, units = summation(FORMS[name]), FORMS[name].units
    path = list(removal_path([layer], units, range(1, units + 1)))
    check([layer], path, *greedy([layer], units))


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.integers(2, 6), st.integers(1, 3), st.integers(0, 4), st.integers(1, 3))
def test_a_random_layer_loses_its_units_as_the_truth_does(
    seed: int, units: int, each: int, others: int, blocks: int
) -> None:
    layer = summation(Form(units, each, others, blocks, 2), seed)
    check([layer], list(removal_path([layer], units, range(1, units + 1))), *greedy([layer], units))


@pytest.mark.parametrize("columns", [2, 256])
def test_all_layers_that_sum_a_set_up_say_together_which_unit_goes(
    columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(elimination, "COLUMNS", columns)
    layers = [summation(Form(6, others=2)), summation(Form(6, each=2, blocks=2, outputs=1), seed=2)]
    order, costs = greedy(layers, 6)
    assert order != greedy(layers[:1], 6)[0]
    check(layers, list(removal_path(layers, 6, range(1, 7))), order, costs)


@pytest.mark.parametrize("columns", [1, 256])
def test_an_order_known_before_is_kept_with_the_costs_that_it_has(
    columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(elimination, "COLUMNS", columns)
    layer, order = summation(Form(5, each=2, others=1)), [3, 0, 4, 1]
    totals = [0.0, *(objective(layer, order[:n]) for n in range(1, 5))]
    costs = [after - before for before, after in pairwise(totals)]
    check([layer], list(removal_path([layer], 4, range(1, 5), order)), order, costs)


def test_weights_are_given_where_they_are_asked_for_and_the_layer_stays_as_it_is() -> None:
    layer = summation(Form(5, each=2, others=2, blocks=2))
    before = [tensor.clone() for tensor in layer if tensor is not None]
    path = list(removal_path([layer], 4, {2, 4}))
    assert [point.weights is not None for point in path] == [False, True, False, True]
    for tensor, then in zip(layer, before, strict=True):
        assert tensor is not None
        assert torch.equal(tensor, then)


@pytest.mark.parametrize("columns", [3, 256])
@pytest.mark.parametrize("form", [Form(7), Form(5, each=2, others=3, blocks=2, outputs=2)])
def test_costs_and_weights_are_those_of_optimal_brain_surgeon_step_by_step(
    form: Form, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(elimination, "COLUMNS", columns)
    layer = summation(form)
    assert layer.curvature is not None
    names = torch.arange(layer.weight.shape[1])
    obs = BlockOBS(layer.second, layer.weight, layer.ridge, torch.linalg.cholesky(layer.curvature), names)
    eliminated = Elimination(layer)
    for unit in torch.randperm(form.units, generator=torch.Generator().manual_seed(3)).tolist():
        torch.testing.assert_close(eliminated.costs()[unit], obs.costs(layer.rows[[unit]])[0][0])
        eliminated.remove(unit)
        eliminated.settle()
        obs.remove(layer.rows[unit])
        left, weight = eliminated.weight()
        torch.testing.assert_close(weight, obs.weight()[:, obs.places(left)])
        assert eliminated.costs()[unit] == torch.inf


def test_of_two_inputs_that_are_the_same_one_goes_at_almost_no_cost() -> None:
    layer = summation(Form(5))
    same = layer.second.clone()
    first, second = layer.rows[1], layer.rows[4]
    same[:, second] = same[:, first]
    same[:, :, second] = same[:, :, first]
    tied = layer._replace(second=same, ridge=torch.full((1, 1, 1), 1e-9, dtype=torch.float64))
    point, *_ = removal_path([tied], 1, {1})
    assert point.unit in (1, 4)
    assert point.cost < 1e-6
    ((names, weight),) = point.weights or []
    stays = (first if point.unit == 4 else second).item()
    together = tied.weight[0, [*first.tolist(), *second.tolist()]].sum(0)
    torch.testing.assert_close(weight[0, names.tolist().index(stays)], together, rtol=1e-6, atol=1e-6)


def test_an_input_that_is_always_zero_goes_first_and_a_unit_that_nothing_takes_costs_nothing() -> None:
    layer = summation(Form(5))
    second, weight = layer.second.clone(), layer.weight.clone()
    silent, unused = layer.rows[2], layer.rows[3]
    second[:, silent], second[:, :, silent] = 0, 0
    weight[:, unused] = 0
    path = list(removal_path([layer._replace(second=second, weight=weight)], 5))
    assert path[0].unit == 3
    assert path[0].cost == 0
    assert path[1].unit == 2
    assert 0 < path[1].cost < path[2].cost


def test_costs_in_float32_are_those_in_float64_to_its_digits() -> None:
    layer = summation(Form(6, each=2, others=1))
    single = Summation(*(t if t is None or t.dtype == torch.long else t.float() for t in layer))
    for exact, rough in zip(removal_path([layer], 6, {3}), removal_path([single], 6, {3}), strict=True):
        assert (exact.unit, rough.weights is None) == (rough.unit, exact.weights is None)
        assert rough.cost == pytest.approx(exact.cost, rel=1e-3)
