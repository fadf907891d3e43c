from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cases import in_batches, randomise
from secateur import find_units
from secateur.compensation.batch_norm import ChannelStatistics, find_norms
from secateur.compensation.compensator import Compensator
from secateur.compensation.linear_layers import find_layers
from secateur.objective.gated_loss import GatedLoss, ones
from secateur.options import Compensation

Build = Callable[[], nn.Module]


class Network(nn.Module):
    """A norm of the inputs, and two behind units, the second of what the first gives; on images or positions."""

    def __init__(self, dims: int, bias: bool = True) -> None:
        super().__init__()
        make: Any = {0: nn.Linear, 1: lambda *a, **k: nn.Conv1d(*a, 2, **k), 2: lambda *a, **k: nn.Conv2d(*a, 2, **k)}
        norm: Any = nn.BatchNorm2d if dims == 2 else nn.BatchNorm1d
        self.start, self.a = norm(2), make[dims](2, 5)
        self.b, self.first = make[dims](5, 6, bias=bias), norm(6)
        self.c, self.second = make[dims](6, 4), norm(4, affine=False)
        self.last, self.places = nn.Linear(4, 3), tuple(range(2, 2 + dims))

    def forward(self, x: Tensor, masks: dict[str, Tensor] | None = None) -> Tensor:
        def left(x: Tensor, name: str) -> Tensor:
            return x if masks is None else x * masks[name].reshape(-1, *[1] * (x.ndim - 2))

        x = left(torch.tanh(self.a(self.start(x))), "a")
        x = left(torch.tanh(self.first(self.b(x))), "b")
        x = left(torch.tanh(self.second(self.c(x))), "c")
        return self.last(x.mean(self.places) if self.places else x)


class Made:
    def __init__(self, model: nn.Module, shape: tuple[int, ...], cuts: list[int] | None = None) -> None:
        torch.manual_seed(0)
        self.model = randomise(model.double().eval())
        self.x = torch.randn(9, *shape, dtype=torch.float64) + 0.5
        self.units = find_units(self.model, self.x)
        data = in_batches(self.x, torch.randint(0, 3, (9,)), cuts or [])
        self.gated = GatedLoss(self.model, self.units, data, "cross_entropy")

    def gates(self, *gone: tuple[str, int]) -> Tensor:
        g = ones(self.model, self.units)
        for unit in gone:
            g[self.units.places.index(unit)] = 0
        return g


SHAPES = {0: (2,), 1: (2, 6), 2: (2, 5, 5)}
FEW_GONE = [("a", 2), ("b", 0)]
MANY_GONE = [("a", 2), ("a", 0), ("b", 0), ("b", 3), ("b", 5), ("c", 1), ("c", 2)]


def compensated(made: Made, g: Tensor, **options: Any) -> dict[str, Tensor]:
    compensation = Compensator(made.gated, Compensation(recalibrate=True, **options))
    compensation.fit(g)
    return compensation.weights


