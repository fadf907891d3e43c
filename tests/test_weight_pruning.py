from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import secateur as sc
from cases import randomise
from secateur.artifacts.safetensors import weights_to_bytes
from secateur.curvature.weight_loss import WeightLoss
from secateur.cutting.weight_masks import count_moved
from secateur.errors import ArgumentError, BudgetError, DataError, ModelError, VerificationError
from secateur.objective.quality.quality import Quality
from secateur.planning.state import Basis
from secateur.planning.weight_plan import WeightPlan, WeightStep
from secateur.result import Result

Retrain = Callable[[nn.Module], object]


class Normed(nn.Module):
    """Biases, a norm with buffers, a residual add, a buffer that is not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.mid = nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Linear(16, 16, bias=False)
        self.last = nn.Linear(16, 3)
        self.register_buffer("scale", torch.ones(()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.norm(self.first(x)))
        return self.last(h + torch.tanh(self.mid(h))) * self.scale


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.second(torch.tanh(self.first(x)))))


def dense() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 20), nn.Tanh(), nn.Linear(20, 3))


def convolutional() -> nn.Module:
    return nn.Sequential(nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3))


def single() -> nn.Module:
    return nn.Linear(6, 3)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "dense": dense, "normed": Normed, "tied": Tied, "convolutional": convolutional, "single": single,
}  # fmt: skip
P = {"dense": 180, "normed": 400, "tied": 54, "convolutional": 120, "single": 18}  # weights of two dimensions or more


@cache
def _made(name: str, dtype: torch.dtype) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    model = randomise(NETWORKS[name]()).to(dtype).eval()
    return model, sc.find_units(model, torch.randn(4, 6, dtype=dtype))


@cache
def samples(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(60, 6, generator=generator)
    return x, (x[:, 0] > 0).long() + (x[:, 1] > 0.3).long()


def model_of(name: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    return copy.deepcopy(_made(name, dtype)[0])


def shrink(model: nn.Module, name: str, budget: sc.Budget, **options: Any) -> Result:
    dtype = next(model.parameters()).dtype
    given = {"data": samples(), "loss": "cross_entropy", "units": _made(name, dtype)[1], "progress": False} | options
    return sc.shrink(model, budget=budget, granularity="weight", **given)


def measured(model: nn.Module, data: tuple[Tensor, Tensor]) -> tuple[float, float]:
    twin = copy.deepcopy(model).eval()
    with torch.no_grad():
        out = twin(data[0].to(next(twin.parameters()).dtype))
    return F.cross_entropy(out, data[1]).item(), (out.argmax(1) == data[1]).sum().item() / len(data[1])


def snapshot(model: nn.Module) -> list[Any]:
    return [
        {n: t.detach().clone() for n, t in (*model.named_parameters(), *model.named_buffers())},
        [id(t) for t in model.state_dict(keep_vars=True).values()],
        [m.training for m in model.modules()],
        [(p.requires_grad, p.grad, dict(p._backward_hooks or {})) for p in model.parameters()],
    ]


def same(before: list[Any], after: list[Any]) -> bool:
    return all(torch.equal(t, after[0][n]) for n, t in before[0].items()) and before[1:] == after[1:]


def train(model: nn.Module, make: Callable[[Any], torch.optim.Optimizer] | None = None, steps: int = 10) -> None:
    """A few steps of Adam with weight decay, or of the optimiser given, in training mode."""
    model.train()
    optimiser = (make or (lambda p: torch.optim.Adam(p, 0.02, weight_decay=0.1)))(
        [p for p in model.parameters() if p.requires_grad]
    )
    x, y = samples()
    for _ in range(steps):
        optimiser.zero_grad()
        F.cross_entropy(model(x.to(next(model.parameters()).dtype)), y).backward()
        optimiser.step()


def masks_of(result: Result) -> dict[str, Tensor]:
    assert isinstance(result.plan, WeightPlan)
    return dict(result.plan.masks)


def steps_of(result: Result) -> tuple[WeightStep, ...]:
    assert isinstance(result.plan, WeightPlan)
    return result.plan.steps


# ---------------------------------------------------------------- without training


@pytest.mark.parametrize("criterion", [None, "obd_ggn", "obd_fisher", "magnitude", "random"])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_weights_of_least_saliency_go_and_all_others_keep_every_bit(
    name: str, criterion: str | None, tmp_path: Path
) -> None:
    model = model_of(name).train()
    next(model.parameters()).requires_grad_(False)
    before = snapshot(model)
    result = shrink(model, name, sc.Budget(remove_fraction=0.37), criterion=criterion)
    assert same(before, snapshot(model))

    number, plan, masks = math.ceil(0.37 * P[name]), result.plan, masks_of(result)
    assert isinstance(plan, WeightPlan)
    assert plan.removed == number == result.curve[-1].removed
    scores = sc.score(
        model,
        samples(),
        "cross_entropy",
        units=_made(name, torch.float32)[1],
        criterion=criterion,
        granularity="weight",
    )
    lowest = torch.cat([one.flatten() for one in scores.values()]).argsort(stable=True)[:number]
    flat = torch.cat([mask.flatten() for mask in masks.values()])
    assert sorted((~flat).nonzero()[:, 0].tolist()) == sorted(lowest.tolist())
    assert plan.kept == {n: tuple(mask.flatten().nonzero()[:, 0].tolist()) for n, mask in masks.items()}

    parameters = dict(model.named_parameters())
    for n, p in result.model.named_parameters():
        assert torch.equal(p, parameters[n] * masks[n] if n in masks else parameters[n])
        assert p.requires_grad == parameters[n].requires_grad
    assert all(m.training for m in result.model.modules())
    assert result.captured == ()
    check_sizes(result, model, samples(), tmp_path)


def check_sizes(result: Result, model: nn.Module, data: tuple[Tensor, Tensor], folder: Path) -> None:
    """Whatever the result says of both networks is so."""
    total, masks = sum(p.numel() for p in model.parameters()), masks_of(result)
    removed = sum(int((~mask).sum()) for mask in masks.values())
    assert result.before.params == total
    assert result.after.params == total - removed
    assert result.save(folder / "a.safetensors") == result.after.bytes == (folder / "a.safetensors").stat().st_size
    assert isinstance(result.plan, WeightPlan)
    everything = {n: torch.ones_like(mask) for n, mask in masks.items()}
    assert (
        result.before.bytes == len(weights_to_bytes(model, everything, result.plan.inputs)) == result.plan.start.bytes
    )
    for sizes, network in ((result.before, model), (result.after, result.model)):
        loss, accuracy = measured(network, data)
        assert sizes.loss == pytest.approx(loss, rel=1e-5)
        assert sizes.accuracy == accuracy
    assert [(r.removed, r.loss, r.accuracy, r.params, r.bytes) for r in result.curve] == [
        (s.removed, s.loss, s.accuracy, s.params, s.bytes) for s in steps_of(result)
    ]
    assert result.max_difference < 1e-5
    other = copy.deepcopy(model)
    for tensor in other.state_dict().values():
        tensor.fill_(1)
    loaded = sc.load(folder / "a.safetensors", other)
    with torch.no_grad():
        assert torch.equal(loaded.eval()(data[0]), copy.deepcopy(result.model).eval()(data[0]))
    train(loaded.requires_grad_(True), steps=2)
    assert count_moved(loaded, masks) == 0


def test_what_was_removed_stays_zero_in_training_of_the_result() -> None:
    result = shrink(model_of("normed"), "normed", sc.Budget(remove_fraction=0.5))
    before = copy.deepcopy(result.model.state_dict())
    train(result.model)
    assert count_moved(result.model, masks_of(result)) == 0
    kept = masks_of(result)["mid.weight"]
    assert (result.model.mid.weight != before["mid.weight"])[kept].all()  # type: ignore[union-attr]


def test_the_surgeon_changes_the_weights_left_and_that_is_proven_too(tmp_path: Path) -> None:
    model = model_of("dense", torch.float64)
    budget = sc.Budget(remove_fraction=0.5)
    plain, better = (shrink(model, "dense", budget, criterion=name) for name in ("obd_ggn", "obs"))
    kept = masks_of(better)["0.weight"]
    assert not better.model[0].weight[~kept].any()  # type: ignore[index]
    assert (better.model[0].weight != model[0].weight)[kept].all()  # type: ignore[index]
    assert torch.equal(better.model[0].bias, model[0].bias)  # type: ignore[index]
    assert better.plan.removed == plain.plan.removed == 90  # type: ignore[union-attr]
    assert better.after.loss - better.before.loss < 0.5 * (plain.after.loss - plain.before.loss)  # type: ignore[operator]
    assert better.max_difference < 1e-12
    assert better.save(tmp_path / "a.safetensors") == better.after.bytes
    several = shrink(model, "dense", budget, criterion="obs", rounds=3)
    assert [step.round for step in steps_of(several)][-1] == 3
    assert several.curve[-1].removed == 90


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions(dtype: torch.dtype) -> None:
    model = model_of("dense", dtype)
    for criterion in ("obd", "obs"):
        result = shrink(model, "dense", sc.Budget(remove_fraction=0.4), criterion=criterion)
        assert {p.dtype for p in result.model.parameters()} == {dtype}
        assert sum(int((p == 0).sum()) for p in result.model.parameters()) == 72
        assert result.max_difference <= (1e-12 if dtype == torch.float64 else 0.1)


# ---------------------------------------------------------------- budgets


def size_after(model: nn.Module, criterion: str, n: int) -> int:
    """The file's bytes with exactly n weights removed."""
    return shrink(model, "dense", sc.Budget(remove_units=n), criterion=criterion).after.bytes


