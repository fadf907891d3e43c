from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cases import CASES, in_batches, targets
from secateur import Plan, Units, cut, find_units, reference
from secateur.objective.gated_loss import GatedLoss, ones
from secateur.objective.losses import LOSSES, cross_entropy
from secateur.saliency.units.oracle import oracle


def assert_equal(rises: Tensor, expected: Tensor, error: float) -> None:
    assert rises.dtype == torch.float64
    assert bool(((rises - expected).abs() <= 1e-10 * expected.abs().clamp(min=abs(error))).all())


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    loss=st.sampled_from(sorted(LOSSES)),
    cuts=st.lists(st.integers(0, 5), max_size=3),
)
def test_the_oracle_is_leaving_one_out(seed: int, loss: str, cuts: list[int]) -> None:
    network = reference.RandomNetwork(seed).double()
    x = network.sample(5, seed)
    t = targets(loss, network(x), seed)
    units = find_units(network, x)
    gated = GatedLoss(network, units, in_batches(x, t, cuts), loss)
    expected = reference.leave_one_out(network, units, (x,), t, LOSSES[loss])
    assert_equal(oracle(gated, ones(network, units)), expected, LOSSES[loss](network(x), t).item())


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31), data=st.data())
def test_the_oracle_with_units_already_removed(seed: int, data: st.DataObject) -> None:
    network = reference.RandomNetwork(seed).double()
    x = network.sample(4, seed)
    t = targets("squared_error", network(x), seed)
    units = find_units(network, x)
    kept = data.draw(st.lists(st.booleans(), min_size=units.total, max_size=units.total))
    g = torch.tensor(kept).double()

    def error(g: Tensor) -> float:
        return LOSSES["squared_error"](network.gated(x, units.split(g)), t).item()

    rises = oracle(GatedLoss(network, units, (x, t), "squared_error"), g)
    for k in g.nonzero()[:, 0].tolist():
        without = g.clone()
        without[k] = 0
        rise = error(without) - error(g)
        assert abs(rises[k].item() - rise) <= 1e-10 * max(abs(error(g)), abs(rise))


@pytest.mark.parametrize("name", [name for name in CASES if name != "tied"])
def test_the_oracle_on_the_table(name: str) -> None:
    case = CASES[name]()
    units = find_units(case.model, case.x)
    rises = oracle(GatedLoss(case.model, units, (case.x, case.y), "cross_entropy"), ones(case.model, units))
    expected = reference.leave_one_out(case.model, units, (case.x,), case.y, cross_entropy)
    assert_equal(rises, expected, cross_entropy(case.model(case.x), case.y).item())
    assert bool((rises != 0).any())


def test_the_oracle_of_tied_weights_removes_where_units_are_consumed() -> None:
    case = CASES["tied"]()
    units = find_units(case.model, case.x)
    rises = oracle(GatedLoss(case.model, units, (case.x, case.y), "cross_entropy"), ones(case.model, units))
    h = torch.tanh(case.model.encode(case.x))
    error = cross_entropy(case.model(case.x), case.y)
    removed = [cross_entropy((h * (torch.arange(4) != k)) @ case.model.encode.weight, case.y) for k in range(4)]
    assert_equal(rises, torch.stack(removed).detach() - error.detach(), error.item())


def test_the_oracle_on_many_outputs_at_once() -> None:
    """Outputs [N, C, positions], classes at each position."""
    torch.manual_seed(0)

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = torch.nn.Linear(3, 4), torch.nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.tanh(self.a(x))).transpose(1, 2)

    model, x, t = Net().double(), torch.randn(4, 2, 3).double(), torch.randint(0, 5, (4, 2))
    units = find_units(model, x)
    for loss in ("cross_entropy", "squared_error"):
        rises = oracle(GatedLoss(model, units, (x, t), loss), ones(model, units))
        expected = reference.leave_one_out(model, units, (x,), t, LOSSES[loss])
        assert_equal(rises, expected, LOSSES[loss](model(x), t).item())


def test_the_oracle_takes_any_loss() -> None:
    def share_wrong(outputs: Tensor, targets: Tensor) -> Any:
        return (outputs.argmax(1) != targets).double().mean()

    case = CASES["two_hidden"]()
    units = find_units(case.model, case.x)
    rises = oracle(GatedLoss(case.model, units, (case.x, case.y), share_wrong), ones(case.model, units))
    assert_equal(rises, reference.leave_one_out(case.model, units, (case.x,), case.y, share_wrong), 1.0)
    assert bool((rises != 0).any())


