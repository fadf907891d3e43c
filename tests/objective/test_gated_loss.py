"""E(g) against the reference, with a gate on every edge into a consumer.

Covers secateur.objective.gated_loss and secateur.objective.gated_graph.
"""

import copy
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from cases import CASES, Case, gated_units
from rounding import assert_close_ulps
from secateur import find_units, reference
from secateur.errors import DataError, ModelError
from secateur.objective.gated_graph import GatedGraph
from secateur.objective.gated_loss import GatedLoss, ones
from secateur.objective.losses import binary_cross_entropy, cross_entropy, squared_error
from secateur.structure.graph_run import bind
from secateur.structure.inputs import as_call
from secateur.structure.units import Units

LOSSES = [cross_entropy, squared_error]


@cache
def built(name: str) -> tuple[Case, Units]:
    case = CASES[name]()
    return case, find_units(case.model, case.x)


OUTGOING = [name for name in CASES if all(unit_set.outgoing is not None for unit_set in built(name)[1])]


def gates(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def frontier(graph: GatedGraph, model: nn.Module, x: Tensor) -> tuple[Any, ...]:
    """The values that no gate changes, with the model's own weights."""
    return graph.frontier(bind(graph.units.captured, model, as_call(x)))


def in_batches(x: Tensor, t: Tensor, cuts: list[int]) -> list[tuple[Tensor, Tensor]]:
    return list(zip(torch.tensor_split(x, sorted(cuts)), torch.tensor_split(t, sorted(cuts)), strict=True))


def apart(got: float, expected: float) -> float:
    return abs(got - expected) / max(abs(expected), 1e-300)


def test_nearly_every_network_of_the_table_can_be_gated_by_its_weights() -> None:
    assert set(CASES) - set(OUTGOING) <= {"tied"}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", OUTGOING)
def test_the_gated_loss_is_that_of_the_reference(name: str, loss: Any) -> None:
    case, units = built(name)
    gated = GatedLoss(case.model, units, (case.x, case.y), loss)
    for g in (
        torch.ones(units.total).double(),
        torch.zeros(units.total).double(),
        *map(gates, [units.total] * 3, range(3)),
    ):
        expected = reference.gated_loss(case.model, units, (case.x,), case.y, loss, g).item()
        assert apart(gated.loss(g), expected) < 1e-12


def test_the_gated_loss_of_tied_weights_gates_the_consumer_alone() -> None:
    case, units = built("tied")
    g = gates(4)
    layer = case.model.encode
    expected = squared_error((torch.tanh(layer(case.x)) * g) @ layer.weight, case.y).item()
    assert apart(GatedLoss(case.model, units, (case.x, case.y), "squared_error").loss(g), expected) < 1e-12


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    cuts=st.lists(st.integers(0, 7), max_size=3),
    kind=st.sampled_from(["own", "binary_cross_entropy", "squared_error"]),
)
def test_the_gated_loss_of_random_networks(seed: int, cuts: list[int], kind: str) -> None:
    network = reference.RandomNetwork(seed).double()
    x = network.sample(7, seed)
    t = torch.rand(network(x).shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    units = find_units(network, x)
    assert {unit_set.name: unit_set.size for unit_set in units} == network.sets
    own = lambda o, t: (o.tanh() - t).square().mean()  # noqa: E731
    name, function = {
        "own": (own, own),
        "binary_cross_entropy": (kind, binary_cross_entropy),
        "squared_error": (kind, squared_error),
    }[kind]
    gated = GatedLoss(network, units, in_batches(x, t, cuts), name)
    for g in (torch.ones(units.total).double(), gates(units.total, seed % 1000)):
        outputs = network.gated(x, units.split(g))
        scale = max(abs(function(outputs, t).item()), abs(function(network(x), t).item()))
        assert abs(gated.loss(g) - function(outputs, t).item()) <= 1e-10 * scale


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", OUTGOING)
def test_the_gradient_is_that_of_the_reference(name: str, loss: Any) -> None:
    case, units = built(name)
    gated = GatedLoss(case.model, units, in_batches(case.x, case.y, [1, 3]), loss)
    for seed in range(3):
        g = gates(units.total, seed)
        expected = torch.func.grad(lambda g: reference.gated_loss(case.model, units, (case.x,), case.y, loss, g))(g)
        got = gated.gradient(g)
        assert got.dtype == torch.float64
        assert (got - expected).abs().max() <= 1e-12 * expected.abs().max()


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_the_gradient_of_random_networks(seed: int) -> None:
    network = reference.RandomNetwork(seed).double()
    x = network.sample(5, seed)
    t = torch.zeros_like(network(x))
    units = find_units(network, x)
    g = gates(units.total)
    expected = torch.func.grad(lambda g: squared_error(network.gated(x, units.split(g)), t))(g)
    got = GatedLoss(network, units, (x, t), "squared_error").gradient(g)
    assert (got - expected).abs().max() <= 1e-10 * expected.abs().max()


@pytest.mark.parametrize("name", OUTGOING)
@pytest.mark.parametrize("cuts", [[], [1, 4]], ids=["one batch", "three"])
def test_accuracy_is_that_of_the_gated_network(name: str, cuts: list[int]) -> None:
    case, units = built(name)
    gated = GatedLoss(case.model, units, in_batches(case.x, case.y, cuts), "cross_entropy")
    seen = set()
    for seed in range(8):
        g = gates(units.total, seed)
        outputs = functional_call(case.model, reference.gated_weights(case.model, units, g), case.x)
        loss, accuracy, *_ = gated.measure(g)
        assert accuracy == sum(row.argmax().item() == t for row, t in zip(outputs, case.y.tolist(), strict=True)) / 6
        assert apart(loss, F.cross_entropy(outputs, case.y).item()) < 1e-12
        seen.add(accuracy)
    assert len(seen) > 1


def test_binary_accuracy_is_the_share_of_logits_on_the_right_side() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double(), torch.randn(9, 3).double()
    y = torch.randint(0, 2, (9,))
    units = find_units(model, x)
    gated = GatedLoss(model, units, in_batches(x, y, [2]), "binary_cross_entropy")
    accuracy = gated.measure(ones(model, units)).accuracy
    assert accuracy == ((model(x)[:, 0] > 0) == (y == 1)).sum().item() / len(y)


def test_there_is_no_accuracy_without_classes() -> None:
    case, units = built("two_hidden")
    t = torch.randn(6, 3, dtype=torch.float64)
    loss, accuracy, *_ = GatedLoss(case.model, units, (case.x, t), "squared_error").measure(ones(case.model, units))
    assert accuracy is None
    assert apart(loss, squared_error(case.model(case.x), t).item()) < 1e-12


def test_the_predictions_that_an_accuracy_is_taken_over_are_counted() -> None:
    case, units = built("two_hidden")
    gated = GatedLoss(case.model, units, in_batches(case.x, case.y, [4]), "cross_entropy")
    g = gates(units.total)
    assert gated.measure(g).predictions == 6
    squares = GatedLoss(case.model, units, (case.x, torch.zeros(6, 3).double()), "squared_error")
    assert squares.measure(g).predictions == 0
    torch.manual_seed(0)
    tagger = nn.Sequential(nn.Conv1d(3, 4, 1), nn.Tanh(), nn.Conv1d(4, 2, 1)).double()
    x, y = torch.randn(5, 3, 7).double(), torch.randint(0, 2, (5, 7))
    tagged = find_units(tagger, x)
    assert GatedLoss(tagger, tagged, (x, y), "cross_entropy").measure(ones(tagger, tagged)).predictions == 5 * 7


class TwoConsumers(nn.Module):
    """h is consumed by two layers, and its sigmoid by the first of them again."""

    def __init__(self) -> None:
        super().__init__()
        self.make, self.one, self.two = nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.make(x))
        return self.one(h) * self.two(h) + self.one(torch.sigmoid(h))


