"""Half of every unit set removed from every architecture of a zoo; the table in docs/architectures.md.

A zoo is a folder with a zoo.py that has `ZOO` (names) and `build(name) -> (model, example inputs)`. All parameters and
buffers are random, since what is initialised with zero would hide errors; the units that stay are drawn at random.
`cut` proves every result in float32 and in float64, parameters included, or raises; a result that computes what the
original did counts as wrong.
"""

from __future__ import annotations

import importlib
import math
import platform
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from multiprocessing import get_context
from typing import Any

import torch
from torch import nn

from secateur import Plan, SecateurError, Units, find_units
from secateur.cutting.captured_forward import captured_parts
from secateur.cutting.cut import cut_units
from secateur.structure.axis import expand
from secateur.structure.graph_run import difference
from secateur.structure.infer import infer
from secateur.structure.units import require_units

LIMIT = 120  # seconds for one model in one mode


def zoo(folder: str) -> Any:
    """Import the module of that folder."""
    sys.path.insert(0, folder)
    with redirect_stdout(sys.stderr):
        return importlib.import_module("zoo")


def build(folder: str, name: str) -> tuple[nn.Module, Any]:
    """Return a model with random weights, in eval mode, and its example inputs."""
    torch.manual_seed(0)
    model, inputs = zoo(folder).build(name)
    randomise(model)
    return model, inputs


