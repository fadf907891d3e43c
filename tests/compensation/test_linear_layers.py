from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, weight_norm

from cases import CASES, Heads, randomise
from secateur import Units, find_units
from secateur.compensation.linear_layers import Layer, compensable, find_layers, layers_of
from secateur.objective.gated_loss import GatedLoss, ones
from secateur.structure.inputs import named_tensors
from secateur.structure.keep_mask import KeepMask

CONVOLVE: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


class Made:
    """A network in float64, its units and layers, and what they take and give on some samples."""

    def __init__(self, model: nn.Module, shape: tuple[int, ...], include: Any = "gated") -> None:
        torch.manual_seed(0)
        self.model = randomise(model.double().eval())
        self.x = torch.randn(3, *shape, dtype=torch.float64)
        self.units: Units = find_units(self.model, self.x, include)
        self.layers = find_layers(self.units)
        self.named = {name: tensor.detach() for name, tensor in named_tensors(self.model).items()}
        self.gated = GatedLoss(self.model, self.units, (self.x, torch.zeros(3)))

    def layer(self, weight: str) -> Layer:
        return {one.weight: one for one in self.layers}[weight]

    def values(self, layer: Layer, g: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The call's input and its output."""
        g = ones(self.model, self.units) if g is None else g
        found = self.gated.graph.trace(next(self.gated.cached).frontier, g)
        copy = self.gated.graph.copies[layer.call]
        return found[layer.operand(copy)], found[copy]

    def without(self, unit_set: str, k: int) -> Tensor:
        """Gates of 1 but for one unit."""
        g = ones(self.model, self.units)
        g[self.units.places.index((unit_set, k))] = 0
        return g


def names(layers: list[Layer]) -> list[str]:
    return [one.weight for one in layers]


def assert_close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)


def by_hand(out: Tensor, channels_first: bool) -> Tensor:
    """A row for each sample and position, slowest the sample."""
    if not channels_first:
        return torch.stack([out[i] for i in itertools.product(*map(range, out.shape[:-1]))])
    places = list(itertools.product(*map(range, out.shape[2:])))
    return torch.stack([out[(n, slice(None), *place)] for n in range(len(out)) for place in places])


# ---------------------------------------------------------------- the networks


class Matmul(nn.Module):
    """x @ weight, weights [in, out] of the module's own."""

    def __init__(self, **scales: float) -> None:
        super().__init__()
        self.first, self.scales = nn.Linear(3, 4), scales
        self.weight, self.bias = nn.Parameter(torch.randn(4, 2)), nn.Parameter(torch.randn(2))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.first(x)) @ self.weight


class Addmm(Matmul):
    """As the Conv1D of GPT-2: positions flattened, addmm, and back."""

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x))
        y = torch.addmm(self.bias, x.view(-1, x.shape[-1]), self.weight, **self.scales)
        return y.view(*x.shape[:-1], -1)


class Mm(Matmul):
    def forward(self, x: Tensor) -> Tensor:
        return torch.mm(torch.tanh(self.first(x)), self.weight)


class ComputedBias(Matmul):
    """What is added to the product is no parameter."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias * 2, torch.tanh(self.first(x)), self.weight)


class Flattened(nn.Module):
    """A channel has a kernel of rows in the convolution, and a row for each position in the dense layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 3, 2), nn.Conv2d(3, 4, (2, 1), bias=False)
        self.c, self.d = nn.Linear(24, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.b(torch.relu(self.a(x))))
        return self.d(torch.tanh(self.c(x.flatten(1))))


class Cat(nn.Module):
    def __init__(self, convolve: bool) -> None:
        super().__init__()
        make: Any = (lambda i, o: nn.Conv1d(i, o, 2)) if convolve else nn.Linear
        self.a, self.b, self.c, self.dim = make(3, 4), make(3, 2), make(10, 2), 1 if convolve else -1

    def forward(self, x: Tensor) -> Tensor:
        a, b = torch.tanh(self.a(x)), torch.sigmoid(self.b(x))
        return self.c(torch.cat([a, b, a.relu()], self.dim))


class Chain(nn.Module):
    """Four dense layers; subclasses share or compute the weights of the middle ones."""

    def __init__(self, change: Callable[[Chain], None] | None = None) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        if change is not None:
            change(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.d(torch.tanh(self.c(torch.tanh(self.b(torch.tanh(self.a(x)))))))


class Disorder(nn.Module):
    """Modules and parameters are registered in another order than they are used in."""

    def __init__(self) -> None:
        super().__init__()
        self.fourth, self.third, self.second = nn.Linear(4, 2), nn.Linear(4, 4), nn.Conv1d(3, 4, 1)
        self.first = nn.Conv1d(2, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.second(torch.tanh(self.first(x)))).mean(2)
        return self.fourth(torch.tanh(self.third(x)))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cells, self.last = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.cells(x)[0][:, -1])


