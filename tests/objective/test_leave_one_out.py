"""Candidates stacked along with the samples, against one evaluation of E(g) for each.

Covers secateur.objective.leave_one_out, secateur.objective.low_rank_update and secateur.objective.select_pushdown.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from cases import CASES, gated_units, in_batches, random_kept, randomise
from random_networks import RandomArchitecture
from secateur import find_units
from secateur.errors import DataError
from secateur.objective import leave_one_out as candidates
from secateur.objective.gated_loss import GatedLoss, ones
from secateur.objective.leave_one_out import change_one
from secateur.objective.losses import LOSSES, stacked
from secateur.reference import leave_one_out
from secateur_experiments.networks import logistic_network


def assert_equal_one_by_one(gated: GatedLoss, g: Tensor, left: Tensor | None = None) -> int:
    """Gates of all units, or of those left, are changed; how many unit sets could be stacked."""
    one = torch.arange(len(g)) if left is None else left
    units = one.repeat(2)
    gates = torch.cat([torch.zeros(len(one)), torch.linspace(-1, 2, len(one))]).to(g)
    here, got = change_one(gated, g, units, gates)
    assert here == pytest.approx(gated.loss(g), rel=1e-12)
    for k, gate, loss in zip(units.tolist(), gates.tolist(), got.tolist(), strict=True):
        changed = g.clone()
        changed[k] = gate
        assert loss == pytest.approx(gated.loss(changed), rel=1e-11)
    return sum(stack is not None for stack in gated.stacks.values())


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("loss", ["cross_entropy", lambda o, t: F.cross_entropy(o, t) + o.square().mean()])
def test_on_the_table(name: str, loss: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "STACK", 2000)  # a few at a time
    case = CASES[name]()
    units = find_units(case.model, case.x)
    gated = GatedLoss(case.model, units, in_batches(case.x, case.y, [4]), loss)
    g = torch.linspace(0.5, 1.5, units.total).double()
    g[:: max(2, units.total // 2)] = 0
    assert assert_equal_one_by_one(gated, g) == len(units)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 300))
def test_on_random_architectures(seed: int) -> None:
    model = RandomArchitecture(seed)
    x = model.sample(3)
    units = find_units(model, x)
    with torch.no_grad():
        y = torch.randn_like(model(x))
    gated = GatedLoss(model, units, (x, y), lambda o, t: (o - t).square().mean())
    assert_equal_one_by_one(gated, ones(model, units))
    kept = random_kept(units, seed)
    g = torch.tensor([float(i in kept[name]) for name, i in units.places]).double()
    assert_equal_one_by_one(gated, g, g.nonzero()[:, 0])


class Attention(nn.Module):
    """Heads and widths of attention."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj, self.last = nn.Linear(6, 18), nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).reshape(x.shape[0], x.shape[1], 3, 2, 3).permute(2, 0, 3, 1, 4)
        a = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape[0], x.shape[1], 6)
        return self.last(self.proj(a).tanh().mean(1))


def test_every_set_of_attention_is_stacked() -> None:
    torch.manual_seed(0)
    model, x = Attention().double(), torch.randn(5, 4, 6).double()
    units = gated_units(model, x)
    assert {s.kind for s in units} == {"head", "head width", "neuron"}
    gated = GatedLoss(model, units, (x, torch.tensor([0, 1, 2, 0, 1])), "cross_entropy")
    assert assert_equal_one_by_one(gated, ones(model, units)) == 3


def test_what_is_computed_from_weights_alone_is_not_stacked() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.r, self.last = nn.GRU(4, 5, batch_first=True), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.r(x)[0][:, -1])

    torch.manual_seed(0)
    model, x = Recurrent().double(), torch.randn(3, 4, 4).double()
    units = find_units(model, x)
    gated = GatedLoss(model, units, (x, torch.tensor([0, 1, 2])), "cross_entropy")
    assert assert_equal_one_by_one(gated, ones(model, units)) == 0


@pytest.mark.parametrize("name", LOSSES)
def test_the_losses_of_several_batches_are_those_of_each(name: str) -> None:
    torch.manual_seed(0)
    several = torch.randn(4, 6, 3).double()
    targets = torch.rand(6, 3).double() if name == "binary_cross_entropy" else torch.randint(3, (6,))
    got = stacked(LOSSES[name], several[0], targets)(several.flatten(0, 1), 4)
    wanted = torch.stack([LOSSES[name](one, targets) for one in several])
    assert torch.allclose(got, wanted, rtol=1e-12, atol=0)