def randomise(model: nn.Module) -> None:
    """Draw every parameter and buffer, of a size that lets signals through; variances positive."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=(len(parameter) / parameter.numel()) ** 0.5)
            else:
                parameter.normal_(float(not name.endswith("bias")), 0.3)
        for name, buffer in model.named_buffers():
            if buffer.is_floating_point():
                buffer.normal_(0, 0.3) if name.endswith("running_mean") else buffer.uniform_(0.5, 1.5)


def half(units: Units, seed: int = 0) -> dict[str, tuple[int, ...]]:
    """Draw the larger half of every set."""
    generator = torch.Generator().manual_seed(seed)
    order = {s.name: torch.randperm(s.size, generator=generator).tolist() for s in units}
    return {name: tuple(sorted(indices[: (len(indices) + 1) // 2])) for name, indices in order.items()}


def coverage(units: Units, model: nn.Module) -> float:
    """Return the share of parameters that go with some unit."""
    gone = {s.axis: torch.zeros(s.size, dtype=torch.bool) for s in units}
    stay = total = 0.0
    for name, parameter in model.named_parameters():
        masks = [expand(axis, gone, torch.ones(1, dtype=torch.bool)) for axis in units.axes.get(name, ())]
        stay += parameter.numel() * math.prod(mask.double().mean().item() for mask in masks)
        total += parameter.numel()
    return 1 - stay / total


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Raise TimeoutError when it takes longer."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f"more than {seconds} s")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def shrink(folder: str, name: str, include: Any) -> dict[str, Any]:
    """Shrink one model in one mode: what is left, how it computes, how long it took.

    Raises:
        SecateurError: There is nothing to remove, or the result computes what the original did.
    """
    model, inputs = build(folder, name)
    start = time.perf_counter()
    units = require_units(find_units(model, inputs, include))
    identified = time.perf_counter()
    infer(units.captured)
    inferred = time.perf_counter()
    call = units.captured.spec.sample(model, 2)
    small, gap = cut_units(model, units, Plan.from_kept(half(units), inputs), call)
    end = time.perf_counter()
    before, after = (sum(p.numel() for p in network.parameters()) for network in (model, small))
    with torch.no_grad():
        change = difference(model(*call[0], **call[1]), small.eval()(*call[0], **call[1]))[1]
    if after >= before or not change > 1e-3:
        raise SecateurError(f"nothing changed: {before} parameters and {after}, outputs by {change:.1e}")
    return {
        "sets": len(units), "units": units.total, "params": before, "left": after, "parts": captured_parts(small),
        "modules": len(list(model.modules())) - 1, "difference": gap, "change": change,
        "coverage": coverage(units, model), "find_s": identified - start, "infer_s": inferred - identified,
        "total_s": end - start,
    }  # fmt: skip


def attempt(job: tuple[str, str, str]) -> dict[str, Any]:
    """Shrink one model in one mode, with an error as a result."""
    folder, name, include = job
    torch.set_num_threads(1)
    try:
        with limited(LIMIT), redirect_stdout(sys.stderr):  # the zoo may print
            return {"name": name, "include": include, **shrink(folder, name, include)}
    except Exception as error:  # noqa: BLE001 - one row of the table
        return {"name": name, "include": include, "error": f"{type(error).__name__}: {error}"}


def form(row: dict[str, Any]) -> str:
    """Tell how a cut network computes."""
    parts = row["parts"]
    return "live" if not parts else "graph" if list(parts) == [""] else f"live, {len(parts)} parts graph"


def markdown(rows: list[dict[str, Any]], command: str) -> str:
    """Return the page's section: the table, and what it sums up to."""
    good = [row for row in rows if "error" not in row]
    lines = [
        "## Half of every unit set",
        "",
        "Half of every unit set removed at random, from networks with random parameters and buffers: once of the sets "
        "whose units go exactly as by a gate of zero (`gated`), once of all (`all`). Every row was proven when it was "
        "cut: outputs equal the truth to 1e-4 in float32 and 1e-9 in float64 (3e-6 where the model's own code computes "
        "in float32), parameters are as many as predicted. *live*: the model's own classes and code, sizes adapted; "
        "*parts graph*: so many of its modules compute by their part of the captured graph, since their code cannot "
        "(an attention whose default scale depends on the width, a size written in the code); *graph*: the whole "
        "network does. *covered*: parameters that belong to some unit.",
        "",
        f"Made by `{command}` with PyTorch {torch.__version__} on {platform.machine()}, one thread for each model.",
        "",
    ]
    for include in ("gated", "all"):
        mine = [row for row in good if row["include"] == include]
        tried = sum(row["include"] == include for row in rows)
        live = sum(list(row["parts"]) != [""] for row in mine)
        own = sum(not row["parts"] for row in mine)
        slowest = max((row["total_s"] for row in mine), default=0)
        lines.append(
            f"- `{include}`: {len(mine)} of {tried} proven, {live} as live modules, {own} of these by their own code "
            f"alone; the slowest took {slowest:.0f} s."
        )
    lines += [
        "",
        "| architecture | sets | units | parameters | left | | form | covered | find / infer / all, s | difference |",
        "|---|--:|--:|--:|--:|--:|---|--:|--:|--:|",
    ]
    for row in rows:
        name = f"{row['name']} ({row['include']})"
        if "error" in row:
            lines.append(f"| {name} | | | | | | **{row['error'][:200]}** | | | |")
            continue
        times = f"{row['find_s']:.1f} / {row['infer_s']:.2f} / {row['total_s']:.1f}"
        lines.append(
            f"| {name} | {row['sets']} | {row['units']:,} | {row['params']:,} | {row['left']:,} | "
            f"{row['left'] / row['params']:.0%} | {form(row)} | {row['coverage']:.1%} | {times} | "
            f"{row['difference']:.0e} |"
        )
    return "\n".join(lines) + "\n"


def compare(folder: str, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Shrink models in both modes, two at a time.

    Args:
        folder: Of the zoo.
        names: Of models; none for all.

    Yields:
        The rows as they are done.
    """
    jobs = [(folder, name, include) for name in names or list(zoo(folder).ZOO) for include in ("gated", "all")]
    with get_context("spawn").Pool(2) as pool:
        yield from pool.imap(attempt, jobs)


def text(row: dict[str, Any]) -> str:
    """Return a row as one line."""
    result = row.get("error") or f"{form(row)}, {row['left']:,} of {row['params']:,}, {row['total_s']:.1f} s"
    return f"{row['name']} {row['include']}: {result}"
