"""A metric of one's own along an order, in budgets, plans, results, pages and on the command line."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import secateur as sc
from secateur.errors import ArgumentError, BudgetError, DataError
from secateur.planning.plan import Plan
from secateur.planning.weight_plan import WeightPlan


def network() -> nn.Sequential:
    """A network that uses all of its units: its five classes are about as frequent as each other."""
    torch.manual_seed(0)
    layers = nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 5)
    model = nn.Sequential(*layers).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
        model[4].bias -= model(torch.randn(200, 4).double()).mean(0)
    return model


def samples(n: int = 60, seed: int = 1) -> tuple[Tensor, Tensor]:
    x = torch.randn(n, 4, generator=torch.Generator().manual_seed(seed)).double()
    with torch.no_grad():
        return x, network()(x).argmax(1)


def fit(outputs: Tensor, targets: Tensor) -> Tensor:
    """The negative perplexity: no mean over samples."""
    return -F.cross_entropy(outputs, targets).exp()


def spread(outputs: Tensor, targets: Tensor) -> float:
    """The correlation of the logits with one-hot targets: of all samples together, and of them alone."""
    pairs = torch.stack([outputs.flatten(), F.one_hot(targets, 5).flatten().to(outputs)])
    return torch.corrcoef(pairs)[0, 1].item()


def by_hand(model: nn.Module, data: tuple[Tensor, Tensor], metric: Callable[..., Any] = spread) -> float:
    with torch.no_grad():
        return float(metric(model(data[0]), data[1]))


def in_batches(data: tuple[Tensor, Tensor]) -> list[tuple[Tensor, Tensor]]:
    return [(data[0][rows], data[1][rows]) for rows in (slice(7), slice(7, 27), slice(27, None))]


def shrink(budget: sc.Budget, data: Any = None, **options: Any) -> Any:
    given = {"metric": spread, "progress": False} | options
    return sc.shrink(network(), samples() if data is None else data, "cross_entropy", budget, **given)


def train(model: nn.Module) -> None:
    x, y = samples()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


WAYS: dict[str, dict[str, Any]] = {
    "iterative": {"compensate": False},
    "single": {"compensate": False, "ranking": "single", "criterion": "taylor1"},
    "quadratic": {"compensate": False, "ranking": "quadratic"},
    "fitted": {},
    "refined": {"refine": 1},
    "layerwise": {"ranking": "layerwise"},
    "layerwise as it is": {"ranking": "layerwise", "compensate": False},
    "rounds": {"rounds": 2},
    "trained": {"rounds": 2, "retrain": train},
    "weights": {"granularity": "weight"},
    "weights in rounds": {"granularity": "weight", "rounds": 2, "retrain": train},
}


# ---------------------------------------------------------------- values


@pytest.mark.parametrize("metric", [fit, spread])
@pytest.mark.parametrize("way", WAYS)
def test_the_metric_is_that_of_the_networks_on_all_validation_samples_at_once(way: str, metric: Any) -> None:
    other = samples(40, seed=2)
    result = shrink(sc.Budget(remove_fraction=0.5), metric=metric, validation=in_batches(other), **WAYS[way])
    assert result.before.metric == pytest.approx(by_hand(network(), other, metric), rel=1e-9)
    assert result.after.metric == pytest.approx(by_hand(result.model, other, metric), rel=1e-9)
    assert result.before.metric != pytest.approx(result.after.metric, rel=1e-6)
    assert result.plan.start.metric == result.before.metric
    assert result.plan.steps[-1].metric == result.curve[-1].metric == result.after.metric


def test_it_is_measured_after_each_removal_where_the_loss_is() -> None:
    model, data = network(), samples()
    plan = sc.rank(model, in_batches(data), "cross_entropy", metric=spread, criterion="taylor1", progress=False)
    for n in range(len(plan.steps) + 1):
        assert plan.states[n].metric == pytest.approx(by_hand(sc.cut(model, plan.prefix(n)), data), rel=1e-9)
    whole = sc.rank(model, data, "cross_entropy", criterion="taylor1", progress=False)
    assert [step.metric for step in whole.steps] == [None] * len(whole.steps)
    assert [(step.set, step.index) for step in plan.steps] == [(step.set, step.index) for step in whole.steps]


def test_texts_of_several_lengths_come_in_lists() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 6), nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 9)).double()
    batches = [(torch.randint(9, (3, n)), torch.randint(9, (3, n))) for n in (5, 7)]

    def loss(o: Tensor, t: Tensor) -> Tensor:
        return F.cross_entropy(o.transpose(1, 2), t)

    def perplexity(outputs: list[Tensor], targets: list[Tensor]) -> Tensor:
        rows = [F.cross_entropy(o.flatten(0, 1), t.flatten(), reduction="none") for o, t in zip(outputs, targets)]  # noqa: B905
        return -torch.cat(rows).mean().exp()

    units = sc.find_units(model, batches[0][0])
    result = sc.shrink(model, batches, loss, sc.Budget(remove_units=3), units=units, metric=perplexity, progress=False)
    with torch.no_grad():
        expected = perplexity([result.model(x) for x, _ in batches], [y for _, y in batches])
    assert result.after.metric == pytest.approx(expected.item(), rel=1e-9)


# ---------------------------------------------------------------- budgets


@pytest.mark.parametrize("way", [way for way in WAYS if "weights" not in way])
def test_a_budget_of_the_metric_is_kept_on_samples_held_back(way: str) -> None:
    x, y = samples()
    held = (x, y) if WAYS[way].get("compensate") is False else (x[4::5], y[4::5])
    result = shrink(sc.Budget(max_metric_drop=0.1), **WAYS[way])
    before, after = by_hand(network(), held), by_hand(result.model, held)
    assert result.after.metric == pytest.approx(after, rel=1e-9)
    assert result.before.metric == pytest.approx(before, rel=1e-9)
    assert 0 < len(result.plan.steps) < 12
    assert before - after <= 0.1


@pytest.mark.parametrize("way", ["weights", "weights in rounds"])
def test_a_budget_of_the_metric_is_kept_by_single_weights(way: str) -> None:
    result = shrink(sc.Budget(max_metric_drop=0.1), **WAYS[way])
    assert isinstance(result.plan, WeightPlan)
    assert result.plan.removed > 0
    before = by_hand(network(), samples())
    assert before - by_hand(result.model, samples()) == pytest.approx(before - result.after.metric, abs=1e-9)
    assert before - result.after.metric <= 0.1
    with pytest.raises(BudgetError, match=r"weights can be removed within max_metric_drop=0.1|within max_metric_drop"):
        shrink(sc.Budget(max_metric_drop=0.001, remove_fraction=0.9), **WAYS[way])


def test_a_budget_of_the_metric_takes_the_longest_prefix_that_keeps_it() -> None:
    model, data = network(), samples()
    options: dict[str, Any] = {"metric": spread, "criterion": "taylor1", "progress": False}
    plan = sc.rank(model, data, "cross_entropy", **options)
    start, *metrics = [state.metric for state in plan.states]
    for drop in (0.0, 0.01, 0.05, 0.2, 1.0):
        n = max([0, *(n for n, value in enumerate(metrics, 1) if start - value <= drop)])  # type: ignore[operator]
        assert plan.at(sc.Budget(max_metric_drop=drop)).steps == plan.steps[:n]
        assert sc.rank(model, data, "cross_entropy", budget=sc.Budget(max_metric_drop=drop), **options).at(
            sc.Budget(max_metric_drop=drop)
        ).steps == plan.steps[:n]  # fmt: skip
    assert start - metrics[-1] > 0.2  # type: ignore[operator]


def test_with_a_size_out_of_reach_the_error_says_how_far_one_gets() -> None:
    budget = sc.Budget(remove_units=11, max_metric_drop=0.05)
    options: dict[str, Any] = {"compensate": False, "criterion": "taylor1"}
    with pytest.raises(BudgetError) as caught:
        shrink(budget, **options)
    removed = int(str(caught.value).split("at most ")[1].split(" of 14")[0])
    assert str(caught.value).startswith(
        f"Budget(remove_units=11, max_metric_drop=0.05) cannot be met: at most {removed} of 14 units can be removed "
        "within max_metric_drop=0.05, which leaves "
    )
    within = shrink(sc.Budget(remove_units=removed, max_metric_drop=0.05), **options)
    assert within.before.metric - within.after.metric <= 0.05


@pytest.mark.parametrize("granularity", ["unit", "weight"])
def test_a_budget_of_the_metric_needs_one(granularity: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secateur.objective.question.find_or_check", lambda *_: pytest.fail("it was captured"))
    for size in ({}, {"remove_units": 1}):
        with pytest.raises(ArgumentError) as caught:
            shrink(sc.Budget(max_metric_drop=0.1, **size), metric=None, granularity=granularity)  # type: ignore[arg-type]
        assert str(caught.value) == "Budget: max_metric_drop needs metric=, a function of outputs and targets"
    with pytest.raises(ArgumentError, match="max_metric_drop needs metric="):
        sc.rank(network(), samples(), "cross_entropy", budget=sc.Budget(max_metric_drop=0.1), progress=False)


def test_a_plan_without_the_metric_has_no_place_for_such_a_budget() -> None:
    plan = sc.rank(network(), samples(), "cross_entropy", criterion="taylor1", progress=False)
    with pytest.raises(ArgumentError) as caught:
        plan.at(sc.Budget(max_metric_drop=0.1))
    expected = "Budget: max_metric_drop needs the metric after each step, and it was not measured"
    assert str(caught.value) == expected


def test_a_metric_that_is_no_number_leaves_the_model_as_it_was() -> None:
    model = network()

    def broken(outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.mean() * targets.new_tensor(float("nan"), dtype=outputs.dtype)

    with pytest.raises(DataError) as caught:
        sc.shrink(model, samples(), "cross_entropy", sc.Budget(remove_units=2), metric=broken, progress=False)
    assert str(caught.value) == "metric broken: expected one finite number for the data, got nan"
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), network().state_dict().values(), strict=True)
    )


# ---------------------------------------------------------------- what is kept and shown


@pytest.mark.parametrize("ranking", ["iterative", "layerwise"])
def test_plans_keep_the_metric_and_those_without_it_are_as_they_were(ranking: str, tmp_path: Path) -> None:
    budget = sc.Budget(remove_units=3)
    with_it, without = (shrink(budget, metric=metric, ranking=ranking) for metric in (spread, None))
    text = with_it.plan.to_json()
    assert Plan.from_json(text) == with_it.plan
    assert json.loads(text)["start"]["metric"] == with_it.before.metric
    assert json.loads(text)["steps"][-1]["metric"] == with_it.after.metric
    assert [*json.loads(without.plan.to_json())["start"]] == ["loss", "accuracy", "params", "bytes", "macs", "ram"]
    assert "metric" not in without.plan.to_json()
    assert Plan.from_json(without.plan.to_json()) == without.plan
    for result in (with_it, without):
        result.save(tmp_path / f"{result is without}.safetensors")
    first, second = (path.read_bytes() for path in tmp_path.glob("*.safetensors"))
    assert first == second
    assert (without.before.metric, without.after.metric, without.curve[-1].metric) == (None, None, None)


@pytest.mark.parametrize("granularity", ["unit", "weight"])
def test_tables_and_pages_have_a_column_for_the_metric_where_there_is_one(granularity: str, tmp_path: Path) -> None:
    budget = sc.Budget(remove_fraction=0.3)
    with_it, without = (shrink(budget, metric=metric, granularity=granularity) for metric in (spread, None))
    head, *rows = str(with_it.plan).splitlines()[1:]
    place = head.split().index("metric")
    assert head.split()[place - 1 : place + 2] == ["accuracy", "metric", "params"]
    removed = len(with_it.plan.steps) if granularity == "unit" else with_it.plan.removed
    metrics = {row.split()[0]: row.split() for row in rows if row.split()[0].isdecimal()}
    assert f"{with_it.before.metric:.4g}" in metrics["0"]
    assert f"{with_it.after.metric:.4g}" in metrics[str(removed)]
    assert "metric" not in str(without.plan)
    pages = []
    for result in (with_it, without):
        result.report(tmp_path / "page.html")
        pages.append((tmp_path / "page.html").read_text())
    assert f"{with_it.before.metric:.4g} → {with_it.after.metric:.4g}" in pages[0]
    assert pages[0].count("Metric against ") == 1
    assert "etric" not in pages[1]


NETS = """
import torch

