"""The networks that are pruned, how they are trained, and what is counted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from torch import nn

from secateur.structure.unit_set import UnitSet
from secateur_experiments.curves import units_of
from secateur_experiments.datasets import Dataset
from secateur_experiments.networks import (
    convolutional_network,
    logistic_network,
    residual_network,
    small_convolutional_network,
    vision_transformer,
)

SAMPLES = 5_000  # of the calibration data, for logistic networks
FEWER = 1_000  # for the others
ORACLE = "oracle, iterative"  # the way that takes longest


@dataclass(frozen=True)
class Subject:
    """A network that is pruned.

    Attributes:
        name: Its widths, or what else it is known by.
        build: From a seed, untrained.
        epochs: Of the training.
        about: What its units are.
        learning_rate: At the start of the training.
        loss: By name, of the training and of the saliency.
        samples: Of the calibration part, on which orders are made.
        every: Percent of the units between two points of a curve.
        counts: Which unit sets lose units.
        spared: What the iterative oracle is given to save time: `samples` and `shortlist`.
        hidden: Widths of a logistic network, of which smaller ones are trained from scratch too; none of others.
    """

    name: str
    build: Callable[[int], nn.Module]
    epochs: int
    about: str = ""
    learning_rate: float = 3e-3
    loss: str = "cross_entropy"
    samples: int = FEWER
    every: int = 2
    counts: Callable[[UnitSet], bool] = lambda _: True
    spared: Mapping[str, int] = field(default_factory=dict)
    hidden: tuple[int, ...] = ()

    @property
    def description(self) -> str:
        """Units, training and calibration, in two sentences."""
        text = f"{self.about}. Loss `{self.loss}`, {self.epochs} epochs; orders on {self.samples:,} calibration digits"
        spared = [f"{value:,} samples" if key == "samples" else f"{key} {value}" for key, value in self.spared.items()]
        return text + (f", `{ORACLE}` on {' with '.join(spared)} to save time." if spared else ".")


def logistic(data: Dataset, epochs: int, hidden: Sequence[int], learning_rate: float = 3e-3) -> Subject:
    """Return the papers' kind of network with these hidden widths."""
    widths = [data.features, *hidden, data.classes]
    return Subject(
        "-".join(map(str, widths)), partial(logistic_network, widths), epochs,
        f"{' and '.join(map(str, hidden))} neurons", learning_rate, "squared_error",
        min(SAMPLES, len(data.calibration[0])), every=1, hidden=tuple(hidden),
    )  # fmt: skip


def narrowed(hidden: Sequence[int], share: float) -> list[int]:
    """Return hidden widths of which that share is left out, in percent; at least one unit of each stays.

    >>> narrowed([100, 3], 60), narrowed([100, 3], 99)
    ([40, 1], [1, 1])
    """
    return [max(1, width - units_of(share, width)) for width in hidden]


def channels(data: Dataset, epochs: int) -> Subject:
    """Return a network with channels, beside which the papers have none.

    Args:
        data: What it learns: rows of 784 pixels, or of 64.
        epochs: Of the logistic networks; the one for 64 pixels takes fewer.
    """
    if data.features == 784:
        spared = {"shortlist": 25}
        return Subject("conv 20-50-200", convolutional_network, 5, spared=spared)
    samples = len(data.calibration[0])
    return Subject("conv 8-16-32", small_convolutional_network, max(1, epochs // 5), samples=samples)


def subjects(data: Dataset, epochs: int) -> dict[str, Subject]:
    """Return by name two logistic networks, and for rows of 784 pixels three with other layers.

    Args:
        data: What they learn.
        epochs: Of the logistic networks.
    """
    chosen = [logistic(data, epochs, hidden) for hidden in ((100,), (50, 50))]
    if data.features == 784:
        chosen += [
            Subject(
                "conv", convolutional_network, 5, "20 and 50 channels, 200 neurons", samples=2 * FEWER,
                spared={"samples": FEWER, "shortlist": 25},
            ),
            Subject(
                "residual", residual_network, 5,
                "48 channels inside each of 3 blocks; the residual stream keeps its 24",
                counts=lambda unit_set: unit_set.name != "1", spared={"shortlist": 25},
            ),
            Subject(
                "vit", vision_transformer, 6,
                "3 layers of 8 heads and 192 feed-forward units; the heads' and the residual stream's widths stay",
                learning_rate=2e-3,
                counts=lambda unit_set: unit_set.kind != "head width", spared={"samples": 500, "shortlist": 25},
            ),
        ]  # fmt: skip
    return {subject.name: subject for subject in chosen}
