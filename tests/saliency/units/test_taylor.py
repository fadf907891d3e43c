"""Taylor estimates of first and second order.

Covers secateur.saliency.units.taylor1 and secateur.saliency.units.taylor2.
"""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from cases import CASES, randomise
from secateur import find_units, reference, score
from secateur.errors import DataError, ModelError
from secateur.objective.gated_loss import GatedLoss, ones
from secateur.objective.losses import LOSSES, binary_cross_entropy, cross_entropy, squared_error
from secateur.saliency.units.taylor1 import taylor1
from secateur.saliency.units.taylor2 import taylor2

Function = Callable[[Tensor], Tensor]
CURVES = {"sigmoid": reference.SIGMOID, "tanh": reference.TANH, "identity": reference.IDENTITY}


class Pointwise(nn.Module):
    """Any function as a layer."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def chain(widths: list[int], hidden: Function, output: Function, seed: int = 0) -> nn.Sequential:
    """Dense layers, each followed by its activation."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for i in range(len(widths) - 1):
        layers += [nn.Linear(widths[i], widths[i + 1]), Pointwise(hidden if i < len(widths) - 2 else output)]
    return randomise(nn.Sequential(*layers).double())


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def saliencies(
    criterion: Callable[[GatedLoss, Tensor], Tensor],
    model: nn.Module,
    x: Tensor,
    t: Tensor,
    loss: str,
    g: Tensor | None = None,
) -> Tensor:
    units = find_units(model, x)
    return criterion(GatedLoss(model, units, (x, t), loss), ones(model, units) if g is None else g)


def assert_close(got: Tensor, expected: Tensor) -> None:
    assert got.dtype == torch.float64
    assert got.shape == expected.shape
    assert (got - expected).abs().max() <= 1e-10 * expected.abs().max()


def exact(model: nn.Module, x: Tensor, t: Tensor, loss: str) -> Tensor:
    first, second = reference.dense_hessian(model, find_units(model, x), (x,), t, LOSSES[loss])
    return -first + 0.5 * second.diagonal()


def slope_and_curvature(function: Function, x: Tensor) -> tuple[Tensor, Tensor]:
    """f' and f'' of each value; f acts on each alone."""
    x = x.detach().requires_grad_()
    (slope,) = torch.autograd.grad(function(x).sum(), x, create_graph=True)
    if not slope.requires_grad:
        return slope, torch.zeros_like(slope)
    (curvature,) = torch.autograd.grad(slope.sum(), x)
    return slope.detach(), curvature


