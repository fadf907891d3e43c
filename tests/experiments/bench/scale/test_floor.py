"""The floor: every product, order and solution that it claims to make."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from secateur import Budget, find_units
from secateur.compensation.linear_layers import find_layers
from secateur_experiments.bench.scale import floor as floors
from secateur_experiments.bench.scale.task import Task
from secateur_experiments.networks import seeded


def network() -> nn.Sequential:
    with seeded(0):
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5), nn.ReLU(), nn.Linear(5, 3)
        )


def batches(*sizes: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(size, 1, 4, 4, generator=generator), torch.zeros(size, dtype=torch.long)) for size in sizes]


def task(protect: tuple[str, ...] = ()) -> Task:
    model, data = network(), batches(6, 4)
    units = find_units(model, data[0][0])
    return Task(model, units, data, "cross_entropy", Budget(remove_fraction=0.4, protect=protect), 0.4)


def test_moments_are_those_of_all_inputs_in_all_batches():
    made = task()
    layers = find_layers(made.units)
    moments = floors.observe(made.model, layers, made.data)
    x = torch.cat([batch for batch, _ in made.data])
    for layer, index in zip(layers, (3, 5), strict=True):
        a = made.model[:index](x)
        torch.testing.assert_close(moments[layer], a.T @ a)


def test_a_convolution_is_observed_at_every_position():
    model, (x, _) = nn.Sequential(nn.Conv2d(1, 3, 1), nn.ReLU(), nn.Conv2d(3, 2, 3)), batches(7)[0]
    (layer,) = find_layers(find_units(model, x))
    moments = floors.observe(model, [layer], [(x, None)])[layer]
    a = nn.functional.unfold(model[:2](x), 3).mT.flatten(0, 1)
    torch.testing.assert_close(moments, a.T @ a)


def test_no_more_rows_are_taken_than_the_library_takes(monkeypatch):
    monkeypatch.setattr(floors, "ROWS", 4)
    monkeypatch.setattr(floors, "EACH", 0)
    with seeded(0):
        model = nn.Sequential(nn.Linear(2, 3), nn.Sigmoid(), nn.Linear(3, 1))
        x = torch.randn(10, 2)
    (layer,) = find_layers(find_units(model, x))
    moments = floors.observe(model, [layer], [(x[:5], None), (x[5:], None)])[layer]
    a = model[:2](x[[0, 2, 5, 7]])  # two of each batch
    torch.testing.assert_close(moments, a.T @ a)


def test_all_units_but_one_of_each_set_that_may_lose_some_go_and_data_pass_twice(monkeypatch):
    made = task()
    passes = []
    made.model.register_forward_hook(lambda *_: passes.append(1))
    orders = floors.floor(made)
    assert {name: len(order) for name, order in orders.items()} == {"0": 3, "3": 4}
    assert all(len(set(order)) == len(order) for order in orders.values())
    assert len(passes) == 2 * len(made.data)
    assert list(floors.floor(task(protect=("0",)))) == ["3"]
    assert not made.model[3]._forward_pre_hooks


def test_the_unit_that_goes_next_costs_least_when_the_others_make_up_for_it():
    made = task()
    made.model[5].weight.data *= torch.tensor([1.0, 9.0, 4.0, 0.5, 6.0])
    unit_set, layer = made.units["3"], find_layers(made.units)[1]
    moments = floors.observe(made.model, [layer], made.data)
    second, weight = moments[layer] + floors.ridge_of(moments[layer]) * torch.eye(5), made.model[5].weight.T.detach()

    def cost(gone: list[int]) -> float:
        kept = [unit for unit in range(5) if unit not in gone]
        gap = weight.clone()
        gap[kept] -= torch.linalg.solve(second[kept][:, kept], second[kept] @ weight)
        return float((gap * (second @ gap)).sum())

    order = floors.removal_order(made.model, unit_set, [layer], moments)
    for n in range(4):
        left = [unit for unit in range(5) if unit not in order[:n]]
        assert order[n] == min(left, key=lambda unit: cost([*order[:n], unit]))


def test_weights_left_give_what_all_gave_as_well_as_they_can():
    made = task()
    layer = find_layers(made.units)[1]
    moments = floors.observe(made.model, [layer], made.data)[layer]
    weight, λ = made.model[5].weight.T.detach(), floors.ridge_of(moments)
    left = floors.solve(made.model, layer, moments, torch.tensor([1, 4]))
    kept = [0, 2, 3]
    torch.testing.assert_close((moments[kept][:, kept] + λ * torch.eye(3)) @ left, moments[kept] @ weight)


@pytest.mark.parametrize("share", [0.0, 0.4])
def test_the_network_stays_as_it_is(share):
    made = task()
    before = [p.clone() for p in made.model.parameters()]
    floors.floor(made)
    assert all(itertools.starmap(torch.equal, zip(before, made.model.parameters(), strict=True)))
