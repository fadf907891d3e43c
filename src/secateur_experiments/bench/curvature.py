"""Second derivatives beside other ways to them, in one process: times, their ratio and the largest difference."""

from __future__ import annotations

import copy
import importlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur import find_units, reference
from secateur.curvature.weight_loss import WeightLoss
from secateur.objective.gated_loss import GatedLoss, ones
from secateur.objective.losses import find_loss
from secateur.saliency.units.fisher import fisher
from secateur.saliency.units.hessian import hessian
from secateur.structure.capture import capture
from secateur_experiments.bench.scale.task import with_shim
from secateur_experiments.bench.timing import in_turns, seconds
from secateur_experiments.datasets import Pair, images
from secateur_experiments.networks import lenet, logistic_network

BATCHES = (32, 128, 500, 2000, 10_000)  # sizes that BackPACK is tried with
WIDTHS = (100, 400)
WITHOUT_BACKPACK = (
    "Without BackPACK (pip install --no-deps backpack-for-pytorch unfoldNd einops torchvision) its rows are left out."
)


@dataclass(frozen=True)
class Row:
    """One network and one question.

    Attributes:
        network: Its name.
        question: What is computed.
        beside: The other way to it; for "fisher" one forward and backward pass of the plain model, counted as one.
        samples: How many.
        theirs_s: Median seconds of the other way.
        ours_s: Median seconds of ours.
        ratio: theirs_s / ours_s.
        max_difference: The largest, relative to the largest value; None where the two are not the same.
    """

    network: str
    question: str
    beside: str
    samples: int
    theirs_s: float
    ours_s: float
    ratio: float
    max_difference: float | None


