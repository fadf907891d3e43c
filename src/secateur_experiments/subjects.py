"""The networks that are pruned with and without compensation, and how they are trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import nn

from secateur.papers import networks
from secateur.papers.data import Dataset
from secateur.papers.training import logistic_network
from secateur.structure.unit_set import UnitSet

SAMPLES = 5_000  # of the calibration data, for logistic networks
FEWER = 1_000  # for the others
ORACLE = "oracle, iterative"  # the way that takes longest


@dataclass(frozen=True)
class Experiment:
    """A network, how it is trained and what is counted.

    Attributes:
        about: What its units are.
        build: From a seed.
        epochs: Of the training.
        learning_rate: At its start.
        loss: By name, of the training and of the saliency.
        samples: Of the calibration data.
        every: Percent of the units between two points of a curve.
        counts: Which unit sets lose units.
        spared: What the iterative oracle is given to save time: `samples` and options of `secateur.rank`.
        hidden: Widths of a logistic network, of which smaller ones are trained from scratch too; none of others.
    """

    about: str
    build: Callable[[int], nn.Module]
    epochs: int
    learning_rate: float = 3e-3
    loss: str = "cross_entropy"
    samples: int = FEWER
    every: int = 2
    counts: Callable[[UnitSet], bool] = lambda _: True
    spared: Mapping[str, Any] = field(default_factory=dict)
    hidden: tuple[int, ...] = ()

    @property
    def description(self) -> str:
        """For the page."""
        text = f"{self.about}. Loss `{self.loss}`, {self.epochs} epochs; orders on {self.samples:,} calibration digits"
        spared = [f"{value:,} samples" if key == "samples" else f"{key} {value}" for key, value in self.spared.items()]
        return text + (f", `{ORACLE}` on {' with '.join(spared)} to save time." if spared else ".")


def experiments(data: Dataset, epochs: int) -> dict[str, Experiment]:
    """The networks by name: two logistic ones, and for rows of 784 pixels three with other layers.

    Args:
        data: What they learn.
        epochs: Of the logistic networks.
    """
    found = dict(logistic(data, epochs, hidden) for hidden in ((100,), (50, 50)))
    if data.features != 784:
        return found
    others = {
        "conv": Experiment(
            "20 and 50 channels, 200 neurons", networks.convolutional_network, 5, samples=2 * FEWER,
            spared={"samples": FEWER, "shortlist": 25},
        ),
        "residual": Experiment(
            "48 channels inside each of 3 blocks; the residual stream keeps its 24", networks.residual_network, 5,
            counts=lambda unit_set: unit_set.name != "1", spared={"shortlist": 25},
        ),
        "vit": Experiment(
            "3 layers of 8 heads and 192 feed-forward units; the heads' and the residual stream's widths stay",
            networks.vision_transformer, 6, 2e-3,
            counts=lambda unit_set: unit_set.kind != "head width", spared={"samples": 500, "shortlist": 25},
        ),
    }  # fmt: skip
    return found | others


def logistic(data: Dataset, epochs: int, hidden: tuple[int, ...]) -> tuple[str, Experiment]:
    """A logistic network of these hidden widths, by its name."""
    widths = [data.features, *hidden, data.classes]
    about = f"{' and '.join(map(str, hidden))} neurons"
    build = partial(logistic_network, widths)
    samples = min(SAMPLES, len(data.calibration[0]))
    one = Experiment(about, build, epochs, loss="squared_error", samples=samples, every=1, hidden=hidden)
    return "-".join(map(str, widths)), one