def test_a_budget_of_bytes_takes_the_least_that_satisfies_it(tmp_path: Path) -> None:
    model, whole = model_of("dense"), size_after(model_of("dense"), "magnitude", 0)
    for bytes_left in (whole, whole - 120, whole - 300):
        result = shrink(model, "dense", sc.Budget(bytes=bytes_left), criterion="magnitude")
        n = result.plan.removed  # type: ignore[union-attr]
        assert result.save(tmp_path / "a.safetensors") == result.after.bytes <= bytes_left
        assert n == 0 if bytes_left == whole else size_after(model, "magnitude", n - 1) > bytes_left


@pytest.mark.parametrize(
    ("budget", "removed"),
    [
        (sc.Budget(params=180), 23),  # of 203
        (sc.Budget(params=1000), 0),
        (sc.Budget(remove_units=7), 7),
        (sc.Budget(remove_units=0), 0),
        (sc.Budget(remove_units=7, remove_fraction=0.1), 18),
        (sc.Budget(remove_fraction=1 / 180), 1),
        (sc.Budget(remove_units=178), 178),
        (sc.Budget(remove_units=150, min_units=15), 150),
        (sc.Budget(remove_units=7, max_loss_increase=100.0), 7),
    ],
    ids=str,
)
@pytest.mark.parametrize("criterion", ["obd", "obs"])
def test_a_budget_of_numbers_takes_exactly_as_many(budget: sc.Budget, removed: int, criterion: str) -> None:
    result = shrink(model_of("dense"), "dense", budget, criterion=criterion)
    assert result.plan.removed == removed == result.curve[-1].removed  # type: ignore[union-attr]
    assert sum(int((p == 0).sum()) for p in result.model.parameters()) == removed
    assert all(int(mask.sum()) >= budget.min_units for mask in masks_of(result).values())


