"""Networks, orders and smaller networks that several figures of the papers share."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, TypeVar

from torch import nn

from secateur.papers.data import Dataset
from secateur.papers.networks import convolutional_network, small_convolutional_network
from secateur.papers.training import logistic_network, train
from secateur.planning.plan import Plan
from secateur.saliency.gates import Gated, ones
from secateur.saliency.losses import find_loss
from secateur.shrink import rank
from secateur.structure.units import Units, find_units

Value = TypeVar("Value")
ROUNDING = 1e-12
ONE, TWO, FOUR = (100,), (50, 50), (50, 50, 50, 50)  # the papers' hidden widths, and what they leave to others


@dataclass(frozen=True)
class Subject:
    """A network that is pruned.

    Attributes:
        name: Its widths.
        build: From a seed, untrained.
        loss: By name, of the training and of the saliency.
        epochs: Of the training.
        samples: Of the calibration part, on which orders are made; None for all.
        shortlist: Of the iterative oracle, to save time; None for none.
        learning_rate: At the start of the training.
    """

    name: str
    build: Callable[[int], nn.Module]
    loss: str
    epochs: int
    samples: int | None = None
    shortlist: int | None = None
    learning_rate: float = 3e-3


class Way(NamedTuple):
    """How units are removed: a criterion, a ranking, whether the weights left make up for it, a threshold."""

    criterion: str
    ranking: str = "iterative"
    compensate: bool = False
    threshold: str | None = None


class Course(NamedTuple):
    """Loss and accuracy on the test part after 0, 1, 2 ... removals from `total` units."""

    total: int
    loss: list[float]
    accuracy: list[float]

    def at(self, values: Sequence[float], share: float) -> float:
        """The value with that share of the units removed, or as many as can be.

        >>> Course(4, [], []).at([0.1, 0.2, 0.3, 0.4], 0.5)
        0.3
        """
        return values[min(round(share * self.total), len(values) - 1)]

    def within(self, points: float = 0.01) -> float:
        """The largest share removed with accuracy at no point up to there lower than that below the start.

        >>> Course(4, [], [0.9, 0.91, 0.895, 0.8]).within()
        0.5
        """
        return last_within(self.accuracy, points) / self.total


def last_within(accuracies: Sequence[float], points: float = 0.01) -> int:
    """The last place up to which none is lower than that below the first.

    >>> last_within([0.9, 0.91, 0.89, 0.8, 0.9])
    2
    """
    good = [value >= accuracies[0] - points - ROUNDING for value in accuracies]
    return good.index(False) - 1 if False in good else len(good) - 1


@dataclass
class Study:
    """What is measured on one set of data; whatever was computed once is kept.

    Attributes:
        data: Networks learn its training part, orders are made on its calibration part, and what is left is measured
            on its test part.
        epochs: Of the training.
        seeds: One network of each kind for each.
        learning_rate: At the start of the training.
    """

    data: Dataset
    epochs: int
    seeds: Sequence[int] = (0, 1, 2)
    learning_rate: float = 3e-3
    _known: dict[Hashable, Any] = field(default_factory=dict, repr=False)

    def once(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """What `make` gave when it was first asked for under this key."""
        if key not in self._known:
            self._known[key] = make()
        found: Value = self._known[key]
        return found

    def logistic(self, hidden: Sequence[int]) -> Subject:
        """The papers' kind of network, with these hidden widths."""
        widths = [self.data.features, *hidden, self.data.classes]
        name = "-".join(map(str, widths))
        build = partial(logistic_network, widths)
        return Subject(name, build, "squared_error", self.epochs, learning_rate=self.learning_rate)

    def convolutional(self) -> Subject:
        """One with channels."""
        if self.data.features == 784:
            return Subject("conv 20-50-200", convolutional_network, "cross_entropy", 5, samples=1_000, shortlist=25)
        return Subject("conv 8-16-32", small_convolutional_network, "cross_entropy", max(1, self.epochs // 5))

    def network(self, subject: Subject, seed: int) -> nn.Module:
        """It, trained."""
        return self.once(("network", subject.name, seed), lambda: self._trained(subject, seed))

    def _trained(self, subject: Subject, seed: int) -> nn.Module:
        model = subject.build(seed)
        loss = find_loss(subject.loss)
        train(model, self.data.train, subject.epochs, loss, subject.learning_rate, seed=seed, progress=False)
        return model

    def units(self, subject: Subject, seed: int) -> Units:
        """What can be removed from it."""
        model = self.network(subject, seed)
        return self.once(("units", subject.name, seed), lambda: find_units(model, self.data.calibration[0][:2]))

    def some(self, samples: int) -> int:
        """How many of so many there are in the calibration part."""
        return min(samples, len(self.data.calibration[0]))

    def gated(self, subject: Subject, seed: int, samples: int | None = None) -> Gated:
        """It, with gates, on the calibration part or the first of its samples."""
        x, y = self.data.calibration
        return Gated(self.network(subject, seed), self.units(subject, seed), (x[:samples], y[:samples]), subject.loss)

    def plan(self, subject: Subject, seed: int, way: Way) -> Plan:
        """The whole order, with what is left measured on the test part."""
        return self.once(("plan", subject.name, seed, way), lambda: self._ranked(subject, seed, way))

    def _ranked(self, subject: Subject, seed: int, way: Way) -> Plan:
        x, y = self.data.calibration
        return rank(
            self.network(subject, seed), (x[: subject.samples], y[: subject.samples]), subject.loss,
            self.units(subject, seed), way.criterion, way.ranking, threshold=way.threshold, validation=self.data.test,
            progress=False, compensate=way.compensate, shortlist=subject.shortlist if way == Way("oracle") else None,
        )  # fmt: skip

    def course(self, subject: Subject, seed: int, way: Way) -> Course:
        """What is left after each removal."""
        states = self.plan(subject, seed, way).states
        total = self.units(subject, seed).total
        return Course(total, [s.loss or 0.0 for s in states], [s.accuracy or 0.0 for s in states])

    def scratch(self, hidden: Sequence[int], seed: int, share: float) -> tuple[float, float]:
        """Loss and accuracy on the test part of a smaller network, trained as the whole one was.

        Args:
            hidden: Widths of the whole one.
            seed: Of the network.
            share: Of each width that is left out; at least one unit stays.
        """
        smaller = self.logistic([max(1, width - round(share * width)) for width in hidden])
        return self.once(("scratch", smaller.name, seed), lambda: self._measured(smaller, seed))

    def _measured(self, subject: Subject, seed: int) -> tuple[float, float]:
        model, units = self.network(subject, seed), self.units(subject, seed)
        loss, accuracy = Gated(model, units, self.data.test, subject.loss).evaluate(ones(model, units))
        return loss, accuracy or 0.0
