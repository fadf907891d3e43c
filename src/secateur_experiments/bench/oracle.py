"""The oracle beside K passes of the whole model, in one process: times, their ratio and the largest difference."""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from secateur import Units, find_units, rank
from secateur.objective.gated_loss import GatedLoss, ones
from secateur.objective.leave_one_out import change_one
from secateur.objective.losses import find_loss
from secateur.saliency.gain_sweep import gain_sweep
from secateur_experiments.bench.timing import exponent, in_turns, seconds
from secateur_experiments.datasets import Pair, images
from secateur_experiments.networks import ViT, lenet, logistic_network, resnet18

BATCHES = (64, 256, 1000, 2500, 10_000)  # sizes that the passes of the whole model are tried with
GROWTH = (50, 100, 200, 400, 800)


@dataclass(frozen=True)
class Row:
    """One network and one task.

    Attributes:
        network: Its name.
        task: "single": all saliencies; "iterative": the whole ranking.
        passes: How many networks are evaluated; of large ones with every 32nd or 192nd unit of each set gone.
        units: Those of the network.
        naive_s: Median seconds of as many passes of the whole model at its best batch size.
        ours_s: Median seconds of ours.
        ratio: naive_s / ours_s.
        max_difference: The largest of the losses, relative to max(|E|, |ΔE|).
    """

    network: str
    task: str
    passes: int
    units: int
    naive_s: float
    ours_s: float
    ratio: float
    max_difference: float


