"""Inputs of other sizes than the example's, from the graph to the cut network.

Covers also secateur.structure.export.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import secateur as sc
from cases import gated_units
from secateur.errors import DataError
from secateur.objective.data import batches
from secateur.reference import dense_gauss_newton, dense_hessian, leave_one_out, weight_ggn, weight_hessian
from secateur.structure.capture import Captured, evaluating
from secateur.structure.graph_run import run
from secateur.structure.inputs import Free, as_call
from secateur.structure.lengths import capture_lengths
from secateur.structure.unit_set import UnitSet

DOUBLE = torch.float64


class Sentences(nn.Module):
    """Attention among the tokens that a mask counts, a feed-forward block, and the mean over those tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(11, 8), nn.Embedding(12, 8)
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)
        self.up, self.down, self.last = nn.Linear(8, 7), nn.Linear(7, 8), nn.Linear(8, 3)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        n, length = ids.shape
        x = self.tokens(ids) + self.places(torch.arange(length, device=ids.device))
        q, k, v = (part.view(n, length, 2, 4).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        seen = torch.softmax((q @ k.mT / 2).masked_fill(mask[:, None, None, :] == 0, -1e9), -1) @ v
        x = x + self.out(seen.transpose(1, 2).reshape(n, length, 8))
        x = x + self.down(torch.tanh(self.up(x)))
        counted = mask[..., None].to(x.dtype)
        return self.last((x * counted).sum(1) / counted.sum(1))


class Layers(nn.Module):
    """Layers by name, and a forward of them."""

    def __init__(self, forward: Callable[..., Tensor], **layers: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.function = forward
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(self, *inputs)


def scaled(m: Any, x: Tensor) -> Tensor:
    """Numbers of samples and of positions as arguments of a call that takes a parameter."""
    return m.b(torch.relu(m.a(x)) * m.scale.expand(x.shape[0], x.shape[1], 6)).mean(1)


def folded(m: Any, x: Tensor) -> Tensor:
    """Positions and units in one dimension and apart again, and positions and samples in one."""
    h = torch.tanh(m.a(x.mT)).reshape(x.shape[0], (x.shape[1] - 2) * 6)
    h = h.view(h.shape[0], 6, h.shape[1] // 6).mT
    flat = torch.relu(h + 1).reshape(h.shape[0] * h.shape[1], 6)
    flat = flat * m.scale.expand(flat.shape[0], 6) / x.shape[1]
    return m.b(flat).view(x.shape[0], -1, 3).mean(1)


def branching(m: Any, x: Tensor) -> Tensor:
    return m.b(m.a(x).tanh().mean(1)) if x.shape[1] > 4 else m.b(m.a(x).amax(1))


class Example(NamedTuple):
    """A network, inputs for n samples of a length, and the shape of each without the samples as it is understood."""

    model: Callable[[], nn.Module]
    inputs: Callable[..., tuple[Tensor, ...]]
    shapes: list[tuple[Any, ...]]
    shortest: int = 2


def sentence(n: int, length: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(11, (n, length), generator=generator)
    counted = torch.randint(1, length + 1, (n, 1), generator=generator)
    return ids, (torch.arange(length) < counted).long()


def sequence(n: int, length: int, seed: int = 0) -> tuple[Tensor]:
    return (torch.randn(n, length, 4, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed)),)


def image(n: int, length: int, seed: int = 0) -> tuple[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(n, 2, length + 1, 2 * length, dtype=DOUBLE, generator=generator),)


def two(n: int, length: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    return sequence(n, length, seed)[0], sequence(n, length + 2, seed + 1)[0]


def layers(forward: Callable[..., Tensor], **more: nn.Module | nn.Parameter) -> Callable[[], nn.Module]:
    return lambda: Layers(forward, **({"a": nn.Linear(4, 6), "b": nn.Linear(6, 3)} | more))


N1, N2 = Free("n1", 7), Free("n2", 9)
EXAMPLES = {
    "sentences": Example(Sentences, sentence, [(N1,), (N1,)]),
    "sequences": Example(layers(scaled, scale=nn.Parameter(torch.ones(6))), sequence, [(N1, 4)]),
    "positions folded": Example(
        layers(folded, a=nn.Conv1d(4, 6, 3), scale=nn.Parameter(torch.ones(6))), sequence, [(N1, 4)], shortest=4,
    ),
    "images": Example(
        layers(lambda m, x: m.b(m.norm(m.a(x)).relu().mean((2, 3))), a=nn.Conv2d(2, 6, 3), norm=nn.BatchNorm2d(6)),
        image, [(2, Free("n1", 8), Free("n2", 14))], shortest=4,
    ),
    "two of any length": Example(
        layers(lambda m, x, y: m.b(torch.cat([m.a(x), m.a(y).tanh()], 1).sum(1))), two, [(N1, 4), (N2, 4)],
    ),
    "a branch": Example(layers(branching), sequence, [(N1, 4)], shortest=5),
}  # fmt: skip
FIXED = {
    "a flatten behind a convolution": Example(
        layers(lambda m, x: m.b(m.a(x).flatten(1)), a=nn.Conv2d(2, 3, 3), b=nn.Linear(216, 2)), image, [(2, 8, 14)],
    ),
    "a loop over positions": Example(
        layers(lambda m, x: m.b(sum(m.a(x[:, i]).tanh() * i for i in range(x.shape[1])))), sequence, [(7, 4)],
    ),
    "a recurrent network": Example(
        layers(lambda m, x: m.b(m.a(x)[0][:, -1]), a=nn.GRU(4, 6, batch_first=True)), sequence, [(7, 4)],
    ),
    "an even length": Example(
        layers(lambda m, x: m.b(m.a(x.view(len(x), x.shape[1] // 7, 7, 4)).mean((1, 2)))), sequence, [(7, 4)],
    ),
}  # fmt: skip


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    return (EXAMPLES | FIXED)[name].model().double()


@functools.cache
def captured(name: str) -> tuple[nn.Module, Captured]:
    model = made(name)
    return model, capture_lengths(model, as_call((EXAMPLES | FIXED)[name].inputs(3, 7)))


@pytest.mark.parametrize("name", EXAMPLES | FIXED)
def test_each_size_is_free_that_the_code_leaves_free(name: str) -> None:
    spec = captured(name)[1].spec
    assert [value.shape for value in spec.args] == (EXAMPLES | FIXED)[name].shapes


@given(name=st.sampled_from(list(EXAMPLES)), n=st.integers(1, 5), more=st.integers(0, 5), seed=st.integers(0, 99))
def test_the_graph_computes_what_the_model_does_at_any_length(name: str, n: int, more: int, seed: int) -> None:
    model, graph = captured(name)
    example = EXAMPLES[name]
    inputs = example.inputs(n, example.shortest + more, seed)
    with torch.no_grad(), evaluating(model):
        assert torch.allclose(run(graph, model, as_call(inputs)), model(*inputs), rtol=0, atol=1e-13)


IDS, MASK = sentence(2, 7)
BATCH_2 = "data: batch 2: "


@pytest.mark.parametrize(
    ("name", "inputs", "text"),
    [
        ("sentences", (IDS, MASK[:, :5]), "dimension 1 of data: batch 2: inputs[1] is 5, it must be that of "
         "dimension 1 of data: batch 2: inputs[0], 7"),
        ("sentences", (IDS[..., None], MASK), "data: batch 2: inputs[0] of shape (2, 7, 1), the model was captured for "
         "(samples, any)"),
        ("sequences", (torch.zeros(2, 6, 5),), "data: batch 2: inputs of shape (2, 6, 5), the model was captured for "
         "(samples, any, 4)"),
        ("a branch", sequence(2, 4), "data: batch 2: inputs: the model was captured for sizes with n1 > 4, got n1 = 4, "
         "dimension 1 of data: batch 2: inputs"),
        ("a recurrent network", sequence(2, 6), "data: batch 2: inputs of shape (2, 6, 4), the model was captured for "
         "(samples, 7, 4)"),
    ],
)  # fmt: skip
def test_other_inputs_are_refused(name: str, inputs: tuple[Tensor, ...], text: str) -> None:
    model, graph = captured(name)
    first = (EXAMPLES | FIXED)[name].inputs(3, 7)
    data = [(first, None), (first, None), (inputs, None)]
    with pytest.raises(DataError) as caught:
        list(batches(model, data, captured=graph))
    assert str(caught.value) == text


# ---------------------------------------------------------------- data whose batches have different lengths


def lengths_of(name: str) -> list[tuple[int, int]]:
    return [(3, 7), (4, EXAMPLES[name].shortest + 3), (2, 11)]


def data_of(name: str, model: nn.Module) -> list[tuple[tuple[Tensor, ...], Tensor]]:
    data = []
    for seed, (n, length) in enumerate(lengths_of(name)):
        inputs = EXAMPLES[name].inputs(n, length, seed)
        targets = model.eval()(*inputs).detach()
        noise = torch.randn(targets.shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))
        data.append((inputs, targets + noise))
    return data


def error(outputs: Tensor, targets: Tensor) -> Tensor:
    return 0.5 * (outputs - targets).square().sum(-1).mean()


def average(data: list[tuple[tuple[Tensor, ...], Tensor]], of_batch: Callable[..., Tensor]) -> Tensor:
    """The mean over all samples of what is computed batch by batch."""
    return sum(len(t) * of_batch(x, t) for x, t in data) / sum(len(t) for _, t in data)


def with_weights(units: sc.Units) -> list[UnitSet]:
    """The sets that the reference can put gates on."""
    return [unit_set for unit_set in units if unit_set.outgoing]


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.parametrize("criterion", ["oracle", "taylor1", "hessian", "ggn"])
def test_scores_are_those_of_the_reference_batch_by_batch(name: str, criterion: str) -> None:
    model = made(name)
    data = data_of(name, model)
    units = gated_units(model, data[0][0])
    sets = with_weights(units)
    scores = sc.score(model, data, "squared_error", units=units, criterion=criterion)

    def wanted(x: tuple[Tensor, ...], t: Tensor) -> Tensor:
        if criterion == "oracle":
            return leave_one_out(model, sets, x, t, error)
        first, second = dense_hessian(model, sets, x, t, error)
        second = dense_gauss_newton(model, sets, x, t, error) if criterion == "ggn" else second
        return -first if criterion == "taylor1" else second.diagonal() / 2 - first

    expected = average(data, wanted)
    assert expected.abs().max() > 1e-3
    assert torch.allclose(torch.cat([scores[s.name] for s in sets]), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", EXAMPLES)
def test_interactions_are_those_of_the_reference_batch_by_batch(name: str) -> None:
    model = made(name)
    data = data_of(name, model)
    units = gated_units(model, data[0][0])
    sets = with_weights(units)
    got = sc.interactions(model, data, "squared_error", units=units, curvature="ggn")
    places = [i for i, (owner, _) in enumerate(units.places) if owner in {s.name for s in sets}]
    expected = average(data, lambda x, t: dense_gauss_newton(model, sets, x, t, error))
    assert torch.allclose(got[places][:, places], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["sequences", "positions folded", "images"])
@pytest.mark.parametrize("criterion", ["obd", "obd_ggn"])
def test_single_weights_are_scored_on_batches_of_different_lengths(name: str, criterion: str) -> None:
    model = made(name).eval()
    data = data_of(name, model)
    scores = sc.score(model, data, "squared_error", criterion=criterion, granularity="weight")
    ggn = criterion == "obd_ggn"
    curvature = average(
        data, lambda x, t: (weight_ggn(model, x, t, error) if ggn else weight_hessian(model, x, t, error)[1]).diagonal()
    )
    parameters = torch.cat([p.detach().flatten() for p in model.parameters()])
    expected = dict(zip(dict(model.named_parameters()), (parameters.square() * curvature / 2).split(
        [p.numel() for p in model.parameters()]), strict=True))  # fmt: skip
    assert scores
    for parameter, values in scores.items():
        assert torch.allclose(values.flatten(), expected[parameter], rtol=1e-7, atol=1e-10)


def zeroed(model: nn.Module, units: sc.Units, kept: Mapping[str, Sequence[int]]) -> nn.Module:
    """The model with all parameters of the units that are gone zero."""
    model = copy.deepcopy(model)
    for unit_set in units:
        gone = sorted(set(range(unit_set.size)) - set(kept[unit_set.name]))
        for part in unit_set.slices if gone else ():
            with torch.no_grad():
                model.state_dict()[part.tensor].index_fill_(part.dim, part.index[gone].flatten(), 0)
    return model


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.parametrize("ranking", ["iterative", "quadratic"])
def test_a_network_is_shrunk_on_batches_of_different_lengths(name: str, ranking: str) -> None:
    model = made(name)
    data = data_of(name, model)
    result = sc.shrink(
        model, data, "squared_error", budget=sc.Budget(remove_units=3), ranking=ranking, criterion="hessian",
        progress=False, units=gated_units(model, data[0][0]),
    )  # fmt: skip
    measured = average(data, lambda x, t: error(result.model(*x).detach(), t))
    assert result.after.loss == pytest.approx(float(measured), rel=1e-9)
    units, kept = gated_units(model, data[0][0]), result.plan.kept
    plain, expected = sc.cut(model, sc.Plan.from_kept(kept, data[0][0])), zeroed(model, units, kept)
    for x, _ in data:
        assert torch.allclose(plain(*x), expected(*x), rtol=0, atol=1e-12)


def test_a_plan_from_a_file_is_cut_like_the_one_written() -> None:
    model = made("sentences")
    plan = sc.Plan.from_kept({"up": [0, 3, 4]}, sentence(3, 7))
    units = sc.find_units(model, sentence(3, 7))
    assert units.captured.spec == type(units.captured.spec).from_json(units.captured.spec.to_json())
    small = sc.cut(model, sc.Plan.from_json(plan.to_json()))
    x = sentence(2, 10)
    assert torch.equal(small(*x), sc.cut(model, plan)(*x))


def test_costs_are_those_of_the_example() -> None:
    model = made("sequences")
    costs = [sc.measure(model, sequence(3, length)[0]) for length in (5, 10)]
    assert [cost.macs for cost in costs] == [5 * (4 * 6 + 6 * 3), 10 * (4 * 6 + 6 * 3)]
    assert costs[0].ram < costs[1].ram
    assert sc.find_units(model, sequence(3, 5)[0]).notes == [
        "Inputs may have other sizes in place of 5: MACs and memory are counted for these."
    ]


def test_a_length_is_fixed_where_more_units_can_be_removed_then() -> None:
    def padded(m: Any, x: Tensor) -> Tensor:
        h = m.a(x).mT
        return m.b(F.pad(h, (0, 12 - h.shape[-1])).mT).mean(1)

    torch.manual_seed(0)
    model = layers(padded)().double()
    units = sc.find_units(model, sequence(3, 7)[0])
    assert {s.name: s.size for s in units} == {"a": 6}
    assert units.captured.spec.free == {}


def test_a_length_is_fixed_where_the_graph_is_another_at_others() -> None:
    def odd(m: Any, x: Tensor) -> Tensor:  # a branch that torch.export does not see
        return m.b(m.a(x)).mean(1) * (2 if f"{x.shape[1]}" == "6" else 1)

    torch.manual_seed(0)
    model = layers(odd)().double()
    assert capture_lengths(model, as_call(sequence(3, 7))).spec.free == {}
    assert capture_lengths(model, as_call(sequence(3, 9))).spec.free == {"n1": 9}


class Walked(nn.Module):
    """Steps along one sequence one by one, which fixes its length, and takes the mean of another of any length."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(3, 5), nn.Linear(4, 5), nn.Linear(5, 2)

    def forward(self, walked: Tensor, other: Tensor) -> Tensor:
        h = self.second(other).tanh().mean(1)
        for t in range(walked.shape[1]):
            h = (h + self.first(walked[:, t])).tanh()
        return self.last(h)


def test_a_length_stays_free_where_another_is_fixed() -> None:
    torch.manual_seed(0)
    model, call = Walked().double(), as_call((torch.randn(3, 4, 3).double(), torch.randn(3, 7, 4).double()))
    captured = capture_lengths(model, call)
    assert captured.spec.free == {"n1": 7}
    other = as_call((torch.randn(2, 4, 3).double(), torch.randn(2, 9, 4).double()))
    with evaluating(model):
        torch.testing.assert_close(run(captured, model, other), model(*other[0]), rtol=1e-12, atol=1e-12)


def test_a_loss_is_no_mean_whatever_lengths_the_batches_have() -> None:
    torch.manual_seed(0)
    model = layers(lambda m, x: m.b(m.a(x).tanh()))().double()
    data = [(x, torch.ones(*x.shape[:2], 3, dtype=DOUBLE)) for (x,) in (sequence(4, 7), sequence(4, 5), sequence(4, 7))]
    assert sc.score(model, data, error, criterion="taylor1")["a"].shape == (6,)
    with pytest.raises(DataError, match=r"^loss: it is not a mean over samples"):
        sc.score(model, data, lambda outputs, targets: error(outputs, targets) * len(outputs), criterion="taylor1")
