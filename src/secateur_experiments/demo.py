"""The main job on real digits: train, prune by every criterion, cut to a byte budget, save, load, compare."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secateur import Budget, Plan, Units, find_units, load, rank, shrink
from secateur.artifacts.safetensors import check_path, make_folder
from secateur.compensation.compensator import Compensator
from secateur.cutting.slices import gates
from secateur.errors import VerificationError
from secateur.objective.gated_loss import GatedLoss
from secateur.planning.ranking import criteria_for
from secateur.reporting.progress import progress_bar
from secateur_experiments.curves import curve_of
from secateur_experiments.datasets import Dataset
from secateur_experiments.demo_report import Report, degradation
from secateur_experiments.networks import logistic_network
from secateur_experiments.training import train

LOSS = "squared_error"
MEASURED = ("single", "iterative", "quadratic")  # rankings whose losses are measured all along the order


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
    curves = {key: curve_of(plan) for key, plan in plans.items()}
    picture = out / f"{name}.png"
    title = f"{name}, pruned without retraining, on the test part of {data.name}"
    degradation(curves, title, picture, "squared error per sample")
    budget = Budget(bytes=next(iter(plans.values())).states[0].bytes // 2)
    best = _best(model, units, data, plans, budget)
    criterion, ranking = best.split("/")
    result = shrink(
        model, data.calibration, LOSS, budget, units=units, criterion=criterion, ranking=ranking,
        validation=data.test, progress=progress, compensate=plans[best].compensated,
    )  # fmt: skip
    artifact = out / f"{name}.safetensors"
    result.save(artifact)
    difference = reloaded_difference(artifact, widths, result.model, data.test[0])
    return Report(name, units.total, curves, result, best, artifact, difference, picture)


def _plans(model: nn.Module, units: Units, data: Dataset, progress: bool) -> dict[str, Plan]:
    ways = [(criterion, ranking) for ranking in MEASURED for criterion in criteria_for(ranking)]
    plans = {}
    with progress_bar("pruning by every criterion", progress) as bar:
        for done, (criterion, ranking) in enumerate(ways):
            bar(done, len(ways))
            plans[f"{criterion}/{ranking}"] = rank(
                model, data.calibration, LOSS, units=units, criterion=criterion, ranking=ranking, validation=data.test,
                progress=False, compensate=criterion == "obs",
            )  # fmt: skip
    return plans


def _best(model: nn.Module, units: Units, data: Dataset, plans: dict[str, Plan], budget: Budget) -> str:
    """Return the way with the least loss on the calibration data at that budget: the test data have no say."""
    gated = GatedLoss(model, units, data.calibration, LOSS)
    compensator = Compensator(gated)

    def error(key: str) -> float:
        plan = plans[key].at(budget)
        g = gates(model, units, plan.kept)
        if not plan.compensated:
            return gated.loss(g)
        compensator.fit(g)
        return compensator.gated.loss(g)

    return min(plans, key=error)


def reloaded_difference(path: Path, widths: list[int], model: nn.Module, x: Tensor) -> float:
    """Return the largest difference between a network's outputs here and those of its file in a fresh process.

    Raises:
        VerificationError: They differ by more than rounding.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
        there = torch.tensor(fresh.submit(_outputs, path, widths, x.numpy()).result())
    with torch.no_grad():
        difference: float = (model(x) - there).abs().max().item()
    if not difference <= 1e-6:
        raise VerificationError(f"{path}: the network loaded from the file differs from the saved one by {difference}")
    return difference


def _outputs(path: Path, widths: list[int], x: Any) -> Any:
    model = load(path, logistic_network(widths, seed=1))  # other weights than those saved
    with torch.no_grad():
        out: Tensor = model(torch.from_numpy(x))
    return out.numpy()
