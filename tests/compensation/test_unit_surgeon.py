"""Optimal Brain Surgeon on units: costs, removals and the ranking made of them.

Covers secateur.compensation.unit_surgeon and secateur.saliency.units.obs.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import secateur as sc
from cases import Heads
from secateur.compensation.compensator import Compensator
from secateur.compensation.unit_surgeon import SPAN, UnitSurgeon
from secateur.objective.gated_loss import GatedLoss
from secateur.objective.leave_one_out import rises
from secateur.options import Compensation

RIDGE = 1e-3


class Dense:
    """A layer behind units that the first one gives: its ridge problem about its own weights, written out."""

    def __init__(self, rows: Tensor, weight: Tensor, bias: Tensor, each: int = 1) -> None:
        self.mean, self.start, self.bias, self.each = rows.mean(0), weight, bias, each
        self.second = (rows - self.mean).T @ (rows - self.mean) / len(rows)
        self.ridge = RIDGE * self.second.diagonal().mean()
        self.full = self.second + self.ridge * torch.eye(len(weight)).double()
        self.positions = 1  # rows for each sample

    def rows(self, units: list[int]) -> list[int]:
        return [k * self.each + p for k in units for p in range(self.each)]

    def without(self, gone: list[int]) -> Tensor:
        """The weights that are left, zero elsewhere."""
        out = self.rows(gone)
        left = [row for row in range(len(self.start)) if row not in out]
        target = (self.second @ self.start + self.ridge * self.start)[left]
        found = torch.zeros_like(self.start)
        found[left] = torch.linalg.solve(self.full[left][:, left], target)
        return found

    def bias_for(self, weight: Tensor) -> Tensor:
        return self.bias + self.mean @ (self.start - weight)

    def error(self, weight: Tensor) -> float:
        """Half the mean square of what is missing."""
        off = weight - self.start
        return 0.5 * torch.einsum("do,de,eo->", off, self.second, off).item() * self.positions

    def formula(self, gone: list[int], k: int) -> float:
        """½ tr(W_Pᵀ Γ W_P) less what of it is the ridge's."""
        out = self.rows(gone)
        left = [row for row in range(len(self.start)) if row not in out]
        places = [left.index(row) for row in self.rows([k])]
        inverse = torch.linalg.inv(self.full[left][:, left])
        w = self.without(gone)[left]
        gamma = torch.linalg.inv(inverse[places][:, places])
        change = -inverse[:, places] @ gamma @ w[places]
        moved = w - self.start[left]
        whole = 0.5 * (w[places] * (gamma @ w[places])).sum()
        ridge = self.ridge * ((moved * change).sum() + 0.5 * change.square().sum())
        return (whole - ridge).item() * self.positions


class Hidden:
    """One hidden layer before linear outputs, its surgeon, and the dense problem."""

    def __init__(self, weighting: str, convolve: bool = False) -> None:
        torch.manual_seed(0)
        if convolve:
            model = nn.Sequential(nn.Conv1d(2, 7, 2), nn.Tanh(), nn.Conv1d(7, 3, 3))
        else:
            model = nn.Sequential(nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, 3))
        self.model: Any = model.double()
        self.x = torch.randn(50, *((2, 6) if convolve else (4,)), dtype=torch.float64)
        self.t = torch.randn(50, *((3, 3) if convolve else (3,)), dtype=torch.float64)
        gated = GatedLoss(model, sc.find_units(model, self.x), (self.x, self.t), "squared_error")
        self.surgeon = UnitSurgeon(Compensator(gated, Compensation(RIDGE, weighting)))
        self.g = self.surgeon.compensator.ones.clone()
        with torch.no_grad():
            a = torch.tanh(self.model[0](self.x))
            if convolve:
                a = a.unfold(2, 3, 1).permute(0, 2, 1, 3).reshape(150, 21)
            self.dense = Dense(a, self.model[2].weight.flatten(1).T, self.model[2].bias, 3 if convolve else 1)
        self.dense.positions = 3 if convolve else 1
        self.surgeon.begin(self.g)

    def remove(self, k: int) -> None:
        self.g[k] = 0
        self.surgeon.remove(self.g, k)

    def loss(self, gone: list[int]) -> float:
        """With the dense solution's weights."""
        weight = self.dense.without(gone)
        state = {"2.weight": weight.T.reshape(self.model[2].weight.shape), "2.bias": self.dense.bias_for(weight)}
        with torch.no_grad():
            out = torch.func.functional_call(self.model, state, (self.x,))
        return 0.5 * (out - self.t).square().flatten(1).sum(1).mean().item()


FORMS = pytest.mark.parametrize(("weighting", "convolve"), [("none", False), ("ggn", False), ("none", True)])


