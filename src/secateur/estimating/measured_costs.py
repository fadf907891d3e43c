"""Costs that no count tells: the bytes of other runtimes' files, and the time that a network takes.

They are measured on networks cut for it, whose weights need no fit: neither depends on their values.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from typing import Any

import torch
from torch import nn

from secateur.artifacts.exports.write import content_size
from secateur.artifacts.header import tensors_of
from secateur.artifacts.safetensors import to_bytes
from secateur.cutting.cut import cut_units
from secateur.errors import BudgetError
from secateur.objective.question import Question
from secateur.ordering import Job, Ranked, make_order
from secateur.phases import phase
from secateur.planning.budget import Budget
from secateur.planning.details.file_formats import artifact_format, require_libraries
from secateur.planning.network_sizes import OtherFile
from secateur.planning.plan import Plan
from secateur.structure.calls.trees import unpack
from secateur.structure.capture import evaluating
from secateur.structure.inputs import map_tensors

SAFETENSORS = "safetensors"
GUESSES = 3  # files that are written by prediction, before numbers of units are halved
RUNS, SECONDS = 30, 1.0  # of the measurement of a latency, at most


def with_file(job: Job) -> Job:
    """Return the job with what is known of the file that its budget is of, where it is no .safetensors file.

    Files are written of the whole network, of the smallest one that the budget permits, and of one between them; in
    between their bytes are taken to lie on straight lines.

    Raises:
        ArgumentError: A library is missing that writes it.
        ArtifactError: The network cannot be exported so.
    """
    budget, question = job.budget, job.question
    if budget is None or budget.artifact == SAFETENSORS or job.file is not None:
        return job
    require_libraries(artifact_format(budget.artifact), f"Budget: artifact={budget.artifact!r}")
    limits, points = budget.removable(question.units.sizes, question.units.least), dict[int, int]()
    with phase(f"writing .{budget.artifact} files to know their sizes"):
        for share in (0.0, 0.5, 1.0):
            kept = tuple((s.name, tuple(range(s.size - round(share * limits[s.name])))) for s in question.units)
            plan = Plan(kept, inputs=question.units.captured.spec)
            small = network(question, plan)
            data = sum(tensor.nbytes for tensor in tensors_of(small).values())
            points[data] = file_bytes(question, plan, small, budget.artifact)
    whole = max(points)
    points.setdefault(whole + 1, points[whole] + 1)  # where nothing may go
    return job._replace(file=OtherFile(tuple(sorted(points.items()))))


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
    return content_size(small, question.units.captured.spec, artifact_format(artifact), question.data)


def at_budget(job: Job, ranked: Ranked, budget: Budget) -> tuple[Plan, float | None]:
    """Return the prefix of an order at a budget, by what the networks themselves cost, and the time that it takes.

    Args:
        job: What the order was made for, with its `file`.
        ranked: The order.
        budget: The bounds that must hold.

    Raises:
        BudgetError: They cannot; the message says how far one can get.
    """
    if budget.latency_ms is None and budget.artifact == SAFETENSORS:
        plan, latency = ranked.plan.at(budget), None
    elif budget.latency_ms is None:
        plan, latency = _small_enough(job, ranked, budget), None
    else:
        plan, latency = _fast_enough(ranked, budget)
    return dataclasses.replace(plan, start=ranked.plan.start, basis=ranked.plan.basis), latency


def _small_enough(job: Job, ranked: Ranked, budget: Budget) -> Plan:
    """Return the shortest prefix whose file is small enough: predicted, written, and predicted again by that.

    Raises:
        BudgetError: There is none.
    """
    longest, most, writing = ranked.plan.longest(budget), int(budget.bytes or 0), f"writing a .{budget.artifact} file"
    ends = [n for n in budget.ends(longest.steps, longest.sizes) if n >= len(_without_bytes(longest, budget).steps)]
    sizes: dict[int, int] = {}
    low, high, more = -1, len(ends), 0  # ends[low] is too large, ends[high] small enough
    while high - low > 1:
        expected = (n for n in range(low + 1, high) if longest.states[ends[n]].bytes + more <= most)
        place = next(expected, high - 1)
        if len(sizes) > GUESSES:  # files that grow by leaps
            place = (low + high) // 2 if high < len(ends) else max(place, min(high - 1, low + 2 ** len(sizes)))
        plan = longest.prefix(ends[place])
        with phase(f"{writing} to know its size"):
            sizes[place] = file_bytes(ranked.question, plan, network(ranked.question, plan), budget.artifact)
        more = sizes[place] - plan.states[-1].bytes
        low, high = (low, place) if sizes[place] <= most else (place, high)
    if high < len(ends):
        return longest.prefix(ends[high])
    if longest.curves is None and job.file is not None and len(longest.steps) < _removable(job):
        larger = job._replace(file=job.file.larger(more))
        return _small_enough(larger, make_order(larger), budget)  # which goes further
    end = dataclasses.replace(longest.states[-1], bytes=sizes[len(ends) - 1])
    raise budget.unmet(len(longest.steps), sum(longest.sizes.values()), end)


def _without_bytes(plan: Plan, budget: Budget) -> Plan:
    """Return the prefix at all other bounds of sizes."""
    others: dict[str, Any] = {
        "bytes": None,
        "artifact": SAFETENSORS,
        "latency_ms": None,
        "remove_units": budget.remove_units or 0,
    }
    return dataclasses.replace(plan, curves=None).at(dataclasses.replace(budget.without_quality(), **others))


def _removable(job: Job) -> int:
    units = job.question.units
    return sum((job.budget or Budget(remove_units=0)).removable(units.sizes, units.least).values())


def unhurried(job: Job) -> Job:
    """Return the job of an order that goes on until nothing is left to remove, where a budget bounds the time.

    Units go by what they cost in multiplications, the nearest thing to time that is counted.
    """
    budget, units = job.budget, job.question.units
    if budget is None or budget.latency_ms is None:
        return job
    limits = budget.removable(units.sizes, units.least)
    fewest = units.macs({name: size - limits[name] for name, size in units.sizes.items()})
    longer: dict[str, Any] = {"latency_ms": None, "macs": fewest, "remove_units": sum(limits.values())}
    return job._replace(budget=dataclasses.replace(budget, **longer))


def _fast_enough(ranked: Ranked, budget: Budget) -> tuple[Plan, float]:
    """Return the shortest prefix that is fast enough, by halving, and the milliseconds that it takes.

    Raises:
        BudgetError: There is none.
    """
    plan, bound, times = (
        dataclasses.replace(ranked.plan, curves=None),
        float(budget.latency_ms or 0),
        dict[int, float](),
    )
    counted = dataclasses.replace(budget, latency_ms=None, remove_units=budget.remove_units or 0)
    ends = [n for n in budget.ends(plan.steps, plan.sizes) if n >= len(plan.at(counted.without_quality()).steps)]
    low, high = -1, len(ends)
    while high - low > 1:
        place = (low + high) // 2 if times else len(ends) - 1  # the last one first: it says whether any is
        with phase("measuring the time that a smaller network takes"):
            times[place] = latency_ms(network(ranked.question, plan.prefix(ends[place])), ranked.question)
        low, high = (low, place) if times[place] <= bound else (place, high)
    if high < len(ends):
        return plan.prefix(ends[high]), times[high]
    raise BudgetError(
        f"{budget} cannot be met: {ends[-1]} of {sum(plan.sizes.values())} units can be removed, and then one sample "
        f"takes {times[len(ends) - 1]:.3g} ms on this machine"
    )


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
