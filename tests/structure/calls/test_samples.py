"""Inputs as people have them: graphs, bags, shared masks, nested values, from the search for samples to the cut."""

from __future__ import annotations

import dataclasses
import functools
from collections import UserDict
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import secateur as sc
from secateur.errors import DataError, ModelError
from secateur.structure.calls.samples import find_samples
from secateur.structure.inputs import InputSpec, as_call

DOUBLE = torch.float64


def close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-9, atol=1e-12)


class Graph(nn.Module):
    """Two layers that send messages along edges, and a decision for each node."""

    def __init__(self, pooled: bool = False) -> None:
        super().__init__()
        self.own, self.sent = nn.Linear(4, 7), nn.Linear(4, 7)
        self.mixed, self.last = nn.Linear(7, 6), nn.Linear(6, 3)
        self.pooled = pooled

    def forward(self, x: Tensor, edge_index: Any) -> Tensor:
        source, target = edge_index
        messages = self.sent(x).index_select(0, source)
        h = torch.relu(self.own(x) + x.new_zeros(x.shape[0], messages.shape[1]).index_add(0, target, messages))
        scattered = torch.zeros_like(h).scatter_add(0, target[:, None].expand(-1, h.shape[1]), h[source])
        out = self.last(torch.relu(self.mixed(h + scattered)))
        return out.mean(0, keepdim=True) if self.pooled else out


class Edges(Graph):
    def forward(self, x: Tensor, source: Tensor, target: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x, (source, target))


class Bag(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.up, self.last = nn.EmbeddingBag(20, 6), nn.Linear(6, 7), nn.Linear(7, 3)

    def forward(self, indices: Tensor, offsets: Tensor) -> Tensor:
        return self.last(torch.relu(self.up(self.words(indices, offsets))))


class Denoiser(nn.Module):
    """A block of a diffusion network: one time for all images."""

    def __init__(self) -> None:
        super().__init__()
        self.time, self.first = nn.Linear(2, 5), nn.Conv2d(2, 5, 3, padding=1)
        self.middle, self.last = nn.Conv2d(5, 6, 1), nn.Conv2d(6, 2, 1)

    def forward(self, timestep: Tensor, x: Tensor) -> Tensor:
        angle = timestep[:, None].to(x.dtype) / 10
        shift = self.time(torch.cat([angle.sin(), angle.cos()], 1))
        h = F.silu(self.first(x) + shift[:, :, None, None])
        return self.last(F.silu(self.middle(h)))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 5)
        self.up, self.last = nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        weights = (self.q(x) @ self.k(x).transpose(-1, -2) + mask).softmax(-1)
        return self.last(torch.relu(self.up(weights @ self.v(x)))).mean(1)