def test_protected_parameters_and_shares_of_each() -> None:
    protected = shrink(model_of("dense"), "dense", sc.Budget(remove_units=50, protect="0.*"))
    assert {n: int((~m).sum()) for n, m in masks_of(protected).items()} == {"0.weight": 0, "2.weight": 50}
    shares = shrink(model_of("dense"), "dense", sc.Budget(remove_fraction=0.3, scope="set"), rounds=2)
    assert {n: int((~m).sum()) for n, m in masks_of(shares).items()} == {"0.weight": 36, "2.weight": 18}
    with pytest.raises(ArgumentError, match=r"protect='0' is no unit set; there are: 0\.weight, 2\.weight"):
        shrink(model_of("dense"), "dense", sc.Budget(remove_units=50, protect="0"))


@pytest.mark.parametrize("criterion", ["obd", "obs", "random"])
@pytest.mark.parametrize("rounds", [1, 3])
def test_a_budget_of_quality_goes_as_far_as_it_allows_and_no_further(criterion: str, rounds: int) -> None:
    model = model_of("dense")
    train(model, steps=60)
    for budget in (sc.Budget(max_loss_increase=0.05), sc.Budget(max_accuracy_drop=0.1)):
        bound = budget.max_loss_increase or budget.max_accuracy_drop
        judge = {"validation": samples()} if criterion == "obs" else {}  # else it holds samples back
        result = shrink(model, "dense", budget, criterion=criterion, rounds=rounds, **judge)
        rise, drop = (result.after.loss - result.before.loss, result.before.accuracy - result.after.accuracy)  # type: ignore[operator]
        assert rise <= bound if budget.max_loss_increase else drop <= bound + 1e-12
        n = result.plan.removed  # type: ignore[union-attr]
        assert 0 < n < 178
        if rounds == 1 and criterion != "random":
            more = shrink(model, "dense", sc.Budget(remove_units=n + 1), criterion=criterion)
            rise, drop = (more.after.loss - more.before.loss, more.before.accuracy - more.after.accuracy)  # type: ignore[operator]
            assert rise > bound if budget.max_loss_increase else drop > bound