def test_heads_and_their_widths_go_to_the_last_one_and_cut_gives_what_was_measured() -> None:
    torch.manual_seed(0)
    model, x, t = Heads().double(), torch.randn(40, 5, 3).double(), torch.randn(40, 5, 2).double()
    plan = sc.rank(model, (x, t), "squared_error", compensate=True, refresh=1, progress=False)
    assert plan.criterion == "obs"
    assert len(plan.steps) == sum(size - 1 for size in plan.sizes.values())
    for n in range(1, len(plan.steps) + 1):
        small = sc.cut(model, plan.prefix(n), compensate=(x, t), loss="squared_error")
        with torch.no_grad():
            loss = 0.5 * (small(x) - t).square().flatten(1).sum(1).mean().item()
        assert plan.steps[n - 1].loss == pytest.approx(loss, rel=1e-8)


def test_removals_leave_the_dense_ridge_solution_about_the_weights() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, 3)).double(), torch.randn(50, 4).double()
    gated = GatedLoss(model, sc.find_units(model, x), (x, torch.zeros(50, 3).double()), "squared_error")
    surgeon = UnitSurgeon(Compensator(gated, Compensation(RIDGE, "none")))
    g = surgeon.compensator.ones.clone()
    surgeon.begin(g)
    with torch.no_grad():
        a = torch.tanh(model[0](x))
        w, b = model[2].weight.T, model[2].bias
    second = (a - a.mean(0)).T @ (a - a.mean(0)) / 50
    for k in (5, 0, 3):
        g[k] = 0
        surgeon.remove(g, k)
        left = g.nonzero()[:, 0]
        full = second + RIDGE * second.diagonal().mean() * torch.eye(7).double()
        wanted = torch.linalg.solve(full[left][:, left], (full @ w)[left])
        found = surgeon.compensator.weights
        assert (found["2.weight"].T[left] - wanted).abs().max() < 1e-8
        assert (found["2.bias"] - (b + a.mean(0) @ w - a.mean(0)[left] @ wanted)).abs().max() < 1e-8