def dense(x: Tensor, layer: nn.Linear, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Both derivatives at the inputs of a layer from those at its sums, and the saliency of those inputs."""
    first, second = first @ layer.weight, second @ layer.weight**2
    return first, second, (-x * first + 0.5 * x**2 * second).sum(0)


def recursion(model: nn.Sequential, x: Tensor, t: Tensor) -> Tensor:
    """003 eq. 73-79 for a chain of dense layers and pointwise ones, squared error, all samples at once."""
    values = [x]
    for module in model:
        values.append(module(values[-1]))
    first, second = (values[-1] - t) / len(x), torch.ones_like(t) / len(x)
    found: list[Tensor] = []
    for module, value in zip(reversed(model), reversed(values[:-1]), strict=True):
        if isinstance(module, nn.Linear):
            first, second, terms = dense(value, module, first, second)
            found.insert(0, terms)
        else:
            slope, curvature = slope_and_curvature(module, value)
            first, second = first * slope, second * slope**2 + first * curvature
    return torch.cat(found[1:]).detach()  # the first layer's inputs are no units


# ---- taylor1


@pytest.mark.parametrize("loss", ["cross_entropy", "squared_error"])
@pytest.mark.parametrize("name", [name for name in CASES if name != "tied"])
def test_taylor1_is_minus_the_gradient(name: str, loss: str) -> None:
    case = CASES[name]()
    expected, _ = reference.dense_hessian(case.model, find_units(case.model, case.x), (case.x,), case.y, LOSSES[loss])
    assert_close(saliencies(taylor1, case.model, case.x, case.y, loss), -expected)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31), data=st.data())
def test_taylor1_of_random_networks_with_units_removed(seed: int, data: st.DataObject) -> None:
    network = reference.RandomNetwork(seed).double()
    x = network.sample(4, seed)
    t = torch.zeros_like(network(x))
    units = find_units(network, x)
    g = torch.tensor(data.draw(st.lists(st.booleans(), min_size=units.total, max_size=units.total))).double()
    expected = -torch.func.grad(lambda g: squared_error(network.gated(x, units.split(g)), t))(g)
    got = taylor1(GatedLoss(network, units, [(x[:1], t[:1]), (x[1:], t[1:])], "squared_error"), g)
    assert ((got - expected).abs() * g).max() <= 1e-10 * expected.abs().max()


# ---- taylor2 where it is exact


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    widths=st.lists(st.integers(1, 6), min_size=3, max_size=3),
    hidden=st.sampled_from(sorted(CURVES)),
    output=st.sampled_from(sorted(CURVES)),
)
def test_with_one_hidden_layer_taylor2_is_exact(seed: int, widths: list[int], hidden: str, output: str) -> None:
    model = chain(widths, CURVES[hidden].value, CURVES[output].value, seed)
    x, t = normal(5, widths[0], seed=seed), normal(5, widths[2], seed=seed + 1)
    assert_close(saliencies(taylor2, model, x, t, "squared_error"), exact(model, x, t, "squared_error"))


@pytest.mark.parametrize("outputs", [1, 3])
def test_with_one_hidden_layer_and_binary_outputs_taylor2_is_exact(outputs: int) -> None:
    model, x = chain([4, 6, outputs], torch.tanh, torch.clone), normal(7, 4)
    t = torch.randint(0, 2, (7, outputs), generator=torch.Generator().manual_seed(0)).double()
    expected = exact(model, x, t, "binary_cross_entropy")
    assert_close(saliencies(taylor2, model, x, t, "binary_cross_entropy"), expected)
    o, p = torch.tanh(model[0](x)), model(x).sigmoid()
    weight = model[2].weight
    by_hand = (-o * ((p - t) @ weight) + 0.5 * o**2 * ((p * (1 - p)) @ weight**2)).sum(0) / t.numel()
    assert_close(expected, by_hand.detach())


def test_taylor2_is_exact_for_outputs_at_many_places() -> None:
    model, x, t = chain([3, 5, 2], torch.tanh, torch.sigmoid), normal(4, 6, 3), normal(4, 6, 2)
    assert_close(saliencies(taylor2, model, x, t, "squared_error"), exact(model, x, t, "squared_error"))


def test_taylor2_is_exact_for_two_branches_that_are_concatenated() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.last = nn.Linear(3, 4), nn.Linear(3, 2), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return torch.sigmoid(self.last(torch.cat([torch.tanh(self.a(x)), torch.sin(self.b(x))], -1)))

    model, x, t = randomise(Net().double()), normal(5, 3), normal(5, 2)
    assert_close(saliencies(taylor2, model, x, t, "squared_error"), exact(model, x, t, "squared_error"))


def test_taylor2_takes_losses_of_ones_own() -> None:
    def quartic(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).pow(4).sum(1).mean()

    model, x, t = chain([3, 5, 2], torch.tanh, torch.sigmoid), normal(4, 3), normal(4, 2)
    units = find_units(model, x)
    first, second = reference.dense_hessian(model, units, (x,), t, quartic)
    assert_close(
        taylor2(GatedLoss(model, units, (x, t), quartic), ones(model, units)), -first + 0.5 * second.diagonal()
    )


def test_taylor2_of_a_linear_loss_has_the_curvature_of_the_network_alone() -> None:
    model, x, t = chain([3, 5, 2], torch.tanh, torch.sigmoid), normal(4, 3), normal(4, 2)
    units = find_units(model, x)
    first, second = reference.dense_hessian(model, units, (x,), t, lambda o, t: (o * t).mean())
    got = taylor2(GatedLoss(model, units, (x, t), lambda o, t: (o * t).mean()), ones(model, units))
    assert_close(got, -first + 0.5 * second.diagonal())


# ---- taylor2 against the paper


@pytest.mark.parametrize("output", ["sigmoid", "tanh", "identity"])
@pytest.mark.parametrize("hidden", ["sigmoid", "tanh"])
@pytest.mark.parametrize("widths", [[4, 5, 3], [4, 5, 6, 3], [4, 6, 1, 5, 2], [3, 4, 5, 6, 4, 1]], ids=str)
def test_taylor2_is_the_recursion_of_the_paper(widths: list[int], hidden: str, output: str) -> None:
    model = chain(widths, CURVES[hidden].value, CURVES[output].value)
    x, t = normal(4, widths[0]), normal(4, widths[-1])
    layers = [module for module in model if isinstance(module, nn.Linear)]
    curves = [CURVES[hidden]] * (len(layers) - 1) + [CURVES[output]]
    weights, biases = [layer.weight for layer in layers], [layer.bias for layer in layers]
    each = [
        torch.cat(
            reference.second_derivative_back_propagation(
                weights, biases, curves, x[n : n + 1], lambda o, n=n: (o - t[n], torch.ones_like(o))
            )
        )
        for n in range(4)
    ]
    expected = torch.stack(each).mean(0).detach()
    assert_close(saliencies(taylor2, model, x, t, "squared_error"), expected)
    assert_close(recursion(model, x, t), expected)


@pytest.mark.parametrize("widths", [[4, 5, 3], [4, 5, 6, 3], [4, 6, 3, 5, 2]], ids=str)
def test_taylor2_with_cross_entropy_keeps_the_curvature_of_each_output_alone(widths: list[int]) -> None:
    model = chain(widths, torch.sigmoid, torch.clone)
    x, t = normal(4, widths[0]), torch.tensor([0, 1, 1, widths[-1] - 1])
    layers = [module for module in model if isinstance(module, nn.Linear)]
    curves = [reference.SIGMOID] * (len(layers) - 1) + [reference.IDENTITY]
    weights, biases = [layer.weight for layer in layers], [layer.bias for layer in layers]

    def derivatives(o: Tensor, n: int) -> tuple[Tensor, Tensor]:
        p = o.exp() / o.exp().sum()
        return p - F.one_hot(t[n], widths[-1]), p * (1 - p)

    each = [
        torch.cat(
            reference.second_derivative_back_propagation(
                weights, biases, curves, x[n : n + 1], lambda o, n=n: derivatives(o, n)
            )
        )
        for n in range(4)
    ]
    got = saliencies(taylor2, model, x, t, "cross_entropy")
    assert_close(got, torch.stack(each).mean(0).detach())
    beyond = exact(model, x, t, "cross_entropy")  # its outputs are coupled: p(1 − p) is not all
    assert (got - beyond).abs().max() > 1e-3 * beyond.abs().max()


@pytest.mark.parametrize("hidden", ["sigmoid", "tanh"])
def test_with_two_hidden_layers_taylor2_drops_what_hessian_keeps(hidden: str) -> None:
    model, x, t = chain([4, 5, 6, 3], CURVES[hidden].value, torch.clone), normal(8, 4), normal(8, 3)
    got, all_of_it = saliencies(taylor2, model, x, t, "squared_error"), exact(model, x, t, "squared_error")
    assert_close(got[5:], all_of_it[5:])  # the last hidden layer
    assert (got[:5] - all_of_it[:5]).abs().max() > 0.05 * all_of_it[:5].abs().max()
    first_order = saliencies(taylor1, model, x, t, "squared_error")
    assert (got[:5] - first_order[:5]).abs().max() > 0.05 * first_order[:5].abs().max()


# ---- taylor2 for other networks


ACTIVATIONS: dict[str, Function] = {
    "softplus": F.softplus,
    "gelu": F.gelu,
    "gelu by tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "elu": F.elu,
    "selu": F.selu,
    "celu": lambda x: F.celu(x, 0.7),
    "mish": F.mish,
    "relu": torch.relu,
    "leaky relu": lambda x: F.leaky_relu(x, 0.2),
    "sine": torch.sin,
    "gauss": lambda x: torch.exp(-(x**2)),
    "x ** 2": lambda x: x**2,
    "x * x": lambda x: x * x,
    "cubic": lambda x: 0.1 * x**3 - x,
    "1 / (1 + x ** 2)": lambda x: 1 / (1 + x**2),
    "largest of two": lambda x: torch.maximum(x, 0.1 * x),
    "x * sigmoid(x)": lambda x: x * torch.sigmoid(x),
    "x * tanh(softplus(x))": lambda x: x * torch.tanh(F.softplus(x)),
    "x + tanh(x)": lambda x: x + torch.tanh(x),
    "softsign": F.softsign,
    "tanhshrink": F.tanhshrink,
    "relu by a mask": lambda x: x * (x > 0),
    "leaky by where": lambda x: torch.where(x > 0, x, 0.2 * x),
}


@pytest.mark.parametrize("where", ["hidden", "output"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_taylor2_passes_through_any_pointwise_activation(activation: str, where: str) -> None:
    function = ACTIVATIONS[activation]
    hidden, output = (function, torch.tanh) if where == "hidden" else (torch.tanh, function)
    model, x, t = chain([4, 5, 6, 3], hidden, output), normal(5, 4), normal(5, 3)
    assert_close(saliencies(taylor2, model, x, t, "squared_error"), recursion(model, x, t))


@pytest.mark.parametrize("function", [F.hardswish, F.logsigmoid], ids=["hardswish", "logsigmoid"])
def test_taylor2_passes_through_activations_that_pytorch_does_not_tag_as_pointwise(function: Function) -> None:
    model, x, t = chain([4, 5, 6, 3], function, torch.tanh), normal(5, 4), normal(5, 3)
    assert_close(saliencies(taylor2, model, x, t, "squared_error"), recursion(model, x, t))


def stored(x: Tensor, norm: nn.BatchNorm1d) -> Tensor:
    """Batch norm in eval mode, written out."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return (x - norm.running_mean) / torch.sqrt(norm.running_var + norm.eps) * norm.weight + norm.bias


def test_taylor2_passes_through_batch_norm_and_dropout() -> None:
    torch.manual_seed(0)
    one, two = nn.BatchNorm1d(5), nn.BatchNorm1d(6)
    dense_layers = [nn.Linear(4, 5), nn.Linear(5, 6), nn.Linear(6, 3)]
    a, b, c = dense_layers
    model = nn.Sequential(a, one, nn.Tanh(), nn.Dropout(0.5), b, nn.Sigmoid(), two, nn.Dropout(0.2), c, nn.Tanh())
    randomise(model.double())
    written = nn.Sequential(
        a, Pointwise(lambda x: torch.tanh(stored(x, one))), b, Pointwise(lambda x: stored(torch.sigmoid(x), two)),
        c, nn.Tanh(),
    )  # fmt: skip
    x, t = normal(5, 4), normal(5, 3)
    assert_close(saliencies(taylor2, model.train(), x, t, "squared_error"), recursion(written, x, t))


def test_taylor2_passes_through_batch_norm_that_has_several_outputs() -> None:
    """As where a view is written to in place, which no in-place graph can be kept for."""

    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.norm, self.b = nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 6)
            self.last = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.norm(self.a(x))
            h.view(-1, h.shape[-1]).tanh_()
            return self.last(torch.sigmoid(self.b(h)))

    model, x, t = randomise(InPlace().double()), normal(5, 4), normal(5, 3)
    units = find_units(model, x)
    assert any(
        "batch_norm" in str(node.target) and "no_training" in str(node.target) for node in units.captured.graph.nodes
    )
    written = nn.Sequential(
        model.a, Pointwise(lambda x: torch.tanh(stored(x, model.norm))), model.b, nn.Sigmoid(), model.last
    )
    assert_close(saliencies(taylor2, model, x, t, "squared_error"), recursion(written, x, t))