def test_weights_that_make_up_for_others_are_judged_on_samples_that_they_were_not_fitted_on() -> None:
    model, (x, y) = model_of("dense"), samples()
    train(model, steps=60)
    result = shrink(model, "dense", sc.Budget(max_loss_increase=0.05), criterion="obs")
    assert result.plan.basis == Basis("held back", 12, False)
    with torch.no_grad():
        rise = F.cross_entropy(result.model(x[4::5]), y[4::5]) - F.cross_entropy(model(x[4::5]), y[4::5])
    assert rise.item() == pytest.approx(result.after.loss - result.before.loss, rel=1e-9)  # type: ignore[operator]
    assert rise <= 0.05
    sized = shrink(model, "dense", sc.Budget(remove_units=20), criterion="obs")
    assert sized.plan.basis == Basis("data", 60, True)
    assert "loss and accuracy on 60 samples of the data, on which the weights were fitted" in str(sized)


def test_where_quality_allows_nothing_the_network_stays_whole() -> None:
    model = model_of("single")
    before = {name: p.clone() for name, p in model.named_parameters()}
    calls: list[nn.Module] = []
    with torch.no_grad():
        data = samples()[0], model(samples()[0])
    result = shrink(
        model,
        "single",
        sc.Budget(max_loss_increase=0.0),
        data=data,
        loss="squared_error",
        retrain=calls.append,
        rounds=3,
    )
    assert result.curve == ()
    assert calls == []
    assert result.after == result.before
    assert all(torch.equal(p, before[name]) for name, p in result.model.named_parameters())
    assert "0 of 18 weights removed" in str(result)


def test_loss_and_accuracy_are_measured_on_the_validation_data(tmp_path: Path) -> None:
    other, model = samples(5), model_of("dense")
    result = shrink(model, "dense", sc.Budget(remove_fraction=0.3), validation=other)
    check_sizes(result, model, other, tmp_path)
    plain = shrink(model, "dense", sc.Budget(remove_fraction=0.3))
    assert all(torch.equal(mask, masks_of(plain)[n]) for n, mask in masks_of(result).items())


@pytest.mark.parametrize(
    ("budget", "text"),
    [
        (sc.Budget(remove_fraction=1.0), "at most 178 of 180 units can be removed, which leaves 25 parameters"),
        (sc.Budget(params=10), "Budget(params=10) cannot be met: at most 178 of 180 units can be removed, which"),
        (sc.Budget(bytes=100), "at most 178 of 180 units can be removed, which leaves 25 parameters and a file of 694"),
        (sc.Budget(remove_units=100, protect="0.*"), "at most 59 of 180 units can be removed, which leaves 144"),
        (sc.Budget(params=10, max_loss_increase=0.5), "Budget(params=10) cannot be met: at most 178 of 180"),
    ],
    ids=str,
)  # fmt: skip
def test_a_budget_out_of_reach_says_how_far_one_can_get(budget: sc.Budget, text: str) -> None:
    for criterion in ("magnitude", "obs"):
        with pytest.raises(BudgetError) as caught:
            shrink(model_of("dense"), "dense", budget, criterion=criterion)
        assert text in str(caught.value)


def test_a_size_that_quality_does_not_allow_says_how_far_quality_does() -> None:
    model = model_of("dense")
    train(model, steps=60)
    curve = shrink(model, "dense", sc.Budget(remove_units=170)).curve
    start = measured(model, samples())[0]
    last = [row for row in curve if row.loss - start <= 0.05][-1]  # type: ignore[operator]
    with pytest.raises(BudgetError) as caught:
        shrink(model, "dense", sc.Budget(remove_units=170, max_loss_increase=0.05))
    assert f"at most {last.removed} of 180 units can be removed within max_loss_increase=0.05" in str(caught.value)
    assert f"which leaves {203 - last.removed} parameters and a file of {last.bytes:,} bytes" in str(caught.value)