class Convolutions(nn.Module):
    """Convolutions in one and two dimensions, grouped ones, a dense layer on what is flattened."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 4, 3, padding="same"), nn.Conv2d(4, 6, 3, stride=2, dilation=2, padding=2)
        self.norm, self.c = nn.BatchNorm2d(6), nn.Conv2d(6, 6, 3, groups=6, padding=1)
        self.d, self.last = nn.Conv1d(6, 5, 2), nn.Linear(30, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm(self.b(F.relu(self.a(x)))))
        return self.last(torch.tanh(self.d(self.c(h).flatten(2)[..., :7])).flatten(1))


def test_layers_that_sum_units_up_are_updated() -> None:
    torch.manual_seed(0)
    model, x = randomise(Convolutions().double().eval()), torch.randn(5, 2, 6, 6).double()
    units = find_units(model, x)
    gated = GatedLoss(model, units, (x, torch.tensor([0, 1, 2, 0, 1])), "cross_entropy")
    g = ones(model, units)
    g[[1, 5, 11]] = 0.5
    assert assert_equal_one_by_one(gated, g) == 3
    updated = {name: {layer.name for layer in stack.updates} for name, stack in gated.stacks.items()}
    assert updated == {"a": {"conv2d_1"}, "b": {"conv1d"}, "d": {"linear"}}
    folded = {name: {layer.name for layer in stack.folded} for name, stack in gated.stacks.items()}
    assert folded == {"a": {"conv1d", "linear"}, "b": {"linear"}, "d": set()}


def test_values_that_are_used_again_are_not_overwritten() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.last = nn.Linear(3, 4), nn.Linear(4, 5), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            h = self.b(torch.tanh(self.a(x)))
            return self.last(torch.sigmoid(h) * h), torch.relu(h)

    torch.manual_seed(0)
    model, x = Twice().double(), torch.randn(5, 3).double()
    units = find_units(model, x)
    gated = GatedLoss(model, units, (x, torch.zeros(5)), lambda o, _: o[0].square().mean() + o[1].mean())
    assert assert_equal_one_by_one(gated, ones(model, units)) == len(units)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_accuracy_that_is_promised(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model, x = logistic_network([20, 30, 30, 10]).to(dtype), torch.rand(500, 20, dtype=dtype)
    y, units = torch.randint(10, (500,)), find_units(model, x)
    here, got = change_one(
        GatedLoss(model, units, (x, y), "squared_error"),
        ones(model, units),
        torch.arange(60),
        torch.zeros(60, dtype=dtype),
    )
    wanted = leave_one_out(model, units, (x,), y, LOSSES["squared_error"]).double()
    scale = wanted.abs().clamp(min=abs(here))
    assert ((got - here - wanted).abs() / scale).max() <= {torch.float32: 1e-4, torch.float64: 1e-9}[dtype]


def test_units_that_are_gone_are_sliced_out() -> None:
    case = CASES["two_hidden"]()
    units = find_units(case.model, case.x)
    gated = GatedLoss(case.model, units, in_batches(case.x, case.y, [4]), "cross_entropy")
    g = ones(case.model, units)
    assert gated.sliced(g) is gated
    g[0] = 0
    assert gated.sliced(g) is gated  # too few
    g[[1, 2, 3]] = 0
    narrow = gated.sliced(g)
    assert narrow.graph.count == units.total - 4
    assert narrow.loss(g) == pytest.approx(gated.loss(g), rel=1e-12)
    assert gated.sliced(g) is narrow
    assert gated.sliced(ones(case.model, units)) is gated
    back = g.clone()
    back[0] = 1
    assert gated.sliced(back).graph.holds(back)
    assert_equal_one_by_one(gated, g)


def test_sliced_units_that_are_gone_leave_the_others_stackable() -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm, self.inner, self.last = (
                nn.Linear(3, 5), nn.LayerNorm(5), nn.Linear(5, 4), nn.Linear(4, 2)
            )  # fmt: skip

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.tanh(self.inner(self.norm(self.first(x)))))

    torch.manual_seed(0)
    model, x = Normed().double(), torch.randn(6, 3).double()
    units = find_units(model, x, include="all")
    gated = GatedLoss(model, units, (x, torch.tensor([0, 1] * 3)), "cross_entropy")
    g = ones(model, units)
    g[1] = 0
    here, got = change_one(gated, g, torch.arange(5, 9), torch.zeros(4).double())
    assert [s.removal for s in units] == ["sliced", "gated"]
    assert gated.sliced(g).stacks["inner"] is not None
    for k, loss in zip(range(5, 9), got.tolist(), strict=True):
        without = g.clone()
        without[k] = 0
        assert loss == pytest.approx(gated.loss(without), rel=1e-12)
    assert here == pytest.approx(gated.loss(g), rel=1e-12)


class Mixing(nn.Module):
    """Samples are compared with the others of their batch."""

    def __init__(self, mix: Any) -> None:
        super().__init__()
        self.a, self.last, self.mix = nn.Linear(3, 4), nn.Linear(4, 2), mix

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.mix(torch.tanh(self.a(x))))


@pytest.mark.parametrize(
    "mix", [lambda h: h - h.mean(0), lambda h: h.softmax(0), lambda h: h.cumsum(0), lambda h: h + h[:1]]
)
def test_samples_that_know_each_other_are_run_one_candidate_at_a_time(mix: Any) -> None:
    torch.manual_seed(0)
    model, x = Mixing(mix).double(), torch.randn(5, 3).double()

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before, self.inner = nn.Linear(3, 3), model

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(torch.tanh(self.before(x)))

    twice = Twice().double()
    units = find_units(twice, x)
    gated = GatedLoss(twice, units, (x, torch.tensor([0, 1, 0, 1, 1])), "cross_entropy")
    assert_equal_one_by_one(gated, ones(twice, units))
    assert gated.stacks["before"] is None


class TokenModel(nn.Module):
    """A small vision Transformer's end: only one token is read."""

    def __init__(self, read: Any) -> None:
        super().__init__()
        self.attention, self.norm, self.read = Attention(), nn.LayerNorm(6), read
        self.first, self.forth, self.back, self.last = (
            nn.Linear(6, 6),
            nn.Linear(6, 8),
            nn.Linear(8, 6),
            nn.Linear(6, 3),
        )
        self.proj = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = x + torch.tanh(self.first(x))
        q, k, v = self.attention.qkv(x).reshape(x.shape[0], x.shape[1], 3, 2, 3).permute(2, 0, 3, 1, 4)
        a = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape[0], x.shape[1], 6)
        x = x + self.proj(a)
        x = x + self.back(F.gelu(self.forth(self.norm(x))))
        return self.last(self.read(x * torch.ones(6, dtype=x.dtype)))