def test_a_value_consumed_by_two_layers_is_gated_once_for_each() -> None:
    torch.manual_seed(0)
    model, x = TwoConsumers().double(), torch.randn(5, 3).double()
    units = find_units(model, x)
    graph, g = GatedGraph(units), gates(4)
    h = torch.tanh(model.make(x))
    expected = model.one(g * h) * model.two(g * h) + model.one(g * torch.sigmoid(h))
    assert torch.allclose(graph.run(frontier(graph, model, x), g), expected, rtol=1e-12, atol=0)
    assert len(graph.edges) == 2
    products = [edge.node for edge in graph.edges]
    layers = [node for node in graph.suffix.nodes if node.target is torch.ops.aten.linear.default]
    assert sorted(products.index(node.args[0]) for node in layers) == [0, 0, 1]
    assert not {operand for product in products for operand in product.all_input_nodes} & set(products)


def test_gates_do_not_reach_back_behind_their_consumers() -> None:
    case, units = built("two_hidden")
    graph = GatedGraph(units)
    given, none = frontier(graph, case.model, case.x), torch.zeros(units.total, dtype=torch.float64)
    values = graph.trace(given, none)
    first, second = (values[edge.node.args[0]] for edge in graph.edges)
    assert torch.allclose(first, torch.sigmoid(case.model[0](case.x)), rtol=1e-12)  # its own gate comes after it
    assert torch.allclose(second, torch.tanh(case.model[2].bias).expand(6, 4), rtol=1e-12)
    assert torch.allclose(graph.run(given, none), case.model[4].bias.expand(6, 3), rtol=1e-12)