# ---------------------------------------------------------------- rounds and training


def carefully(model: nn.Module) -> None:
    """Training that lowers the loss."""
    train(model, lambda p: torch.optim.Adam(p, 0.005), steps=30)


def test_the_weights_left_fall_by_the_same_share_in_each_round_and_training_follows_each() -> None:
    model, seen = model_of("normed"), list[tuple[int, bool]]()
    before = snapshot(model)

    def retrain(network: nn.Module) -> None:
        assert network is not model
        zero = {n: p == 0 for n, p in network.named_parameters() if p.ndim > 1}
        train(network)
        still = all((p == 0)[zero[n]].all() for n, p in network.named_parameters() if n in zero)
        seen.append((sum(int(z.sum()) for z in zero.values()), bool(still)))

    with torch.no_grad():
        result = shrink(model, "normed", sc.Budget(remove_fraction=0.8), retrain=retrain, rounds=4)
    left = [round(400 * 0.2 ** (n / 4)) for n in range(1, 5)]
    assert seen == [(400 - n, True) for n in left]
    assert [(s.round, s.removed, s.trained) for s in steps_of(result)] == [
        (n, 400 - there, True) for n, there in enumerate(left, 1)
    ]
    assert same(before, snapshot(model))
    assert not any(module.training for module in result.model.modules())  # the original's mode, not that of training
    assert count_moved(result.model, masks_of(result)) == 0


def test_buffers_that_training_changed_and_all_else_come_back_from_the_file(tmp_path: Path) -> None:
    model = model_of("normed").train()
    result = shrink(model, "normed", sc.Budget(remove_fraction=0.7), retrain=train, rounds=2)
    assert not torch.equal(result.model.norm.running_mean, model.norm.running_mean)  # type: ignore[union-attr]
    assert all(p.requires_grad and p.grad is None for p in result.model.parameters())
    check_sizes(result, model, samples(), tmp_path)
    assert f"{2}, trained" in str(result)


def test_an_optimiser_that_remembers_weights_from_before_does_not_bring_them_back() -> None:
    kept: list[torch.optim.Optimizer] = []

    def same_optimiser(parameters: Any) -> torch.optim.Optimizer:
        kept.append(kept[0] if kept else torch.optim.SGD(parameters, 0.1, momentum=0.9))
        return kept[0]

    moved: list[int] = []

    def retrain(network: nn.Module) -> None:
        gone = {n: p != 0 for n, p in network.named_parameters() if p.ndim > 1}
        train(network, same_optimiser)
        moved.append(count_moved(network, gone))

    result = shrink(model_of("dense"), "dense", sc.Budget(remove_fraction=0.6), retrain=retrain, rounds=3)
    assert max(moved) > 0  # momentum did move them
    assert count_moved(result.model, masks_of(result)) == 0
    assert sum(int((p == 0).sum()) for p in result.model.parameters()) == 108


def test_modes_and_what_asks_for_gradients_are_as_before_training() -> None:
    model = model_of("normed").train()
    model.norm.eval()  # type: ignore[union-attr]
    model.first.requires_grad_(False)  # type: ignore[union-attr]

    def retrain(network: nn.Module) -> None:
        train(network.requires_grad_(True))
        network.requires_grad_(False)

    result = shrink(model, "normed", sc.Budget(remove_fraction=0.5), retrain=retrain)
    assert [m.training for m in result.model.modules()] == [m.training for m in model.modules()]
    assert [p.requires_grad for p in result.model.parameters()] == [p.requires_grad for p in model.parameters()]


def test_with_quality_alone_rounds_of_training_remove_more_than_one() -> None:
    model = model_of("dense")
    train(model, steps=60)
    once, thrice = (
        shrink(model, "dense", sc.Budget(max_loss_increase=0.02), retrain=carefully, rounds=n) for n in (1, 3)
    )
    assert thrice.plan.removed > once.plan.removed > 0  # type: ignore[union-attr]
    assert thrice.after.loss - thrice.before.loss <= 0.02  # type: ignore[operator]