def test_taylor2_passes_through_flatten() -> None:
    """Each unit is at three places, each place a term of its own: nothing between places."""
    torch.manual_seed(0)
    model = randomise(
        nn.Sequential(
            nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 4), nn.Sigmoid(), nn.Flatten(), nn.Linear(12, 2)
        ).double()
    )
    x, t = normal(5, 3, 2), normal(5, 2)
    o1 = torch.tanh(model[0](x))
    o2 = torch.sigmoid(model[2](o1))
    first, second = (model(x) - t) / 5, torch.ones(5, 2).double() / 5
    first = (first @ model[5].weight).reshape(5, 3, 4)
    second = (second @ model[5].weight ** 2).reshape(5, 3, 4)
    last = (-o2 * first + 0.5 * o2**2 * second).sum((0, 1))
    slope, curvature = o2 * (1 - o2), o2 * (1 - o2) * (1 - 2 * o2)
    first, second = first * slope, second * slope**2 + first * curvature
    first, second = first @ model[2].weight, second @ model[2].weight ** 2
    expected = torch.cat([(-o1 * first + 0.5 * o1**2 * second).sum((0, 1)), last]).detach()
    assert_close(saliencies(taylor2, model, x, t, "squared_error"), expected)


class Residual(nn.Module):
    """h = σ(A x); a = tanh(B h); r = a + C a; y = D [r, h]."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.add, self.last = (
            nn.Linear(4, 3),
            nn.Linear(3, 5),
            nn.Linear(5, 5),
            nn.Linear(8, 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        h = torch.sigmoid(self.first(x))
        a = torch.tanh(self.second(h))
        return self.last(torch.cat([a + self.add(a), h], -1))


def test_taylor2_of_a_residual_network_written_out() -> None:
    torch.manual_seed(0)
    model = randomise(Residual().double())
    x, t = normal(6, 4), normal(6, 2)
    units = find_units(model, x)
    assert [unit_set.name for unit_set in units] == ["first", "second"]
    h = torch.sigmoid(model.first(x))
    a = torch.tanh(model.second(h))
    r = a + model.add(a)
    first_y, second_y = (model(x) - t) / 6, torch.ones(6, 2).double() / 6
    weights = model.last.weight
    first_r, second_r = first_y @ weights[:, :5], second_y @ weights[:, :5] ** 2
    first_h, second_h = first_y @ weights[:, 5:], second_y @ weights[:, 5:] ** 2
    first_a, second_a = first_r @ model.add.weight, second_r @ model.add.weight**2  # as `add` consumes a
    second_set = -r * first_r + 0.5 * r**2 * second_r - a * first_a + 0.5 * a**2 * second_a
    first_a, second_a = first_a + first_r, second_a + second_r  # the path around `add`; none between the two
    first_x, second_x = first_a * (1 - a**2), second_a * (1 - a**2) ** 2 - first_a * 2 * a * (1 - a**2)
    first_in, second_in = first_x @ model.second.weight, second_x @ model.second.weight**2  # as `second` consumes h
    first_set = -h * first_h + 0.5 * h**2 * second_h - h * first_in + 0.5 * h**2 * second_in
    expected = torch.cat([first_set.sum(0), second_set.sum(0)]).detach()
    assert_close(saliencies(taylor2, model, x, t, "squared_error"), expected)
    assert (expected - exact(model, x, t, "squared_error")).abs().max() > 0.05 * expected.abs().max()


def test_taylor2_passes_through_products_with_a_constant_and_broadcasting() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.scale = nn.Linear(4, 5), nn.Linear(5, 3), nn.Parameter(torch.ones(3))

        def forward(self, x: Tensor) -> Tensor:
            return self.b(2 * torch.tanh(self.a(x)) - 0.5) * self.scale + 1

    model, x, t = randomise(Net().double()), normal(6, 4), normal(6, 3)
    assert_close(saliencies(taylor2, model, x, t, "squared_error"), exact(model, x, t, "squared_error"))


def test_taylor2_passes_through_one_value_broadcast_to_several_shapes() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 5), nn.Linear(5, 1)
            self.three, self.two = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))

        def forward(self, x: Tensor) -> Tensor:
            one = self.b(torch.tanh(self.a(x)))
            return torch.cat([one * self.three, torch.sigmoid(one * self.two)], -1)

    model, x, t = randomise(Net().double()), normal(6, 4), normal(6, 5)
    assert_close(saliencies(taylor2, model, x, t, "squared_error"), exact(model, x, t, "squared_error"))


def test_taylor2_passes_through_sums_over_places() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 3), nn.Linear(3, 5), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(torch.tanh(self.b(torch.sigmoid(self.a(x)))).sum(1))

    model, x, t = randomise(Net().double()), normal(6, 2, 4), normal(6, 2)
    first_set = torch.sigmoid(model.a(x))
    places = torch.tanh(model.b(first_set))
    first, second, last = dense(places.sum(1), model.c, (model(x) - t) / 6, torch.ones(6, 2).double() / 6)
    first, second = first[:, None], second[:, None]  # the same at each place
    first, second = first * (1 - places**2), second * (1 - places**2) ** 2 - first * 2 * places * (1 - places**2)
    *_, terms = dense(first_set, model.b, first, second)
    expected = torch.cat([terms.sum(0), last]).detach()
    assert_close(saliencies(taylor2, model, x, t, "squared_error"), expected)


class Pooled(nn.Module):
    """Images: a = tanh(A x), averaged; b = σ(B a), the largest of each window; the mean c over positions; y = D c."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.last = nn.Conv2d(2, 3, 3), nn.Conv2d(3, 4, 2), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        a = F.avg_pool2d(torch.tanh(self.a(x)), 3, 2, 1, count_include_pad=False)
        return self.last(F.max_pool2d(torch.sigmoid(self.b(a)), 2, 1).mean((2, 3)))