class Contrast(nn.Module):
    """Every image beside every text: samples depend on each other."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = nn.Linear(4, 5), nn.Linear(3, 5)

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        return self.image(image) @ self.text(text).T


class Centred(Contrast):
    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        h = self.image(image) + self.text(text)
        return h - h.cumsum(0)[-1:]


class Neighbours(Contrast):
    """Rows of one table: a second copy of a row has another neighbour than the first."""

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        h = self.image(image) + self.text(text)
        return h - h.roll(1, 0)


class Example(NamedTuple):
    model: Callable[[], nn.Module]
    inputs: tuple[Any, ...]
    per_sample: tuple[str, ...]
    outputs: int
    removed: dict[str, int]  # unit set -> the unit that is removed by hand, too


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=DOUBLE)


def edges(nodes: int, count: int) -> Tensor:
    return torch.randint(0, nodes, (2, count), generator=torch.Generator().manual_seed(count))


RING = torch.stack([torch.arange(6), (torch.arange(6) + 1) % 6])
EXAMPLES = {
    "graph": Example(Graph, (numbers(6, 4), edges(6, 11)), (), 6, {"mixed": 2}),
    "as many edges as nodes": Example(Graph, (numbers(6, 4), RING), (), 6, {"mixed": 2}),
    "edges apart": Example(Edges, (numbers(6, 4), *edges(6, 9)), (), 6, {"mixed": 2}),
    "as many edges apart": Example(Edges, (numbers(6, 4), *RING), (), 6, {"mixed": 2}),
    "graph as a whole": Example(lambda: Graph(pooled=True), (numbers(6, 4), edges(6, 11)), (), 1, {"mixed": 2}),
    "bags": Example(Bag, (torch.arange(9) * 2 % 20, torch.tensor([0, 2, 3, 7])), (), 4, {"up": 3}),
    "timestep": Example(Denoiser, (torch.tensor([7]), numbers(4, 2, 5, 5)), ("[1]",), 4, {"middle": 1}),
    "mask": Example(Attention, (numbers(4, 5, 4), numbers(5, 5)), ("[0]",), 4, {"up": 1}),
    "as many samples as positions": Example(Attention, (numbers(5, 5, 4), numbers(5, 5)), ("[0]",), 5, {"up": 1}),
    "contrast": Example(Contrast, (numbers(5, 4), numbers(5, 3)), ("[0]", "[1]"), 5, {}),
    "tied samples": Example(Centred, (numbers(5, 4), numbers(5, 3)), ("[0]", "[1]"), 5, {}),
    "neighbours": Example(Neighbours, (numbers(5, 4), numbers(5, 3)), (), 5, {}),
}
CUT = [name for name, example in EXAMPLES.items() if example.removed]


def made(name: str) -> tuple[nn.Module, Example]:
    torch.manual_seed(0)
    return EXAMPLES[name].model().double(), EXAMPLES[name]


def targets(example: Example) -> Tensor:
    return torch.arange(example.outputs) % 3


def loss(outputs: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(outputs.flatten(2).mean(2) if outputs.ndim > 2 else outputs, labels % outputs.shape[1])


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_samples_of_inputs_are_found(name: str) -> None:
    model, example = made(name)
    spec = find_samples(model, as_call(example.inputs))
    assert tuple(path for path, tensor in spec.tensors.items() if tensor.per_sample) == example.per_sample
    assert spec.fixed == (None if example.per_sample else 1)
    assert spec.count(as_call(example.inputs)) == (example.outputs if example.per_sample else 1)


@pytest.mark.parametrize("name", CUT)
def test_saliency_is_that_of_the_network_without_the_unit(name: str) -> None:
    model, example = made(name)
    data = [(example.inputs, targets(example))]
    units = sc.find_units(model, example.inputs)
    ((set_name, unit),) = example.removed.items()
    before = loss(model(*example.inputs), data[0][1])
    saliency = sc.score(model, data, loss, units=units, criterion="oracle")[set_name][unit]
    following = model.last
    with torch.no_grad():
        following.weight[:, unit] = 0
    assert saliency.item() == pytest.approx((loss(model(*example.inputs), data[0][1]) - before).item(), rel=1e-9)


@pytest.mark.parametrize("name", CUT)
def test_a_cut_is_the_network_sliced_by_hand(name: str) -> None:
    model, example = made(name)
    ((set_name, unit),) = example.removed.items()
    units = sc.find_units(model, example.inputs)
    kept = [i for i in range(units[set_name].size) if i != unit]
    plan = sc.Plan.from_kept({set_name: kept}, example.inputs)
    small = sc.cut(model, plan)
    producer, last = model.get_submodule(set_name), model.get_submodule("last")
    with torch.no_grad():
        for layer, tensor in ((producer, producer.weight), (producer, producer.bias)):
            assert isinstance(layer, nn.Module)
            setattr(layer, "weight" if tensor is producer.weight else "bias", nn.Parameter(tensor[kept]))
        last.weight = nn.Parameter(last.weight[:, kept])
    assert [tuple(p.shape) for p in small.parameters()] == [tuple(p.shape) for p in model.parameters()]
    assert close(small(*example.inputs), model(*example.inputs))


@pytest.mark.parametrize("name", CUT)
@pytest.mark.parametrize("form", ["batch", "dataset"])
def test_a_network_is_shrunk_and_its_plan_cut_again_elsewhere(name: str, form: str) -> None:
    model, example = made(name)
    batch = (example.inputs, targets(example))
    result = sc.shrink(
        model, [batch] if form == "batch" else batch, loss, budget=sc.Budget(remove_fraction=0.4),
        criterion="ggn", progress=False,
    )  # fmt: skip
    plan = sc.Plan.from_json(result.plan.to_json())
    assert plan.inputs == result.plan.inputs
    small = sc.cut(model, plan)
    assert sum(p.numel() for p in small.parameters()) == result.after.params < result.before.params
    assert sc.cut(model, plan, compensate=[batch])(*example.inputs).shape == model(*example.inputs).shape


@pytest.mark.parametrize("criterion", ["oracle", "ggn", "hessian", "obs"])
def test_two_graphs_in_one_are_worth_what_each_is(criterion: str) -> None:
    model, example = made("graph")
    (x, links), labels = example.inputs, targets(example)
    units = sc.find_units(model, example.inputs)
    twice = (torch.cat([x, x]), torch.cat([links, links + 6], 1)), torch.cat([labels, labels])
    once, together = (
        sc.score(model, [data], "cross_entropy", units=units, criterion=criterion)
        for data in ((example.inputs, labels), twice)
    )
    assert all(close(once[name], together[name]) for name in once)
    assert any(bool(values.abs().max() > 1e-6) for values in once.values())


@functools.cache
def cut_graph() -> tuple[nn.Module, nn.Module]:
    """Return a cut network, and the whole one without the weights that read the units removed."""
    model, example = made("graph")
    small = sc.cut(model, sc.Plan.from_kept({"mixed": [0, 1, 4]}, example.inputs))
    with torch.no_grad():
        model.get_submodule("last").weight[:, [2, 3, 5]] = 0
    return small, model


@given(st.integers(3, 9), st.integers(3, 20))
def test_a_cut_graph_network_takes_other_graphs(nodes: int, count: int) -> None:
    (small, model), x, links = cut_graph(), numbers(nodes, 4), edges(nodes, count)
    assert close(small(x, links), model(x, links))


def test_batches_of_graphs_have_any_number_of_nodes_and_edges() -> None:
    model, example = made("graph")
    data = [(example.inputs, targets(example)), ((numbers(4, 4), edges(4, 5)), torch.tensor([0, 1, 2, 0]))]
    units = sc.find_units(model, example.inputs)
    start = sc.rank(model, data, "cross_entropy", units=units, budget=sc.Budget(remove_units=1)).start
    assert start is not None
    with torch.no_grad():
        total = sum(F.cross_entropy(model(*inputs), labels) * len(labels) for inputs, labels in data)
    assert start.loss == pytest.approx(float(total) / 10, rel=1e-9)


def test_a_dataset_is_divided_where_a_mask_is_shared() -> None:
    model, example = made("mask")
    units = sc.find_units(model, example.inputs)
    x, mask = numbers(40, 5, 4), example.inputs[1]
    labels = torch.arange(40) % 3
    wanted = sc.score(model, [((x, mask), labels)], "cross_entropy", units=units, criterion="oracle")
    got = sc.score(
        model, ((x, mask), labels), "cross_entropy", units=units, criterion="oracle", max_memory=200_000
    )  # fmt: skip
    assert all(close(got[name], wanted[name]) for name in wanted)


def test_the_table_says_that_inputs_cannot_be_divided() -> None:
    model, example = made("graph")
    units = sc.find_units(model, example.inputs)
    assert units.notes == [
        "The inputs cannot be divided into samples: all sizes are for the example, each input is a batch.",
        "Inputs may have other sizes in place of 6, 11: MACs and memory are counted for these.",
    ]


def test_targets_of_a_mask_s_samples_must_be_as_many() -> None:
    model, example = made("mask")
    with pytest.raises(DataError, match=r"^data: batch 0: 4 inputs, but 3 targets$"):
        sc.score(model, [(example.inputs, torch.zeros(3).long())], "cross_entropy", criterion="oracle")


def test_inputs_that_do_not_fit_each_other_are_the_model_s_to_refuse() -> None:
    with pytest.raises(ModelError, match=r"^Contrast does not run on the inputs given, of shape \(5, 3\), \(4, 3\)"):
        sc.find_units(Contrast().double(), (numbers(5, 3), numbers(4, 3)))


# ---------------------------------------------------------------- nested inputs


@dataclasses.dataclass
class Pictures:
    left: Tensor
    right: Any = None
    scale: float = 1.0


class Row(NamedTuple):
    x: Tensor
    more: Any


class Nested(nn.Module):
    """A network over all tensors that its inputs hold."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, inputs: Any, again: Any = None) -> Tensor:
        summed = sum(tensors_of(inputs)) + 2 * sum(tensors_of(again))
        return self.last(torch.relu(self.first(summed)))


