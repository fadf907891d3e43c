"""Removing units in rounds, with training in between, through the public interface alone.

Also covers secateur.cutting.trained.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import secateur as sc
from secateur.errors import ArgumentError, BudgetError, ModelError, SecateurError
from secateur.planning.plan import Plan
from secateur.result import Result

Retrain = Callable[[nn.Module], object]


class Residual(nn.Module):
    """Channels with a norm and its buffers, a residual add, a flattened map."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.inner, self.back = nn.Conv2d(6, 5, 1), nn.Conv2d(5, 6, 1)
        self.wide, self.last = nn.Linear(24, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.norm(self.first(x)))
        h = h + self.back(torch.relu(self.inner(h)))
        return self.last(torch.tanh(self.wide(F.max_pool2d(h, 2).flatten(1))))


class Attention(nn.Module):
    """Heads whose width is written in the code, so that what is left computes by its graph."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(5, 8) for _ in range(3))
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        n, length, _ = x.shape
        q, k, v = (layer(x).view(n, length, 2, 4).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return self.out(((q @ k.mT).softmax(-1) @ v).transpose(1, 2).reshape(n, length, 8).mean(1))


def dense() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, 3))


SHAPES = {"dense": (6,), "residual": (1, 4, 4), "attention": (7, 5)}
MAKERS: dict[str, Callable[[], nn.Module]] = {"dense": dense, "residual": Residual, "attention": Attention}


def made(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MAKERS[name]().double().eval()
        x = torch.randn(60, *SHAPES[name], dtype=torch.float64)
    return model, x, (x.flatten(1)[:, 0] > 0).long() + (x.flatten(1)[:, 1] > 0).long()


def trainer(x: Tensor, y: Tensor, steps: int = 10) -> tuple[Retrain, list[nn.Module]]:
    """Return a function that trains, and a list to which it adds a copy of each network as trained."""
    networks: list[nn.Module] = []

    def retrain(network: nn.Module) -> None:
        optimiser = torch.optim.Adam(network.parameters(), 1e-2)
        for _ in range(steps):
            optimiser.zero_grad()
            F.cross_entropy(network(x), y).backward()
            optimiser.step()
        networks.append(copy.deepcopy(network))

    return retrain, networks


def shrink(name: str, budget: sc.Budget, **options: Any) -> Result:
    model, x, y = made(name)
    given: dict[str, Any] = {"data": (x, y), "loss": "cross_entropy", "progress": False} | options
    return sc.shrink(model, budget=budget, **given)


def plan_of(result: Result) -> Plan:
    assert isinstance(result.plan, Plan)
    return result.plan


def counts(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


# ---------------------------------------------------------------- networks, weights and files


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("options", [{}, {"compensate": False, "criterion": "taylor1", "ranking": "single"}])
def test_the_network_is_the_one_that_was_trained_and_its_file_is_read_by_the_original(
    name: str, options: dict[str, Any], tmp_path: Path
) -> None:
    model, x, y = made(name)
    before = copy.deepcopy(model)
    units = sc.find_units(model, x[:4], include="all" if name == "attention" else "gated")
    retrain, networks = trainer(x, y)
    result = sc.shrink(
        model, (x, y), "cross_entropy", sc.Budget(remove_fraction=0.5), units=units, progress=False,
        retrain=retrain, rounds=3, **options,
    )  # fmt: skip
    plan = plan_of(result)
    sizes = [counts(before), *map(counts, networks)]
    assert len(networks) == 3
    assert sizes == sorted(set(sizes), reverse=True)  # each is smaller than the one before
    trained = networks[-1].state_dict()
    assert all(torch.equal(tensor, trained[n]) for n, tensor in result.model.state_dict().items())
    assert result.max_difference < 1e-12
    assert len(plan.steps) == -(-units.total // 2)
    assert {n: len(kept) for n, kept in plan.kept.items()} == {
        n: size - sum(step.set == n for step in plan.steps) for n, size in plan.sizes.items()
    }
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before.parameters(), strict=True))
    assert result.after.params == counts(result.model)
    assert result.save(tmp_path / "small.safetensors") == result.after.bytes == plan.steps[-1].bytes
    loaded = sc.load(tmp_path / "small.safetensors", before)
    with torch.no_grad():
        assert torch.equal(loaded(x), result.model(x))
        assert F.cross_entropy(result.model(x), y).item() == pytest.approx(result.after.loss, rel=1e-12)
    assert Plan.from_json(plan.to_json()) == plan
    structure = sc.cut(before, plan)
    assert {n: t.shape for n, t in structure.state_dict().items()} == {n: t.shape for n, t in trained.items()}


def test_later_rounds_remove_what_they_say_in_the_originals_numbers() -> None:
    model = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    sizes: list[Callable[[Tensor], Tensor]] = [
        lambda unit: unit + 1, lambda unit: 9 - unit, lambda unit: (unit - 3).abs() + 0.5, lambda unit: unit + 1
    ]  # fmt: skip
    seen: list[list[float]] = []

    def weigh(network: nn.Module, size: Callable[[Tensor], Tensor]) -> None:
        with torch.no_grad():
            network[0].weight.copy_(size(100 * network[0].bias)[:, None].expand(-1, 2))
            network[2].weight.fill_(0.25)

    def retrain(network: nn.Module) -> None:
        seen.append((100 * network[0].bias).round().tolist())
        weigh(network, sizes[len(seen)])

    with torch.no_grad():
        model[0].bias.copy_(torch.arange(6, dtype=torch.float64) / 100)  # which tells a unit wherever it is
    weigh(model, sizes[0])
    budget = sc.Budget(remove_units=3)
    result = sc.shrink(
        model, torch.randn(8, 2), "output", budget, criterion="magnitude", ranking="single", compensate=False,
        retrain=retrain, rounds=3, progress=False,
    )  # fmt: skip
    plan = plan_of(result)
    assert [(step.set, step.index) for step in plan.steps] == [("0", 0), ("0", 5), ("0", 3)]
    assert plan.kept == {"0": (1, 2, 4)}
    assert seen == [[1, 2, 3, 4, 5], [1, 2, 3, 4], [1, 2, 4]]
    assert result.model[0].weight[:, 0].tolist() == pytest.approx([2, 3, 5], abs=1e-12)
    assert "3 of 6 units removed, magnitude / single, 3 rounds, trained after each" in str(plan)


def test_units_that_share_a_tensor_are_found_again() -> None:
    class Cat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right, self.out = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(torch.cat([torch.tanh(self.left(x)), torch.relu(self.right(x))], 1))

    model = Cat().double()
    result = sc.shrink(
        model, torch.randn(30, 3), "output", sc.Budget(remove_units=5), rounds=3, compensate=False, progress=False
    )
    kept, small = plan_of(result).kept, result.model
    places = [*kept["left"], *(4 + i for i in kept["right"])]
    assert torch.equal(small.out.weight, model.out.weight[:, places])
    assert torch.equal(small.right.weight, model.right.weight[list(kept["right"])])


# ---------------------------------------------------------------- budgets


@pytest.mark.parametrize(
    "budget",
    [
        sc.Budget(bytes=2_500),
        sc.Budget(params=100),
        sc.Budget(remove_units=9),
        sc.Budget(remove_fraction=0.4),
        sc.Budget(bytes=2_500, params=120, remove_fraction=0.3),
        sc.Budget(params=120, min_units=4),
        sc.Budget(params=120, protect="2"),
        sc.Budget(params=120, protect="0"),
    ],
    ids=str,
)
@pytest.mark.parametrize("ranking", ["single", "layerwise"])
def test_a_budget_is_met_by_the_fewest_removals(budget: sc.Budget, ranking: str) -> None:
    result = shrink("dense", budget, criterion="taylor1", ranking=ranking, compensate=False, rounds=3)
    plan = met_by_the_fewest(result, budget)
    assert all(len(kept) >= budget.min_units for kept in plan.kept.values())
    assert all(len(plan.kept[name]) == plan.sizes[name] for name in budget.protect)


def met_by_the_fewest(result: Result, budget: sc.Budget) -> Plan:
    """Return the plan, at whose end a budget holds for the first time."""
    plan = plan_of(result)
    gone = [{n: sum(s.set == n for s in plan.steps[:end]) for n in plan.sizes} for end in range(len(plan.steps) + 1)]
    holds = [budget.holds(plan.states[0], state, gone[n], plan.sizes) for n, state in enumerate(plan.states)]
    assert holds == [False] * len(plan.steps) + [True]
    assert [state.bytes for state in plan.states] == sorted({state.bytes for state in plan.states}, reverse=True)
    return plan


def test_a_file_of_exactly_the_bytes_allowed_is_small_enough() -> None:
    options: dict[str, Any] = {"criterion": "taylor1", "ranking": "single", "compensate": False, "rounds": 2}
    for units in (3, 8, 13):
        once = shrink("dense", sc.Budget(remove_units=units), **options)
        budget = sc.Budget(bytes=once.after.bytes)
        result = shrink("dense", budget, **options)
        assert result.after.bytes <= once.after.bytes
        met_by_the_fewest(result, budget)


def test_each_set_loses_its_share_and_no_more() -> None:
    retrain, networks = trainer(*made("dense")[1:])
    result = shrink("dense", sc.Budget(remove_fraction=0.5, scope="set"), retrain=retrain, rounds=2)
    assert {name: len(kept) for name, kept in plan_of(result).kept.items()} == {"0": 6, "2": 4}
    assert [(n[0].out_features, n[2].out_features) for n in networks] == [(8, 6), (6, 4)]  # 12 √½ and 9 √(4/9)


def test_what_is_left_falls_by_the_same_share_each_time() -> None:
    retrain, networks = trainer(*made("dense")[1:])
    start = counts(made("dense")[0])
    shrink("dense", sc.Budget(params=60), compensate=False, criterion="magnitude", retrain=retrain, rounds=3)
    shares = [start * (60 / start) ** (n / 3) for n in (1, 2, 3)]
    least = 6 + 1 + 9  # parameters of the largest unit, and some that were gone already
    assert all(share - least < counts(network) <= share + 1 for share, network in zip(shares, networks, strict=True))


def test_training_alone_means_one_round() -> None:
    retrain, networks = trainer(*made("dense")[1:])
    result = shrink("dense", sc.Budget(remove_units=5), retrain=retrain)
    once = shrink("dense", sc.Budget(remove_units=5))
    assert len(networks) == 1
    assert plan_of(result).kept == plan_of(once).kept
    assert [step.loss for step in plan_of(result).steps[:-1]] == [step.loss for step in plan_of(once).steps[:-1]]
    assert result.after.loss is not None
    assert once.after.loss is not None
    assert result.after.loss < once.after.loss


def test_with_quality_alone_a_round_that_training_spoils_is_undone() -> None:
    model, x, y = made("dense")
    train, networks = trainer(x, y)

    def retrain(network: nn.Module) -> None:
        train(network)
        if len(networks) > 1:
            with torch.no_grad():
                network[4].bias += torch.tensor([9.0, -9.0, 0.0])

    budget = sc.Budget(max_loss_increase=0.001)
    options: dict[str, Any] = {"criterion": "taylor1", "ranking": "single", "compensate": False}
    result = sc.shrink(model, (x, y), "cross_entropy", budget, progress=False, retrain=retrain, rounds=5, **options)
    trained = networks[0].state_dict()
    assert len(networks) == 2
    assert counts(networks[1]) < counts(networks[0])
    assert all(torch.equal(tensor, trained[n]) for n, tensor in result.model.state_dict().items())
    assert result.after.loss is not None
    assert result.before.loss is not None
    assert result.after.loss <= result.before.loss + 0.001


def test_with_quality_alone_nothing_goes_where_nothing_may() -> None:
    calls: list[nn.Module] = []
    budget = sc.Budget(max_loss_increase=0.0, min_units=12)
    result = shrink("dense", budget, retrain=calls.append, compensate=False)
    assert (calls, plan_of(result).steps) == ([], ())
    assert result.after.params == result.before.params


def test_a_size_that_training_spoils_is_refused() -> None:
    def retrain(network: nn.Module) -> None:
        with torch.no_grad():
            network[4].bias += torch.tensor([9.0, -9.0, 0.0])

    budget = sc.Budget(remove_units=6, max_loss_increase=0.5)
    with pytest.raises(BudgetError, match=r"cannot be met: at most \d+ of 21 units can be removed within max_loss_inc"):
        shrink("dense", budget, retrain=retrain, rounds=2)


def test_a_size_out_of_reach_is_refused_before_any_training() -> None:
    calls: list[nn.Module] = []
    with pytest.raises(BudgetError, match=r"Budget\(params=10\) cannot be met: at most 19 of 21 units"):
        shrink("dense", sc.Budget(params=10), retrain=calls.append, rounds=2)
    assert calls == []


# ---------------------------------------------------------------- losses


def test_outputs_are_compared_with_the_originals_in_all_rounds() -> None:
    model, x, y = made("dense")
    retrain, _ = trainer(x, y)
    result = sc.shrink(model, x, "output", sc.Budget(remove_units=8), progress=False, retrain=retrain, rounds=2)
    with torch.no_grad():
        gap = 0.5 * (result.model(x) - model(x)).square().sum(1).mean()
    assert result.after.loss == pytest.approx(gap.item(), rel=1e-12)
    assert (result.before.loss or 0.0) < 1e-20


@pytest.mark.parametrize("loss", ["cross_entropy", "output"])
def test_every_step_is_measured_against_the_original_on_what_judges(loss: str) -> None:
    model, x, y = made("dense")
    held = (x[:24] + 1, y[:24])
    result = sc.shrink(
        model, (x, y), loss, sc.Budget(remove_units=8), validation=held, compensate=False, rounds=3, progress=False
    )
    plan = plan_of(result)
    for n, state in enumerate(plan.states):
        small = sc.cut(model, plan.prefix(n))
        with torch.no_grad():
            gap = 0.5 * (small(held[0]) - model(held[0])).square().sum(1).mean()
            expected = F.cross_entropy(small(held[0]), held[1]) if loss == "cross_entropy" else gap
        assert state.loss == pytest.approx(expected.item(), rel=1e-9, abs=1e-15)


def test_every_step_is_predicted_by_what_the_original_gives() -> None:
    result = shrink("dense", sc.Budget(remove_units=8), loss="output", compensate=False, criterion="oracle", rounds=3)
    states = plan_of(result).states
    for before, step in zip(states, plan_of(result).steps, strict=False):
        assert before.loss is not None
        assert step.loss is not None
        assert step.predicted == pytest.approx(step.loss - before.loss, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("validated", [False, True])
def test_losses_are_measured_on_the_same_samples_in_all_rounds(validated: bool) -> None:
    _, x, y = made("dense")
    retrain, _ = trainer(x, y)
    budget = sc.Budget(remove_units=8, max_loss_increase=9.0)
    held = (x[:24] + 1, y[:24])
    options = {"validation": held} if validated else {}
    result = shrink("dense", budget, retrain=retrain, rounds=3, **options)
    basis = plan_of(result).basis
    assert basis is not None
    assert (basis.where, basis.samples) == (("validation", 24) if validated else ("held back", 12))
    if validated:
        assert F.cross_entropy(result.model(held[0]), held[1]).item() == pytest.approx(result.after.loss, rel=1e-12)


# ---------------------------------------------------------------- what training may do


def test_modes_and_gradients_asked_for_stay_as_they_were() -> None:
    model, x, y = made("residual")
    model.first.weight.requires_grad_(False)
    modes: list[bool] = []

    def retrain(network: nn.Module) -> None:
        modes.append(network.training)
        network.train()
        network.first.weight.requires_grad_(True)
        F.cross_entropy(network(x), y).backward()

    budget = sc.Budget(remove_units=4)
    small = sc.shrink(model, (x, y), "cross_entropy", budget, retrain=retrain, rounds=2, progress=False).model
    assert modes == [False, False]
    assert not any(module.training for module in small.modules())
    assert [n for n, p in small.named_parameters() if not p.requires_grad] == ["first.weight"]
    assert all(p.grad is None for p in small.parameters())
    assert small.norm.num_batches_tracked == 2


def test_a_network_that_is_returned_is_taken() -> None:
    def retrain(network: nn.Module) -> nn.Module:
        better = copy.deepcopy(network)
        with torch.no_grad():
            better[4].bias.fill_(0.5)
        return better

    result = shrink("dense", sc.Budget(remove_units=4), retrain=retrain, rounds=2)
    assert (result.model[4].bias == 0.5).all()


def grow(network: nn.Module) -> None:
    network[4] = nn.Linear(network[4].in_features, 4).double()


def halve(network: nn.Module) -> nn.Module:
    return network.float()


def spoil(network: nn.Module) -> None:
    with torch.no_grad():
        network[4].bias[0] = float("nan")


def replace(network: nn.Module) -> None:
    network[3] = nn.ReLU()


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"retrain": lambda _: 0.5}, ArgumentError, "retrain: expected a function that returns None or the network, g"),
        ({"retrain": grow}, ModelError, "after retrain: 4.weight is float64 (4, 7), before it was float64 (3, 7)"),
        ({"retrain": halve}, ModelError, "after retrain: 0.weight is float32 "),
        ({"retrain": lambda n: n.append(nn.Linear(3, 3))}, ModelError, "5.weight is float32 (3, 3), before it was no"),
        ({"retrain": lambda n: nn.Sequential(*n[:4])}, ModelError, "after retrain: 4.weight is none, before it was "),
        ({"retrain": spoil}, ModelError, "after retrain: 4.bias: 1 of 3 values are NaN or infinite"),
        ({"retrain": replace}, ModelError, "after retrain: the network computes something else with its weights: "),
        ({"retrain": 5}, ArgumentError, "retrain: expected a function of the model, got 5"),
        ({"retrain": nn.Linear}, ArgumentError, "retrain: expected a function of the model, got the class Linear"),
        ({"rounds": 20}, ArgumentError, "rounds: expected at most 19, the number of units that may go, got 20"),
        ({"rounds": 0}, ArgumentError, "rounds: expected a number above 0, got 0"),
        ({"rounds": 2, "ranking": "quadratic", "swaps": True}, ArgumentError, "swaps: improve one order at its end; t"),
    ],
)
def test_what_cannot_be_asked_is_refused(options: dict[str, Any], error: type[SecateurError], text: str) -> None:
    model, x, y = made("dense")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(error) as caught:
        sc.shrink(model, (x, y), "cross_entropy", sc.Budget(remove_units=4), progress=False, **options)
    assert text in str(caught.value)
    assert all(torch.equal(tensor, before[n]) for n, tensor in model.state_dict().items())


def test_a_plan_made_in_rounds_is_for_no_other_budget() -> None:
    plan = plan_of(shrink("dense", sc.Budget(remove_units=4), rounds=2))
    assert (plan.rounds, plan.retrained) == (2, False)
    with pytest.raises(ArgumentError, match=r"a plan made in rounds is for its own budget alone; shrink again"):
        plan.at(sc.Budget(remove_units=2))


def test_the_rounds_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(_: nn.Module) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match=r"^interrupted while round 1 of 2: training, after "):
        shrink("dense", sc.Budget(remove_units=4), retrain=interrupt, rounds=2, progress=True)
    capsys.readouterr()
    result = shrink("dense", sc.Budget(remove_units=4), retrain=lambda _: None, rounds=2)
    result.report(tmp_path / "report.html")
    assert "2 rounds, trained after each" in (tmp_path / "report.html").read_text()