def test_taylor2_passes_through_pooling_written_out() -> None:
    """Every step as a matrix."""
    model, x, t = randomise(Pooled().double()), normal(3, 2, 9, 8), normal(3, 2)
    a = torch.tanh(model.a(x)).detach()
    averaged = F.avg_pool2d(a, 3, 2, 1, count_include_pad=False)
    b = torch.sigmoid(model.b(averaged)).detach()
    steps = [
        (F.max_pool2d(b, 2, 1), lambda v: v.mean((2, 3))),
        (b, lambda v: F.max_pool2d(v, 2, 1)),
        (averaged, model.b),
    ]
    c = F.max_pool2d(b, 2, 1).mean((2, 3))
    first, second, last = dense(c, model.last, (model(x) - t) / 3, torch.ones(3, 2).double() / 3)
    for i, (value, function) in enumerate(steps):
        if i == 2:
            first, second = first * b * (1 - b), second * (b * (1 - b)) ** 2 + first * b * (1 - b) * (1 - 2 * b)
        matrix = torch.autograd.functional.jacobian(function, value).reshape(first.numel(), value.numel())
        first, second = (matrix.T @ first.flatten()), (matrix.T**2 @ second.flatten())
        first, second = first.reshape(value.shape), second.reshape(value.shape)
    terms = (-averaged * first + 0.5 * averaged**2 * second).sum((0, 2, 3))
    assert_close(saliencies(taylor2, model, x, t, "squared_error"), torch.cat([terms, last]).detach())