@pytest.mark.parametrize(
    ("read", "rows"),
    [
        (lambda x: x[:, 0], 1),
        (lambda x: x[:, 2], 1),
        (lambda x: x[:, -1], 4),  # from the end: left as it is
        (lambda x: x[:, 0] + x[:, 1], 4),
        (lambda x: x[:, 0] + x.mean(1), 4),
        (lambda x: x.select(2, 1)[:, :, None].expand(-1, -1, 6)[:, 0], 4),
    ],
)
def test_only_the_rows_that_are_read_are_computed(read: Any, rows: int) -> None:
    torch.manual_seed(0)
    model, x = TokenModel(read).double(), torch.randn(5, 4, 6).double()
    units = gated_units(model, x)
    gated = GatedLoss(model, units, (x, torch.tensor([0, 1, 2, 0, 1])), "cross_entropy")
    assert assert_equal_one_by_one(gated, ones(model, units)) >= 3
    gelu = []

    class Count(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function is torch.ops.aten.gelu.default:
                gelu.append(args[0].shape[1])
            return function(*args, **(kwargs or {}))

    k = torch.tensor([units.places.index((next(s.name for s in units if s.kind == "head"), 0))])
    with Count():
        change_one(gated, ones(model, units), k, torch.zeros(1).double())
    assert gelu[-1] == rows


class Module(nn.Module):
    """Parts, and what is done with them."""

    def __init__(self, do: Any, **parts: nn.Module) -> None:
        super().__init__()
        self.do = do
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Any:
        return self.do(self, x)


def outer(m: Any, x: Tensor) -> Tensor:
    return m.last((torch.tanh(m.a(x))[:, :, None] * torch.tanh(m.b(x))[:, None, :]).flatten(1))


@pytest.mark.parametrize("gone", [[4], [0, 4], [0, 1, 4, 5, 6], [2, 8]], ids=str)
def test_two_sets_along_one_dimension(gone: list[int]) -> None:
    torch.manual_seed(0)
    model = Module(outer, a=nn.Linear(3, 4), b=nn.Linear(3, 5), last=nn.Linear(20, 2)).double()
    x = torch.randn(5, 3).double()
    units = find_units(model, x)
    gated = GatedLoss(model, units, (x, torch.tensor([0, 1, 0, 1, 1])), "cross_entropy")
    g = ones(model, units)
    g[3] = 0.7
    g[gone] = 0
    assert assert_equal_one_by_one(gated, g) == 2
    assert_equal_one_by_one(gated, g, g.nonzero()[:, 0])  # on the narrowed graph where many are gone


def test_heads_beside_widths_that_are_gone() -> None:
    torch.manual_seed(0)
    model, x = Attention().double(), torch.randn(5, 4, 6).double()
    units = gated_units(model, x)
    gated = GatedLoss(model, units, (x, torch.tensor([0, 1, 2, 0, 1])), "cross_entropy")
    for gone in ([1], [3], [0, 3, 6, 7, 8]):
        g = ones(model, units)
        g[gone] = 0
        assert_equal_one_by_one(gated, g, g.nonzero()[:, 0])


def test_dead_units_do_not_hide_that_samples_know_each_other() -> None:
    torch.manual_seed(0)

    def mixed(m: Any, x: Tensor) -> Tensor:
        h = m.b(torch.tanh(m.a(x)))
        return m.last(h - h.mean(0))

    model = Module(mixed, a=nn.Linear(3, 4), b=nn.Linear(4, 4), last=nn.Linear(4, 2)).double()
    with torch.no_grad():
        model.b.weight[:, [0, 3]] = 0  # type: ignore[union-attr, operator, index]
    x = torch.randn(5, 3).double()
    units = find_units(model, x)
    gated = GatedLoss(model, units, (x, torch.tensor([0, 1, 0, 1, 1])), "cross_entropy")
    assert_equal_one_by_one(gated, ones(model, units))
    assert gated.stacks["a"] is None


def test_a_gated_value_beside_the_candidates() -> None:
    torch.manual_seed(0)
    do = lambda m, x: m.last(torch.tanh(m.a(x)), torch.tanh(m.b(x)))  # noqa: E731
    model = Module(do, a=nn.Linear(3, 4), b=nn.Linear(3, 5), last=nn.Bilinear(4, 5, 2)).double()
    x = torch.randn(5, 3).double()
    units = find_units(model, x)
    gated = GatedLoss(model, units, (x, torch.tensor([0, 1, 0, 1, 1])), "cross_entropy")
    assert assert_equal_one_by_one(gated, ones(model, units)) == 2


def test_sums_in_half_precision_stay_finite() -> None:
    several, targets = torch.zeros(2 * 400, 2).half(), torch.full((400, 2), 20.0).half()
    assert stacked(LOSSES["squared_error"], several[:400], targets)(several, 2).tolist() == [400, 400]


def test_a_loss_that_is_nan_without_a_unit_is_an_error() -> None:
    def normal(m: Any, x: Tensor) -> Tensor:
        h = m.b(torch.relu(m.a(x)))
        return m.last(h / h.norm(dim=1, keepdim=True))

    model = Module(normal, a=nn.Linear(3, 2), b=nn.Linear(2, 4, bias=False), last=nn.Linear(4, 2)).double()
    with torch.no_grad():
        model.a.weight.zero_()  # type: ignore[union-attr, operator]
        model.a.bias.copy_(torch.tensor([1.0, 0.0]))  # type: ignore[union-attr, operator]
    x = torch.randn(5, 3).double()
    units = find_units(model, x)
    gated = GatedLoss(model, units, (x, torch.tensor([0, 1, 0, 1, 1])), "cross_entropy")
    with pytest.raises(DataError, match="loss: it is NaN on this data"):
        change_one(gated, ones(model, units), torch.tensor([0]), torch.zeros(1).double())