def test_a_walk_halts_before_some_calls_and_after_others() -> None:
    case, units = built("two_hidden")
    graph, g = GatedGraph(units), gates(units.total)
    held = frontier(graph, case.model, case.x)
    whole = graph.trace(held, g)
    layers = [node for node in graph.suffix.nodes if node.target is torch.ops.aten.linear.default]
    halts = []
    for node, values in graph.walk(held, g, layers[1:], (), results=layers):
        halts.append((node, node in values))
        if node in layers and node in values:
            assert torch.equal(values[node], whole[node])
    first, second = layers
    assert halts == [(first, True), (second, False), (second, True), (graph.suffix.output_node(), True)]


def test_what_a_walk_changes_before_a_call_is_what_the_call_takes() -> None:
    case, units = built("two_hidden")
    graph, g = GatedGraph(units), gates(units.total)
    *_, last = [node for node in graph.suffix.nodes if node.target is torch.ops.aten.linear.default]
    walk = graph.walk(frontier(graph, case.model, case.x), g, [last], (), results=[last])
    _, values = next(walk)
    values[last.args[0]] = torch.zeros_like(values[last.args[0]])
    _, values = next(walk)
    assert torch.equal(values[last], case.model[4].bias.expand(6, 3))


@pytest.mark.parametrize("name", ["normalised", "branches"])
def test_a_model_in_training_is_evaluated_in_eval_mode_and_left_in_training(name: str) -> None:
    case = CASES[name]()
    units = find_units(case.model, case.x)
    g = gates(units.total)
    expected = GatedLoss(case.model, units, (case.x, case.y), "cross_entropy").measure(g)
    case.model.train()
    children = list(case.model.children())
    children[1].eval()
    modes = [module.training for module in case.model.modules()]
    before = copy.deepcopy(case.model.state_dict())
    again = find_units(case.model, case.x)
    assert GatedLoss(case.model, again, (case.x, case.y), "cross_entropy").measure(g) == expected
    assert GatedLoss(case.model, units, (case.x, case.y), "cross_entropy").measure(g) == expected
    assert [module.training for module in case.model.modules()] == modes
    assert modes.count(True) == len(modes) - 1
    assert all(tensor.equal(before[key]) for key, tensor in case.model.state_dict().items())


def test_weights_changed_after_the_units_were_found_are_seen() -> None:
    case = CASES["normalised"]()
    units = find_units(case.model, case.x)
    g = gates(units.total)
    old = GatedLoss(case.model, units, (case.x, case.y), "cross_entropy").loss(g)
    with torch.no_grad():
        case.model[1].running_mean += 1.0
        case.model[4].weight *= 1.5
    case.model[6].weight = nn.Parameter(case.model[6].weight.detach() * 2)  # another parameter in its place
    expected = reference.gated_loss(case.model, units, (case.x,), case.y, cross_entropy, g).item()
    got = GatedLoss(case.model, units, (case.x, case.y), "cross_entropy").loss(g)
    assert apart(got, expected) < 1e-12
    assert apart(got, old) > 1e-3


def test_parameters_get_no_gradient() -> None:
    case, units = built("branches")
    gated = GatedLoss(case.model, units, (case.x, case.y), "cross_entropy")
    gated.gradient(ones(case.model, units))
    gated.measure(ones(case.model, units))
    assert all(parameter.grad is None and parameter.requires_grad for parameter in case.model.parameters())


def test_frozen_parameters_change_nothing() -> None:
    case, units = CASES["branches"](), built("branches")[1]
    expected = GatedLoss(case.model, units, (case.x, case.y), "cross_entropy").gradient(gates(10))
    case.model.requires_grad_(False)
    again = GatedLoss(case.model, units, (case.x, case.y), "cross_entropy").gradient(gates(10))
    assert_close_ulps(again, expected)