def test_taylor2_passes_through_the_parts_of_a_split() -> None:
    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(4, 6), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            left, right = self.b(torch.tanh(self.a(x))).chunk(2, -1)
            return self.c(torch.sin(left) + torch.sigmoid(right))

    model, x, t = randomise(Gate().double()), normal(5, 3), normal(5, 2)
    h = torch.tanh(model.a(x))
    left, right = model.b(h).chunk(2, -1)
    o, s = torch.sin(left) + torch.sigmoid(right), torch.sigmoid(right)
    first, second, last = dense(o, model.c, (model(x) - t) / 5, torch.ones(5, 2).double() / 5)
    first, second = (
        torch.cat([first * torch.cos(left), first * s * (1 - s)], -1),
        torch.cat(
            [
                second * torch.cos(left) ** 2 - first * torch.sin(left),
                second * (s * (1 - s)) ** 2 + first * s * (1 - s) * (1 - 2 * s),
            ],
            -1,
        ),
    )
    *_, terms = dense(h, model.b, first, second)
    assert_close(saliencies(taylor2, model, x, t, "squared_error"), torch.cat([terms, last]).detach())


def test_taylor2_of_values_that_are_summed_over_along_two_dimensions() -> None:
    """Each value has a gate of both sets, and a term in both."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Parameter(torch.ones(5, 3, 4)), nn.Parameter(torch.ones(3, 4, 2))

        def forward(self, x: Tensor) -> Tensor:
            return torch.tensordot(torch.tanh(torch.einsum("ni,iab->nab", x, self.a)), self.b, 2)

    model, x, t = randomise(Two().double()), normal(6, 5), normal(6, 2)
    o = torch.tanh(torch.einsum("ni,iab->nab", x, model.a))
    first = torch.einsum("no,abo->nab", (model(x) - t) / 6, model.b)
    terms = -o * first + 0.5 * o**2 * (model.b**2).sum(-1) / 6
    expected = {3: terms.sum((0, 2)).detach(), 4: terms.sum((0, 1)).detach()}
    got = score(model, (x, t), "squared_error", criterion="taylor2")
    assert sorted(map(len, got.values())) == [3, 4]
    for one in got.values():
        assert_close(one, expected[len(one)])


@pytest.mark.parametrize("loss", ["squared_error", "cross_entropy"])
@pytest.mark.parametrize("name", CASES)
def test_several_batches_give_what_one_gives(name: str, loss: str) -> None:
    case = CASES[name]()
    units = find_units(case.model, case.x)
    data = [(case.x[i], case.y[i]) for i in (slice(0, 1), slice(1, 4), slice(4, 6))]
    at_once, split = (
        taylor2(GatedLoss(case.model, units, d, loss), ones(case.model, units)) for d in ((case.x, case.y), data)
    )
    assert_close(split, at_once)
    alone = [taylor2(GatedLoss(case.model, units, d, loss), ones(case.model, units)) for d in data]
    assert_close(at_once, sum(n / 6 * one for n, one in zip((1, 3, 2), alone, strict=True)))


@pytest.mark.parametrize("removed", [[0], [2, 6], [0, 1, 2, 3, 4], [5, 6, 7, 8, 9, 10]], ids=str)
def test_taylor2_with_units_already_removed(removed: list[int]) -> None:
    """A unit removed is one whose outgoing weights are zero."""
    model, x, t = chain([4, 5, 6, 3], torch.sigmoid, torch.tanh), normal(5, 4), normal(5, 3)
    g = torch.ones(11, dtype=torch.float64)
    g[removed] = 0
    got = saliencies(taylor2, model, x, t, "squared_error", g)
    with torch.no_grad():
        model[2].weight *= g[:5]
        model[4].weight *= g[5:]
    expected = recursion(model, x, t)
    assert ((got - expected).abs() * g).max() <= 1e-10 * expected.abs().max()
    assert ((got - saliencies(taylor2, model, x, t, "squared_error")).abs() * g).max() <= 1e-10 * expected.abs().max()


def softmax_inside() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3), nn.Softmax(-1), nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)
    ).double()


def test_an_operation_between_outputs_is_refused_by_name() -> None:
    model, x, t = softmax_inside(), normal(5, 4), normal(5, 2)
    with pytest.raises(ModelError) as caught:
        score(model, (x, t), "squared_error", criterion="taylor2")
    assert str(caught.value) == (
        "second-derivative back-propagation does not apply to softmax (softmax), only to pointwise operations, sums "
        "with weights, averages, and operations that move values; criterion='hessian', of weights 'obd', takes any"
    )
    got = score(model, (x, t), "squared_error", criterion="hessian")
    assert_close(torch.cat(list(got.values())), exact(model, x, t, "squared_error"))


def test_an_operation_before_the_first_unit_is_never_passed() -> None:
    model, x, t = nn.Sequential(nn.Softmax(-1), *chain([4, 5, 3], torch.tanh, torch.tanh)), normal(5, 4), normal(5, 3)
    assert_close(saliencies(taylor2, model, x, t, "squared_error"), exact(model, x, t, "squared_error"))


@pytest.mark.parametrize("criterion", ["taylor1", "taylor2", "hessian"])
def test_a_loss_without_a_derivative_is_refused(criterion: str) -> None:
    case = CASES["two_hidden"]()
    with pytest.raises(DataError, match="loss"):
        score(case.model, (case.x, case.y), lambda o, t: (o.argmax(1) != t).double().mean(), criterion=criterion)


def test_the_three_losses_act_as_their_formulas_say() -> None:
    """Diagonals of their Hessians at the outputs, by which the recursion starts."""
    o, y = normal(1, 4), torch.tensor([2])
    p, q = o.softmax(1), o.sigmoid()
    for loss, t, diagonal in (
        (cross_entropy, y, p * (1 - p)),
        (binary_cross_entropy, torch.tensor([[0.0, 1.0, 1.0, 0.0]]), q * (1 - q) / 4),
        (squared_error, y, torch.ones(1, 4)),
    ):
        matrix = torch.func.jacrev(torch.func.grad(lambda o: loss(o, t)))(o).reshape(4, 4)
        assert torch.allclose(matrix.diagonal(), diagonal.double()[0], rtol=1e-12)
