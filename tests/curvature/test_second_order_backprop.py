"""Second-derivative back-propagation against Jacobians, the reference and recursions written out."""

import itertools
from collections.abc import Callable, Collection
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from cases import First, randomise
from secateur import reference
from secateur.curvature.second_order_backprop import Pair, at_outputs, second_derivatives
from secateur.errors import ModelError
from secateur.objective.losses import squared_error
from secateur.structure.capture import Captured, capture
from secateur.structure.graph_run import bind
from secateur.structure.inputs import as_call

Function = Callable[[Tensor], Tensor]


class Whole(nn.Module):
    """Any function of the inputs as a model, with a weight that it does not use."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function, self.unused = function, nn.Parameter(torch.ones(1).double())

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def run(model: nn.Module, x: Tensor) -> tuple[Captured, dict]:
    """The captured graph and the value of each of its nodes."""
    captured = capture(model, as_call(x))
    values = dict(zip(captured.graph.find_nodes(op="placeholder"), bind(captured, model, as_call(x)), strict=True))
    for node in captured.graph.nodes:
        if node.op == "call_function":
            args, kwargs = torch.fx.map_arg((node.args, dict(node.kwargs)), values.__getitem__)
            values[node] = node.target(*args, **kwargs)
    return captured, {n: v.detach() if isinstance(v, Tensor) else v for n, v in values.items()}


def derivatives(model: nn.Module, x: Tensor, wanted: Collection[str], *at: Tensor) -> dict[str, Pair]:
    """By name of the weight, "x" for the inputs, from derivatives at the one output, or of ½ Σ (o − 0)²."""
    captured, values = run(model, x)
    returned = next(reversed(captured.graph.nodes))
    names = captured.weights | {captured.inputs[0]: "x"}
    nodes = {n: names[n.name] for n in captured.graph.find_nodes(op="placeholder") if names.get(n.name) in wanted}
    if at:
        start = {returned.all_input_nodes[0]: (at[0], at[1])}
    else:
        start = at_outputs(returned, values, lambda o: squared_error(o[0], torch.zeros_like(o[0])))
    found = second_derivatives(captured.graph, values, start, nodes.keys())
    assert found.keys() <= nodes.keys()
    return {nodes[node]: pair for node, pair in found.items()}


def assert_close(got: Tensor, expected: Tensor) -> None:
    assert got.shape == expected.shape
    assert got.dtype == torch.float64
    assert (got - expected).abs().max() <= 1e-10 * expected.abs().max()


def by_jacobian(function: Function, x: Tensor, first: Tensor, second: Tensor) -> Pair:
    """Jᵀ ∂E/∂z and (J∘J)ᵀ ∂²E/∂z² for a function that is linear at x."""
    matrix = torch.autograd.functional.jacobian(function, x).reshape(first.numel(), x.numel())
    return (matrix.T @ first.flatten()).reshape(x.shape), ((matrix.T**2) @ second.flatten()).reshape(x.shape)


AVERAGES: dict[str, tuple[tuple[int, ...], Function]] = {
    "avg_pool1d": ((2, 3, 7), lambda x: F.avg_pool1d(x, 2)),
    "avg_pool1d, overlapping, padded": ((2, 3, 7), lambda x: F.avg_pool1d(x, 3, 2, 1)),
    "avg_pool1d, padding not counted, ceil": ((2, 3, 8), lambda x: F.avg_pool1d(x, 3, 2, 1, True, False)),
    "avg_pool2d": ((2, 3, 6, 5), lambda x: F.avg_pool2d(x, 2)),
    "avg_pool2d, overlapping": ((2, 3, 6, 5), lambda x: F.avg_pool2d(x, (3, 2), (1, 2))),
    "avg_pool2d, padded": ((2, 3, 6, 5), lambda x: F.avg_pool2d(x, 3, 2, 1)),
    "avg_pool2d, padding not counted": ((2, 3, 6, 5), lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False)),
    "avg_pool2d, ceil": ((2, 3, 6, 7), lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True)),
    "avg_pool2d, ceil, padding not counted": ((2, 3, 6, 6), lambda x: F.avg_pool2d(x, 3, 2, 1, True, False)),
    "avg_pool2d, divisor": ((2, 3, 6, 5), lambda x: F.avg_pool2d(x, 3, 1, 1, divisor_override=5)),
    "avg_pool3d, padded": ((2, 2, 4, 5, 3), lambda x: F.avg_pool3d(x, 3, 2, 1)),
    "avg_pool3d, ceil, padding not counted": ((2, 2, 4, 4, 4), lambda x: F.avg_pool3d(x, 3, 2, 1, True, False)),
    "adaptive_avg_pool1d": ((2, 3, 7), lambda x: F.adaptive_avg_pool1d(x, 3)),
    "adaptive_avg_pool2d": ((2, 3, 7, 5), lambda x: F.adaptive_avg_pool2d(x, (3, 2))),
    "adaptive_avg_pool2d, global": ((2, 3, 7, 5), lambda x: F.adaptive_avg_pool2d(x, 1)),
    "adaptive_avg_pool2d, to more": ((2, 3, 3, 2), lambda x: F.adaptive_avg_pool2d(x, (5, 3))),
    "adaptive_avg_pool3d": ((2, 2, 3, 5, 4), lambda x: F.adaptive_avg_pool3d(x, 2)),
    "mean": ((2, 3, 7, 5), lambda x: x.mean((2, 3))),
    "mean, dimension kept": ((2, 3, 7, 5), lambda x: x.mean(-1, keepdim=True)),
    "mean over units": ((2, 3, 7), lambda x: x.mean(1)),
}
PICKED: dict[str, tuple[tuple[int, ...], Function]] = {
    "max_pool1d": ((2, 3, 7), lambda x: F.max_pool1d(x, 3, 2, 1)),
    "max_pool2d": ((2, 3, 6, 5), lambda x: F.max_pool2d(x, 3, 1, 1)),
    "max_pool2d, dilated, ceil": ((2, 3, 6, 6), lambda x: F.max_pool2d(x, 2, 2, 1, 2, ceil_mode=True)),
    "max_pool2d with indices": ((2, 3, 6, 5), lambda x: F.max_pool2d(x, 2, return_indices=True)[0]),
    "max_pool3d": ((2, 2, 4, 5, 3), lambda x: F.max_pool3d(x, 2)),
    "adaptive_max_pool1d": ((2, 3, 7), lambda x: F.adaptive_max_pool1d(x, 3)),
    "adaptive_max_pool2d": ((2, 3, 7, 5), lambda x: F.adaptive_max_pool2d(x, (3, 2))),
    "constant padding": ((2, 3, 4, 5), lambda x: F.pad(x, (1, 2, 0, 1), value=3.0)),
    "cut by padding": ((2, 3, 4, 5), lambda x: F.pad(x, (-1, 2))),
    "reflected": ((2, 3, 4, 5), lambda x: F.pad(x, (1, 2, 2, 1), mode="reflect")),
    "replicated": ((2, 3, 4, 5), lambda x: F.pad(x, (1, 2, 2, 1), mode="replicate")),
    "nearest": ((2, 3, 4, 5), lambda x: F.interpolate(x, scale_factor=2)),
    "nearest to a size": ((2, 3, 4, 5), lambda x: F.interpolate(x, size=(7, 3))),
    "flipped": ((2, 3, 4), lambda x: x.flip(1)),
    "rolled": ((2, 3, 4), lambda x: x.roll(1, 2)),
    "indexed": ((2, 3, 4), lambda x: x[:, [0, 2, 2]]),
    "second of a split": ((2, 6), lambda x: x.split([2, 4], 1)[1]),
    "third of chunks and the first": ((2, 6), lambda x: torch.cat([x.chunk(3, 1)[2], x.chunk(3, 1)[0]], 1)),
    "same twice": ((2, 3), lambda x: torch.cat([x, x], 1)),
    "sum": ((2, 3, 4), lambda x: x.sum(2)),
}


@pytest.mark.parametrize("name", AVERAGES | PICKED)
def test_linear_operations_are_passed_by_the_squares_of_their_coefficients(name: str) -> None:
    shape, function = (AVERAGES | PICKED)[name]
    x = normal(*shape)
    first, second = normal(*function(x).shape, seed=2), normal(*function(x).shape, seed=3)
    got = derivatives(Whole(function), x, ["x"], first, second)["x"]
    for mine, expected in zip(got, by_jacobian(function, x, first, second), strict=True):
        assert_close(mine, expected)


LAYERS: dict[str, tuple[tuple[int, ...], Callable[[], nn.Module]]] = {
    "linear": ((4, 3), lambda: nn.Linear(3, 5)),
    "linear at positions": ((2, 4, 3), lambda: nn.Linear(3, 5)),
    "without bias": ((4, 3), lambda: nn.Linear(3, 5, bias=False)),
    "conv1d": ((2, 3, 7), lambda: nn.Conv1d(3, 4, 3, padding=1)),
    "conv2d": ((2, 3, 6, 5), lambda: nn.Conv2d(3, 4, 3, stride=2, padding=1)),
    "conv2d, dilated": ((2, 3, 6, 5), lambda: nn.Conv2d(3, 4, 2, dilation=2, padding="same")),
    "grouped": ((2, 4, 6, 5), lambda: nn.Conv2d(4, 6, 3, groups=2, bias=False)),
    "depthwise": ((2, 4, 5, 5), lambda: nn.Conv2d(4, 4, 3, groups=4)),
    "conv3d": ((2, 2, 4, 3, 3), lambda: nn.Conv3d(2, 3, 2)),
    "transposed": ((2, 3, 4, 3), lambda: nn.ConvTranspose2d(3, 4, 3, stride=2, padding=1, output_padding=1)),
    "transposed, grouped": ((2, 4, 4), lambda: nn.ConvTranspose1d(4, 6, 3, groups=2)),
    "batch norm": ((4, 3), lambda: nn.BatchNorm1d(3)),
    "batch norm of images": ((2, 3, 3, 3), lambda: nn.BatchNorm2d(3)),  # where the last dimension would fit, too
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_carry_both_derivatives_to_inputs_weights_and_biases(name: str) -> None:
    shape, build = LAYERS[name]
    layer, x = randomise(build().double()).eval(), normal(*shape)
    first, second = (normal(*layer(x).shape, seed=seed) for seed in (2, 3))
    weights = dict(layer.named_parameters())
    got = derivatives(layer, x, ["x", *weights], first, second)
    assert got.keys() == {"x", *weights}
    for weight, value in {"x": x, **weights}.items():
        expected = by_jacobian(
            lambda v: layer(v) if weight == "x" else functional_call(layer, {weight: v}, (x,)),
            value.detach(),
            first,
            second,
        )
        for mine, one in zip(got[weight], expected, strict=True):
            assert_close(mine, one)


class Weighted(nn.Module):
    """Any function of the inputs and one weight."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor], *shape: int) -> None:
        super().__init__()
        self.function, self.weight = function, nn.Parameter(normal(*shape, seed=7))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.weight)


