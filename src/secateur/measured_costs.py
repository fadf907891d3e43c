"""Costs that no count tells: the bytes of other runtimes' files, and the time that a network takes.

They are measured on networks cut for it, whose weights need no fit: neither depends on their values.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from secateur.artifacts.exports.write import content_size
from secateur.artifacts.safetensors import to_bytes
from secateur.cutting.cut import cut_units
from secateur.errors import BudgetError
from secateur.file_formats import artifact_format, require_libraries
from secateur.objective.question import Question
from secateur.ordering import Job, Ranked, make_order
from secateur.phases import phase
from secateur.planning.budget import Budget
from secateur.planning.network_sizes import OtherFile
from secateur.planning.plan import Plan
from secateur.structure.calls.trees import unpack
from secateur.structure.capture import evaluating
from secateur.structure.inputs import map_tensors

SAFETENSORS = "safetensors"
TRIES = 8  # networks that are written until one has the size asked for
CALIBRATION = 8  # samples on which ranges of values are found for it; sizes do not depend on them
RUNS, SECONDS = 30, 1.0  # of the measurement of a latency, at most


def with_file(job: Job) -> Job:
    """Return the job with what is known of the file that its budget is of, where it is no .safetensors file.

    Its bytes are taken as so many beside the weights, and so many for each byte of them: by the file of the whole
    network, and that of one with half of the units of each set.

    Raises:
        ArgumentError: A library is missing that writes it.
        ArtifactError: The network cannot be exported so.
    """
    budget, question = job.budget, job.question
    if budget is None or budget.artifact == SAFETENSORS or job.file is not None:
        return job
    require_libraries(artifact_format(budget.artifact), f"Budget: artifact={budget.artifact!r}")
    with phase(f"writing .{budget.artifact} files to know their sizes"):
        plans = [_share_kept(question, share) for share in (1.0, 0.5)]
        whole, half = (file_bytes(question, plan, network(question, plan), budget.artifact) for plan in plans)
        data, less = (question.units.bytes({name: len(kept) for name, kept in plan.kept_indices}) for plan in plans)
    ratio = (whole - half) / (data - less) if data > less else 1.0
    return job._replace(file=OtherFile(whole - ratio * data, ratio))


def _share_kept(question: Question, share: float) -> Plan:
    """Return a plan that keeps a share of the units of each set."""
    kept = ((s.name, tuple(range(max(s.least, 1, round(share * s.size))))) for s in question.units)
    return Plan(tuple(kept), inputs=question.units.captured.spec)


def network(question: Question, plan: Plan) -> nn.Module:
    """Return the network without the units that a plan removes, its weights as they are."""
    return cut_units(question.model, question.units, plan, question.call)[0]


def file_bytes(question: Question, plan: Plan, small: nn.Module, artifact: str) -> int:
    """Return the bytes of a file of some kind.

    Args:
        question: Says what the inputs are.
        plan: What the small network lacks; a .safetensors file says so.
        small: The network to write.
        artifact: The kind of file.
    """
    if artifact == SAFETENSORS:
        return len(to_bytes(small, plan))
    spec = question.units.captured.spec
    call = question.call if spec.fixed else spec.take(question.call, slice(CALIBRATION))
    return content_size(small, spec, artifact_format(artifact), [call])


def at_budget(job: Job, ranked: Ranked, budget: Budget) -> tuple[Plan, float | None]:
    """Return the prefix of an order at a budget, by what the networks themselves cost, and the time that it takes.

    Args:
        job: What the order was made for, with its `file`.
        ranked: The order.
        budget: The bounds that must hold.

    Raises:
        BudgetError: They cannot; the message says how far one can get.
    """
    start = ranked.plan.start
    if budget.latency_ms is not None:
        plan, latency = _fast_enough(ranked, budget)
    else:
        plan = ranked.plan.at(budget) if budget.artifact == SAFETENSORS else _small_enough(job, ranked, budget)
        latency = None
    return dataclasses.replace(plan, start=start, basis=ranked.plan.basis), latency


def _small_enough(job: Job, ranked: Ranked, budget: Budget) -> Plan:
    """Return the shortest prefix whose file is small enough: predicted, written, and predicted again by that.

    Raises:
        BudgetError: There is none.
    """
    best: Plan | None = None
    for _ in range(TRIES):
        try:
            plan = ranked.plan.at(budget)
        except BudgetError:
            if job.file is None or ranked.plan.curves is not None:
                raise
            ranked = make_order(job)  # which is as long as the sizes known before made it
            plan = ranked.plan.at(budget)
        with phase(f"writing a .{budget.artifact} file to know its size"):
            written = file_bytes(ranked.question, plan, network(ranked.question, plan), budget.artifact)
        if written <= int(budget.bytes or 0) and (best is None or len(plan.steps) < len(best.steps)):
            best = plan
        more = written - plan.states[-1].bytes
        if not more:
            break
        job, ranked = _shifted(job, more), ranked._replace(plan=ranked.plan.with_larger_file(more))
    if best is None:
        raise BudgetError(f"{budget} cannot be met: no file came out small enough in {TRIES} tries")
    return best


def _shifted(job: Job, more: int) -> Job:
    return job if job.file is None else job._replace(file=job.file._replace(overhead=job.file.overhead + more))


def unhurried(job: Job) -> Job:
    """Return the job of an order that goes on until nothing is left to remove, where a budget bounds the time.

    Units go by what they cost in multiplications, the nearest thing to time that is counted.
    """
    budget, units = job.budget, job.question.units
    if budget is None or budget.latency_ms is None:
        return job
    limits = budget.removable(units.sizes, units.least)
    fewest = units.macs({name: size - limits[name] for name, size in units.sizes.items()})
    return job._replace(
        budget=dataclasses.replace(budget, latency_ms=None, macs=fewest, remove_units=sum(limits.values()))
    )


def _fast_enough(ranked: Ranked, budget: Budget) -> tuple[Plan, float]:
    """Return the shortest prefix that is fast enough, by halving, and the milliseconds that it takes.

    Raises:
        BudgetError: There is none.
    """
    whole, counted = dataclasses.replace(ranked.plan, curves=None), dataclasses.replace(budget, latency_ms=None)
    sizes = whole.sizes
    first = whole.at(counted) if counted.least else whole.prefix(0)
    ends = [n for n in budget.ends(whole.steps, sizes) if n >= len(first.steps)]
    times: dict[int, float] = {}

    def fits(n: int) -> bool:
        with phase("measuring the time that a smaller network takes"):
            times[n] = latency_ms(network(ranked.question, whole.prefix(n)), ranked.question)
        return times[n] <= float(budget.latency_ms or 0)

    if not fits(ends[-1]):
        raise BudgetError(
            f"{budget} cannot be met: {ends[-1]} of {sum(sizes.values())} units can be removed, and then one sample "
            f"takes {times[ends[-1]]:.3g} ms on this machine"
        )
    n = _first(ends, fits)
    return whole.prefix(n), times[n]


def _first(ends: list[int], fits: Callable[[int], bool]) -> int:
    """Return the first of some numbers that fits, by halving; the last one does, and those behind one that fits."""
    low, high = -1, len(ends) - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(ends[middle]) else (middle, high)
    return ends[high]


def latency_ms(model: nn.Module, question: Question) -> float:
    """Return the milliseconds that a network takes for one sample, the median of some runs."""
    spec = question.units.captured.spec
    call = question.call if spec.fixed else spec.take(question.call, slice(1))
    args, kwargs = unpack(map_tensors(call, torch.Tensor.clone))
    device, times = question.ones.device, list[float]()
    begin = time.perf_counter()
    with evaluating(model), torch.no_grad():
        model(*args, **kwargs)
        while len(times) < RUNS and (not times or time.perf_counter() - begin < SECONDS):
            start = time.perf_counter()
            model(*args, **kwargs)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)
