import itertools
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from cases import CASES
from secateur import SecateurError, find_units
from secateur.reference import (
    IDENTITY,
    SIGMOID,
    TANH,
    Activation,
    RandomNetwork,
    dense_hessian,
    gated_loss,
    gated_weights,
    leave_one_out,
    random_networks,
    second_derivative_back_propagation,
)

seeds = st.integers(0, 2**32 - 1)


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    return 0.5 * (outputs - targets).square().sum(1).mean()


def targets_like(outputs: Tensor) -> Tensor:
    return torch.randn(outputs.shape, generator=torch.Generator().manual_seed(7), dtype=outputs.dtype)


@given(seeds)
@settings(max_examples=25, deadline=None)
def test_factors_on_the_consumers_weights_are_gates_on_the_units(seed: int) -> None:
    network = RandomNetwork(seed, widths=(2, 6)).double()
    x = network.sample(5)
    units = find_units(network, x)
    y = targets_like(network(x))
    g = torch.randn(units.total, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    expected = squared_error(network.gated(x, units.split(g)), y)
    got = gated_loss(network, units, (x,), y, squared_error, g)
    assert got.item() == pytest.approx(expected.item(), rel=1e-10)


@given(seeds)
@settings(max_examples=25, deadline=None)
def test_leave_one_out_is_the_rise_of_the_loss_with_one_gate_at_zero(seed: int) -> None:
    network = RandomNetwork(seed, widths=(2, 4), steps=4).double()
    x = network.sample(5)
    y = targets_like(network(x))
    units = find_units(network, x)
    rises = leave_one_out(network, units, (x,), y, squared_error)
    assert rises.dtype == torch.float64
    assert not rises.requires_grad
    here = squared_error(network(x), y)
    for k, (name, unit) in enumerate(units.places):
        gate = torch.ones(units[name].size, dtype=torch.float64).index_fill(0, torch.tensor(unit), 0)
        rise = squared_error(network.gated(x, {name: gate}), y) - here
        torch.testing.assert_close(rises[k], rise.detach(), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", ["two_hidden", "branches", "normalised", "functional", "flattened_units"])
def test_the_dense_hessian_agrees_with_finite_differences(name: str) -> None:
    case = CASES[name]()
    units = find_units(case.model, case.x)
    y = targets_like(case.model(case.x))
    gradient, matrix = dense_hessian(case.model, units, (case.x,), y, squared_error)
    step = 1e-3
    moves = step * torch.eye(units.total, dtype=torch.float64)

    def error(*directions: Tensor) -> float:
        with torch.no_grad():
            g = 1 + sum(directions)
            return gated_loss(case.model, units, (case.x,), y, squared_error, g).item()

    for j, a in enumerate(moves):
        assert gradient[j].item() == pytest.approx((error(a) - error(-a)) / (2 * step), rel=1e-4, abs=1e-5)
    pairs = itertools.islice(itertools.combinations_with_replacement(range(units.total), 2), 0, None, 3)
    for j, k in pairs:
        a, b = moves[j], moves[k]
        second = (error(a, b) - error(a, -b) - error(-a, b) + error(-a, -b)) / (4 * step**2)
        assert matrix[j, k].item() == pytest.approx(second, rel=1e-4, abs=1e-5)
    torch.testing.assert_close(matrix, matrix.T, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("curve", [SIGMOID, TANH, IDENTITY], ids=["sigmoid", "tanh", "identity"])
def test_slopes_and_curvatures_are_derivatives(curve: Activation) -> None:
    x = torch.linspace(-3, 3, 13, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(curve.value(x).sum(), x, create_graph=True)
    torch.testing.assert_close(curve.slope(x), slope, rtol=1e-12, atol=1e-14)
    (curvature,) = torch.autograd.grad((slope + 0 * x).sum(), x)
    torch.testing.assert_close(curve.curvature(x), curvature, rtol=1e-12, atol=1e-14)


def chain(widths: list[int], activations: list[nn.Module], seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = [
        layer
        for a, b, activation in zip(widths[:-1], widths[1:], activations, strict=True)
        for layer in (nn.Linear(a, b), activation)
    ]
    return nn.Sequential(*layers).double()


def back_propagated(model: nn.Sequential, curves: list[Activation], x: Tensor, y: Tensor) -> list[Tensor]:
    """The recursion with ½ Σ (o − t)²; a sample's target is found by its output."""
    outputs = model(x).detach()

    def derivatives(o: Tensor) -> tuple[Tensor, Tensor]:
        sample = (outputs - o).abs().sum(1).argmin()
        return o - y[sample], torch.ones_like(o)

    weights, biases = ([getattr(layer, kind).detach() for layer in model[::2]] for kind in ("weight", "bias"))
    return second_derivative_back_propagation(weights, biases, curves, x, derivatives)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("modules", "curves"),
    [
        ([nn.Sigmoid(), nn.Sigmoid()], [SIGMOID, SIGMOID]),
        ([nn.Tanh(), nn.Identity()], [TANH, IDENTITY]),
        ([nn.Sigmoid(), nn.Tanh()], [SIGMOID, TANH]),
    ],
    ids=["sigmoid sigmoid", "tanh identity", "sigmoid tanh"],
)
def test_second_derivative_back_propagation_is_exact_with_one_hidden_layer(
    modules: list[nn.Module], curves: list[Activation], seed: int
) -> None:
    model = chain([4, 6, 3], modules, seed)
    x = torch.randn(5, 4, dtype=torch.float64)
    y = targets_like(model(x))
    gradient, matrix = dense_hessian(model, find_units(model, x), (x,), y, squared_error)
    (saliency,) = back_propagated(model, curves, x, y)
    torch.testing.assert_close(saliency, (-gradient + 0.5 * matrix.diagonal()).detach(), rtol=1e-12, atol=1e-13)


def test_with_two_hidden_layers_it_drops_the_cross_terms_of_the_first_alone() -> None:
    model = chain([4, 6, 5, 3], [nn.Sigmoid(), nn.Sigmoid(), nn.Sigmoid()], 0)
    x = torch.randn(5, 4, dtype=torch.float64)
    y = targets_like(model(x))
    gradient, matrix = dense_hessian(model, find_units(model, x), (x,), y, squared_error)
    exact = (-gradient + 0.5 * matrix.diagonal()).detach()
    first, second = back_propagated(model, [SIGMOID] * 3, x, y)
    torch.testing.assert_close(second, exact[6:], rtol=1e-12, atol=1e-13)
    assert ((first - exact[:6]).abs() > 1e-6).all()


def test_a_gate_reaches_every_name_of_a_tied_weight() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last, self.again = nn.Linear(4, 6), nn.Linear(6, 2), nn.Linear(6, 2)
            self.again.weight = self.last.weight

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            return self.last(torch.tanh(h)) + self.again(torch.sigmoid(h))

    model, x = Tied().double(), torch.randn(5, 4).double()
    units = find_units(model, x)
    nothing = gated_loss(model, units, (x,), torch.zeros(5, 2), squared_error, torch.zeros(6).double())
    bias = (model.last.bias + model.again.bias).detach()
    assert nothing.item() == pytest.approx(0.5 * bias.square().sum().item(), rel=1e-12)


def test_gates_leave_the_model_as_it_was() -> None:
    case = CASES["normalised"]()
    case.model.train()
    case.model[1].eval()  # a layer that is frozen
    modes = [module.training for module in case.model.modules()]
    before = {name: tensor.clone() for name, tensor in case.model.state_dict().items()}
    units, y = find_units(case.model, case.x), torch.randn(6, 2).double()
    g = torch.rand(units.total, dtype=torch.float64)
    loss = gated_loss(case.model, units, (case.x,), y, squared_error, g)
    assert [module.training for module in case.model.modules()] == modes
    after = case.model.state_dict()
    assert all(after[name].equal(value) for name, value in before.items())
    assert loss.equal(gated_loss(case.model.eval(), units, (case.x,), y, squared_error, g))


def test_gates_need_a_weight_that_does_nothing_else() -> None:
    case = CASES["tied"]()
    units = find_units(case.model, case.x)
    with pytest.raises(SecateurError, match=r"^encode: a consumer has no weight of its own to put gates on$"):
        gated_weights(case.model, units, torch.ones(4))


@given(seeds, st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_a_random_network_depends_on_its_seed_alone(seed: int, state: int) -> None:
    torch.manual_seed(state)
    one = RandomNetwork(seed)
    torch.manual_seed(state + 1)
    again = RandomNetwork(seed)
    assert (one.sets, one.features, one.positions) == (again.sets, again.features, again.positions)
    states = zip(one.state_dict().items(), again.state_dict().items(), strict=True)
    assert all(a == b and x.equal(y) for (a, x), (b, y) in states)
    assert one.sample(3, seed=1).equal(again.sample(3, seed=1))
    assert not one.sample(3, seed=1).equal(again.sample(3, seed=2))
    assert one(one.sample(3)).equal(again(again.sample(3)))


class Functions(TorchFunctionMode):
    """What a network's forward pass calls, in order."""

    def __init__(self, network: RandomNetwork) -> None:
        super().__init__()
        self.called = list[str]()
        x = network.sample(2)
        with self:
            network(x)

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.called.append(function.__name__)
        return function(*args, **(kwargs or {}))


def test_other_seeds_give_other_networks() -> None:
    assert len({str(Functions(RandomNetwork(seed)).called) for seed in range(30)}) > 25


def test_every_parameter_and_buffer_of_a_random_network_is_random() -> None:
    norms = 0
    for network in random_networks(range(20)):
        values = Counter[float]()
        for name, tensor in network.state_dict().items():
            if tensor.is_floating_point():
                assert tensor.dtype == torch.float64
                values.update(tensor.flatten().tolist())
            norms += name.endswith("running_var")
            assert not name.endswith("running_var") or bool((tensor > 0).all())
        assert set(values.values()) == {1}
        assert min(parameter.min() for parameter in network.parameters()) < 0
        assert not {0.0, 1.0} & set(values)
    assert norms > 5


def test_random_networks_have_every_kind_of_step() -> None:
    kinds = Counter[str]()
    for network in random_networks(range(60)):
        called = Functions(network).called
        kinds.update(set(called))
        kinds["shared"] += called.count("linear") > sum(isinstance(layer, nn.Linear) for layer in network.layers)
        kinds["positions"] += network.positions > 0
    assert {kind for kind, n in kinds.items() if n >= 3} >= {
        "linear", "sigmoid", "tanh", "gelu", "softplus", "batch_norm", "add", "cat", "flatten", "shared", "positions",
    }  # fmt: skip


def test_gates_of_one_in_a_random_network_change_nothing_and_others_do() -> None:
    changed = 0
    for network in random_networks(range(20)):
        x = network.sample(4)
        for name, size in network.sets.items():
            one = torch.ones(size, dtype=torch.float64)
            assert network.gated(x, {name: one}).equal(network(x))
            changed += not network.gated(x, {name: 2 * one}).equal(network(x))
    assert changed > 20