WEIGHTED: dict[str, tuple[tuple[int, ...], Callable[[Tensor, Tensor], Tensor]]] = {
    "addmm with factors": ((3, 4), lambda x, w: torch.addmm(x[:, :1], x, w, beta=2, alpha=-3)),
    "addmm with a weight as bias": ((3, 4), lambda x, w: torch.addmm(w, x[:, :1], x[:1, :4], beta=3.0)),
    "matmul with the transpose": ((4, 3), lambda x, w: x @ w.t()),
    "einsum": ((4, 3), lambda x, w: torch.einsum("ni,oi->no", x, w)),
    "einsum of a diagonal": ((3, 3), lambda x, w: x.sum() + torch.einsum("ii->i", w)),
    "tensordot": ((3, 4), lambda x, w: torch.tensordot(x, w, ([1], [0]))),
    "in halves": ((3, 4), lambda x, w: x @ torch.cat([w.chunk(2, 1)[1], 2 * w.chunk(2, 1)[0]], 1)),
    "the shape of a product": ((3, 4), lambda x, w: (x @ w).reshape(4, 3).view_as(w.t().contiguous())),
    "a scale": ((3,), lambda x, w: x * w),
    "slopes of prelu": ((3,), lambda x, w: F.prelu(x, w)),
}


@pytest.mark.parametrize("name", WEIGHTED)
def test_weights_used_in_other_ways(name: str) -> None:
    shape, function = WEIGHTED[name]
    model, x = Weighted(function, *shape), normal(3, 3) if "bias" not in name else normal(3, 5)
    first, second = (normal(*model(x).shape, seed=seed) for seed in (2, 3))
    got = derivatives(model, x, ["weight"], first, second)["weight"]
    for mine, expected in zip(
        got, by_jacobian(lambda w: function(x, w), model.weight.detach(), first, second), strict=True
    ):
        assert_close(mine, expected)