@FORMS
def test_costs_are_those_of_a_dense_solution(weighting: str, convolve: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secateur.compensation.unit_surgeon.SPAN", 1.0)  # costs as predicted, not scaled
    made, gone = Hidden(weighting, convolve), list[int]()
    for next_one in (4, 1, 6, 0, None):
        here = made.dense.error(made.dense.without(gone))
        saliency = made.surgeon.saliency(made.g)
        for k in range(7):
            if k in gone:
                assert saliency[k] == torch.inf
                continue
            rise = made.dense.error(made.dense.without([*gone, k])) - here
            factor = 1 / 3 if convolve and weighting == "none" else 1  # without a loss each row counts, not each sample
            assert saliency[k].item() == pytest.approx(rise * factor, rel=1e-7)
            assert saliency[k].item() == pytest.approx(made.dense.formula(gone, k) * factor, rel=1e-7)
        if next_one is not None:
            made.remove(next_one)
            gone.append(next_one)


@FORMS
def test_what_is_exact_is_the_loss_with_the_weights_that_a_removal_leaves(weighting: str, convolve: bool) -> None:
    made, gone = Hidden(weighting, convolve), list[int]()
    for next_one in (2, 5, 3):
        before = dict(made.surgeon.compensator.weights)
        some = [k for k in (0, 3, 5, 6) if k not in gone]
        found = made.surgeon.exact(made.g, torch.tensor(some))
        assert made.surgeon.compensator.weights == before
        for k in range(7):
            rise = made.loss([*gone, k]) - made.loss(gone) if k in some else torch.inf
            assert found[k].item() == pytest.approx(rise, rel=1e-7, abs=1e-9)
        made.remove(next_one)
        gone.append(next_one)
        assert made.surgeon.gated.loss(made.g) == pytest.approx(made.loss(gone), rel=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_scales_are_between_bounds_and_one_for_each_set(seed: int) -> None:
    torch.manual_seed(seed)
    layers = nn.Linear(4, 12), nn.Tanh(), nn.Linear(12, 8), nn.Sigmoid(), nn.Linear(8, 3)
    model, x = nn.Sequential(*layers).double(), torch.randn(60, 4).double()
    gated = GatedLoss(model, sc.find_units(model, x), (x, torch.randint(0, 3, (60,))), "cross_entropy")
    surgeon = UnitSurgeon(Compensator(gated))
    g = surgeon.compensator.ones.clone()
    surgeon.begin(g)
    scaled, scales = surgeon.saliency(g), surgeon.scales
    surgeon.scales = [1.0, 1.0]
    ratios = (scaled / surgeon.saliency(g)).split([12, 8])
    for ratio, scale in zip(ratios, scales, strict=True):
        assert ratio.tolist() == pytest.approx([scale] * len(ratio), rel=1e-9)
        assert 1 / SPAN <= scale <= SPAN


@pytest.mark.parametrize(("open_set", "consumer"), [("0", "2"), ("2", "4")])
def test_sets_that_keep_all_units_cost_no_work(open_set: str, consumer: str) -> None:
    torch.manual_seed(0)
    layers = nn.Linear(4, 12), nn.Tanh(), nn.Linear(12, 8), nn.Sigmoid(), nn.Linear(8, 3)
    model, x = nn.Sequential(*layers).double(), torch.randn(60, 4).double()
    units = sc.find_units(model, x)
    gated = GatedLoss(model, units, (x, torch.randint(0, 3, (60,))), "cross_entropy")
    surgeons = UnitSurgeon(Compensator(gated)), UnitSurgeon(Compensator(gated), names={open_set})
    g = surgeons[0].compensator.ones.clone()
    for surgeon in surgeons:
        surgeon.begin(g)
    everything, some = (units.split(surgeon.saliency(g)) for surgeon in surgeons)
    torch.testing.assert_close(some[open_set], everything[open_set], rtol=1e-12, atol=0)
    (protected,) = {"0", "2"} - {open_set}
    assert some[protected].tolist() == [torch.inf] * len(some[protected])
    assert [layer.weight for layer in surgeons[1].block_obs] == [f"{consumer}.weight"]
    assert len(surgeons[1].scales) == 1


class Recurrent(nn.Module):
    """Cells whose units no layer makes up for: they are taken up inside of the operation."""

    def __init__(self) -> None:
        super().__init__()
        self.cells, self.last = nn.LSTM(3, 5, batch_first=True), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.cells(x)[0][:, -1])


def test_units_of_cells_that_no_layer_makes_up_for_have_their_measured_rise() -> None:
    torch.manual_seed(0)
    model, x, t = Recurrent().double(), torch.randn(20, 4, 3).double(), torch.randint(0, 2, (20,))
    units = sc.find_units(model, x)
    obs, oracle = (sc.score(model, (x, t), "cross_entropy", units=units, criterion=name) for name in ("obs", "oracle"))
    assert {*obs} == {"cells"}
    torch.testing.assert_close(obs["cells"], oracle["cells"], rtol=1e-10, atol=1e-12)
    plan = sc.rank(
        model, (x, t), "cross_entropy", units=units, criterion="obs", compensate=True, refresh=1, progress=False
    )
    for n, step in enumerate(plan.steps, 1):
        small = sc.cut(model, plan.prefix(n), compensate=(x, t), loss="cross_entropy")
        assert step.loss == pytest.approx(F.cross_entropy(small(x), t).item(), rel=1e-8)


def test_of_units_that_no_layer_makes_up_for_those_on_the_shortlist_are_measured() -> None:
    torch.manual_seed(0)
    model, x, t = Recurrent().double(), torch.randn(20, 4, 3).double(), torch.randint(0, 2, (20,))
    gated = GatedLoss(model, sc.find_units(model, x), (x, t), "cross_entropy")
    surgeon, g = UnitSurgeon(Compensator(gated), shortlist=2), torch.ones(5, dtype=torch.float64)
    surgeon.begin(g)
    for _ in range(2):
        left = g.nonzero()[:, 0]
        chosen = left[(-surgeon.gated.gradient(g))[left].argsort()[:2]]
        saliency = surgeon.saliency(g)
        torch.testing.assert_close(saliency, rises(surgeon.gated, g, chosen), rtol=1e-10, atol=1e-12)
        assert sorted(saliency.isfinite().nonzero()[:, 0].tolist()) == sorted(chosen.tolist())
        for n, k in enumerate(chosen.tolist(), 1):
            g[k] = 0
            surgeon.remove(g, k)
            assert int(surgeon.saliency(g).isfinite().sum()) == (1 if n == 1 else min(2, int(g.sum())))


def test_a_unit_of_two_layers_costs_what_it_costs_in_both(monkeypatch: pytest.MonkeyPatch) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.left, self.right = nn.Linear(4, 7), nn.Linear(7, 2), nn.Linear(7, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.tanh(self.first(x))
            return torch.cat([self.left(x), self.right(x)], 1)

    monkeypatch.setattr("secateur.compensation.unit_surgeon.SPAN", 1.0)
    torch.manual_seed(0)
    model, x = Two().double(), torch.randn(50, 4).double()
    gated = GatedLoss(model, sc.find_units(model, x), (x, torch.zeros(50, 5).double()), "squared_error")
    surgeon = UnitSurgeon(Compensator(gated, Compensation(RIDGE)))
    surgeon.begin(surgeon.compensator.ones)
    with torch.no_grad():
        a = torch.tanh(model.first(x))
        both = [Dense(a, one.weight.T, one.bias) for one in (model.left, model.right)]
    found = surgeon.saliency(surgeon.compensator.ones)
    for k in range(7):
        assert found[k].item() == pytest.approx(sum(one.error(one.without([k])) for one in both), rel=1e-7)


def test_units_that_nothing_takes_cost_nothing() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.idle, self.first, self.last = nn.Linear(3, 5), nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            self.idle(x)
            return self.last(torch.tanh(self.first(x)))

    torch.manual_seed(0)
    model, x, t = Idle().double(), torch.randn(20, 3).double(), torch.randn(20, 2).double()
    assert sc.score(model, (x, t), "squared_error", criterion="obs")["idle"].tolist() == [0.0] * 5
    plan = sc.rank(model, (x, t), "squared_error", compensate=True, progress=False)
    assert [step.set for step in plan.steps[:4]] == ["idle"] * 4
