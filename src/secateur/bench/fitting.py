"""What compensation takes: the pass over the calibration data, and the surgery on a wide layer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor, nn

from secateur.bench.timing import seconds
from secateur.papers.data import Dataset
from secateur.papers.networks import convolutional_network
from secateur.papers.training import logistic_network
from secateur.saliency.compensation import Compensation, Settings
from secateur.saliency.gates import Gated
from secateur.saliency.obs import UnitSurgeon
from secateur.structure.units import find_units

RUNS = 5
WIDTH, INNER = 768, 3072  # of a feed-forward layer
TOKENS = 8192


@dataclass(frozen=True)
class Cost:
    """One measurement.

    Attributes:
        task: What was done.
        seconds: Of it, the median of the runs.
        forward: Seconds of a forward pass over the same data, without gradients.
        ratio: Of the two.
    """

    task: str
    seconds: float
    forward: float
    ratio: float


def costs(data: Dataset, runs: int = RUNS) -> Iterator[Cost]:
    """The pass over the calibration data beside a forward pass, then half of a feed-forward layer's units removed.

    Args:
        data: Rows for the networks; the convolutional one takes those of 784 pixels alone.
        runs: Of the passes, of which the median is taken; the feed-forward layer has one.

    Yields:
        One for each network, and two for the feed-forward layer.
    """
    nets: list[tuple[str, nn.Module]] = [("squared_error", logistic_network([data.features, 100, data.classes]))]
    nets += [("cross_entropy", convolutional_network())] if data.features == 784 else []
    for loss, model in nets:
        x, y = data.calibration
        name = "-".join(str(p.shape[0]) for p in model.parameters() if p.ndim > 1)
        yield _pass(f"pass over {len(x):,} samples, {name}", model.eval(), (x, y), loss, runs)
    model, pair = feed_forward()
    yield _pass(f"pass over {TOKENS:,} rows, {WIDTH}-{INNER}-{WIDTH}", model, pair, "squared_error", runs)
    yield _surgery(model, pair)


def feed_forward() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """A feed-forward layer of random weights, random rows and what it makes of them."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = nn.Sequential(nn.Linear(WIDTH, INNER), nn.GELU(), nn.Linear(INNER, WIDTH)).eval()
        x = torch.randn(TOKENS, WIDTH)
    with torch.no_grad():
        return model, (x, model(x))


def _pass(task: str, model: nn.Module, data: tuple[Tensor, Tensor], loss: str, runs: int) -> Cost:
    gated = Gated(model, find_units(model, data[0][:2]), data, loss)

    def collect() -> None:
        compensation = Compensation(gated, Settings(ridge=1e-4))
        compensation.fit(compensation.ones)

    def run() -> None:
        with torch.no_grad():
            model(data[0])

    ours, forward = (median(seconds(task)[0] for _ in range(runs)) for task in (collect, run))
    return Cost(task, ours, forward, ours / forward)


def _surgery(model: nn.Module, data: tuple[Tensor, Tensor]) -> Cost:
    """From the moments to the last of half of the units: each chosen among all that are left, and made up for."""
    units = find_units(model, data[0][:2])
    compensation = Compensation(Gated(model, units, data, "squared_error"), Settings(ridge=1e-4))
    compensation.fit(compensation.ones)

    def operate() -> None:
        surgeon, g = UnitSurgeon(compensation), compensation.ones.clone()
        surgeon.begin(g)
        for _ in range(INNER // 2):
            k = int(surgeon.saliency(g).argmin())
            g[k] = 0
            surgeon.remove(g, k)

    with torch.no_grad():
        forward = median(seconds(lambda: model(data[0]))[0] for _ in range(RUNS))
    spent = seconds(operate)[0]
    return Cost(f"select and remove {INNER // 2:,} of {INNER:,} units of it", spent, forward, spent / forward)