CURVES = {"sigmoid": (nn.Sigmoid, reference.SIGMOID), "tanh": (nn.Tanh, reference.TANH)}


@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize("widths", [[4, 3], [4, 5, 3], [4, 6, 1, 5, 2]], ids=str)
def test_weights_of_dense_chains_are_those_of_the_reference(widths: list[int], curve: str) -> None:
    module, written = CURVES[curve]
    layers = [nn.Linear(a, b) for a, b in itertools.pairwise(widths)]
    model = randomise(nn.Sequential(*(one for layer in layers for one in (layer, module()))).double())
    x = normal(5, widths[0])
    expected = reference.second_derivatives_of_weights(
        [layer.weight for layer in layers], [layer.bias for layer in layers], [written] * len(layers), x,
        lambda o: (o, torch.ones_like(o)),
    )  # fmt: skip
    got = derivatives(model, x, [name for name, _ in model.named_parameters()])
    for i, (weight, bias) in enumerate(zip(*expected, strict=True)):
        assert_close(got[f"{2 * i}.weight"][1], weight.detach())
        assert_close(got[f"{2 * i}.bias"][1], bias.detach())


def test_the_reference_drops_cross_terms_before_the_last_two_layers_alone() -> None:
    layers = [nn.Linear(3, 4), nn.Linear(4, 5), nn.Linear(5, 2)]
    model = randomise(nn.Sequential(*(one for layer in layers for one in (layer, nn.Tanh()))).double())
    x = normal(5, 3)
    weights, biases = ([layer.get_parameter(kind).detach() for layer in layers] for kind in ("weight", "bias"))
    of_weights, of_biases = reference.second_derivatives_of_weights(
        weights, biases, [reference.TANH] * 3, x, lambda o: (o, torch.ones_like(o))
    )

    def diagonal(name: str) -> Tensor:
        value = model.get_parameter(name).detach()
        matrix = torch.func.hessian(lambda v: 0.5 * functional_call(model, {name: v}, (x,)).square().sum() / 5)(value)
        return matrix.reshape(value.numel(), -1).diagonal().reshape(value.shape).detach()

    for i in (1, 2):
        assert_close(of_weights[i], diagonal(f"{2 * i}.weight"))
        assert_close(of_biases[i], diagonal(f"{2 * i}.bias"))
    exact = diagonal("0.weight")
    assert (of_weights[0] - exact).abs().max() > 0.01 * exact.abs().max()