class Task(NamedTuple):
    """What is timed: a network, its samples' shape, how many, its loss, every which unit of each set, and how."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    samples: int
    loss: str
    every: int
    tasks: tuple[str, ...]


def tasks(samples: int) -> dict[str, Task]:
    """Return the networks by name."""
    both = ("single", "iterative")
    return {
        "784-100-10": Task(partial(logistic_network, [784, 100, 10]), (784,), samples, "squared_error", 1, both),
        "784-50-50-10": Task(partial(logistic_network, [784, 50, 50, 10]), (784,), samples, "squared_error", 1, both),
        "LeNet-5": Task(lenet, (1, 28, 28), samples, "cross_entropy", 1, both[:1]),
        "ResNet-18": Task(resnet18, (3, 32, 32), min(256, samples), "cross_entropy", 32, both[:1]),
        "ViT-tiny": Task(ViT, (3, 32, 32), min(256, samples), "cross_entropy", 192, both[:1]),
    }


def compare(
    names: Sequence[str], samples: int, runs: int, dtype: torch.dtype, folder: Path | None, progress: bool = True
) -> Iterator[Row]:
    """Make a row per network and task, alternating between both sides.

    Args:
        names: Of `tasks`.
        samples: Of each network; at most 256 images of the two large ones.
        runs: Of each side, of which the median is taken.
        dtype: Of weights and data.
        folder: With MNIST's files; None for random pixels.
        progress: Show a bar on stderr.

    Yields:
        The rows as they are done.
    """
    for name in names:
        task = tasks(samples)[name]
        torch.manual_seed(0)
        model = task.build().to(dtype).eval()
        x, y = images(task.shape, task.samples, dtype, folder)
        units = find_units(model, x[:2])
        best = best_batch(model, x)
        for kind in task.tasks:
            single = kind == "single"
            sides = (
                _single(model, units, (x, y), task, best)
                if single
                else iterative(model, units, (x, y), task.loss, best)
            )
            slow, fast, (expected, passes), (got, _) = in_turns(f"{name}, {kind}", *sides, runs, progress)
            off = (expected - got).abs() / expected.abs().clamp(min=expected[0].abs().item())
            measured = ~got.isnan()  # a ranking of many samples measures after some removals
            yield Row(name, kind, passes, units.total, slow, fast, slow / fast, off[measured].max().item())


def growth(samples: int, runs: int, dtype: torch.dtype, folder: Path | None) -> tuple[dict[int, float], float]:
    """Time all saliencies of 784-K-10: median seconds by K, and their log-log slope."""
    times = {}
    for width in GROWTH:
        task = tasks(samples)["784-100-10"]._replace(build=partial(logistic_network, [784, width, 10]))
        model, data = task.build().to(dtype), images(task.shape, task.samples, dtype, folder)
        ours = _single(model, find_units(model, data[0][:2]), data, task, samples)[1]
        times[width] = statistics.median(seconds(ours)[0] for _ in range(runs))
    return times, exponent(times)


def sweep(samples: int, dtype: torch.dtype, folder: Path | None, count: int = 10, gains: int = 10_001) -> float:
    """Time E along so many gains from 0 to 10 of so many units of 784-100-10."""
    task = tasks(samples)["784-100-10"]
    model, data = task.build().to(dtype), images(task.shape, task.samples, dtype, folder)
    units = find_units(model, data[0][:2])
    alphas = torch.linspace(0, 10, gains)
    return seconds(partial(gain_sweep, model, data, task.loss, units, units.places[:count], alphas))[0]


Answer = tuple[Tensor, int]  # E and the losses without each unit, one after the other; how many of them
Side = Callable[[], Answer]


def _single(model: nn.Module, units: Units, data: Pair, task: Task, batch: int) -> tuple[Side, Side]:
    taken = [i % task.every == 0 and units[name].outgoing is not None for name, i in units.places]
    chosen = torch.tensor(taken).nonzero()[:, 0]
    slow, dtype = copy.deepcopy(model), data[0].dtype

    def naive() -> Answer:
        losses = [_loss(slow, data, task.loss, batch)]
        for k in chosen.tolist():
            with _without(slow, units, [k]):
                losses.append(_loss(slow, data, task.loss, batch))
        return torch.tensor(losses, dtype=torch.float64), len(chosen)

    def ours() -> Answer:
        gone = torch.zeros(len(chosen), dtype=dtype)
        here, without = change_one(GatedLoss(model, units, data, task.loss), ones(model, units), chosen, gone)
        return torch.cat([without.new_tensor([here]), without]), len(chosen)

    return naive, ours


def iterative(model: nn.Module, units: Units, data: Pair, loss: str, batch: int) -> tuple[Side, Side]:
    """Return the naive and our side of the whole ranking: each finds its order, losses after steps are compared."""
    slow = copy.deepcopy(model)

    def naive() -> Answer:
        left, losses, passes = list(range(units.total)), [_loss(slow, data, loss, batch)], 0
        order: list[int] = []
        counts = {unit_set.name: unit_set.size for unit_set in units}
        while candidates := [k for k in left if counts[units.places[k][0]] > 1]:
            tried = {}
            for k in candidates:
                with _without(slow, units, [*order, k]):
                    tried[k] = _loss(slow, data, loss, batch)
            passes += len(tried)
            order.append(min(tried, key=tried.__getitem__))
            losses.append(tried[order[-1]])
            left.remove(order[-1])
            counts[units.places[order[-1]][0]] -= 1
        return torch.tensor(losses, dtype=torch.float64), passes

    def ours() -> Answer:
        plan = rank(model, data, loss, units=units, progress=False)
        losses = [math.nan if state.loss is None else state.loss for state in plan.states]
        return torch.tensor(losses, dtype=torch.float64), 0

    return naive, ours


class _without:  # noqa: N801
    """The model with these units' outgoing weights zero, as one would do it by hand."""

    def __init__(self, model: nn.Module, units: Units, removed: Sequence[int]) -> None:
        named = dict(model.named_parameters())
        self.kept = []
        for name, index in (units.places[k] for k in removed):
            for part in units[name].outgoing or ():
                weight, places = named[part.tensor].data, part.index[index]
                self.kept.append((weight, part.dim, places, weight.index_select(part.dim, places)))

    def __enter__(self) -> None:
        for weight, dim, index, _ in self.kept:
            weight.index_fill_(dim, index, 0)

    def __exit__(self, *_: object) -> None:
        for weight, dim, index, values in self.kept:
            weight.index_copy_(dim, index, values)


def _loss(model: nn.Module, data: Pair, loss: str, batch: int) -> float:
    x, y = data
    total = 0.0
    with torch.no_grad():
        for rows in torch.split(torch.arange(len(x)), batch):
            part = slice(int(rows[0]), int(rows[-1]) + 1)
            total += len(rows) / len(x) * find_loss(loss)(model(x[part]), y[part]).double().item()
    return total


def best_batch(model: nn.Module, x: Tensor) -> int:
    """Return the batch size in which the whole model runs fastest."""

    def passes(batch: int) -> None:
        with torch.no_grad():
            for part in torch.split(x, batch):
                model(part)

    times = {}
    for batch in (size for size in BATCHES if size < 2 * len(x)):
        passes(batch)
        times[batch] = min(seconds(partial(passes, batch))[0] for _ in range(3))
    return min(times, key=times.__getitem__, default=len(x))