# ---------------------------------------------------------------- statistics


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**31), n=st.integers(1, 8), shape=st.lists(st.integers(1, 4), max_size=2),
    cuts=st.lists(st.integers(0, 8), max_size=3), single=st.booleans(),
)  # fmt: skip
def test_mean_and_variance_are_those_of_all_batches_together(
    seed: int, n: int, shape: list[int], cuts: list[int], single: bool
) -> None:
    torch.manual_seed(seed)
    x = (torch.randn(n, 3, *shape) * torch.tensor([0.1, 1.0, 5.0]).reshape(3, *[1] * len(shape)) + 2).double()
    x = x.float() if single else x
    statistics = ChannelStatistics()
    for piece in torch.tensor_split(x, sorted(cuts)):
        statistics.add(piece)
    rows = x.double().transpose(0, 1).reshape(3, -1)
    assert statistics.count == rows.shape[1]
    assert statistics.mean.dtype == statistics.variance.dtype == torch.float64
    torch.testing.assert_close(statistics.mean, rows.mean(1), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(statistics.variance, rows.var(1, unbiased=False), rtol=1e-11, atol=1e-11)
    assert (statistics.variance >= 0).all()


def test_constant_channels_have_a_variance_of_zero_and_not_less() -> None:
    statistics = ChannelStatistics()
    for n in (3, 4):
        statistics.add(torch.full((n, 2, 3), 0.1, dtype=torch.float64))
    assert (statistics.variance >= 0).all()
    assert (statistics.variance < 1e-16).all()


# ---------------------------------------------------------------- re-estimated statistics


@pytest.mark.parametrize("fit", [True, False])
@pytest.mark.parametrize("gone", [FEW_GONE, MANY_GONE], ids=["few gone", "many gone"])
@pytest.mark.parametrize("dims", [0, 1, 2])
def test_statistics_are_those_of_what_the_shrunk_network_gives_the_norm(
    dims: int, gone: list[tuple[str, int]], fit: bool
) -> None:
    made = Made(Network(dims), SHAPES[dims], cuts=[2, 6])
    before = {name: tensor.clone() for name, tensor in made.model.state_dict().items()}
    found = compensated(made, made.gates(*gone), fit=fit)
    norms = {"first.running_mean", "first.running_var", "second.running_mean", "second.running_var"}
    layers = {f"{name}.{part}" for name in ("b", "c", "last") for part in ("weight", "bias")}
    assert found.keys() == norms | (layers if fit else set())
    assert all(torch.equal(before[name], tensor) for name, tensor in made.model.state_dict().items())

    shrunk = Network(dims).double().eval()
    shrunk.load_state_dict(before | found)
    seen: dict[str, Tensor] = {}
    for name in ("first", "second"):
        shrunk.get_submodule(name).register_forward_pre_hook(lambda _, x, name=name: seen.update({name: x[0]}))
    masks = {name: torch.ones(size).double() for name, size in (("a", 5), ("b", 6), ("c", 4))}
    for name, k in gone:
        masks[name][k] = 0
    with torch.no_grad():
        shrunk(made.x, masks)
    for name, units in (("first", "b"), ("second", "c")):
        rows, left = seen[name].transpose(0, 1).flatten(1), masks[units] != 0
        for buffer, expected in (("running_mean", rows.mean(1)), ("running_var", rows.var(1, unbiased=False))):
            got = found[f"{name}.{buffer}"]
            torch.testing.assert_close(got[left], expected[left], rtol=1e-10, atol=1e-12)
            assert not torch.allclose(got[left], before[f"{name}.{buffer}"][left], rtol=1e-3)
            assert got.shape == before[f"{name}.{buffer}"].shape
            assert got.isfinite().all()
            if gone is MANY_GONE:  # channels that are sliced out keep theirs
                assert torch.equal(got[~left], before[f"{name}.{buffer}"][~left])


def test_norms_that_nothing_gone_is_in_front_of_keep_their_statistics() -> None:
    made = Made(Network(2), SHAPES[2])
    found = compensated(made, made.gates(("b", 1)))
    assert {name for name in found if "running" in name} == {"second.running_mean", "second.running_var"}
    assert compensated(made, made.gates(("c", 1))).keys() == {"last.weight", "last.bias"}
    assert compensated(made, made.gates()) == {}


def test_without_recalibration_statistics_stay() -> None:
    made = Made(Network(0), SHAPES[0])
    compensation = Compensator(made.gated, Compensation())
    compensation.fit(made.gates(*FEW_GONE))
    assert compensation.norms == []
    assert {name for name in compensation.weights if "running" in name} == set()


def test_half_precision_buffers_get_their_statistics_in_their_own_dtype() -> None:
    made = Made(Network(0), SHAPES[0])
    norm = Compensator(made.gated, Compensation(recalibrate=True)).norms[0]
    statistics = ChannelStatistics()
    statistics.add(torch.tensor([[1.0, -2.0], [3.0, 0.0]]))
    old = {"first.running_mean": torch.zeros(6).half(), "first.running_var": torch.ones(6).float()}
    found = norm.tensors(statistics, old, torch.tensor([1, 4]))
    assert found["first.running_mean"].tolist() == [0, 2, 0, 0, -1, 0]
    assert found["first.running_var"].tolist() == [1, 1, 1, 1, 1, 1]
    assert [found[name].dtype for name in old] == [torch.float16, torch.float32]
    assert not old["first.running_mean"].any()


# ---------------------------------------------------------------- which norms


def test_only_norms_behind_units_are_estimated() -> None:
    made = Made(Network(1), SHAPES[1])
    norms = Compensator(made.gated, Compensation(recalibrate=True)).norms
    assert [(norm.mean, norm.variance) for norm in norms] == [
        ("first.running_mean", "first.running_var"), ("second.running_mean", "second.running_var"),
    ]  # fmt: skip
    assert [norm.channels.size for norm in norms] == [6, 4]
    copies = made.gated.graph.copies
    assert [[node.name for node in norm.places(copies[norm.call]).values()] for norm in norms] == [
        [copies[norm.call].args[3].name, copies[norm.call].args[4].name] for norm in norms
    ]


def test_a_norm_in_front_of_all_units_keeps_its_statistics() -> None:
    layers = nn.BatchNorm1d(3), nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3)
    made = Made(nn.Sequential(*layers), (3,))
    assert Compensator(made.gated, Compensation(recalibrate=True)).norms == []  # no gate is in front of "2" either
    assert compensated(made, made.gates(("1", 2))).keys() == {"4.weight", "4.bias"}


