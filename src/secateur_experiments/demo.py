"""The main job on real digits: train, prune by every criterion, cut to a byte budget, save, load, compare."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secateur.artifacts.measure import Sizes
from secateur.artifacts.safetensors import check_path, load, make_folder
from secateur.cutting.slices import gates
from secateur.errors import VerificationError
from secateur.papers.data import Dataset
from secateur.papers.training import logistic_network, train
from secateur.planning.budget import Budget
from secateur.planning.plan import Plan
from secateur.planning.ranking import RANKINGS, criteria_for
from secateur.reporting.plots import degradation
from secateur.reporting.progress import progress_bar
from secateur.reporting.tables import at_tenths
from secateur.saliency.compensation import Compensation
from secateur.saliency.gates import Gated
from secateur.shrink import Result, rank, shrink
from secateur.structure.units import Units, find_units
from secateur.text import format_bytes

LOSS = "squared_error"


@dataclass(frozen=True)
class Report:
    """What became of one network.

    Attributes:
        name: Its widths.
        units: Hidden units it had.
        curves: "criterion/ranking" → removed, loss and accuracy on the test digits.
        result: The best plan, cut to the byte budget.
        best: Which that is: the least loss on the training digits.
        artifact: The written file.
        reloaded_difference: Between the outputs here and those of the file in a fresh process.
        picture: The plot of the curves.
    """

    name: str
    units: int
    curves: dict[str, dict[str, list[Any]]]
    result: Result
    best: str
    artifact: Path
    reloaded_difference: float
    picture: Path

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "name": self.name,
            "before": _cost(self.result.before),
            "after": _cost(self.result.after),
            "best": self.best,
            "curves": self.curves,
            "verified": True,  # or there would be no result
            "max_difference": self.result.max_difference,
            "reloaded_difference": self.reloaded_difference,
            "artifact": {"path": str(self.artifact), "bytes": self.artifact.stat().st_size},
            "picture": str(self.picture),
        }

    def __str__(self) -> str:
        before, after = self.result.before, self.result.after
        return "\n".join(
            [
                f"{self.name}: {before.params:,} parameters, test accuracy {before.accuracy:.3f}",
                "",
                at_tenths(self.curves, "accuracy", self.units, "accuracy on test digits, by share of units removed"),
                "",
                at_tenths(self.curves, "loss", self.units, "squared error per test digit, by share of units removed"),
                "",
                f"cut to half the bytes by {self.best}, {len(self.result.plan.steps)} of {self.units} units removed:",
                f"  {before.params:,} → {after.params:,} parameters, "
                f"{format_bytes(before.bytes)} → {format_bytes(after.bytes)}, "
                f"accuracy {before.accuracy:.3f} → {after.accuracy:.3f}",
                f"  cut and gated network differ by {self.result.max_difference:.1e}, "
                f"file loaded in a fresh process by {self.reloaded_difference:.1e}",
                f"  file     {self.artifact}",
                f"  picture  {self.picture}",
            ]
        )


def _cost(sizes: Sizes) -> dict[str, Any]:
    return {name: value for name, value in asdict(sizes).items() if name in ("params", "bytes", "loss", "accuracy")}


def demo(data: Dataset, hidden: Sequence[Sequence[int]], out: Path, epochs: int, progress: bool = True) -> list[Report]:
    """Do all of it for networks with these hidden widths.

    Args:
        data: What they learn.
        hidden: Hidden widths of each network.
        out: Folder for pictures and files; made if it is not there.
        epochs: Of the training.
        progress: Show bars on stderr.

    Raises:
        ArtifactError: The folder cannot be written to.
        VerificationError: A file does not give back the network that was saved.
    """
    make_folder(out)
    check_path(out / "network.safetensors")
    return [_one(data, [data.features, *widths, data.classes], out, epochs, progress) for widths in hidden]


def _one(data: Dataset, widths: list[int], out: Path, epochs: int, progress: bool) -> Report:
    name = "-".join(map(str, widths))
    model = logistic_network(widths)
    train(model, data.train, epochs, progress=progress)
    units = find_units(model, data.calibration[0])
    plans = _plans(model, units, data, progress)
    curves = {key: _curve(plan) for key, plan in plans.items()}
    picture = out / f"{name}.png"
    title = f"{name}, pruned without retraining, on the test part of {data.name}"
    degradation(curves, units.total, title, picture, "squared error per sample")
    budget = Budget(bytes=next(iter(plans.values())).states[0].bytes // 2)
    best = _best(model, units, data, plans, budget)
    criterion, ranking = best.split("/")
    result = shrink(
        model, data.calibration, LOSS, budget, units=units, criterion=criterion, ranking=ranking,
        validation=data.test, progress=progress, compensate=plans[best].compensated,
    )  # fmt: skip
    artifact = out / f"{name}.safetensors"
    result.save(artifact)
    return Report(name, units.total, curves, result, best, artifact, _reload(artifact, widths, result, data), picture)


def _plans(model: nn.Module, units: Units, data: Dataset, progress: bool) -> dict[str, Plan]:
    ways = [(criterion, ranking) for ranking in RANKINGS for criterion in criteria_for(ranking)]
    plans = {}
    with progress_bar("pruning by every criterion", progress) as bar:
        for done, (criterion, ranking) in enumerate(ways):
            bar(done, len(ways))
            plans[f"{criterion}/{ranking}"] = rank(
                model, data.calibration, LOSS, units, criterion, ranking, validation=data.test, progress=False,
                compensate=criterion == "obs",
            )  # fmt: skip
    return plans


def _curve(plan: Plan) -> dict[str, list[Any]]:
    return {
        "removed": list(range(len(plan.states))),
        "loss": [state.loss for state in plan.states],
        "accuracy": [state.accuracy for state in plan.states],
    }


def _best(model: nn.Module, units: Units, data: Dataset, plans: dict[str, Plan], budget: Budget) -> str:
    """The way with the least loss on the calibration data at that budget: the test data have no say."""
    gated = Gated(model, units, data.calibration, LOSS)
    compensation = Compensation(gated)

    def error(key: str) -> float:
        plan = plans[key].at(budget)
        g = gates(model, units, plan.kept)
        if not plan.compensated:
            return gated.loss(g)
        compensation.fit(g)
        return compensation.gated.loss(g)

    return min(plans, key=error)


def _reload(path: Path, widths: list[int], result: Result, data: Dataset) -> float:
    """The largest difference between the network's outputs here and those of its file in a fresh process.

    Raises:
        VerificationError: They differ by more than rounding.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
        there = torch.tensor(fresh.submit(_outputs, path, widths, data.test[0].numpy()).result())
    with torch.no_grad():
        difference: float = (result.model(data.test[0]) - there).abs().max().item()
    if not difference <= 1e-6:
        raise VerificationError(f"{path}: the network loaded from the file differs from the saved one by {difference}")
    return difference


def _outputs(path: Path, widths: list[int], x: Any) -> Any:
    model = load(path, logistic_network(widths, seed=1))  # other weights than those saved
    with torch.no_grad():
        out: Tensor = model(torch.from_numpy(x))
    return out.numpy()
