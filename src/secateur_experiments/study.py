"""What is measured on one set of data: trained networks, orders and curves, each made once."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn

from secateur import Plan, Units, find_units, rank
from secateur.artifacts.safetensors import whole_file
from secateur.errors import ArtifactError
from secateur.objective.gated_loss import GatedLoss, ones
from secateur.objective.losses import find_loss
from secateur_experiments import subjects
from secateur_experiments.curves import Curve, curve_of
from secateur_experiments.datasets import Dataset, Pair
from secateur_experiments.subjects import Subject
from secateur_experiments.training import train

Value = TypeVar("Value")
ONE, TWO, FOUR = (100,), (50, 50), (50, 50, 50, 50)  # the papers' hidden widths, and what they leave to others


class Way(NamedTuple):
    """How units are removed.

    Attributes:
        criterion: By name.
        ranking: Likewise.
        compensate: Whether the order knows that the weights left make up for each removal, and they do at the cut.
        threshold: Of the estimates.
        shortlist: Of an iterative ranking.
        fitted: Whether the weights left are fitted at the cut only; the order does not know.
    """

    criterion: str
    ranking: str = "iterative"
    compensate: bool = False
    threshold: str | None = None
    shortlist: int | None = None
    fitted: bool = False


@dataclass
class Study:
    """What is measured on one set of data; whatever was computed once is kept, networks and curves in a folder too.

    Attributes:
        data: Networks learn its training part, orders are made on its calibration part, and what is left is measured
            on its test part.
        epochs: Of the training.
        seeds: One network of each kind for each.
        learning_rate: At the start of the training.
        folder: From which an interrupted study goes on; made if it is not there; None to keep all in memory.
        known: All that was computed, by what it is.

    Raises:
        ArtifactError: The folder cannot be made or what it holds cannot be read.
    """

    data: Dataset
    epochs: int
    seeds: Sequence[int] = (0, 1, 2)
    learning_rate: float = 3e-3
    folder: Path | None = None
    known: dict[Hashable, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self._curves = {} if self.folder is None else _read_curves(self.folder)

    def once(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """Return what `make` gave when it was first asked for under this key."""
        if key not in self.known:
            self.known[key] = make()
        value: Value = self.known[key]
        return value

    def logistic(self, hidden: Sequence[int]) -> Subject:
        """Return the papers' kind of network, with these hidden widths."""
        return subjects.logistic(self.data, self.epochs, hidden, self.learning_rate)

    def smaller(self, subject: Subject, share: float) -> Subject:
        """Return a logistic network with that share of each width left out, in percent, to be trained likewise."""
        narrow = self.logistic(subjects.narrowed(subject.hidden, share))
        return replace(subject, name=narrow.name, build=narrow.build, hidden=narrow.hidden)

    def network(self, subject: Subject, seed: int) -> nn.Module:
        """Return it, trained now, before, or in an earlier run.

        Raises:
            ArtifactError: Its file cannot be read or written.
        """
        return self.once(("network", subject.name, seed), partial(self._trained, subject, seed))

    def _trained(self, subject: Subject, seed: int) -> nn.Module:
        model, loss = subject.build(seed), find_loss(subject.loss)
        path = None if self.folder is None else self.folder / f"{subject.name}-{seed}.pt"
        if path is None or not path.exists():
            train(model, self.data.train, subject.epochs, loss, subject.learning_rate, seed=seed, progress=False)
            if path is not None:
                with whole_file(path) as temporary:
                    torch.save(model.state_dict(), temporary)
            return model
        try:
            model.load_state_dict(torch.load(path))
        except Exception as error:
            raise ArtifactError(f"{path}: does not hold the weights of {subject.name} ({error})") from error
        return model.eval()

    def units(self, subject: Subject, seed: int) -> Units:
        """Return what counts of what can be removed from it."""
        return self.once(("units", subject.name, seed), partial(self._found, subject, seed))

    def _found(self, subject: Subject, seed: int) -> Units:
        units = copy.copy(find_units(self.network(subject, seed), self.data.calibration[0][:2]))
        units.sets = tuple(unit_set for unit_set in units.sets if subject.counts(unit_set))
        return units

    def few(self, samples: int | None) -> Pair:
        """Return the first samples of the calibration part."""
        x, y = self.data.calibration
        return x[:samples], y[:samples]

    def some(self, samples: int) -> int:
        """Return how many of so many there are in the calibration part."""
        return min(samples, len(self.data.calibration[0]))

    def gated(self, subject: Subject, seed: int, samples: int | None = None) -> GatedLoss:
        """Return it with gates, on the calibration part or the first of its samples."""
        return GatedLoss(self.network(subject, seed), self.units(subject, seed), self.few(samples), subject.loss)

    def order(self, subject: Subject, seed: int, way: Way, **options: Any) -> Plan:
        """Rank its units on the calibration part.

        Args:
            subject: The network.
            seed: Of the network.
            way: Of removing units.
            options: More of `secateur.rank`.
        """
        spared = spared_by(subject, way)
        return rank(
            self.network(subject, seed), self.few(spared["samples"]), subject.loss, units=self.units(subject, seed),
            criterion=way.criterion, ranking=way.ranking, compensate=way.compensate, threshold=way.threshold,
            shortlist=spared["shortlist"], progress=False, **options,
        )  # fmt: skip

    def plan(self, subject: Subject, seed: int, way: Way) -> Plan:
        """Return the whole order, with what is left measured on the test part."""
        make = partial(self.order, subject, seed, way, validation=self.data.test)
        return self.once(("plan", subject.name, seed, way), make)

    def curve(self, subject: Subject, seed: int, way: Way) -> Curve:
        """Return what is left after each removal of the whole order."""
        return curve_of(self.plan(subject, seed, way))

    def scratch(self, subject: Subject, seed: int, share: float) -> tuple[float, float]:
        """Measure loss and accuracy on the test part of a smaller network, trained as the whole one was.

        Args:
            subject: The whole one.
            seed: Of the network.
            share: Of each width that is left out, in percent; at least one unit stays.
        """
        smaller = self.smaller(subject, share)
        return self.once(("scratch", smaller.name, seed), partial(self._measured, smaller, seed))

    def _measured(self, subject: Subject, seed: int) -> tuple[float, float]:
        model, units = self.network(subject, seed), self.units(subject, seed)
        loss, accuracy, *_ = GatedLoss(model, units, self.data.test, subject.loss).measure(ones(model, units))
        return loss or 0.0, accuracy or 0.0

    def stored(self, name: str, measure: Callable[[], Curve]) -> Curve:
        """Return the curve of that name, measured now, before, or in an earlier run.

        Raises:
            ArtifactError: The file of curves cannot be written.
        """
        if name not in self._curves:
            self._curves[name] = measure()
            if self.folder is not None:
                with whole_file(self.folder / "curves.json") as temporary:
                    temporary.write_text(json.dumps({name: asdict(curve) for name, curve in self._curves.items()}))
        return self._curves[name]


def spared_by(subject: Subject, way: Way) -> dict[str, int | None]:
    """Return on how many samples an order is made and from which shortlist; the iterative oracle may be spared."""
    spared = subject.spared if way == Way("oracle") else {}
    return {"samples": subject.samples, "shortlist": way.shortlist, **spared}


def _read_curves(folder: Path) -> dict[str, Curve]:
    path = folder / "curves.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        content: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        return {name: Curve(**curve) for name, curve in content.items()}
    except OSError as error:
        raise ArtifactError(f"{folder}: cannot be made a folder or read ({error.strerror})") from error
    except (AttributeError, TypeError, ValueError) as error:
        raise ArtifactError(f"{path}: holds no curves ({error})") from error