def test_the_gates_given_are_left_alone() -> None:
    case, units = built("two_hidden")
    g = gates(units.total)
    before = g.clone()
    gated = GatedLoss(case.model, units, (case.x, case.y), "cross_entropy")
    gated.gradient(g)
    gated.loss(g)
    assert g.equal(before)
    assert not g.requires_grad
    assert g.grad is None


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(bad: float) -> None:
    case = CASES["normalised"]()
    units = find_units(case.model, case.x)
    with torch.no_grad():
        case.model[0].weight[2, 1] = case.model[0].weight[0, 0] = bad
    with pytest.raises(ModelError, match=r"^0\.weight: 2 of 24 values are NaN or infinite$"):
        GatedLoss(case.model, units)


def test_a_buffer_that_is_not_finite_is_refused() -> None:
    case = CASES["normalised"]()
    units = find_units(case.model, case.x)
    case.model[1].running_var[3] = float("nan")
    with pytest.raises(ModelError, match=r"^1\.running_var: 1 of 6 values are NaN or infinite$"):
        GatedLoss(case.model, units, (case.x, case.y), "cross_entropy")


def test_what_was_not_given_is_missed_when_it_is_asked_for() -> None:
    case, units = built("two_hidden")
    g = ones(case.model, units)
    gated = GatedLoss(case.model, units)
    assert not gated.has_data
    assert not gated.has_loss
    with pytest.raises(DataError, match=r"^this needs data: .*; None was given$"):
        gated.loss(g)
    gated = GatedLoss(case.model, units, (case.x, case.y))
    assert gated.has_data
    with pytest.raises(DataError, match=r"^this needs a loss: .*; None was given$"):
        gated.loss(g)


def test_data_of_another_form_than_the_example_are_refused() -> None:
    case, units = built("two_hidden")
    with pytest.raises(DataError, match=r"^data: batch 0: inputs: expected 1 positional, keywords \[\] as in the"):
        GatedLoss(case.model, units, [((case.x, case.x), case.y)], "cross_entropy")


def test_outputs_keep_their_structure() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> dict[str, Any]:
            h = torch.tanh(self.a(x))
            return {"inputs": (x, x + 1), "logits": self.b(h)}

    torch.manual_seed(0)
    model, x, y = Named().double(), torch.randn(4, 3).double(), torch.tensor([0, 1, 1, 0])
    units = find_units(model, x)
    g = gates(4)
    graph = GatedGraph(units)
    outputs = graph.run(frontier(graph, model, x), g)
    logits = model.b(torch.tanh(model.a(x)) * g)
    assert outputs["inputs"][1].equal(x + 1)
    assert torch.allclose(outputs["logits"], logits, rtol=1e-12)
    assert apart(GatedLoss(model, units, (x, y), "cross_entropy").loss(g), F.cross_entropy(logits, y).item()) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_gates_have_the_dtype_of_the_model(dtype: torch.dtype) -> None:
    case = CASES["one_hidden"]()
    model = case.model.to(dtype)
    one = ones(model, find_units(model, case.x))
    assert one.dtype == dtype
    assert one.tolist() == [1.0] * 7


# ---------------------------------------------------------------- one value in several places of one call


class Between(nn.Module):
    """A layer of four units, something between, a layer behind."""

    def __init__(self, function: Callable[..., Tensor], width: int) -> None:
        super().__init__()
        self.function, self.a, self.b = function, nn.Linear(3, 4), nn.Linear(width, 2)
        self.pairs = nn.Parameter(torch.randn(2, 4, 4))

    def forward(self, x: Tensor, *gates: Tensor) -> Tensor:
        return self.b(self.function(self, self.a(x), *gates))


class Example(NamedTuple):
    """What is between, with gates of four units and without; the shape of a sample and how wide it goes on."""

    gated: Callable[..., Tensor]
    plain: Callable[..., Tensor]
    shape: tuple[int, ...]
    width: int