class Normed(nn.Module):
    """A LayerNorm over the width of a residual stream, a mean over its units, an inner layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.inner = nn.Linear(3, 5), nn.LayerNorm(5), nn.Linear(5, 4)
        self.back, self.last = nn.Linear(4, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        h = h + self.back(torch.tanh(self.inner(self.norm(h))))
        return self.last(h - h.mean(-1, keepdim=True))


def test_the_oracle_of_sliced_units_is_the_loss_of_the_cut_network() -> None:
    model, units, x, y = normed()
    assert {s.name: (s.removal, s.kind) for s in units} == {"first": ("sliced", "neuron"), "inner": ("gated", "neuron")}
    gated = GatedLoss(model, units, in_batches(x, y, [3]), "cross_entropy")
    gone = torch.ones(units.total, dtype=torch.float64)
    gone[[1, 6]] = 0
    for g in (torch.ones_like(gone), gone):
        rises = oracle(gated, g)
        here = loss_of_cut(model, units, g, x, y)
        assert gated.loss(g) == pytest.approx(here, rel=1e-12)
        assert gated.measure(g)[0] == pytest.approx(here, rel=1e-12)
        for k in g.nonzero()[:, 0].tolist():
            without = g.clone()
            without[k] = 0
            assert rises[k].item() == pytest.approx(loss_of_cut(model, units, without, x, y) - here, abs=1e-12)


def loss_of_cut(model: nn.Module, units: Units, g: Tensor, x: Tensor, y: Tensor) -> float:
    kept = {name: piece.nonzero()[:, 0].tolist() for name, piece in units.split(g).items()}
    return cross_entropy(cut(model, Plan.from_kept(kept, x))(x), y).item()


def normed() -> tuple[Normed, Units, Tensor, Tensor]:
    torch.manual_seed(0)
    model = Normed().double()
    x, y = torch.randn(7, 3, dtype=torch.float64), torch.randint(0, 2, (7,))
    return model, find_units(model, x, include="all"), x, y


def loss_and_error(model: nn.Module, units: Units, g: Tensor, x: Tensor, y: Tensor) -> list[float]:
    gated = GatedLoss(model, units, in_batches(x, y, [3]), "cross_entropy")
    return [gated.loss(g), gated.measure(g)[0]]


@pytest.mark.parametrize("gate", [0.5, -30.0])
def test_gates_beside_removed_sliced_units_scale_weights_of_the_cut_network(gate: float) -> None:
    model, units, x, y = normed()
    g = torch.ones(9, dtype=torch.float64)
    g[1], g[5 + 2] = 0, gate
    small = cut(model, Plan.from_kept({"first": [0, 2, 3, 4]}, x))
    with torch.no_grad():
        small.back.weight[:, 2] *= gate  # type: ignore[union-attr, operator, index]
    expected = cross_entropy(small(x), y).item()
    assert loss_and_error(model, units, g, x, y) == pytest.approx([expected] * 2, rel=1e-12)
    assert abs(expected - loss_of_cut(model, units, (g != 0).double(), x, y)) > 1e-5


def test_gates_on_sliced_units_beside_removed_ones_are_put_behind_norm_and_mean() -> None:
    model, units, x, y = normed()
    kept = torch.tensor([0, 2, 3, 4])
    g = torch.ones(9, dtype=torch.float64)
    g[1], g[3] = 0, 0.5
    h, s, norm = model.first(x)[:, kept], g[kept], model.norm
    n = nn.functional.layer_norm(h, [4], norm.weight[kept], norm.bias[kept]) * s
    inner = torch.tanh(n @ model.inner.weight[:, kept].T + model.inner.bias)
    h = h + inner @ model.back.weight[kept].T + model.back.bias[kept]
    h = (h - h.mean(-1, keepdim=True)) * s
    expected = cross_entropy(h @ model.last.weight[:, kept].T + model.last.bias, y).item()
    assert loss_and_error(model, units, g, x, y) == pytest.approx([expected] * 2, rel=1e-12)