class Task(NamedTuple):
    """A network, its samples' shape and its loss."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    loss: str


TASKS = {
    "784-100-10": Task(partial(logistic_network, [784, 100, 10]), (784,), "squared_error"),
    "784-50-50-10": Task(partial(logistic_network, [784, 50, 50, 10]), (784,), "squared_error"),
    "LeNet-5": Task(lenet, (1, 28, 28), "cross_entropy"),
}


def compare(
    samples: int, runs: int, dtype: torch.dtype, folder: Path | None, zoo: Path | None = None, progress: bool = True
) -> Iterator[Row]:
    """Make all rows.

    Args:
        samples: Of the networks' data; at most 2,000 for the Hessian in the gates.
        runs: Of each side, of which the median is taken.
        dtype: Of weights and data.
        folder: With MNIST's files; None for random pixels.
        zoo: A folder with a module `tvshim` that makes torchvision importable, where that is needed for BackPACK.
        progress: Show a bar on stderr.

    Yields:
        The rows as they are done; those beside BackPACK only `has_backpack`.
    """
    if has_backpack(zoo):
        yield from of_weights(samples, runs, dtype, folder, progress)
    yield from of_gates(min(2_000, samples), runs, dtype, folder, progress)
    yield from of_passes(samples, runs, dtype, progress)


def has_backpack(zoo: Path | None) -> bool:
    """Tell whether BackPACK can be imported, behind the shim for torchvision in that folder.

    Raises:
        ArgumentError: There is no shim in the folder.
    """
    with_shim(zoo)
    try:
        importlib.import_module("backpack.extensions")
    except (ImportError, RuntimeError):  # torchvision's, where its operators do not fit
        return False
    return True


def of_weights(samples: int, runs: int, dtype: torch.dtype, folder: Path | None, progress: bool) -> Iterator[Row]:
    """Time the Gauss-Newton matrix's diagonal in every weight, beside BackPACK's at its best batch."""
    for name, task in TASKS.items():
        torch.manual_seed(0)
        model, data = task.build().to(dtype).eval(), images(task.shape, samples, dtype, folder)
        captured = capture(model, ((data[0][:2],), {}))
        theirs = partial(_backpack, _extended(model), data, task.loss)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of hooks that BackPACK sets
            times = {batch: seconds(partial(theirs, batch))[0] for batch in BATCHES if batch < 2 * samples}
            best = min(times, key=times.__getitem__, default=samples)
            ours = lambda: WeightLoss(model, captured, data, task.loss).ggn()  # noqa: B023, E731
            timed = in_turns(f"{name}, weights", partial(theirs, best), ours, runs, progress)
        pairs = [(timed.slow[key], timed.fast[key]) for key in timed.slow]
        yield _row(name, "Gauss-Newton, weights", f"BackPACK, batches of {best}", samples, timed, pairs)


def _extended(model: nn.Module) -> nn.Module:
    extended: nn.Module = importlib.import_module("backpack").extend(copy.deepcopy(model))
    return extended


def _backpack(model: nn.Module, data: Pair, loss: str, batch: int) -> dict[str, Tensor]:
    """Compute the diagonal by its extension, for squared error from the mean over all outputs, 2 / outputs of ours."""
    backpack, extensions = importlib.import_module("backpack"), importlib.import_module("backpack.extensions")
    squared = loss == "squared_error"
    function = backpack.extend(nn.MSELoss() if squared else nn.CrossEntropyLoss())
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for x, y in zip(torch.split(data[0], batch), torch.split(data[1], batch), strict=True):
        out = model(x)
        with backpack.backpack(extensions.DiagGGNExact()):
            torch.autograd.backward(function(out, F.one_hot(y, out.shape[1]).to(out) if squared else y))
        factor = len(x) / len(data[0]) * (out.shape[1] / 2 if squared else 1)
        for name, p in model.named_parameters():
            total[name] += factor * vars(p)["diag_ggn_exact"]
    return total


def of_gates(samples: int, runs: int, dtype: torch.dtype, folder: Path | None, progress: bool) -> Iterator[Row]:
    """Time the second derivative in every gate of 784-K-10, beside that of `torch.func.hessian`."""
    for width in WIDTHS:
        torch.manual_seed(0)
        model, data = logistic_network([784, width, 10]).to(dtype), images((784,), samples, dtype, folder)
        units, loss = find_units(model, data[0][:2]), find_loss("squared_error")

        def theirs(model: nn.Module = model, units: Any = units, data: Pair = data, loss: Any = loss) -> Tensor:
            slope, matrix = reference.dense_hessian(model, units, (data[0],), data[1], loss)
            return (-slope + 0.5 * matrix.diagonal()).detach()

        def ours(model: nn.Module = model, units: Any = units, data: Pair = data) -> Tensor:
            return hessian(GatedLoss(model, units, data, "squared_error"), ones(model, units))

        name = f"784-{width}-10"
        timed = in_turns(f"{name}, gates", theirs, ours, runs, progress)
        yield _row(name, "hessian, gates", "torch.func.hessian", samples, timed, [(timed.slow, timed.fast)])


def of_passes(samples: int, runs: int, dtype: torch.dtype, progress: bool, classes: int = 1000) -> Iterator[Row]:
    """Time `fisher` in every gate of a network of many outputs, beside one forward and backward pass of the model."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, classes)).to(dtype)
    data = images((784,), samples, dtype, None, classes)
    units = find_units(model, data[0][:2])

    def theirs() -> None:
        model.zero_grad()
        torch.autograd.backward(F.cross_entropy(model(data[0]), data[1]))

    def ours() -> Tensor:
        return fisher(GatedLoss(model, units, data, "cross_entropy"), ones(model, units))

    name = f"784-200-{classes}"
    timed = in_turns(f"{name}, fisher", theirs, ours, runs, progress)
    yield _row(name, "fisher, gates", "forward and backward", samples, timed, [])


def _row(network: str, question: str, beside: str, samples: int, timed: Any, pairs: list[tuple[Tensor, Tensor]]) -> Row:
    gaps = [float((a - b).abs().max() / a.abs().max()) for a, b in pairs]
    ratio = timed.slow_s / timed.fast_s
    return Row(network, question, beside, samples, timed.slow_s, timed.fast_s, ratio, max(gaps, default=None))
