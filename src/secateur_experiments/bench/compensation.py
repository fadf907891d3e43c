"""Removal with the remaining weights fitted anew beside removal alone: what is left of the accuracy."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import NamedTuple

import torch
from torch import nn

from secateur import Budget, Plan, cut
from secateur.cutting.slices import gates
from secateur.objective.gated_loss import GatedLoss
from secateur.reporting.progress import progress_bar
from secateur_experiments.bench.compensation_page import Section
from secateur_experiments.bench.timing import seconds
from secateur_experiments.curves import Curve, best, middle, rows, units_of, within
from secateur_experiments.datasets import Pair
from secateur_experiments.study import Study, Way, spared_by
from secateur_experiments.subjects import ORACLE, Subject

FURTHEST = 90  # percent of the units: where a curve ends
FALL = 0.15  # or so far below the start
BATCH = 500  # test samples: faster than all at a time
SCRATCH = "trained from scratch"
OBS = "obs, compensated"
_RANKED = {
    f"{criterion}, {ranking}": Way(criterion, ranking)
    for criterion in ("magnitude", "activation", "taylor1", "oracle")  # the cheap ones first
    for ranking in ("single", "iterative")
}
_LOGISTIC = {  # in which, to save time, logistic networks alone are pruned
    f"{ORACLE}, compensated": _RANKED[ORACLE]._replace(fitted=True),
    "obs, shortlist 5, compensated": Way("obs", compensate=True, shortlist=5),
}
WAYS: dict[str, Way] = {**_RANKED, **_LOGISTIC, OBS: Way("obs", compensate=True)}

Curves = dict[str, dict[str, list[Curve]]]  # network → way → one for each seed


def compare(
    study: Study, chosen: Mapping[str, Subject], ways: Mapping[str, Way] = WAYS, scratch: bool = True,
    progress: bool = True,
) -> Curves:  # fmt: skip
    """Measure all curves: of each network in each way with each seed, all of the first seed before those of the next.

    Args:
        study: The data, the seeds, and where networks and curves are kept.
        chosen: Networks, from `secateur_experiments.subjects`.
        ways: Of removing units.
        scratch: Train smaller logistic networks from scratch too.
        progress: Show a bar on stderr.

    Raises:
        ArtifactError: What is kept cannot be read or written.
    """
    curves: Curves = {name: {} for name in chosen}
    jobs = list(_jobs(study.seeds, chosen, ways, scratch))
    for i, (name, seed, way) in enumerate(jobs, 1):
        with progress_bar(f"{i} of {len(jobs)}: {name}, seed {seed}, {way}", progress) as bar:
            job = Job(study, chosen[name], seed, bar)
            curve = job.scratch() if way == SCRATCH else job.pruned(way, ways[way])
            curves[name].setdefault(way, []).append(curve)
    return curves


def _jobs(
    seeds: Sequence[int], chosen: Mapping[str, Subject], ways: Mapping[str, Way], scratch: bool
) -> Iterator[tuple[str, int, str]]:
    for seed in seeds:
        for way in [*ways, *([SCRATCH] if scratch else [])]:
            for name, subject in chosen.items():
                if subject.hidden or way not in (SCRATCH, *_LOGISTIC):
                    yield name, seed, way


class Job(NamedTuple):
    """One network of one seed, whose curves the study keeps."""

    study: Study
    subject: Subject
    seed: int
    bar: Callable[[int, int], None]

    def pruned(self, label: str, way: Way) -> Curve:
        """Return the curve of one way of removing units."""
        samples, shortlist = spared_by(self.subject, way).values()
        told = [f"shortlist {shortlist}"] if shortlist != way.shortlist else []
        key = " | ".join([self.subject.name, f"seed {self.seed}", f"{samples} samples", label, *told])
        return self.study.stored(key, partial(self.prune, way))

    def prune(self, way: Way) -> Curve:
        """Measure the curve of one way of removing units."""
        units = self.study.units(self.subject, self.seed)
        furthest = min(units_of(FURTHEST, units.total), units.total - len(units))
        order = partial(
            self.study.order, self.subject, self.seed, way, budget=Budget(remove_units=furthest),
            validation=self.study.few(2),
        )  # fmt: skip
        spent, plan = seconds(order)
        fitted = way.compensate or way.fitted
        return self.measure(self._fitted(plan) if fitted else self._gated(plan), units.total, furthest, spent)

    def _gated(self, plan: Plan) -> Callable[[int], float]:
        model, units = self.study.network(self.subject, self.seed), self.study.units(self.subject, self.seed)
        gated = GatedLoss(model, units, list(_batches(self.study.data.test)), self.subject.loss)
        return lambda n: gated.measure(gates(model, units, plan.prefix(n).kept))[1] or 0.0

    def _fitted(self, plan: Plan) -> Callable[[int], float]:
        model, calibration = self.study.network(self.subject, self.seed), self.study.few(self.subject.samples)

        def after(n: int) -> float:
            small = cut(model, plan.prefix(n), compensate=calibration, loss=self.subject.loss) if n else model
            return accuracy(small, self.study.data.test)

        return after

    def measure(self, after: Callable[[int], float], total: int, furthest: int, spent: float) -> Curve:
        """Measure accuracies after numbers of removals, until they are far below the first.

        Args:
            after: The accuracy after so many removals.
            total: Units that count.
            furthest: The most that can be removed.
            spent: Seconds for the order.
        """
        removed, accuracies = [], list[float]()
        grid = {units_of(share, total) for share in range(0, FURTHEST + 1, self.subject.every)}
        for n in sorted(n for n in grid if n <= furthest):
            self.bar(n, furthest)
            removed.append(n)
            accuracies.append(after(n))
            if accuracies[-1] < accuracies[0] - FALL:
                break
        return Curve(removed, accuracies, total, spent, torch.get_num_threads())

    def scratch(self) -> Curve:
        """Return the accuracy of smaller networks, trained as the whole one was."""
        return self.study.stored(f"{self.subject.name} | seed {self.seed} | {SCRATCH}", self.train_smaller)

    def train_smaller(self) -> Curve:
        """Measure the accuracy of smaller networks, trained as the whole one was."""
        total, removed, accuracies = sum(self.subject.hidden), [], []
        for share in range(0, 91, 10):
            self.bar(share, 90)
            smaller = self.study.smaller(self.subject, share)
            accuracies.append(accuracy(self.study.network(smaller, self.seed), self.study.data.test))
            removed.append(total - sum(smaller.hidden))
        return Curve(removed, accuracies, total)


def accuracy(model: nn.Module, data: Pair) -> float:
    """Return the share of samples whose largest output is that of their class."""
    with torch.no_grad():
        right = sum(int((model(x).argmax(1) == y).sum()) for x, y in _batches(data))
    return right / len(data[1])


def _batches(data: Pair) -> Iterator[Pair]:
    x, y = (torch.split(part, BATCH) for part in data)
    yield from zip(x, y, strict=True)


def setting(study: Study, curves: Curves) -> str:
    """Tell machine, data and seeds in a sentence or two."""
    every = [curve for ways in curves.values() for several in ways.values() for curve in several]
    threads = " or ".join(map(str, sorted({curve.threads for curve in every})))
    data = study.data
    return (
        f"{os.cpu_count()} cores of an {platform.machine()} machine, orders on {threads} thread(s), torch "
        f"{torch.__version__}. {data.name}: trained on {len(data.train[0]):,} digits with seeds {study.seeds[0]} to "
        f"{study.seeds[-1]}, calibration on the first of these, accuracy on {len(data.test[0]):,} test digits; medians "
        "over the seeds."
    )


def ratio(ways: Mapping[str, Sequence[Curve]]) -> float | None:
    """Return what obs with compensation removes within a point, to the best way without; None without either.

    Args:
        ways: Curves of one network by way.
    """
    alone = best(ways, _RANKED)
    if alone is None or OBS not in ways or not within(ways[alone]):
        return None
    return within(ways[OBS]) / within(ways[alone])


def sections(curves: Curves, chosen: Mapping[str, Subject]) -> list[Section]:
    """Return what the page says of each network."""
    table = [asdict(row) for row in rows(curves)]
    return [
        Section(
            name, chosen[name].description, [row for row in table if row["network"] == name], ratio(ways),
            {label: middle(ways[way]) for label, way in _shown(ways).items()},
        )
        for name, ways in curves.items()
    ]  # fmt: skip


def _shown(ways: Mapping[str, Sequence[Curve]]) -> dict[str, str]:
    """Return label → way, for the picture: without compensation the better ranking of each criterion."""
    criteria = dict.fromkeys(name.split(", ")[0] for name in _RANKED)
    better = {name: best(ways, [way for way in _RANKED if way.startswith(f"{name},")]) for name in criteria}
    alone = {name: way for name, way in reversed(better.items()) if way is not None}
    others = {way: way for way in ways if way not in _RANKED and way != OBS}
    return {**({OBS: OBS} if OBS in ways else {}), **alone, **others}