SEVERAL_PLACES = {
    "the query of attention alone": Example(
        lambda _, h, g: F.scaled_dot_product_attention(h * g, h, h) * g,
        lambda _, h: F.scaled_dot_product_attention(h, h, h), (5, 3), 4,
    ),
    "one factor of einsum alone": Example(
        lambda _, h, g: torch.einsum("bi,bi->b", h * g, h)[:, None].expand(-1, 2),
        lambda _, h: torch.einsum("bi,bi->b", h, h)[:, None].expand(-1, 2), (3,), 2,
    ),
    "one factor of three": Example(
        lambda _, h, g: torch.einsum("bi,bi,bi->b", h * g, h, h)[:, None].expand(-1, 2),
        lambda _, h: torch.einsum("bi,bi,bi->b", h, h, h)[:, None].expand(-1, 2), (3,), 2,
    ),
    "one factor of a product of matrices": Example(
        lambda _, h, g: (h * g) @ h.mT, lambda _, h: h @ h.mT, (5, 3), 5
    ),
    "both operands of a distance": Example(
        lambda _, h, g: torch.cdist(h * g, h * g), lambda _, h: torch.cdist(h, h), (5, 3), 5
    ),
    "both inputs of a bilinear form, each with a sum of its own": Example(
        lambda m, h, g: F.bilinear(h * g, h * g, m.pairs), lambda m, h: F.bilinear(h, h, m.pairs), (3,), 2
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SEVERAL_PLACES)
def test_a_value_in_several_places_of_a_call_is_gated_once_for_each_sum(name: str) -> None:
    gated, plain, shape, width = SEVERAL_PLACES[name]
    torch.manual_seed(0)
    model, x = Between(plain, width).double(), torch.randn(6, *shape).double()
    units = gated_units(model, x)
    assert units["a"].size == 4
    graph, given = GatedGraph(units), frontier(GatedGraph(units), model, x)
    model.function = gated

    def function(g: Tensor) -> Tensor:
        return model(x, units.split(g)["a"])

    g = torch.cat([gates(4, 1), torch.ones(units.total - 4).double()]).requires_grad_()
    torch.testing.assert_close(graph.run(given, g), function(g), rtol=1e-12, atol=1e-12)
    got = torch.autograd.grad(graph.run(given, g).sin().sum(), g)[0][:4]
    with torch.no_grad():
        steps = torch.eye(units.total, dtype=torch.float64)[:4] * 1e-5
        slopes = [(function(g + step).sin().sum() - function(g - step).sin().sum()) / 2e-5 for step in steps]
    torch.testing.assert_close(got, torch.stack(slopes), rtol=1e-7, atol=1e-7)
    assert bool((got != 0).all())


# ---------------------------------------------------------------- operands of another dtype


class LowInside(nn.Module):
    """A layer of another dtype in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.inner, self.b = nn.Linear(3, 4), nn.Linear(4, 5).bfloat16(), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.inner(torch.tanh(self.a(x)).bfloat16())).float())

    def gated(self, x: Tensor, first: Tensor, second: Tensor) -> Tensor:
        h = torch.tanh(self.a(x)).bfloat16() * first.bfloat16()
        return self.b(torch.relu(self.inner(h)).float() * second)


def test_gates_take_the_dtype_of_what_they_are_put_on() -> None:
    torch.manual_seed(0)
    model, x = LowInside(), torch.randn(6, 3)
    units = find_units(model, x)
    assert [(s.name, s.size) for s in units] == [("a", 4), ("inner", 5)]
    graph = GatedGraph(units)
    given = frontier(graph, model, x)
    assert [vector.dtype for vector in graph.vectors(torch.ones(9))] == [torch.bfloat16, torch.float32]
    for g in (torch.ones(9), torch.tensor([1.0, 0, 1, 1, 1, 1, 0, 0, 1]), gates(9).float()):
        assert_close_ulps(graph.run(given, g), model.gated(x, *units.split(g).values()), ulps=8)
    y = torch.randint(0, 2, (6,))
    gradient = GatedLoss(model, units, (x, y), "cross_entropy").gradient(torch.ones(9))
    assert bool((gradient != 0).sum() >= 5)


class Counts(nn.Module):
    """How many units are positive, beside their values."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.a(x)
        return self.b(h), (h > 0).sum(1)


def test_what_is_counted_stays_a_whole_number() -> None:
    torch.manual_seed(0)
    model, x = Counts().double(), torch.randn(6, 3).double()
    units = find_units(model, x)
    graph, g = GatedGraph(units), torch.tensor([1, 0, 0, 1]).double()
    assert {vector.dtype for vector in graph.vectors(g)} == {torch.float64, torch.bool}
    values, count = graph.run(frontier(graph, model, x), g)
    h = model.a(x)
    torch.testing.assert_close(values, model.b(h * g), rtol=1e-12, atol=1e-12)
    assert count.dtype == torch.int64
    assert count.tolist() == (h[:, [0, 3]] > 0).sum(1).tolist()
    assert count.tolist() != (h > 0).sum(1).tolist()