def tensors_of(value: Any) -> list[Tensor]:
    if isinstance(value, Pictures):
        return [value.scale * tensor for tensor in tensors_of([value.left, value.right])]
    if isinstance(value, dict | UserDict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [tensor for inner in value for tensor in tensors_of(inner)]
    return [value] if isinstance(value, Tensor) else []


class Batched(UserDict):
    """As a tokenizer returns it."""


NESTED = st.recursive(
    st.integers(0, 9) | st.none() | st.just("word"),
    lambda inner: st.one_of(
        st.lists(inner, max_size=2),
        st.lists(inner, max_size=2).map(tuple),
        st.dictionaries(st.sampled_from("abc"), inner, max_size=2),
        st.dictionaries(st.sampled_from("abc"), inner, max_size=2).map(Batched),
        st.tuples(inner, inner).map(lambda pair: Row(*pair)),
        st.tuples(inner, inner).map(lambda pair: Pictures(*pair, scale=0.5)),
    ),
    max_leaves=5,
)


def filled(tree: Any, n: int, seed: int = 0) -> Any:
    """Return the nested values with n samples in place of each number."""
    if isinstance(tree, int):
        return torch.randn(n, 4, generator=torch.Generator().manual_seed(tree + 10 * seed), dtype=DOUBLE)
    if isinstance(tree, Pictures):
        return Pictures(filled(tree.left, n, seed), filled(tree.right, n, seed), tree.scale)
    if isinstance(tree, Row):
        return Row(filled(tree.x, n, seed), filled(tree.more, n, seed))
    if isinstance(tree, list | tuple):
        return type(tree)(filled(inner, n, seed) for inner in tree)
    if isinstance(tree, dict | Batched):
        return type(tree)({key: filled(inner, n, seed) for key, inner in tree.items()})
    return tree


@given(NESTED, NESTED, st.sampled_from([1, 2, 5]), st.booleans())
@settings(max_examples=15)
def test_inputs_may_be_nested(first: Any, second: Any, n: int, by_name: bool) -> None:
    torch.manual_seed(0)
    model, tree = Nested().double(), [0, first]
    inputs: Any = (filled(tree, n), filled(second, n))
    inputs = {"again": inputs[1], "inputs": inputs[0]} if by_name else inputs
    units = sc.find_units(model, inputs)
    spec = units.captured.spec
    assert InputSpec.from_json(spec.to_json()) == spec
    plan = sc.Plan.from_json(sc.Plan.from_kept({"first": [0, 3]}, inputs).to_json())
    small = sc.cut(model, plan)
    with torch.no_grad():
        model.last.weight[:, [1, 2, 4, 5]] = 0
    for samples in (1, 3):
        other = filled(tree, samples, 1), filled(second, samples, 1)
        assert close(small(*other), model(*other))


@pytest.mark.parametrize("form", ["whole", "batches"])
def test_data_may_be_nested(form: str) -> None:
    torch.manual_seed(0)
    model, x, y, labels = Nested().double(), numbers(30, 4), numbers(30, 4) ** 2, torch.arange(30) % 3

    def data(wrap: Callable[[Tensor, Tensor], Any]) -> Any:
        whole = wrap(x, y), labels
        parts = [(wrap(x[i : i + 10], y[i : i + 10]), labels[i : i + 10]) for i in (0, 10, 20)]
        return whole if form == "whole" else parts

    flat = sc.score(model, data(lambda a, b: (0.5 * (a + b),)), "cross_entropy", criterion="fisher")
    for wrap in (
        lambda a, b: Pictures(a, [b, None], 0.5),
        lambda a, b: {"inputs": {"pair": Pictures(a, {"b": b}, 0.5)}},
        lambda a, b: (Row(0.5 * a, (0.5 * b, [])),) if form == "batches" else ([0.5 * a, 0.5 * b],),
    ):
        scores = sc.score(model, data(wrap), "cross_entropy", criterion="fisher")
        assert all(close(scores[name], flat[name]) for name in flat)


def test_entries_that_the_example_has_not_are_named() -> None:
    model = Nested().double()
    labels, fitting = torch.arange(4) % 3, Pictures(numbers(4, 4), {"b": numbers(4, 4)})
    for other, text in (
        (
            {"c": numbers(4, 4)},
            ": other entries than in the example: without inputs[0].right['b'], with inputs[0].right",
        ),
        ({"b": numbers(4, 3)}, "[0].right['b'] of shape (4, 3), the model was captured for (samples, 4)"),
        ({"b": 3}, "[0].right['b']: captured with a tensor, got 3"),
    ):
        data = [(fitting, labels), (Pictures(numbers(4, 4), other), labels)]
        with pytest.raises(DataError) as refused:
            sc.score(model, data, "cross_entropy")
        assert str(refused.value).startswith(f"data: batch 1: inputs{text}")


def test_the_user_s_objects_are_as_they_were() -> None:
    model, pictures = Nested().double(), Pictures(numbers(4, 4), [numbers(4, 4)])
    before, forward = (pictures.left.clone(), pictures.right[0].clone()), vars(model).get("forward")
    sc.shrink(
        model, [(pictures, torch.arange(4) % 3)], "cross_entropy", budget=sc.Budget(remove_units=2), progress=False
    )
    assert pictures.left.equal(before[0])
    assert pictures.right[0].equal(before[1])
    assert vars(model).get("forward") is forward
