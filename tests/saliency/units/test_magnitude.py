"""Criteria for comparison.

Covers secateur.saliency.units.magnitude, secateur.saliency.units.activation and secateur.saliency.units.random.
"""

from collections import defaultdict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cases import CASES, randomise
from secateur import find_units, reference, score
from secateur.objective.gated_loss import GatedLoss, ones
from secateur.saliency.units.activation import activation
from secateur.saliency.units.magnitude import magnitude
from secateur.saliency.units.random import random
from secateur.structure.units import Units


def by_slices(model: nn.Module, units: Units, g: Tensor) -> Tensor:
    """√Σ w² over each unit's slices of parameters; what belongs to removed units is zero."""
    weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    gates = units.split(g)
    for unit_set in units:
        for part in unit_set.slices:
            if part.tensor in weights:
                gone = part.index[gates[unit_set.name] == 0].flatten()
                weights[part.tensor].index_fill_(part.dim, gone, 0.0)
    found = []
    for unit_set in units:
        for k in range(unit_set.size):
            pieces = [weights[p.tensor].index_select(p.dim, p.index[k]) for p in unit_set.slices if p.tensor in weights]
            found.append(sum(piece.square().sum().item() for piece in pieces) ** 0.5)
    return torch.tensor(found, dtype=torch.float64)


def some_gates(n: int, seed: int) -> Tensor:
    return (torch.rand(n, generator=torch.Generator().manual_seed(seed)) < 0.6).double()


@pytest.mark.parametrize("name", CASES)
def test_magnitude_is_the_norm_of_all_that_goes_with_a_unit(name: str) -> None:
    case = CASES[name]()
    units = find_units(case.model, case.x)
    gated = GatedLoss(case.model, units)
    g = ones(case.model, units)
    assert torch.allclose(magnitude(gated, g), by_slices(case.model, units, g), rtol=1e-12, atol=0)
    for seed in range(4):
        g = some_gates(units.total, seed)
        got, expected = magnitude(gated, g), by_slices(case.model, units, g)
        assert torch.allclose(got[g != 0], expected[g != 0], rtol=1e-12, atol=0)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_magnitude_in_random_networks(seed: int) -> None:
    network = reference.RandomNetwork(seed).double()
    units = find_units(network, network.sample(2))
    for g in (torch.ones(units.total).double(), some_gates(units.total, seed % 97)):
        got, expected = magnitude(GatedLoss(network, units), g), by_slices(network, units, g)
        assert torch.allclose(got[g != 0], expected[g != 0], rtol=1e-12, atol=0)


def test_magnitude_written_out() -> None:
    """Weights in, bias, the norm's weight and bias, weights out; no buffer."""
    case = CASES["normalised"]()
    first, norm, second, last = (case.model[i] for i in (0, 1, 4, 6))
    squares = [
        first.weight.square().sum(1) + first.bias**2 + norm.weight**2 + norm.bias**2 + second.weight.square().sum(0),
        second.weight.square().sum(1) + second.bias**2 + last.weight.square().sum(0),
    ]
    got = score(case.model, None, None, units=find_units(case.model, case.x), criterion="magnitude")
    assert torch.allclose(got["0"], squares[0].sqrt(), rtol=1e-12)
    assert torch.allclose(got["4"], squares[1].sqrt(), rtol=1e-12)


def test_what_went_with_removed_units_no_longer_counts() -> None:
    torch.manual_seed(0)
    model = randomise(nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double())
    units = find_units(model, torch.zeros(2, 2))
    g = torch.tensor([1, 0, 1, 1, 1, 0, 1]).double()
    got = magnitude(GatedLoss(model, units), g)
    left, here = [0, 2], [0, 1, 3]
    squares = model[0].weight.square().sum(1) + model[0].bias ** 2 + model[2].weight[here].square().sum(0)
    assert torch.allclose(got[:3][left], squares.sqrt()[left], rtol=1e-12)
    squares = model[2].weight[:, left].square().sum(1) + model[2].bias ** 2 + model[4].weight.square().sum(0)
    assert torch.allclose(got[3:][here], squares.sqrt()[here], rtol=1e-12)


def inputs_of(model: nn.Module, layers: dict[str, nn.Module], x: Tensor) -> dict[str, list[Tensor]]:
    """What each layer is given, call by call."""
    seen: dict[str, list[Tensor]] = defaultdict(list)
    hooks = [
        layer.register_forward_pre_hook(lambda _, args, name=name: seen[name].append(args[0].detach()))
        for name, layer in layers.items()
    ]
    model(x)
    for hook in hooks:
        hook.remove()
    return seen