def test_weights_of_a_convolutional_network_written_out() -> None:
    """h_W = Σ x² ∂²E/∂z² over samples and positions, x the columns that a convolution multiplies with its weight."""
    conv, norm, last = nn.Conv2d(2, 3, 3, stride=2, padding=1), nn.BatchNorm2d(3), nn.Linear(12, 2)
    model = randomise(nn.Sequential(conv, norm, nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(), last).double()).eval()
    x = normal(4, 2, 8, 7)
    z = conv(x)
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    o = torch.tanh(norm(z))
    pooled = o.unfold(2, 2, 2).unfold(3, 2, 2).mean((-1, -2)).flatten(1)
    first, second = model(x) / 4, torch.ones(4, 2).double() / 4
    expected = {"5.weight": second.T @ pooled**2, "5.bias": second.sum(0)}
    first, second = first @ last.weight, second @ last.weight**2  # at the pooled values
    first, second = (d.reshape(4, 3, 2, 2).repeat_interleave(2, 2).repeat_interleave(2, 3) for d in (first, second))
    first, second = first / 4, second / 16
    first, second = first * (1 - o**2), second * (1 - o**2) ** 2 - first * 2 * o * (1 - o**2)
    normalised = (z - norm.running_mean[:, None, None]) / (norm.running_var + norm.eps).sqrt()[:, None, None]
    expected |= {"1.weight": (second * normalised**2).sum((0, 2, 3)), "1.bias": second.sum((0, 2, 3))}
    second = second * scale[:, None, None] ** 2  # at z
    columns = F.unfold(x, 3, padding=1, stride=2)
    expected |= {
        "0.weight": torch.einsum("nop,nip->oi", second.flatten(2), columns**2).reshape(3, 2, 3, 3),
        "0.bias": second.sum((0, 2, 3)),
    }
    got = derivatives(model, x, expected)
    assert got.keys() == expected.keys()
    for name, one in expected.items():
        assert_close(got[name][1], one.detach())


