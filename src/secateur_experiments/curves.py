"""Accuracy against the units removed: curves, their table, and where an interrupted bench keeps them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

from secateur.artifacts.safetensors import whole_file
from secateur.errors import ArtifactError
from secateur.papers.study import last_within

TENTHS = range(10, 100, 10)  # percent
ROUNDING = 1e-12


@dataclass(frozen=True)
class Curve:
    """Test accuracy after so many removals of `total`.

    Attributes:
        removed: Units, from 0 up.
        accuracy: After each; the last may be that at which the curve was given up.
        total: Units that count.
        seconds: For the order; None where there is none.
        threads: On so many.
    """

    removed: Sequence[int]
    accuracy: Sequence[float]
    total: int
    seconds: float | None = None
    threads: int = 1

    def at(self, share: float) -> float:
        """The accuracy with at least that share of the units removed, in percent; −∞ where it was given up before.

        >>> curve = Curve([0, 1, 2], [0.9, 0.8, 0.7], 4)
        >>> curve.at(0), curve.at(26), curve.at(51)
        (0.9, 0.7, -inf)
        """
        points = zip(self.removed, self.accuracy, strict=True)
        return next((value for n, value in points if n >= units_of(share, self.total)), -math.inf)

    @property
    def within(self) -> float:
        """The largest share removed, in percent, with no point up to there more than 0.01 below the start."""
        return 100 * self.removed[last_within(self.accuracy)] / self.total


def units_of(share: float, total: int) -> int:
    """How many units are at least that share of them, in percent.

    >>> units_of(30, 10), units_of(31, 10)
    (3, 4)
    """
    return math.ceil(share * total / 100 - 1e-9)


def middle(curves: Sequence[Curve]) -> list[tuple[float, float]]:
    """Medians of several: pairs of the share removed, in percent, and the accuracy, where not given up."""
    longest = max(curves, key=lambda curve: len(curve.removed))
    shares = [100 * n / longest.total for n in longest.removed]
    points = [(share, median(curve.at(share) for curve in curves)) for share in shares]
    return [(share, value) for share, value in points if math.isfinite(value)]


def within(curves: Sequence[Curve]) -> float:
    """Median share removed within a point, in percent."""
    return median(curve.within for curve in curves)


def best(ways: Mapping[str, Sequence[Curve]], names: Iterable[str]) -> str | None:
    """The way among these that removes most within a point, the first of several; None if there is none of them."""
    return max((name for name in names if name in ways), key=lambda name: within(ways[name]), default=None)


@dataclass(frozen=True)
class Row:
    """One network pruned in one way, without retraining; medians over the seeds.

    Attributes:
        network: Its name.
        way: Criterion and ranking, and whether the weights left were fitted.
        start: Accuracy on the test part before.
        accuracy: With each tenth of the units that count removed, 10 to 90 %; None where the curve was given up before.
        within_1pt: The largest share of units removed, in percent, with accuracy never more than one point below.
        seconds: Of the order; None where there is none.
    """

    network: str
    way: str
    start: float
    accuracy: tuple[float | None, ...]
    within_1pt: float
    seconds: float | None


def rows(curves: Mapping[str, Mapping[str, Sequence[Curve]]]) -> list[Row]:
    """One for each network and each way.

    Args:
        curves: Network → way → one for each seed.
    """
    return [_row(network, way, each) for network, ways in curves.items() for way, each in ways.items()]


def _row(network: str, way: str, curves: Sequence[Curve]) -> Row:
    medians = [median(curve.at(share) for curve in curves) for share in TENTHS]
    accuracy = tuple(value if math.isfinite(value) else None for value in medians)
    times = [curve.seconds for curve in curves if curve.seconds is not None]
    start, time = median(curve.accuracy[0] for curve in curves), median(times) if times else None
    return Row(network, way, start, accuracy, within(curves), time)


class Cache:
    """Trained networks and finished curves, in memory or in a folder, from which an interrupted bench goes on.

    Args:
        folder: Made if it is not there; None to keep them in memory.

    Raises:
        ArtifactError: The folder cannot be made or what it holds cannot be read.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder, self.networks = folder, dict[str, nn.Module]()
        self.curves = {} if folder is None else _curves(folder)

    def network(self, name: str, build: Callable[[], nn.Module], train: Callable[[nn.Module], object]) -> nn.Module:
        """The network of that name: trained before, or now.

        Args:
            name: Of the network and its file.
            build: Makes it, untrained.
            train: Trains it.

        Raises:
            ArtifactError: Its file cannot be read or written.
        """
        if name not in self.networks:
            self.networks[name] = model = build()
            if not self._read(name, model):
                train(model)
                self._write(name, model)
        return self.networks[name].eval()

    def _read(self, name: str, model: nn.Module) -> bool:
        """Whether there are weights.

        Raises:
            ArtifactError: They cannot be read.
        """
        if self.folder is None or not (path := self.folder / f"{name}.pt").exists():
            return False
        try:
            model.load_state_dict(torch.load(path))
        except Exception as error:
            raise ArtifactError(f"{path}: does not hold the weights of {name} ({error})") from error
        return True

    def _write(self, name: str, model: nn.Module) -> None:
        if self.folder is not None:
            with whole_file(self.folder / f"{name}.pt") as temporary:
                torch.save(model.state_dict(), temporary)

    def curve(self, name: str, measure: Callable[[], Curve]) -> Curve:
        """The curve of that name: measured before, or now.

        Raises:
            ArtifactError: The file of curves cannot be written.
        """
        if name not in self.curves:
            self.curves[name] = measure()
            if self.folder is not None:
                with whole_file(self.folder / "curves.json") as temporary:
                    temporary.write_text(json.dumps({name: asdict(curve) for name, curve in self.curves.items()}))
        return self.curves[name]


def _curves(folder: Path) -> dict[str, Curve]:
    path = folder / "curves.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        return {name: Curve(**curve) for name, curve in found.items()}
    except OSError as error:
        raise ArtifactError(f"{folder}: cannot be made a folder or read ({error.strerror})") from error
    except (AttributeError, TypeError, ValueError) as error:
        raise ArtifactError(f"{path}: holds no curves ({error})") from error