def activations(name: str, cuts: tuple[int, ...] = ()) -> dict[str, Tensor]:
    case = CASES[name]()
    batches = zip(torch.tensor_split(case.x, cuts), torch.tensor_split(case.y, cuts), strict=True)
    return score(case.model, list(batches), None, units=find_units(case.model, case.x), criterion="activation")


@pytest.mark.parametrize("cuts", [(), (1,), (2, 3)], ids=str)
@pytest.mark.parametrize(("name", "consumers"), [("two_hidden", ("2", "4")), ("normalised", ("4", "6"))])
def test_activation_is_the_mean_size_of_what_is_consumed(
    name: str, consumers: tuple[str, ...], cuts: tuple[int, ...]
) -> None:
    case = CASES[name]()
    seen = inputs_of(case.model, {c: case.model[int(c)] for c in consumers}, case.x)
    got = activations(name, cuts)
    for unit_set, consumer in zip(case.sets, consumers, strict=True):
        assert torch.allclose(got[unit_set], seen[consumer][0].abs().mean(0), rtol=1e-12)


@pytest.mark.parametrize("cuts", [(), (4,)], ids=str)
def test_activation_is_the_mean_over_places(cuts: tuple[int, ...]) -> None:
    case = CASES["flattened_units"]()
    (given,) = inputs_of(case.model, {"3": case.model[3]}, case.x)["3"]
    assert torch.allclose(
        activations("flattened_units", cuts)["0"], given.reshape(6, 3, 4).abs().mean((0, 1)), rtol=1e-12
    )


@pytest.mark.parametrize("cuts", [(), (4,)], ids=str)
def test_activation_is_the_mean_over_all_consumers(cuts: tuple[int, ...]) -> None:
    case = CASES["branches"]()
    model = case.model
    seen = inputs_of(model, {"shared": model.shared, "back": model.back, "last": model.last}, case.x)
    (first, second), (joined,), (right,) = seen["shared"], seen["last"], seen["back"]
    got = activations("branches", cuts)
    left = torch.stack([first, second, joined[:, :6], joined[:, 10:]])
    assert torch.allclose(got["left"], left.abs().mean((0, 1)), rtol=1e-12)
    assert torch.allclose(got["right"], torch.stack([right, joined[:, 6:10]]).abs().mean((0, 1)), rtol=1e-12)


def test_activation_of_what_is_left_sees_that_units_were_removed() -> None:
    case = CASES["two_hidden"]()
    units = find_units(case.model, case.x)
    g = torch.tensor([1, 0, 1, 1, 0, 1, 1, 1, 0, 1]).double()
    got = units.split(activation(GatedLoss(case.model, units, (case.x, case.y)), g))
    first = torch.sigmoid(case.model[0](case.x))
    second = torch.tanh(case.model[2](first * g[:6]))
    assert torch.allclose(got["0"], (first * g[:6]).abs().mean(0), rtol=1e-12)
    assert torch.allclose(got["2"], (second * g[6:]).abs().mean(0), rtol=1e-12)


def test_activation_needs_no_targets() -> None:
    case = CASES["two_hidden"]()
    with_them = score(case.model, (case.x, case.y), None, criterion="activation")
    without = score(case.model, (case.x, None), None, criterion="activation")
    assert all(without[name].equal(with_them[name]) for name in with_them)


def test_random_is_decided_by_the_seed() -> None:
    case = CASES["two_hidden"]()
    units = find_units(case.model, case.x)

    def draw(seed: int) -> Tensor:
        return torch.cat(list(score(case.model, None, None, units=units, criterion="random", seed=seed).values()))

    assert draw(3).equal(draw(3))
    assert not draw(3).equal(draw(4))
    assert bool(((draw(3) >= 0) & (draw(3) < 1)).all())
    assert len(set(draw(3).tolist())) == 10


def test_random_draws_again_each_time_it_is_asked() -> None:
    case = CASES["two_hidden"]()
    units = find_units(case.model, case.x)
    one, other = GatedLoss(case.model, units, seed=7), GatedLoss(case.model, units, seed=7)
    g = ones(case.model, units)
    first, second = random(one, g), random(one, g)
    assert not first.equal(second)
    assert random(other, g).equal(first)
    assert random(other, g).equal(second)


def test_random_depends_on_no_other_generator() -> None:
    case = CASES["two_hidden"]()
    units = find_units(case.model, case.x)
    draws = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        draws.append(score(case.model, None, None, units=units, criterion="random")["0"])
    assert draws[0].equal(draws[1])
