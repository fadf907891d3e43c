"""Budgets of what only the networks themselves tell: other runtimes' files, and time."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.errors import ArgumentError, BudgetError
from secateur.planning.details.file_formats import FORMATS
from secateur.result import Result

WRITTEN = ("safetensors", "pt2", "int8.onnx", "int8.pte")  # the others in tests/artifacts/test_budgets_of_files.py
X = torch.randn(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(40) % 3


def libraries(artifact: str) -> None:
    """Skip a test where what writes such a file is not installed."""
    for library in FORMATS[f".{artifact}"].libraries:
        pytest.importorskip(library)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(108, 64), nn.ReLU(), nn.Linear(64, 3),
    ).eval()  # fmt: skip


def shrunk(budget: sc.Budget, **options: Any) -> Result:
    options = {"criterion": "magnitude", "ranking": "single", "compensate": False, **options}
    return sc.shrink(network(), (X, Y), "cross_entropy", budget, progress=False, **options)


def written(result: Result, artifact: str, folder: Path) -> int:
    return result.save(folder / f"small.{artifact}", (X, Y))


@pytest.mark.parametrize(("artifact", "ranking"), [*((a, "single") for a in WRITTEN), ("onnx", "layerwise")])
def test_the_bytes_of_any_file_are_kept_and_used_up_to_one_unit(artifact: str, ranking: str, tmp_path: Path) -> None:
    libraries(artifact)
    whole = sc.shrink(network(), (X, Y), "cross_entropy", sc.Budget(remove_units=0), progress=False)
    bound = int(0.6 * written(whole, artifact, tmp_path))
    result = shrunk(sc.Budget(bytes=bound, artifact=artifact), ranking=ranking)
    size = written(result, artifact, tmp_path)
    assert size == result.after.bytes <= bound
    longer = result.plan.prefix(len(result.plan.steps) - 1)
    before = Result(sc.cut(network(), longer), longer, (), result.before, result.after, 0.0)
    assert written(before, artifact, tmp_path) > bound
    if artifact != "safetensors":  # whose header says how the plan was made
        assert result.before.bytes == written(whole, artifact, tmp_path)


def test_the_smallest_file_possible_is_named(tmp_path: Path) -> None:
    libraries("onnx")
    with pytest.raises(BudgetError, match=r"artifact='onnx'\) cannot be met: at most 74 of 76 .* file of [\d,]+ bytes"):
        shrunk(sc.Budget(bytes=100, artifact="onnx"))


def test_a_plan_counts_the_bytes_of_one_kind_of_file(tmp_path: Path) -> None:
    result = shrunk(sc.Budget(bytes="30 kB", artifact="pt2"))
    again = sc.Plan.from_json(result.plan.to_json())
    assert again == result.plan
    assert again.at(sc.Budget(bytes="35 kB", artifact="pt2")).states[-1].bytes <= 35_000
    with pytest.raises(ArgumentError, match=r"the plan's bytes are of \.pt2 files; secateur\.shrink makes"):
        again.at(sc.Budget(bytes="20 kB"))
    assert len(again.at(sc.Budget(remove_units=2)).steps) == 2


def test_rounds_keep_the_bytes_of_other_files(tmp_path: Path) -> None:
    result = shrunk(sc.Budget(bytes="30 kB", artifact="pt2"), rounds=2)
    assert written(result, "pt2", tmp_path) == result.after.bytes <= 30_000


class Slow(nn.Module):
    """A layer that takes a millisecond for each of its units."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 10), nn.Linear(10, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.first(x))
        if not torch.compiler.is_compiling():
            time.sleep(hidden.shape[1] / 1000)
        return self.last(hidden)


def test_a_network_is_fast_enough_by_the_clock() -> None:
    torch.manual_seed(0)
    data = torch.randn(12, 4), torch.arange(12) % 2
    for ranking in ("single", "layerwise"):
        budget = sc.Budget(latency_ms=6.5)
        result = sc.shrink(
            Slow().eval(), data, "cross_entropy", budget, criterion="magnitude", ranking=ranking, compensate=False,
            progress=False,
        )  # fmt: skip
        assert result.after.latency_ms is not None
        assert result.before.latency_ms is not None
        assert 1 <= len(result.plan.kept["first"]) <= 6
        assert result.after.latency_ms <= 6.5 < result.before.latency_ms
        assert "ms for one sample" in str(result)
    with pytest.raises(BudgetError, match=r"9 of 10 units can be removed, and then one sample takes [\d.]+ ms on this"):
        sc.shrink(Slow().eval(), data, "cross_entropy", sc.Budget(latency_ms=0.5), progress=False)


@pytest.mark.parametrize(
    ("budget", "options", "text"),
    [
        ({"latency_ms": 5}, {"rounds": 2}, "Budget: latency_ms has no meaning with rounds or retrain"),
        ({"ram": 5}, {"granularity": "weight"}, "Budget: ram has no meaning with granularity='weight'"),
        (
            {"bytes": 5, "artifact": "onnx"}, {"granularity": "weight"},
            "Budget: artifact has no meaning with granularity='weight'",
        ),
    ],
)  # fmt: skip
def test_bounds_of_what_is_not_counted_are_refused(budget: Any, options: Any, text: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        sc.shrink(network(), (X, Y), "cross_entropy", sc.Budget(**budget), progress=False, **options)
    assert str(caught.value) == text


def test_a_plan_does_not_know_times() -> None:
    plan = sc.rank(network(), (X, Y), "cross_entropy", criterion="magnitude", ranking="single", progress=False)
    with pytest.raises(ArgumentError, match=r"^Budget: latency_ms is measured on the networks themselves"):
        plan.at(sc.Budget(latency_ms=1.0))


@pytest.mark.parametrize("budget", [{"latency_ms": 1.0}, {"bytes": 30_000, "artifact": "pt2"}])
def test_rank_makes_no_plan_by_what_networks_themselves_cost(budget: Any) -> None:
    with pytest.raises(ArgumentError) as caught:
        sc.rank(network(), (X, Y), "cross_entropy", budget=sc.Budget(**budget), progress=False)
    assert (
        str(caught.value)
        == f"Budget: {[*budget][-1]} is measured on the networks themselves; secateur.shrink does that"
    )
