"""Removal with the remaining weights fitted anew beside removal alone: what is left of the accuracy."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from secateur.bench.curves import Cache, Curve, best, middle, rows, units_of, within
from secateur.bench.experiments import ORACLE, Experiment, logistic
from secateur.bench.timing import seconds
from secateur.cutting.cut import cut
from secateur.cutting.slices import gates
from secateur.papers.data import Dataset, Pair
from secateur.papers.training import train
from secateur.planning.budget import Budget
from secateur.planning.plan import Plan
from secateur.reporting.compensation import Section
from secateur.reporting.progress import progress_bar
from secateur.saliency.gates import Gated
from secateur.saliency.losses import find_loss
from secateur.shrink import rank
from secateur.structure.units import Units, find_units

FURTHEST = 90  # percent of the units: where a curve ends
FALL = 0.15  # or so far below the start
BATCH = 500  # test samples: faster than all at a time
SCRATCH = "trained from scratch"


class Way(NamedTuple):
    """How units are removed.

    Attributes:
        options: Of `secateur.rank`.
        compensated: Whether the weights that are left are fitted at the cut.
        everywhere: Whether all networks are pruned in this way, or the logistic ones only, to save time.
    """

    options: Mapping[str, Any]
    compensated: bool = False
    everywhere: bool = True


_RANKED = {
    f"{criterion}, {ranking}": Way({"criterion": criterion, "ranking": ranking})
    for criterion in ("magnitude", "activation", "taylor1", "oracle")  # the cheap ones first
    for ranking in ("single", "iterative")
}
OBS = "obs, compensated"
_OBS = {"criterion": "obs", "ranking": "iterative", "compensate": True}
WAYS: dict[str, Way] = {
    **_RANKED,
    f"{ORACLE}, compensated": Way(_RANKED[ORACLE].options, compensated=True, everywhere=False),
    "obs, shortlist 5, compensated": Way({**_OBS, "shortlist": 5}, compensated=True, everywhere=False),
    OBS: Way(_OBS, compensated=True),
}


Curves = dict[str, dict[str, list[Curve]]]  # network → way → one for each seed


def compare(
    data: Dataset, chosen: Mapping[str, Experiment], seeds: Sequence[int], cache: Cache | None = None,
    ways: Mapping[str, Way] = WAYS, scratch: bool = True, progress: bool = True,
) -> Curves:  # fmt: skip
    """All curves: of each network in each way with each seed, all of the first seed before those of the next.

    Args:
        data: What the networks learn; orders are made on its calibration part, accuracy is that on its test part.
        chosen: Networks, from `secateur.bench.experiments`.
        seeds: One network of each kind for each.
        cache: Where networks and curves are kept; None for memory.
        ways: Of removing units.
        scratch: Train smaller logistic networks from scratch too.
        progress: Show a bar on stderr.

    Raises:
        ArtifactError: The cache cannot be read or written.
    """
    cache = Cache() if cache is None else cache
    curves: Curves = {name: {} for name in chosen}
    jobs = list(_jobs(chosen, seeds, ways, scratch))
    for i, (name, seed, way) in enumerate(jobs, 1):
        with progress_bar(f"{i} of {len(jobs)}: {name}, seed {seed}, {way}", progress) as bar:
            job = Job(name, chosen[name], seed, data, cache, bar)
            curve = job.scratch() if way == SCRATCH else job.pruned(way, ways[way])
            curves[name].setdefault(way, []).append(curve)
    return curves


def _jobs(
    chosen: Mapping[str, Experiment], seeds: Sequence[int], ways: Mapping[str, Way], scratch: bool
) -> Iterator[tuple[str, int, str]]:
    for seed in seeds:
        for way in [*ways, *([SCRATCH] if scratch else [])]:
            for name, one in chosen.items():
                if one.hidden or (way in ways and ways[way].everywhere):
                    yield name, seed, way


class Job(NamedTuple):
    """One network of one seed, and where its curves are kept."""

    name: str
    one: Experiment
    seed: int
    data: Dataset
    cache: Cache
    bar: Callable[[int, int], None]

    def pruned(self, way: str, how: Way) -> Curve:
        """The curve of one way of removing units."""
        spared = self.one.spared if way == ORACLE else {}
        options = {**how.options, **spared}
        samples = options.pop("samples", self.one.samples)
        told = [f"{key} {value}" for key, value in spared.items() if key != "samples"]
        key = " | ".join([self.name, f"seed {self.seed}", f"{samples} samples", way, *told])
        return self.cache.curve(key, partial(self._pruned, options, samples, how.compensated))

    def _pruned(self, options: Mapping[str, Any], samples: int, compensated: bool) -> Curve:
        model, calibration = self._network(self.name, self.one), self._few(samples)
        units = copy.copy(find_units(model, calibration[0][:2]))
        units.sets = tuple(unit_set for unit_set in units.sets if self.one.counts(unit_set))
        furthest = min(units_of(FURTHEST, units.total), units.total - len(units))
        order = partial(
            rank, model, calibration, self.one.loss, units, budget=Budget(remove_units=furthest),
            validation=self._few(2), progress=False, **options,
        )  # fmt: skip
        spent, plan = seconds(order)
        after = self._fitted(model, plan, calibration) if compensated else self._gated(model, units, plan)
        return self._measure(after, units.total, furthest, spent)

    def _network(self, name: str, one: Experiment) -> nn.Module:
        learn = partial(
            train, data=self.data.train, epochs=one.epochs, loss=find_loss(one.loss), learning_rate=one.learning_rate,
            seed=self.seed, progress=False,
        )  # fmt: skip
        return self.cache.network(f"{name}-{self.seed}", partial(one.build, self.seed), learn)

    def _few(self, samples: int) -> Pair:
        x, y = self.data.calibration
        return x[:samples], y[:samples]

    def _gated(self, model: nn.Module, units: Units, plan: Plan) -> Callable[[int], float]:
        gated = Gated(model, units, list(_batches(self.data.test)), self.one.loss)
        return lambda n: gated.evaluate(gates(model, units, plan.prefix(n).kept))[1] or 0.0

    def _fitted(self, model: nn.Module, plan: Plan, calibration: Pair) -> Callable[[int], float]:
        def after(n: int) -> float:
            small = cut(model, plan.prefix(n), compensate=calibration, loss=self.one.loss) if n else model
            return accuracy(small, self.data.test)

        return after

    def _measure(self, after: Callable[[int], float], total: int, furthest: int, spent: float) -> Curve:
        removed, found = [], list[float]()
        grid = {units_of(share, total) for share in range(0, FURTHEST + 1, self.one.every)}
        for n in sorted(n for n in grid if n <= furthest):
            self.bar(n, furthest)
            removed.append(n)
            found.append(after(n))
            if found[-1] < found[0] - FALL:
                break
        return Curve(removed, found, total, spent, torch.get_num_threads())

    def scratch(self) -> Curve:
        """The accuracy of smaller networks, trained as the whole one was."""
        return self.cache.curve(f"{self.name} | seed {self.seed} | {SCRATCH}", self._scratch)

    def _scratch(self) -> Curve:
        total, removed, found = sum(self.one.hidden), [], []
        for share in range(0, 91, 10):
            self.bar(share, 90)
            hidden = tuple(max(1, width - units_of(share, width)) for width in self.one.hidden)
            name, smaller = logistic(self.data, self.one.epochs, hidden)
            model = self._network(name, replace(self.one, build=smaller.build))
            found.append(accuracy(model, self.data.test))
            removed.append(total - sum(hidden))
        return Curve(removed, found, total)


def accuracy(model: nn.Module, data: Pair) -> float:
    """The share of samples whose largest output is that of their class."""
    with torch.no_grad():
        right = sum(int((model(x).argmax(1) == y).sum()) for x, y in _batches(data))
    return right / len(data[1])


def _batches(data: Pair) -> Iterator[Pair]:
    x, y = (torch.split(part, BATCH) for part in data)
    yield from zip(x, y, strict=True)


def ratio(ways: Mapping[str, Sequence[Curve]]) -> float | None:
    """What obs with compensation removes within a point to the best way without; None if there is nothing to compare.

    Args:
        ways: Curves of one network by way.
    """
    alone = best(ways, _RANKED)
    if alone is None or OBS not in ways or not within(ways[alone]):
        return None
    return within(ways[OBS]) / within(ways[alone])


def sections(curves: Curves, chosen: Mapping[str, Experiment]) -> list[Section]:
    """What the page says of each network."""
    found = [asdict(row) for row in rows(curves)]
    return [
        Section(
            name, chosen[name].description, [row for row in found if row["network"] == name], ratio(ways),
            {label: middle(ways[way]) for label, way in _shown(ways).items()},
        )
        for name, ways in curves.items()
    ]  # fmt: skip


def _shown(ways: Mapping[str, Sequence[Curve]]) -> dict[str, str]:
    """Label → way, for the picture: without compensation the better ranking of each criterion."""
    criteria = dict.fromkeys(name.split(", ")[0] for name in _RANKED)
    better = {one: best(ways, [name for name in _RANKED if name.startswith(f"{one},")]) for one in criteria}
    alone = {one: way for one, way in reversed(better.items()) if way is not None}
    others = {way: way for way in ways if way not in _RANKED and way != OBS}
    return {**({OBS: OBS} if OBS in ways else {}), **alone, **others}
