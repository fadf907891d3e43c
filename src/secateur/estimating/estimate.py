"""How long a job takes and what memory, before it starts: counted work, divided by speeds measured on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from secateur.arguments import checked_call
from secateur.estimating.job_work import job_work
from secateur.objective.mask import Mask, masked
from secateur.objective.quality.metric import Metric
from secateur.objective.question import Question
from secateur.options import Compensation, Ranking, compensation_of
from secateur.ordering import Job, prepared, require_budget, resolve
from secateur.planning.budget import Budget
from secateur.planning.ranking_choice import SMALL, Work
from secateur.process_state import one_at_a_time
from secateur.saliency.criterion import Saliency
from secateur.structure.units import Units
from secateur.text import format_bytes, format_seconds, table

SIDE = 512  # of the matrices by which speeds are measured
PASS = 2 * 10**9  # multiplications of the pass by which a network's own speed is measured, at most
TIMES = 3  # the best of which counts


class Speeds(NamedTuple):
    """Multiplications, or small operations, in a second.

    Attributes:
        passes: Of the network.
        products: Of matrices.
        solves: Of factorisations, in float64.
        operations: Of next to nothing each.
    """

    passes: float
    products: float
    solves: float
    operations: float

    def seconds(self, work: Work) -> float:
        """Return how long a phase takes."""
        counts = work.passes, work.products, work.solves, work.operations
        return sum(count / speed for count, speed in zip(counts, self, strict=True))


class Phase(NamedTuple):
    """A phase of a job.

    Attributes:
        name: What is done.
        multiplications: With addition; counted.
        seconds: Estimated.
        bytes: Held at the worst, beside model and data.
    """

    name: str
    multiplications: int
    seconds: float
    bytes: int


@dataclass(frozen=True)
class Estimate:
    """What a job takes, about.

    Attributes:
        ranking: The ranking that would be taken.
        reason: Why, where none was asked for.
        phases: What would be done.
    """

    ranking: str
    reason: str | None
    phases: tuple[Phase, ...]

    @property
    def seconds(self) -> float:
        """The time of all phases together."""
        return sum(phase.seconds for phase in self.phases)

    @property
    def peak_bytes(self) -> int:
        """The memory beside model and data, of the phase that takes most."""
        return max(phase.bytes for phase in self.phases)

    @property
    def summary(self) -> str:
        """The estimate in a line."""
        why = "" if self.reason is None else f": {self.reason}"
        memory = format_bytes(self.peak_bytes)
        return f"about {format_seconds(self.seconds)}, {memory} beside model and data; {self.ranking}{why}"

    def to_json(self) -> dict[str, Any]:
        """Return the estimate as plain data."""
        totals = {"seconds": self.seconds, "peak_bytes": self.peak_bytes}
        return {**totals, **asdict(self), "phases": [phase._asdict() for phase in self.phases]}

    def __str__(self) -> str:
        """Return a table of the phases, with the sum of their times and the most of their memory."""
        every = sum(phase.multiplications for phase in self.phases)
        total = Phase("together", every, self.seconds, self.peak_bytes)
        rows = [
            (p.name, f"{p.multiplications:.1e}", f"{p.seconds:.1f}", format_bytes(p.bytes))
            for p in (*self.phases, total)
        ]
        return table(["phase", "multiplications", "seconds", "memory"], rows, title=self.summary)


@checked_call
@one_at_a_time
def estimate(
    model: nn.Module,
    data: Any,
    loss: Any,
    budget: Budget,
    *,
    example_inputs: Any = None,
    units: Units | None = None,
    criterion: str | Saliency | None = None,
    ranking: str | None = None,
    threshold: str | None = None,
    validation: Any = None,
    shortlist: int | None = None,
    refresh: int | None = None,
    swaps: bool = False,
    max_memory: int | str | None = None,
    mask: Mask | None = None,
    compensate: bool | Compensation = True,
    metric: Metric | None = None,
) -> Estimate:
    """Return how long `shrink` would take and what memory, within a factor of two or so, before anything is ranked.

    The work of each phase is counted from the sizes of network, data and layers, and divided by speeds that are
    measured here: of products and factorisations of matrices, and of the network itself. Cost: one capture of the
    model, where `units` are not given, and a fraction of a second.

    Args:
        model: The network; never touched.
        data: As for `shrink`.
        loss: As for `shrink`.
        budget: As for `shrink`.
        example_inputs: As for `shrink`.
        units: As for `shrink`.
        criterion: As for `shrink`.
        ranking: As for `shrink`.
        threshold: As for `shrink`.
        validation: As for `shrink`.
        shortlist: As for `shrink`.
        refresh: As for `shrink`.
        swaps: As for `shrink`.
        max_memory: As for `shrink`.
        mask: As for `shrink`.
        compensate: As for `shrink`.
        metric: As for `shrink`.

    Raises:
        ArgumentError: A name is unknown, or an argument is for another ranking or criterion.
        DataError: The data or the loss cannot be used.
        ModelError: The model cannot be captured, holds NaN, or has no removable units.

    >>> model = nn.Sequential(nn.Linear(3, 8), nn.Sigmoid(), nn.Linear(8, 2))
    >>> data = torch.randn(16, 3), torch.tensor([0, 1] * 8)
    >>> estimate(model, data, "cross_entropy", Budget(remove_fraction=0.5)).ranking
    'iterative'
    """
    require_budget(budget)
    order = Ranking(criterion, ranking, threshold, shortlist, refresh, swaps)
    compensation = None if data is None and compensate is True else compensation_of(compensate)
    resolve(order, compensation, budget)
    samples, validation = masked(data, mask), validation if validation is None else masked(validation, mask)
    question = Question(
        model, samples, loss, units, example_inputs=example_inputs, validation=validation, max_memory=max_memory
    ).measuring(metric)
    return estimate_of(prepared(question, order, compensation, budget))


def estimate_of(job: Job) -> Estimate:
    """Return what a job takes."""
    speeds = measured_speeds(job.question)
    phases = (Phase(w.name, w.multiplications, speeds.seconds(w), w.bytes) for w in job_work(job))
    return Estimate(str(job.ranking.ranking), job.reason, tuple(phases))


def long_job(job: Job) -> bool:
    """Return whether a job's counted work is worth an estimate before it starts."""
    return sum(work.multiplications for work in job_work(job)) > SMALL


