"""Second derivatives in the gates against dense Hessians.

Covers secateur.curvature.gate_hessian and secateur.saliency.units.hessian.
"""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cases import CASES, in_batches, randomise, targets
from secateur import find_units, reference
from secateur.objective.gated_loss import GatedLoss, ones
from secateur.objective.losses import LOSSES
from secateur.saliency.units.hessian import hessian

Loss = Callable[[Tensor, Tensor], Tensor]


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def second_order(error: Callable[[Tensor], Tensor], g: Tensor) -> Tensor:
    """−∂E/∂g + ½ diag ∂²E/∂g², densely."""
    first = torch.func.grad(error)(g)
    second = torch.func.jacrev(torch.func.grad(error))(g)
    return (-first + 0.5 * second.diagonal()).detach()


def assert_close(got: Tensor, expected: Tensor) -> None:
    assert got.dtype == torch.float64
    assert (got - expected).abs().max() <= 1e-10 * expected.abs().max()


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    loss=st.sampled_from(["binary_cross_entropy", "squared_error"]),
    cuts=st.lists(st.integers(0, 4), max_size=2),
)
def test_hessian_is_the_diagonal_of_the_dense_hessian(seed: int, loss: str, cuts: list[int]) -> None:
    network = reference.RandomNetwork(seed).double()
    x = network.sample(4, seed)
    t = targets(loss, network(x), seed)
    units = find_units(network, x)
    got = hessian(GatedLoss(network, units, in_batches(x, t, cuts), loss), ones(network, units))
    first, second = reference.dense_hessian(network, units, (x,), t, LOSSES[loss])
    scale = (first.abs() + second.diagonal().abs()).max()
    assert (got - (-first + 0.5 * second.diagonal())).abs().max() <= 1e-10 * scale


@pytest.mark.parametrize("loss", ["cross_entropy", "squared_error"])
@pytest.mark.parametrize("name", [name for name in CASES if name != "tied"])
def test_hessian_on_the_table(name: str, loss: str) -> None:
    case = CASES[name]()
    units = find_units(case.model, case.x)
    got = hessian(GatedLoss(case.model, units, in_batches(case.x, case.y, [2]), loss), ones(case.model, units))
    first, second = reference.dense_hessian(case.model, units, (case.x,), case.y, LOSSES[loss])
    assert_close(got, (-first + 0.5 * second.diagonal()).detach())
    assert (got + first).abs().max() > 1e-3 * got.abs().max()  # the second order is no rounding error


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31), data=st.data())
def test_hessian_with_units_already_removed(seed: int, data: st.DataObject) -> None:
    network = reference.RandomNetwork(seed).double()
    x = network.sample(4, seed)
    t = targets("squared_error", network(x), seed)
    units = find_units(network, x)
    g = torch.tensor(data.draw(st.lists(st.booleans(), min_size=units.total, max_size=units.total))).double()

    def error(g: Tensor) -> Tensor:
        return LOSSES["squared_error"](network.gated(x, units.split(g)), t)

    got = hessian(GatedLoss(network, units, (x, t), "squared_error"), g)
    expected = second_order(error, g)
    assert ((got - expected).abs() * g).max() <= 1e-10 * expected.abs().max()


def test_hessian_of_tied_weights() -> None:
    case = CASES["tied"]()
    units = find_units(case.model, case.x)
    layer = case.model.encode
    got = hessian(GatedLoss(case.model, units, (case.x, case.y), "cross_entropy"), ones(case.model, units))
    gated = lambda g: (torch.tanh(layer(case.x)) * g) @ layer.weight  # noqa: E731
    expected = second_order(lambda g: LOSSES["cross_entropy"](gated(g), case.y), torch.ones(4).double())
    assert_close(got, expected)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_hessian_of_a_linear_network_with_a_linear_loss(depth: int) -> None:
    """E is linear in every gate alone: no second derivative, and all of ΔE in the first."""
    torch.manual_seed(0)
    layers = [nn.Linear(3, 4), *(nn.Linear(4, 4) for _ in range(depth - 1)), nn.Linear(4, 2)]
    model, x, t = nn.Sequential(*layers).double(), normal(5, 3), normal(5, 2)
    loss: Loss = lambda o, t: (o * t).mean()  # noqa: E731
    units = find_units(model, x)
    got = hessian(GatedLoss(model, units, in_batches(x, t, [2]), loss), ones(model, units))
    assert_close(got, reference.leave_one_out(model, units, (x,), t, loss))


def test_hessian_of_relu_networks() -> None:
    torch.manual_seed(0)
    model = randomise(
        nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3), nn.ReLU()).double()
    )
    x, t = normal(8, 4), normal(8, 3)
    units = find_units(model, x)
    got = hessian(GatedLoss(model, units, (x, t), "squared_error"), ones(model, units))
    weights = model[2].weight, model[4].weight

    def error(g: Tensor) -> Tensor:
        first = torch.relu(model[0](x)) * g[:6]
        second = torch.relu(first @ weights[0].T + model[2].bias) * g[6:]
        return LOSSES["squared_error"](torch.relu(second @ weights[1].T + model[4].bias), t)

    assert_close(got, second_order(error, torch.ones(11).double()))


def test_a_relu_that_never_opens_has_no_saliency() -> None:
    torch.manual_seed(0)
    model, x, t = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).double(), normal(20, 4), normal(20, 3)
    with torch.no_grad():
        model[0].bias[2] = -1000.0
    units = find_units(model, x)
    got = hessian(GatedLoss(model, units, (x, t), "squared_error"), ones(model, units))
    assert got[2] == 0
    assert got[[0, 1, 3, 4]].abs().min() > 0


class Unused(nn.Module):
    """The units of `side` are consumed by `dead`, and that by nothing."""

    def __init__(self, uses_main: bool) -> None:
        super().__init__()
        self.uses_main = uses_main
        self.main, self.last = nn.Linear(3, 4), nn.Linear(4, 2)
        self.side, self.dead = nn.Linear(3, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        self.dead(torch.tanh(self.side(x)))
        y = self.last(torch.tanh(self.main(x)))
        return y if self.uses_main else x[:, :2] + self.last.bias


def test_a_unit_whose_gate_does_not_reach_the_output_has_no_saliency() -> None:
    torch.manual_seed(0)
    model, x, t = Unused(True).double(), normal(6, 3), normal(6, 2)
    units = find_units(model, x)
    got = units.split(hessian(GatedLoss(model, units, (x, t), "squared_error"), ones(model, units)))
    assert got["side"].tolist() == [0.0] * 5

    def error(g: Tensor) -> Tensor:
        return LOSSES["squared_error"](model.last(torch.tanh(model.main(x)) * g), t)

    assert_close(got["main"], second_order(error, torch.ones(4).double()))


def test_where_no_gate_reaches_the_output_no_unit_has_saliency() -> None:
    torch.manual_seed(0)
    model, x, t = Unused(False).double(), normal(6, 3), normal(6, 2)
    units = find_units(model, x)
    assert {"main", "side"} <= {unit_set.name for unit_set in units}
    got = hessian(GatedLoss(model, units, (x, t), "squared_error"), ones(model, units))
    assert got.tolist() == [0.0] * units.total