def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 12), torch.nn.Tanh(), torch.nn.Linear(12, 3))

def data():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(60, 4, generator=g)
    return x, network()(x).argmax(1)

def margin(outputs, targets):
    print("measuring")
    return -torch.nn.functional.cross_entropy(outputs, targets).exp()

def broken(outputs, targets):
    raise ValueError("no such class")
"""
SHRINK = ("shrink", "nets:network", "--data", "nets:data", "--loss", "cross_entropy")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command_line: Any) -> Any:
    (tmp_path / "nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    sys.modules.pop("nets", None)
    return command_line


def test_the_command_line_measures_and_bounds_it(run: Any, tmp_path: Path) -> None:
    options = ("--metric", "nets:margin", "--max-metric-drop", "0.1", "--out", "small.safetensors", "--no-compensate")
    code, out, _ = run(*SHRINK, *options, "--json")
    assert code == 0
    result, nets = json.loads(out), sys.modules["nets"]
    x, y = nets.data()
    small = sc.load(tmp_path / "small.safetensors", nets.network())
    before, after = (-F.cross_entropy(model(x), y).exp().item() for model in (nets.network(), small))
    assert result["before"]["metric"] == pytest.approx(before, rel=1e-5)
    assert result["after"]["metric"] == pytest.approx(after, rel=1e-5)
    assert before - after <= 0.1
    assert result["removed"] > 0
    code, out, _ = run(
        *SHRINK, "--bytes", "1kB", "--bytes", "900", "--metric", "nets:margin", "--out", "{bytes}.safetensors"
    )
    head = next(line for line in out.splitlines() if line.startswith("asked"))
    assert (code, head.split()[-4:]) == (0, ["loss", "accuracy", "metric", "file"])
    assert f"{before:.4g}" in out
    code, out, _ = run(*SHRINK, "--remove-units", "2", "--out", "plain.safetensors", "--json")
    assert [*json.loads(out)["after"]] == ["params", "bytes", "macs", "ram", "loss", "accuracy"]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--max-metric-drop", "0.1"), "Budget: max_metric_drop needs metric=, a function of outputs and targets"),
        (
            ("--max-metric-drop", "-1", "--metric", "nets:margin"),
            "Budget: max_metric_drop must be at least 0, got -1.0",
        ),
        (("--remove-units", "1", "--metric", "margin"), "--metric 'margin': expected package.module:function"),
        (
            ("--remove-units", "1", "--metric", "nets:none"),
            "--metric 'nets:none': module 'nets' has no attribute 'none'",
        ),
        (
            ("--remove-units", "1", "--metric", "nets:broken"),
            "metric broken: it fails on this data (ValueError: no such class)",
        ),
    ],
)  # fmt: skip
def test_what_is_no_metric_is_refused_in_a_line(run: Any, tmp_path: Path, options: tuple[str, ...], text: str) -> None:
    code, out, err = run(*SHRINK, *options, "--out", "small.safetensors")
    assert (code, out, err.splitlines()[-1]) == (2, "", f"secateur: {text}")
    assert not (tmp_path / "small.safetensors").exists()


def test_an_estimate_takes_the_same_options(run: Any) -> None:
    options = ("--metric", "nets:margin", "--max-metric-drop", "0.1", "--estimate", "--json")
    code, out, _ = run(*SHRINK, *options)
    assert (code, json.loads(out)["ranking"]) == (0, "iterative")
