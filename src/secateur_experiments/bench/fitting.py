"""What compensation takes: the pass over the calibration data, and the surgery on a wide layer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median

import torch
from torch import nn

from secateur import find_units
from secateur.compensation.compensator import Compensator
from secateur.compensation.unit_surgeon import UnitSurgeon
from secateur.objective.gated_loss import GatedLoss
from secateur.options import Compensation
from secateur_experiments.bench.timing import seconds
from secateur_experiments.datasets import Dataset, Pair
from secateur_experiments.networks import convolutional_network, logistic_network, seeded

RUNS = 5
WIDTH, INNER, ROWS = 768, 3072, 8192  # of a feed-forward layer, and of its data
RIDGE = Compensation(ridge=1e-4)


@dataclass(frozen=True)
class Cost:
    """One measurement.

    Attributes:
        task: What was done.
        seconds: Of it; of a pass the median of the runs.
        forward: Seconds of the network's forward pass over the same data, without gradients.
        ratio: Of the two.
    """

    task: str
    seconds: float
    forward: float
    ratio: float


def costs(data: Dataset, wide: tuple[int, int, int] = (WIDTH, INNER, ROWS), runs: int = RUNS) -> Iterator[Cost]:
    """Time the pass over the calibration data beside a forward pass; then half of a feed-forward layer's units removed.

    Args:
        data: Rows for the networks; the convolutional one takes those of 784 pixels alone.
        wide: Width, inner units and rows of the feed-forward layer, whose weights and data are random.
        runs: Of the passes, of which the median is taken.
    """
    logistic = logistic_network([data.features, 100, data.classes])
    for part in (data.train, data.calibration):
        name = f"{data.features}-100-{data.classes}, {len(part[0]):,} samples"
        yield _pass(name, logistic, part, "squared_error", runs)
    if data.features == 784:
        samples = len(data.calibration[0])
        yield _pass(
            f"conv, {samples:,} samples", convolutional_network().eval(), data.calibration, "cross_entropy", runs
        )
    width, inner, rows = wide
    model, pair = feed_forward(*wide)
    yield _pass(f"{width}-{inner}-{width}, {rows:,} rows", model, pair, "squared_error", runs)
    yield _surgery(f"{inner // 2:,} of its {inner:,} units selected and removed", model, pair)


def feed_forward(width: int, inner: int, rows: int) -> tuple[nn.Module, Pair]:
    """Return a feed-forward layer of random weights, random rows and what it makes of them."""
    with seeded(0):
        model = nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width)).eval()
        x = torch.randn(rows, width)
    with torch.no_grad():
        return model, (x, model(x))


def _pass(task: str, model: nn.Module, data: Pair, loss: str, runs: int) -> Cost:
    """Time the way from the network and the data to the second moments of all layers, beside a forward pass."""
    units = find_units(model, data[0][:2])

    def collect() -> None:
        Compensator(GatedLoss(model, units, data, loss), RIDGE).learn()

    pairs = [(seconds(collect)[0], _forward(model, data)) for _ in range(runs + 1)][1:]
    ours, forward = (median(side) for side in zip(*pairs, strict=True))
    return Cost(task, ours, forward, ours / forward)


def _forward(model: nn.Module, data: Pair) -> float:
    with torch.no_grad():
        return seconds(lambda: model(data[0]))[0]


def _surgery(task: str, model: nn.Module, data: Pair) -> Cost:
    """Time the removal of half of the units, each chosen among all left and made up for, moments at hand."""
    compensator = Compensator(GatedLoss(model, find_units(model, data[0][:2]), data, "squared_error"), RIDGE)
    compensator.learn()

    def operate() -> None:
        surgeon, g = UnitSurgeon(compensator), compensator.ones.clone()
        surgeon.begin(g)
        for _ in range(len(g) // 2):
            k = int(surgeon.saliency(g).argmin())
            g[k] = 0
            surgeon.remove(g, k)

    spent, forward = seconds(operate)[0], _forward(model, data)
    return Cost(task, spent, forward, spent / forward)