class Summed(nn.Module):
    """A sum without weights beside a dense layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.a(x))
        return self.b(x) + x.sum(-1, keepdim=True)


def convolutional(n: int, **options: Any) -> nn.Module:
    make: Any = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[n]
    return nn.Sequential(make(2, 3, 1), nn.Tanh(), make(3, 2, (3, 2, 2)[:n], **options))


# ---------------------------------------------------------------- rows and matrices

Build = Callable[[], nn.Module]
NETWORKS: dict[str, tuple[Build, tuple[int, ...], str, str | None, bool]] = {
    "linear": (lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), (3,), "2.weight", "2.bias", False),
    "linear at positions": (
        lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2, bias=False)), (2, 5, 3), "2.weight", None,
        False,
    ),
    "matmul": (Matmul, (3,), "weight", None, False),
    "matmul at positions": (Matmul, (5, 3), "weight", None, False),
    "mm": (Mm, (3,), "weight", None, False),
    "addmm": (Addmm, (3,), "weight", "bias", False),
    "addmm at positions": (Addmm, (5, 3), "weight", "bias", False),
} | {
    f"conv{n}d {options}": (
        lambda n=n, options=options: convolutional(n, **options), (2, *(6, 5, 5)[:n]), "2.weight",
        "2.bias" if options.get("bias", True) else None, True,
    )
    for n, options in [
        *itertools.product((1, 2, 3), [{}, {"stride": 2, "padding": 1}, {"padding": "same", "dilation": 2}]),
        (1, {"padding": "valid", "bias": False}),
        (2, {"stride": (2, 1), "padding": (1, 2), "dilation": (2, 1), "bias": False}),
        (2, {"padding": "valid", "stride": 2}),
        (2, {"padding": 1, "padding_mode": "circular"}),
        (2, {"padding": (2, 1), "padding_mode": "reflect", "stride": 2}),
        (2, {"padding": "same", "padding_mode": "replicate"}),
    ]
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_rows_times_the_matrix_plus_bias_are_what_the_call_gives(name: str) -> None:
    build, shape, weight, bias, channels_first = NETWORKS[name]
    made = Made(build(), shape)
    layer = made.layer(weight)
    assert layer.bias == bias
    value, out = made.values(layer)
    rows, matrix = layer.rows(value), layer.matrix(made.named[weight])
    expected = by_hand(out, channels_first)
    assert rows.shape == (len(expected), layer.inputs.size * layer.kernel)
    assert matrix.shape == (rows.shape[1], layer.outputs.size)
    assert_close(rows @ matrix + (0 if bias is None else made.named[bias]), expected)
    assert torch.equal(layer.targets(out), by_hand(out, channels_first))
    if not name.startswith("addmm with"):
        whole = made.model(made.x)
        assert_close(expected, by_hand(whole, channels_first))  # the last layer: the network's own outputs
    whole = [torch.arange(size) for size in matrix.shape]
    assert torch.equal(layer.tensor(torch.zeros_like(made.named[weight]), *whole, matrix), made.named[weight])
    assert layer.tensor(made.named[weight].float(), *whole, matrix).dtype == torch.float32
    assert layer.leading(value).numel() == len(rows)


@pytest.mark.parametrize("name", ["linear", "addmm", "conv2d {}"])
@pytest.mark.parametrize("outputs", [[0, 1], [1]])
@pytest.mark.parametrize("last", [False, True])
def test_some_numbers_of_the_matrix_change_in_the_parameter(name: str, outputs: list[int], last: bool) -> None:
    build, shape, weight, _, _ = NETWORKS[name]
    made = Made(build(), shape)
    layer, old = made.layer(weight), made.named[weight]
    if last and old.ndim == 4:
        old = old.contiguous(memory_format=torch.channels_last)
    before, expected = old.clone(), layer.matrix(old).clone()
    inputs = torch.arange(1, len(expected), 2)
    numbers = torch.randn(len(inputs), len(outputs)).double()
    for i, d in enumerate(inputs):
        for j, o in enumerate(outputs):
            expected[d, o] = numbers[i, j]
    tensor = layer.tensor(old, inputs, torch.tensor(outputs), numbers)
    assert torch.equal(layer.matrix(tensor), expected)
    assert torch.equal(old, before)
    assert tensor.shape == old.shape
    o, d = outputs[0], 5 if layer.kernel > 1 else 1
    index = (d, o) if name == "addmm" else (o, d) if layer.kernel == 1 else (o, d // 6, d % 6 // 2, d % 2)
    assert tensor[index] == numbers[d // 2, 0]


def test_places_are_the_nodes_of_weight_and_bias() -> None:
    made = Made(Addmm(), (3,))
    layer = made.layer("weight")
    copy = made.gated.graph.copies[layer.call]
    assert {name: node.name for name, node in layer.places(copy).items()} == {
        "weight": copy.args[2].name, "bias": copy.args[0].name,
    }  # fmt: skip


# ---------------------------------------------------------------- the rows of units

UNITS: dict[str, tuple[Build, tuple[int, ...], dict[tuple[str, str], list[list[int]]]]] = {
    "flattened": (
        Flattened, (2, 4, 4),
        {
            ("a", "b.weight"): [[0, 1], [2, 3], [4, 5]],
            ("b", "c.weight"): [list(range(6 * k, 6 * k + 6)) for k in range(4)],
            ("c", "d.weight"): [[k] for k in range(5)],
        },
    ),
    "heads": (
        Heads, (5, 3),
        {
            ("q[0]", "out.weight"): [[0, 1], [2, 3], [4, 5]],
            ("v", "out.weight"): [[0, 2, 4], [1, 3, 5]],
            ("out", "last.weight"): [[k] for k in range(4)],
        },
    ),
    "cat": (
        lambda: Cat(False), (3,),
        {("a", "c.weight"): [[k, 6 + k] for k in range(4)], ("b", "c.weight"): [[4], [5]]},
    ),
    "cat of convolutions": (
        lambda: Cat(True), (3, 6),
        {
            ("a", "c.weight"): [[2 * k, 2 * k + 1, 12 + 2 * k, 13 + 2 * k] for k in range(4)],
            ("b", "c.weight"): [[8, 9], [10, 11]],
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", UNITS)
def test_the_rows_of_a_unit_are_those_that_its_gate_makes_zero(name: str) -> None:
    build, shape, expected = UNITS[name]
    made = Made(build(), shape)
    for (set_name, weight), rows in expected.items():
        layer, unit_set = made.layer(weight), made.units[set_name]
        assert layer in layers_of(unit_set, made.layers)
        got = layer.rows_of_units(unit_set)
        assert got.tolist() == rows
        value, out = made.values(layer)
        whole, matrix = layer.rows(value), layer.matrix(made.named[weight])
        for k in range(unit_set.size):
            gated_value, gated_out = made.values(layer, made.without(set_name, k))
            zeroed = whole.index_fill(1, got[k], 0)
            assert_close(layer.rows(gated_value), zeroed)
            bias = 0 if layer.bias is None else made.named[layer.bias]
            assert_close(layer.targets(gated_out), zeroed @ matrix + bias)
            smaller = matrix.index_fill(0, got[k], 0)
            assert_close(layer.targets(gated_out), whole @ smaller + bias)
        assert not torch.equal(layer.targets(out), layer.targets(gated_out))


def test_rows_of_inputs_and_rows_kept() -> None:
    made = Made(Flattened(), (2, 4, 4))
    layer, unit_set = made.layer("b.weight"), made.units["a"]
    assert layer.rows_of(torch.tensor([2, 0])).tolist() == [4, 5, 0, 1]
    assert layer.rows_of(torch.tensor([[2], [0]])).tolist() == [[4, 5], [0, 1]]
    left = KeepMask({unit_set.axis: torch.tensor([True, False, True])})
    assert layer.rows_kept(left).tolist() == [True, True, False, False, True, True]
    assert layer.rows_kept(KeepMask({})).tolist() == [True] * 6
    dense = made.layer("c.weight")
    kept = dense.rows_kept(KeepMask({made.units["b"].axis: torch.tensor([False, True, True, False])}))
    assert kept.tolist() == [False] * 6 + [True] * 12 + [False] * 6


# ---------------------------------------------------------------- which layers


def test_a_layer_whose_bias_is_computed_is_left_out() -> None:
    assert names(Made(ComputedBias(), (3,)).layers) == []


def share_weight(chain: Chain) -> None:
    chain.c.weight = chain.b.weight


def share_module(chain: Chain) -> None:
    chain.c = chain.b


def share_bias(chain: Chain) -> None:
    chain.c.bias = chain.b.bias


def normalise(chain: Chain) -> None:
    parametrizations.weight_norm(chain.b)


def normalise_as_of_old(chain: Chain) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        weight_norm(chain.b)


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def parametrize(chain: Chain) -> None:
    nn.utils.parametrize.register_parametrization(chain.b, "weight", Doubled())


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (None, ["b.weight", "c.weight", "d.weight"]),
        (share_weight, ["d.weight"]),
        (share_module, ["d.weight"]),
        (share_bias, ["d.weight"]),
        (normalise, ["c.weight", "d.weight"]),
        (normalise_as_of_old, ["c.weight", "d.weight"]),
        (parametrize, ["c.weight", "d.weight"]),
    ],
)
def test_weights_and_biases_that_are_shared_or_computed_are_left_out(
    change: Callable[[Chain], None] | None, found: list[str]
) -> None:
    made = Made(Chain(change), (3,))
    assert names(made.layers) == found
    assert [one.bias for one in made.layers if one.weight != "d.weight"] == [
        name.replace("weight", "bias") for name in found[:-1]
    ]
    for unit_set in made.units:
        consumers = {f"{name}.weight" for name in unit_set.consumed_by}
        assert compensable(unit_set, made.layers) == (consumers <= {*found})


def test_a_weight_that_the_first_layer_uses_too_is_left_out() -> None:
    case = CASES["tied"]()
    units = find_units(case.model, case.x)
    assert [s.consumed_by for s in units] == [["matmul"]]
    assert find_layers(units) == []
    assert not compensable(units["encode"], [])


@pytest.mark.parametrize(("scales", "found"), [({}, ["weight"]), ({"alpha": 2}, []), ({"beta": 0.5}, [])])
def test_products_that_are_scaled_are_left_out(scales: dict[str, float], found: list[str]) -> None:
    made = Made(Addmm(**scales), (3,))
    assert names(made.layers) == found
    assert compensable(made.units["first"], made.layers) == bool(found)


def test_convolutions_with_groups_are_left_out() -> None:
    layers = (nn.Conv2d(2, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1, groups=2), nn.ReLU(), nn.Conv2d(4, 2, 1))
    made = Made(nn.Sequential(*layers), (2, 3, 3))
    assert names(made.layers) == ["4.weight"]
    assert {s.name: compensable(s, made.layers) for s in made.units} == {"0[0]": True, "0[1]": False, "2": True}


@pytest.mark.parametrize(
    "last", [nn.ConvTranspose2d(4, 2, 2), nn.Bilinear(4, 4, 2)], ids=["transposed convolution", "bilinear"]
)
def test_other_operations_are_left_out(last: nn.Module) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dense = isinstance(last, nn.Bilinear)
            self.first, self.last = nn.Linear(3, 4) if self.dense else nn.Conv2d(3, 4, 1), last

        def forward(self, x: Tensor) -> Tensor:
            x = torch.tanh(self.first(x))
            return self.last(x, x) if self.dense else self.last(x)

    made = Made(Net(), (3,) if isinstance(last, nn.Bilinear) else (3, 4, 4))
    assert made.layers == []
    assert not any(compensable(unit_set, made.layers) for unit_set in made.units)


def test_a_matrix_for_each_sample_is_left_out() -> None:
    class Batched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.weight = nn.Linear(3, 4), nn.Parameter(torch.randn(5, 4, 2))

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(self.first(x)) @ self.weight

    made = Made(Batched(), (5, 1, 3))
    assert [s.name for s in made.units] == ["first"]
    assert made.layers == []


def test_layers_come_in_order_of_execution() -> None:
    made = Made(Disorder(), (2, 5))
    assert names(made.layers) == ["second.weight", "third.weight", "fourth.weight"]  # the first takes no units
    assert [one.kernel for one in made.layers] == [1, 1, 1]
    case = CASES["branches"]()
    units = find_units(case.model, case.x)
    layers = find_layers(units)
    assert names(layers) == ["back.weight", "last.weight"]
    assert [names(layers_of(one, layers)) for one in units] == [["last.weight"], ["back.weight", "last.weight"]]
    assert [compensable(one, layers) for one in units] == [False, True]  # `shared` is used two times


# ---------------------------------------------------------------- which sets


def test_head_widths_of_queries_are_not_compensable() -> None:
    made = Made(Heads(), (5, 3), "all")
    assert {s.name: compensable(s, made.layers) for s in made.units} == {
        "q[0]": True, "q[1]": False, "v": True, "out": True,
    }  # fmt: skip
    assert layers_of(made.units["q[1]"], made.layers) == []


def test_cells_and_sums_without_weights_are_not_compensable() -> None:
    recurrent, summed = Made(Recurrent(), (5, 3)), Made(Summed(), (3,))
    assert names(recurrent.layers) == ["last.weight"]
    assert layers_of(recurrent.units["cells"], recurrent.layers) == recurrent.layers
    assert not compensable(recurrent.units["cells"], recurrent.layers)
    assert names(summed.layers) == ["b.weight"]
    assert not compensable(summed.units["a"], summed.layers)


def test_sliced_sets_are_not_compensable_although_a_layer_sums_them_up() -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2))
    made = Made(model, (3,), "all")
    assert {s.name: s.removal for s in made.units} == {"0": "sliced", "2": "gated"}
    assert names(made.layers) == ["2.weight", "4.weight"]
    assert {s.name: compensable(s, made.layers) for s in made.units} == {"0": False, "2": True}
    assert not compensable(made.units["2"], made.layers[:1])