def test_a_weight_that_several_layers_use_gets_the_sum() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(self.layer(x)) + self.layer(x.flip(1))

    class SampleIndependence(Shared):
        def __init__(self) -> None:
            super().__init__()
            self.again = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(self.layer(x)) + self.again(x.flip(1))

    shared, apart, x = randomise(Shared().double()), SampleIndependence().double(), normal(5, 3)
    apart.layer, apart.again = shared.layer, nn.Linear(3, 3).double()
    apart.again.load_state_dict(shared.layer.state_dict())
    got = derivatives(shared, x, ["layer.weight"])["layer.weight"]
    one, other = derivatives(apart, x, ["layer.weight", "again.weight"]).values()
    for k in (0, 1):
        assert_close(got[k], one[k] + other[k])


def test_derivatives_are_carried_to_what_is_wanted_alone() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Softmax(-1), nn.Linear(4, 2)).double()
    assert derivatives(model, normal(5, 3), ["2.weight"]).keys() == {"2.weight"}  # past no softmax
    with pytest.raises(ModelError, match=r"does not apply to softmax \(softmax\)"):
        derivatives(model, normal(5, 3), ["0.bias"])


def test_without_gradients_all_is_as_with_them() -> None:
    layer, x = nn.Linear(3, 4).double(), normal(5, 3)
    with torch.no_grad():
        got = derivatives(layer, x, ["weight"])["weight"]
    for mine, expected in zip(got, derivatives(layer, x, ["weight"])["weight"], strict=True):
        assert_close(mine, expected)
        assert not mine.requires_grad
        assert mine.abs().min() > 0


def test_what_the_outputs_do_not_depend_on_has_no_derivative() -> None:
    assert derivatives(Whole(torch.tanh), normal(5, 3), ["unused"]) == {}