def test_training_that_does_harm_is_undone() -> None:
    model, rounds = model_of("normed"), list[dict[str, Tensor]]()
    train(model, steps=80)
    model.eval()

    def retrain(network: nn.Module) -> None:
        carefully(network)
        if rounds:
            with torch.no_grad():
                for p in network.parameters():
                    p.add_(torch.randn_like(p))
                network.norm.running_var.fill_(7)  # type: ignore[union-attr,operator]
                network.scale.fill_(-1)  # type: ignore[union-attr,operator]
        tensors = (*network.named_parameters(), *network.named_buffers())
        rounds.append({n: t.detach().clone() for n, t in tensors})

    result = shrink(model, "normed", sc.Budget(max_loss_increase=0.05), criterion="obs", retrain=retrain, rounds=5)
    assert len(rounds) == 2
    assert [s.round for s in steps_of(result)] == [1]
    for n, t in (*result.model.named_parameters(), *result.model.named_buffers()):
        assert torch.equal(t, rounds[0][n])
    assert result.after.loss - result.before.loss <= 0.05  # type: ignore[operator]
    train(result.model)
    assert count_moved(result.model, masks_of(result)) == 0
    zeros = sum(int((~mask).sum()) for mask in masks_of(result).values())
    assert sum(int((p == 0).sum()) for p in result.model.parameters()) == zeros == result.curve[-1].removed


def test_what_training_raises_passes_through_and_leaves_the_model_alone() -> None:
    model = model_of("dense").train()
    before = snapshot(model)

    def retrain(network: nn.Module) -> None:
        train(network)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shrink(model, "dense", sc.Budget(remove_fraction=0.5), retrain=retrain)
    assert same(before, snapshot(model))


def test_training_that_leaves_nan_is_refused() -> None:
    def retrain(network: nn.Module) -> None:
        with torch.no_grad():
            network[2].bias[1] = float("nan")  # type: ignore[index]

    with pytest.raises(ModelError, match=r"after retrain: 2\.bias: 1 of 3 values are NaN or infinite"):
        shrink(model_of("dense"), "dense", sc.Budget(remove_fraction=0.5), retrain=retrain)


# ---------------------------------------------------------------- the rest


def test_the_table_adds_up() -> None:
    result = shrink(model_of("dense"), "dense", sc.Budget(remove_fraction=0.5), rounds=2)
    steps = steps_of(result)
    assert len(steps) == 20
    assert [s.removed for s in steps] == sorted({s.removed for s in steps})
    assert [s.params for s in steps] == [203 - s.removed for s in steps]
    assert {s.round for s in steps} == {1, 2}
    units, scores = _made("dense", torch.float32)[1], None
    scores = sc.score(model_of("dense"), samples(), "cross_entropy", units=units, granularity="weight")
    flat = torch.cat([one.flatten() for one in scores.values()]).sort().values
    first = [s for s in steps if s.round == 1]
    predicted = sum(s.predicted for s in first)  # type: ignore[misc]
    assert predicted == pytest.approx(flat[: first[-1].removed].sum().item(), rel=1e-9)
    lines = str(result).splitlines()
    assert lines[0].strip() == "90 of 180 weights removed, obd"
    assert [line.split()[0] for line in lines[2:23]] == ["0", *(str(s.removed) for s in steps)]
    assert lines[-1] == "the network is a Sequential, as it was"


def test_a_criterion_in_other_units_predicts_nothing() -> None:
    for criterion, predicts in (("magnitude", False), ("obs", True)):
        steps = steps_of(shrink(model_of("dense"), "dense", sc.Budget(remove_units=3), criterion=criterion))
        assert all((s.predicted is not None) == predicts for s in steps)


def test_without_data_and_loss_nothing_is_measured_and_quality_cannot_be_asked_for() -> None:
    options: dict[str, Any] = {
        "data": None, "loss": None, "criterion": "magnitude", "example_inputs": samples()[0][:2],
    }  # fmt: skip
    result = shrink(model_of("dense"), "dense", sc.Budget(remove_fraction=0.5), **options)
    assert {(r.loss, r.accuracy) for r in result.curve} == {(None, None)}
    assert result.plan.removed == 90  # type: ignore[union-attr]
    with pytest.raises(
        ArgumentError, match="max_loss_increase needs the loss after each step, and it was not measured"
    ):
        shrink(model_of("dense"), "dense", sc.Budget(max_loss_increase=0.5), **options)