def measured_speeds(question: Question) -> Speeds:
    """Return the speeds of this machine with a network."""
    like = question.ones
    matrix = torch.rand(SIDE, SIDE, dtype=like.dtype, device=like.device)
    products = SIDE**3 / _seconds(lambda: matrix @ matrix, like)
    positive = SIDE * torch.eye(SIDE, dtype=torch.float64, device=like.device) + matrix.double()
    solves = (SIDE**3 // 6 + SIDE**3) / _seconds(lambda: _solve(positive), like)
    small = like.new_zeros(8)
    operations = 1 / _seconds(lambda: small + small, like)
    return Speeds(_passes(question) or products, products, solves, operations)


def _solve(positive: Tensor) -> Tensor:
    return torch.cholesky_solve(positive, torch.linalg.cholesky(positive))


def _passes(question: Question) -> float | None:
    """Return how many multiplications the network makes in a second; None without data."""
    gated, macs = question.gated, max(1, question.units.macs({}))
    if not gated.has_data:
        return None
    samples = gated.batches[0].size if question.whole_batches else min(gated.batches[0].size, max(1, PASS // macs))
    frontier = gated.few_samples(samples)
    with torch.no_grad():
        return samples * macs / _seconds(lambda: gated.graph.run(frontier, question.ones), question.ones)


def _seconds(work: Callable[[], object], like: Tensor) -> float:
    """Return how long a call takes, the best of a few."""
    return min(_once(work, like) for _ in range(TIMES))


def _once(work: Callable[[], object], like: Tensor) -> float:
    begin = time.perf_counter()
    work()
    if like.is_cuda:
        torch.cuda.synchronize(like.device)
    return max(time.perf_counter() - begin, 1e-9)
