"""Refinement: what steps do, what stays, and what is refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import secateur as sc
from secateur.cutting.slices import gates
from secateur.errors import ArgumentError, DataError, ModelError
from secateur.objective.gated_loss import GatedLoss
from secateur.reference import RandomNetwork
from secateur.refinement.refine import Search, refined


def dense() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 3)
    return nn.Sequential(*layers).double()


def samples(n: int = 200, seed: int = 1) -> Tensor:
    return torch.randn(n, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def gated_loss(model: nn.Module, x: Any, loss: str = "output", y: Any = None) -> GatedLoss:
    return GatedLoss(model, sc.find_units(model, x), [(x, y)], loss)


HALF = {"0": tuple(range(8)), "2": tuple(range(6))}


# ---------------------------------------------------------------- what steps do


def test_steps_bring_outputs_nearer_to_the_original_on_samples_never_seen() -> None:
    model, x, test = dense(), samples(), samples(500, 2)
    original = copy.deepcopy(model)
    compensated = sc.cut(model, sc.Plan.from_kept(HALF, x), compensate=x, loss="output")
    small = sc.cut(model, sc.Plan.from_kept(HALF, x), compensate=x, loss="output", refine=3)
    gaps = [(network(test) - original(test)).square().mean() for network in (compensated, small)]
    assert gaps[1] < 0.5 * gaps[0]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), original.parameters(), strict=True))
    changed = [name for name, p in small.named_parameters() if not torch.equal(p, compensated.get_parameter(name))]
    assert changed == ["0.weight", "0.bias", "2.weight", "2.bias", "4.weight", "4.bias"]


def test_the_distribution_of_classes_is_what_is_kept_where_the_loss_is_of_classes() -> None:
    model, x = dense(), samples()
    y = model(x).argmax(1)
    results = [
        sc.shrink(model, (x, y), "cross_entropy", sc.Budget(remove_units=18), refine=steps, progress=False)
        for steps in (0, "auto")
    ]
    p = model(x).softmax(1)
    kept = [(p * (p.log() - result.model(x).log_softmax(1))).sum(1).mean() for result in results]
    assert kept[1] < 0.3 * kept[0]
    assert results[1].max_difference < 1e-12
    assert str(results[1].plan).splitlines()[0].count("compensated and refined") == 1
    again = sc.cut(model, sc.Plan.from_json(results[1].plan.to_json()), compensate=(x, y), loss="cross_entropy")
    torch.testing.assert_close(again(x), results[1].model(x))


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10**6))
def test_held_out_samples_are_never_worse_and_the_cut_equals_the_gated_network(seed: int) -> None:
    network = RandomNetwork(seed).double()
    inputs = network.sample(12)
    units = sc.find_units(network, inputs)
    kept = {s.name: tuple(range((s.size + 1) // 2)) for s in units}
    gated = GatedLoss(network, units, [(inputs, None)], "output")
    search = Search(gated, gates(network, units, kept), {})
    for _ in range(2):
        before = search.distance
        search.step()
        assert search.distance <= before
    sc.cut(network, sc.Plan.from_kept(kept, inputs), compensate=inputs, loss="output", refine=1)  # which proves it


# ---------------------------------------------------------------- what stays


def test_with_nothing_removed_weights_stay_as_they_were() -> None:
    model, x = dense(), samples()
    gated = gated_loss(model, x)
    assert refined(gated, gates(model, gated.units, {}), {}, "auto") == {}
    weights = {"0.weight": torch.zeros(16, 6)}
    assert refined(gated, gates(model, gated.units, HALF), weights, 0) == weights


def test_frozen_parameters_stay_and_tied_ones_stay_tied() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.out = nn.Linear(6, 10), nn.Linear(10, 6)
            self.again = nn.Linear(10, 6)
            self.again.weight = self.out.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.again(torch.tanh(self.up(self.out(torch.tanh(self.up(x))))))

    torch.manual_seed(0)
    model, x = Tied().double(), samples()
    model.up.bias.requires_grad_(False)
    plan = sc.Plan.from_kept({"up": range(6)}, x)
    small, before = sc.cut(model, plan, compensate=x, loss="output", refine=2), sc.cut(model, plan)
    assert small.again.weight is small.out.weight
    assert torch.equal(small.up.bias, before.up.bias)
    assert not torch.equal(small.up.weight, before.up.weight)


def test_batch_norm_keeps_its_statistics_and_modes_stay() -> None:
    torch.manual_seed(0)
    layers = (
        nn.Conv2d(2, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.Tanh(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 3),
    )
    model, x = nn.Sequential(*layers).double(), torch.randn(300, 2, 4, 4, dtype=torch.float64)
    model(x)
    model.train()
    plan = sc.Plan.from_kept({"0": range(4)}, x)
    small, before = sc.cut(model, plan, compensate=x, loss="output", refine=2), sc.cut(model, plan)
    assert torch.equal(small[1].running_mean, before[1].running_mean)
    assert not torch.equal(small[1].weight, before[1].weight)
    assert small.training


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize("steps", [-1, 1.5, "always", True, None])
def test_what_is_no_number_of_steps_is_refused(steps: Any) -> None:
    with pytest.raises(ArgumentError, match=r"refine: expected a number of steps, or 'auto'"):
        sc.Compensation(refine=steps)


def test_steps_without_a_fit_are_refused() -> None:
    with pytest.raises(ArgumentError, match=r"^refine: is for compensate=True$"):
        sc.Compensation(fit=False, recalibrate=True, refine=2)


def test_too_few_samples_are_refused() -> None:
    text = "refine: every fifth sample is held out to stop by, and there are fewer than 5 samples; give more data"
    with pytest.raises(DataError) as raised:
        sc.cut(dense(), sc.Plan.from_kept(HALF), compensate=samples(4), loss="output", refine=1)
    assert str(raised.value) == text


def test_what_has_no_second_derivative_is_refused_and_the_model_stays() -> None:
    torch.manual_seed(0)

    class Bags(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bags, self.up, self.out = nn.EmbeddingBag(9, 4, mode="sum"), nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, ids: Tensor) -> Tensor:
            return self.out(torch.tanh(self.up(self.bags(ids))))

    model, ids = Bags(), torch.randint(0, 9, (20, 3))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ModelError, match=r"^refine: an operation of the model can be differentiated neither forwards"):
        sc.cut(model, sc.Plan.from_kept({"up": [0, 1]}, ids), compensate=ids, loss="output", refine=1)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