class Shared(nn.Module):
    """Two norms, and what they share."""

    def __init__(self, share: str) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.first = nn.BatchNorm1d(4)
        self.second = self.first if share == "module" else nn.BatchNorm1d(4, track_running_stats=share != "batch")
        self.double().eval()  # makes buffers anew
        for buffer in {"both": ("running_mean", "running_var"), "one": ("running_var",)}.get(share, ()):
            self.second._buffers[buffer] = self.first._buffers[buffer]
        if share == "affine":
            self.second.weight, self.second.bias = self.first.weight, self.first.bias

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(self.b(torch.tanh(self.a(x)))))
        return self.d(torch.tanh(self.second(self.c(x))))


@pytest.mark.parametrize(
    ("share", "found"),
    [
        ("nothing", ["first.running_mean", "second.running_mean"]),
        ("affine", ["first.running_mean", "second.running_mean"]),
        ("both", []),
        ("one", []),
        ("module", []),
        ("batch", ["first.running_mean"]),
    ],
)
def test_statistics_that_are_shared_are_left_out(share: str, found: list[str]) -> None:
    torch.manual_seed(0)
    model = randomise(Shared(share))
    units = find_units(model, torch.randn(5, 3).double())
    assert [norm.mean for norm in find_norms(units)] == found


def test_a_norm_follows_a_layer_whose_outputs_it_alone_takes() -> None:
    made = Made(Network(2), SHAPES[2])
    layers = {layer.weight: layer for layer in find_layers(made.units)}
    start, first, second = find_norms(made.units)
    assert [norm.follows(layers["b.weight"]) for norm in (start, first, second)] == [False, True, False]
    assert [norm.follows(layers["c.weight"]) for norm in (start, first, second)] == [False, False, True]
    assert not any(norm.follows(layers["last.weight"]) for norm in (start, first, second))

    class Beside(Network):
        def forward(self, x: Tensor, masks: dict[str, Tensor] | None = None) -> Tensor:  # noqa: ARG002
            y = self.b(torch.tanh(self.a(x)))
            x = self.first(y) + y.relu()
            return self.last(torch.tanh(self.c(torch.tanh(x))))

    beside = Made(Beside(0), SHAPES[0])
    (norm,) = find_norms(beside.units)
    assert not any(norm.follows(layer) for layer in find_layers(beside.units))


def test_the_mean_of_a_layer_without_bias_is_its_norms() -> None:
    """Constant inputs that go cost nothing: the norm takes up what they gave."""
    made = Made(Network(0, bias=False), SHAPES[0], cuts=[4])
    with torch.no_grad():
        made.model.a.weight[2] = 0
        made.model.a.bias[2] = 1.5
        x = made.model.b(torch.tanh(made.model.a(made.model.start(made.x))))
        made.model.first.running_mean.copy_(x.mean(0))
        made.model.first.running_var.copy_(x.var(0, unbiased=False))
    gated = GatedLoss(made.model, made.units, (made.x, torch.randint(0, 3, (9,))), "cross_entropy")
    compensation = Compensator(gated, Compensation(recalibrate=True))
    compensation.fit(made.gates(("a", 2)))
    shift = made.model.b.weight[:, 2] * torch.tanh(torch.tensor(1.5).double())
    torch.testing.assert_close(compensation.weights["first.running_mean"], x.mean(0) - shift, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(compensation.weights["first.running_var"], x.var(0, unbiased=False), rtol=1e-9, atol=0)