def attend(x: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(x[None], x[None], x[None])


def interpolate(x: Tensor) -> Tensor:
    return F.interpolate(x[:, None, None], size=(1, 7), mode="bilinear")


def of_three(x: Tensor) -> Tensor:
    return torch.einsum("ni,ij,nj->n", x, torch.ones(3, 3).double(), x + 1)


REFUSED: dict[str, tuple[nn.Module, str]] = {
    "layer norm": (nn.LayerNorm(3), "layer_norm"),
    "statistics of the batch": (nn.BatchNorm1d(3, track_running_stats=False), "batch_norm"),
    "max over a dimension": (Whole(lambda x: x.max(1)[0]), "max"),
    "largest": (Whole(lambda x: x.amax(1)), "amax"),
    "attention": (Whole(attend), "scaled_dot_product_attention"),
    "recurrent": (First(nn.LSTM(3, 2, batch_first=True)), "lstm"),
    "bilinear interpolation": (Whole(interpolate), "upsample_bilinear2d"),
    "product with itself": (Whole(lambda x: x @ x), "matmul"),
    "product of three": (Whole(of_three), "einsum"),
    "product of sums": (Whole(lambda x: torch.einsum("ni,oj->no", x, x + 1)), "einsum"),
    "complex values": (Whole(lambda x: (x * 1j).abs()), "mul"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_operations_are_refused_by_name(name: str) -> None:
    model, operation = REFUSED[name]
    x = normal(3, 3, 3) if name == "recurrent" else normal(3, 3)
    with pytest.raises(ModelError) as caught:
        derivatives(model.double(), x, ["x"])
    assert str(caught.value).startswith(
        f"second-derivative back-propagation does not apply to {operation} ({operation}"
    )
    assert str(caught.value).endswith(
        "), only to pointwise operations, sums with weights, averages, and operations that move values; "
        "criterion='hessian', of weights 'obd', takes any"
    )


GATED: dict[str, Function] = {
    "x * sigmoid(x)": lambda x: x * torch.sigmoid(x),
    "x + sin(x * tanh(x))": lambda x: x + torch.sin(x * torch.tanh(x)),
    "a chain, then passed by": lambda x: torch.exp(-(torch.tanh(x) ** 2)) * x + torch.cos(torch.tanh(x)),
    "joined, then chained": lambda x: torch.sigmoid(torch.tanh(x + x * torch.sigmoid(x))),
    "by a mask": lambda x: x * x * (x > 0) + torch.maximum(x, 0.1 * x),
}


@pytest.mark.parametrize("name", GATED)
def test_pointwise_operations_are_one_function_of_their_input(name: str) -> None:
    function, x = GATED[name], normal(4, 3)
    first, second = normal(4, 3, seed=2), normal(4, 3, seed=3)
    leaf = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(function(leaf).sum(), leaf, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), leaf)
    got = derivatives(Whole(function), x, ["x"], first, second)["x"]
    assert_close(got[0], (slope * first).detach())
    assert_close(got[1], (slope**2 * second + curvature * first).detach())


POINTWISE = [torch.tanh, torch.sigmoid, torch.sin, lambda a: a**2, lambda a: 0.5 * a - 1]
JOINED = [torch.add, torch.sub, torch.mul]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_pointwise_function_of_two_values_is_exact(data: st.DataObject) -> None:
    """Wherever its operations join: they come in any order, and use any values before."""
    steps = []
    for i in range(2, data.draw(st.integers(4, 12))):
        operands = st.integers(max(0, i - 4), i - 1)
        steps.append(
            data.draw(st.tuples(st.sampled_from(JOINED), st.sampled_from(POINTWISE), operands, st.integers(0, i - 1)))
        )

    def function(x: Tensor, w: Tensor) -> Tensor:
        found = [x, w]
        for join, one, i, j in steps:
            found.append(one(join(found[i], found[j])))
        return found[-1]

    model, x = Weighted(function, 3, 2), normal(3, 2)
    first, second = normal(3, 2, seed=2), normal(3, 2, seed=3)
    leaves = {"x": x.clone().requires_grad_(), "weight": model.weight}
    got = derivatives(model, x, leaves, first, second)
    for name, leaf in leaves.items():
        y = function(leaves["x"], leaves["weight"]).sum()
        slope = torch.autograd.grad(y, leaf, create_graph=True, materialize_grads=True)[0]
        curvature = torch.zeros_like(leaf)
        if slope.requires_grad:
            curvature = torch.autograd.grad(slope.sum(), leaf, materialize_grads=True)[0]
        mine = got.get(name, (torch.zeros(3, 2).double(),) * 2)
        for one, expected in zip(mine, (slope * first, slope**2 * second + curvature * first), strict=True):
            assert torch.allclose(one, expected.detach(), rtol=1e-9, atol=1e-12)


def test_many_residual_adds_cost_what_their_number_says() -> None:
    """The operations per block do not grow with the number of blocks."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.inner = nn.BatchNorm1d(3), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.inner(torch.relu(self.norm(x)))

    class Count(torch.utils._python_dispatch.TorchDispatchMode):
        number = 0

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.number += 1
            return function(*args, **(kwargs or {}))

    counts = []
    for blocks in (5, 10, 20):
        model = randomise(nn.Sequential(*(Block() for _ in range(blocks))).double())
        captured, values = run(model, normal(2, 3))
        names = [*captured.inputs, *(n for n, weight in captured.weights.items() if "running" not in weight)]
        wanted = [node for node in captured.graph.find_nodes(op="placeholder") if node.name in names]
        returned = next(reversed(captured.graph.nodes))
        start = at_outputs(returned, values, lambda o: squared_error(o[0], torch.zeros_like(o[0])))
        with Count() as count:
            second_derivatives(captured.graph, values, start, wanted)
        counts.append(count.number)
    assert counts[2] - counts[1] == 2 * (counts[1] - counts[0]) > 0
