"""The weight update of the note 000 beside SGD and Adam: as it stands it does not train, with a bound it does.

64-32-10 on the digits, squared error, full batches, each optimiser at the learning rate with the least training loss of
five; order 2 with the diagonal of the Gauss-Newton matrix. docs/curvature.md has the table and the picture.

As it stands, some weights always have a gradient near zero, and −E'/g throws them away; learning rates at which it does
not are too small for the others. (10⁶ stands for no bound: without any, weights reach the end of float32.) With
|x| ≤ 0.1 it learns faster than Adam at first and ends level with it. Most weights then stop at the bound, so it is near
to a descent by the sign of the gradient. The second order helps only without a bound, and costs a pass for each
output. The bound was set once, by hand: a choice that Adam was not given.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import nn
from torch.optim import SGD, Adam, Optimizer

from secateur.errors import ArgumentError
from secateur.objective.losses import squared_error
from secateur.optim import Curvature, TaylorRoot, curvature_of
from secateur.reporting.progress import progress_bar
from secateur.text import table
from secateur_experiments.datasets import Dataset
from secateur_experiments.networks import logistic_network

Make = Callable[[Iterable[nn.Parameter], float, Curvature], Optimizer]

# Each with its learning rates, five for all.
OPTIMISERS: dict[str, tuple[Make, Sequence[float]]] = {
    "SGD": (lambda params, lr, _: SGD(params, lr), (0.3, 1, 3, 10, 30)),
    "Adam": (lambda params, lr, _: Adam(params, lr), (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)),
    "order 1, |x| ≤ 10⁶": (lambda params, lr, _: TaylorRoot(params, 1, lr, None, 1e6), (1e-4, 1e-3, 1e-2, 0.1, 1)),
    "order 2, |x| ≤ 10⁶": (lambda params, lr, h: TaylorRoot(params, 2, lr, h, 1e6), (1e-4, 1e-3, 1e-2, 0.1, 1)),
    "order 1, |x| ≤ 0.1": (lambda params, lr, _: TaylorRoot(params, 1, lr, None, 0.1), (0.03, 0.1, 0.3, 1, 3)),
    "order 2, |x| ≤ 0.1": (lambda params, lr, h: TaylorRoot(params, 2, lr, h, 0.1), (0.03, 0.1, 0.3, 1, 3)),
}


@dataclass(frozen=True)
class Run:
    """How a network learns, means over the seeds.

    Attributes:
        rate: The learning rate.
        step: After how many steps.
        loss: Squared error per training sample there.
        accuracy: On the test digits there.
        seconds: Of all steps, without what is measured between them.
    """

    rate: float
    step: list[int]
    loss: list[float]
    accuracy: list[float]
    seconds: float


def compare(
    data: Dataset,
    hidden: Sequence[int] = (32,),
    steps: int = 200,
    every: int = 10,
    seeds: Sequence[int] = (0, 1, 2),
    progress: bool = True,
) -> dict[str, Run]:
    """Train a logistic network on the whole training set by each optimiser, at the best of its five learning rates.

    Best is the least training loss at the end; the test digits have no say. All start from the same weights.

    Args:
        data: What is learned.
        hidden: Hidden widths.
        steps: Of each training, on all training samples.
        every: Steps between two points of a curve; divides `steps`.
        seeds: Of the starting weights.
        progress: Show a bar on stderr.

    Returns:
        By the optimiser's name, its best run.

    Raises:
        ArgumentError: `every` does not divide `steps`.
    """
    if steps % every:
        raise ArgumentError(f"compare: every has to divide steps, got {every} and {steps}")
    trials = [(name, make, rate) for name, (make, rates) in OPTIMISERS.items() for rate in rates]
    runs: dict[str, list[Run]] = {name: [] for name in OPTIMISERS}
    with progress_bar("training by every optimiser", progress) as bar:
        for done, (name, make, rate) in enumerate(trials):
            bar(done, len(trials))
            networks = [logistic_network([data.features, *hidden, data.classes], seed) for seed in seeds]
            runs[name].append(_mean([_train(n, data, make, rate, steps, every) for n in networks]))
    return {name: min(tried, key=lambda run: run.loss[-1]) for name, tried in runs.items()}


def summary(runs: Mapping[str, Run]) -> str:
    """Return a table of the runs at their ends."""
    rows = [
        (name, f"{r.rate:g}", f"{r.loss[-1]:.4f}", f"{r.accuracy[-1]:.3f}", f"{1000 * r.seconds / r.step[-1]:.2f}")
        for name, r in runs.items()
    ]
    steps = next(iter(runs.values())).step[-1]
    columns = ("optimiser", "learning rate", "training loss", "test accuracy", "ms/step")
    return table(columns, rows, f"after {steps} steps, at the best of five learning rates")


def _train(network: nn.Module, data: Dataset, make: Make, rate: float, steps: int, every: int) -> Run:
    x, y = data.train
    curvature = curvature_of(network, x, "squared_error")
    optimiser = make(network.parameters(), rate, lambda: curvature(x, y))

    def closure() -> float:
        optimiser.zero_grad()
        loss = squared_error(network(x), y)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()

    points, seconds = [_point(network, data)], 0.0
    for _ in range(steps // every):
        start = time.perf_counter()
        for _ in range(every):
            optimiser.step(closure)
        seconds += time.perf_counter() - start
        points.append(_point(network, data))
    losses, accuracies = map(list, zip(*points, strict=True))
    return Run(rate, list(range(0, steps + 1, every)), losses, accuracies, seconds)


@torch.no_grad()
def _point(network: nn.Module, data: Dataset) -> tuple[float, float]:
    """Measure training loss and test accuracy."""
    (x, y), (test_x, test_y) = data.train, data.test
    return squared_error(network(x), y).item(), (network(test_x).argmax(1) == test_y).double().mean().item()


def _mean(runs: Sequence[Run]) -> Run:
    losses = [fmean(point) for point in zip(*(run.loss for run in runs), strict=True)]
    accuracies = [fmean(point) for point in zip(*(run.accuracy for run in runs), strict=True)]
    return Run(runs[0].rate, runs[0].step, losses, accuracies, fmean(run.seconds for run in runs))