def test_evaluating_counts_batches_by_their_samples() -> None:
    model, (x, y) = model_of("normed").train(), samples()
    captured = _made("normed", torch.float32)[1].captured
    loss, accuracy, *_ = WeightLoss(model, captured, [(x[:7], y[:7]), (x[7:], y[7:])], "cross_entropy").measure()
    assert (loss, accuracy) == (pytest.approx(measured(model, (x, y))[0], rel=1e-6), measured(model, (x, y))[1])
    assert WeightLoss(model, captured, (x, y), None).measure() == Quality()
    assert WeightLoss(model, captured, None, "cross_entropy").measure() == Quality()


def test_a_copy_that_computes_something_else_is_not_handed_out() -> None:
    class Doubling(nn.Linear):
        def __deepcopy__(self, memo: Any) -> Doubling:
            twin = Doubling(6, 3)
            twin.load_state_dict({name: 2 * value for name, value in self.state_dict().items()})
            return twin

    budget = sc.Budget(remove_units=2)
    with pytest.raises(VerificationError, match="Nothing was made"):
        sc.shrink(Doubling(6, 3), samples(), "cross_entropy", budget, granularity="weight", progress=False)


class Uncopied(nn.Linear):
    def __deepcopy__(self, memo: Any) -> Any:
        raise TypeError("no copies")


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"ranking": "single"}, ArgumentError, "ranking: has no meaning with granularity='weight'"),
        ({"threshold": "mean"}, ArgumentError, "threshold: has no meaning with granularity='weight'"),
        ({"shortlist": 0}, ArgumentError, "shortlist: has no meaning with granularity='weight'"),
        ({"refresh": 3}, ArgumentError, "refresh: has no meaning with granularity='weight'"),
        ({"swaps": True}, ArgumentError, "swaps: has no meaning with granularity='weight'"),
        ({"rounds": 0}, ArgumentError, "rounds: expected a number above 0, got 0"),
        ({"rounds": True}, ArgumentError, "rounds: expected a number above 0, got True"),
        ({"rounds": 1.5}, ArgumentError, "rounds: expected a number above 0, got 1.5"),
        ({"retrain": True}, ArgumentError, "retrain: expected a function of the model, got True"),
        ({"criterion": "oracle"}, ArgumentError, "weight criterion 'oracle'; one of: magnitude, obd"),
        ({"criterion": ""}, ArgumentError, "unknown weight criterion ''; one of: magnitude"),
        ({"granularity": "layer"}, ArgumentError, "unknown granularity 'layer'; one of: unit, weight"),
        ({"loss": None}, DataError, "criterion 'obd' needs a loss; without them: magnitude, random"),
        ({"criterion": "obs", "max_memory": "100 kB"}, ArgumentError, "inverse Hessian of 180 weights takes 777.6 kB"),
        ({"model": Uncopied(6, 3), "units": None}, ModelError, "Uncopied cannot be copied (TypeError: no copies)"),
        ({"model": nn.BatchNorm1d(6).eval(), "units": None}, ModelError, "no parameter of two dimensions or more"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_of_weights_is_refused(options: dict[str, Any], error: type[Exception], text: str) -> None:
    given: dict[str, Any] = {
        "model": model_of("dense"), "data": samples(), "loss": "cross_entropy", "granularity": "weight",
        "budget": sc.Budget(remove_fraction=0.5), "units": _made("dense", torch.float32)[1], "progress": False,
    }  # fmt: skip
    with pytest.raises(error) as caught:
        sc.shrink(**(given | options))
    assert text in str(caught.value)


def test_a_file_of_another_kind_is_not_written(tmp_path: Path) -> None:
    result = shrink(model_of("single"), "single", sc.Budget(remove_units=2))
    with pytest.raises(ArgumentError, match=r"files are written as .*\.int8\.pte, not as '\.pt'"):
        result.save(tmp_path / "a.pt")
    assert list(tmp_path.iterdir()) == []


def test_rounds_are_told_and_the_same_call_gives_the_same_network() -> None:
    first, second = (
        shrink(model_of("dense"), "dense", sc.Budget(remove_fraction=0.5), criterion="random", seed=seed, rounds=3)
        for seed in (4, 4)
    )
    other = shrink(model_of("dense"), "dense", sc.Budget(remove_fraction=0.5), criterion="random", seed=5, rounds=3)
    assert first.curve == second.curve != other.curve
    assert all(torch.equal(mask, masks_of(second)[n]) for n, mask in masks_of(first).items())
