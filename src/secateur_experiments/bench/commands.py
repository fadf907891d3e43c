"""`secateur bench`: arguments and tables."""

from __future__ import annotations

import json
import os
import platform
import re
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer

from secateur.artifacts.safetensors import make_folder, whole_file
from secateur.bench import compensation as compensations
from secateur.bench import curvature as curvatures
from secateur.bench import oracle as oracles
from secateur.bench import quadratic as quadratics
from secateur.bench import single_weights
from secateur.bench.curves import Cache, Curve, rows
from secateur.bench.experiments import experiments
from secateur.bench.fitting import costs
from secateur.errors import choose
from secateur.papers import data as datasets
from secateur.papers import optimisers as training
from secateur.reporting import compensation as pages
from secateur.reporting import optimisers as pictures
from secateur.reporting.plots import check_picture, growth
from secateur.text import table

bench = typer.Typer(help="Both sides of a comparison in one process, and their ratio.", no_args_is_help=True)


def _alone(context: typer.Context, as_json: bool) -> bool:
    """What the user's own code prints goes to stderr, so that the JSON object stays alone on stdout."""
    if as_json:
        context.with_resource(redirect_stdout(sys.stderr))
    return as_json


def _picture(path: Path | None) -> Path | None:
    """Refused before the work where it cannot be written."""
    if path is not None:
        check_picture(path)
    return path


def _folder(path: Path | None) -> Path | None:
    """Made if it is not there, and refused before the work where it cannot be written to.

    Raises:
        ArtifactError: It cannot be made.
    """
    if path is not None:
        check_picture(make_folder(path) / PICTURE)
    return path


PICTURE = "compensation-accuracy.png"
Json = Annotated[bool, typer.Option("--json", help="print one JSON object and nothing else", callback=_alone)]
Runs = Annotated[int, typer.Option(help="of each side, of which the median is taken", min=1)]
Seeds = Annotated[int, typer.Option(help="networks of each kind, of which medians are taken", min=1)]
Kind = Annotated[Literal["float32", "float64"], typer.Option(help="of weights and data")]
Mnist = Annotated[Path | None, typer.Option(metavar="DIR", help="MNIST's four .gz files")]
Picture = Annotated[Path | None, typer.Option(metavar="FILE", help="a picture, .png", callback=_picture)]


@bench.command()
def oracle(
    only: Annotated[list[str] | None, typer.Option(help="a network; may be repeated; all if left out")] = None,
    samples: Annotated[
        int, typer.Option(help="of each network; at most 256 images of the two large ones", min=1)
    ] = 10_000,
    runs: Runs = 5,
    dtype: Kind = "float64",
    mnist: Mnist = None,
    out: Picture = None,
    as_json: Json = False,
) -> None:
    """Exact saliencies beside passes of the whole model; the time against K; a gain sweep."""
    names = [choose("only", one, oracles.tasks(samples)) and one for one in only or oracles.tasks(samples)]
    kind = getattr(torch, dtype)
    rows = list(oracles.compare(names, samples, runs, kind, mnist))
    times, slope = oracles.growth(samples, runs, kind, mnist)
    seconds = oracles.sweep(samples, kind, mnist)
    if out is not None:
        growth(times, slope, out)
    if as_json:
        print_json({"rows": [asdict(row) for row in rows], "growth_s": times, "slope": slope, "sweep_s": seconds})
        return
    typer.echo(f"oracle: {samples} samples, {dtype}, medians of {runs}, {_machine()}\n\n{_rows(rows)}")
    typer.echo(f"\n784-K-10: seconds for all K saliencies, log-log slope {slope:.2f}\n")
    typer.echo(table(["K", "seconds"], [(width, f"{time:.3f}") for width, time in times.items()]))
    typer.echo(f"\n784-100-10: 10 units, 10,001 gains each: {seconds:.1f} seconds")


@bench.command()
def curvature(
    samples: Annotated[int, typer.Option(help="of each network", min=1)] = 5_000,
    runs: Runs = 5,
    dtype: Kind = "float64",
    mnist: Mnist = None,
    zoo: Annotated[
        Path | None, typer.Option(metavar="DIR", help="holds tvshim.py, where torchvision needs one for BackPACK")
    ] = None,
    as_json: Json = False,
) -> None:
    """Second derivatives beside BackPACK, torch.func.hessian and plain backward passes."""
    rows = list(curvatures.compare(samples, runs, getattr(torch, dtype), mnist, zoo))
    if as_json:
        print_json({"rows": [asdict(row) for row in rows]})
        return
    typer.echo(f"curvature: {samples} samples, {dtype}, medians of {runs}, {_machine()}\n\n{_rows(rows)}")
    if not curvatures.has_backpack(zoo):
        typer.echo(f"\n{curvatures.WITHOUT_BACKPACK}")


@bench.command()
def quadratic(
    mnist: Mnist = None,
    seeds: Seeds = 3,
    as_json: Json = False,
) -> None:
    """The quadratic ranking beside the iterative oracle: accuracy, share removed within one point, time."""
    data, epochs = experiment(mnist)
    rows = quadratics.compare(data, epochs, range(seeds))
    title = (
        f"quadratic: test accuracy on {data.name} with that share of the hidden units removed, {seeds} networks each"
    )
    _show(title, rows, as_json)


@bench.command()
def weights(mnist: Mnist = None, as_json: Json = False) -> None:
    """Optimal Brain Damage beside magnitude on single weights, without and with retraining, and the bytes written."""
    data, epochs = experiment(mnist)
    rows = single_weights.compare(data, epochs)
    title = (
        f"weights: test accuracy on {data.name} with that share of the weights removed, {single_weights.ROUNDS} rounds"
    )
    _show(title, rows, as_json)


@bench.command()
def compensation(
    mnist: Mnist = None,
    only: Annotated[list[str] | None, typer.Option(help="a network; may be repeated; all if left out")] = None,
    seeds: Seeds = 3,
    cache: Annotated[
        Path | None, typer.Option(metavar="DIR", help="keeps networks and curves; an interrupted run goes on from it")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="for compensation.md and its picture", callback=_folder)
    ] = None,
    as_json: Json = False,
) -> None:
    """Removal with the weights that are left fitted anew beside removal alone: accuracy, share within one point."""
    data, epochs = experiment(mnist)
    known = experiments(data, epochs)
    chosen = {name: choose("only", name, known) for name in only or known}
    curves = compensations.compare(data, chosen, range(seeds), Cache(cache))
    sections = compensations.sections(curves, chosen)
    spent = [asdict(cost) for cost in (costs(data) if only is None else ())]
    if out is not None:
        pages.picture(sections, out / PICTURE)
        words = ["--mnist DIR"] if mnist else []
        words += [f"--only {name}" for name in only or ()] + [f"--seeds {seeds}", "--out DIR"]
        command = f"secateur bench compensation {' '.join(words)}"
        page = pages.document(sections, command, _setting(data, seeds, curves), PICTURE, spent)
        with whole_file(out / "compensation.md") as temporary:
            temporary.write_text(page, encoding="utf-8")
    if as_json:
        shares = {section.name: section.ratio for section in sections}
        print_json({"rows": [asdict(row) for row in rows(curves)], "ratios": shares, "costs": spent})
        return
    typer.echo("\n\n".join([*map(pages.text, sections), *([pages.costs(spent)] if spent else [])]))


def _setting(data: datasets.Dataset, seeds: int, curves: compensations.Curves) -> str:
    each: list[Curve] = [curve for ways in curves.values() for several in ways.values() for curve in several]
    threads = " or ".join(map(str, sorted({curve.threads for curve in each})))
    return (
        f"{os.cpu_count()} cores of an {platform.machine()} machine, orders on {threads} thread(s), torch "
        f"{torch.__version__}. {data.name}: trained on {len(data.train[0]):,} digits with seeds 0 to {seeds - 1}, "
        f"calibration on the first of these, accuracy on {len(data.test[0]):,} test digits; medians over the seeds."
    )


@bench.command()
def optimisers(out: Picture = None, as_json: Json = False) -> None:
    """TaylorRoot beside SGD and Adam on the digits."""
    runs = training.compare(datasets.digits())
    if out is not None:
        pictures.training({name: asdict(run) for name, run in runs.items()}, "64-32-10 on the digits", out)
    if as_json:
        print_json({name: asdict(run) for name, run in runs.items()})
    else:
        typer.echo(training.summary(runs))


def experiment(mnist: Path | None) -> tuple[datasets.Dataset, int]:
    """The data and the epochs of the papers' networks: MNIST from its folder, or the digits."""
    return (datasets.digits(), 300) if mnist is None else (datasets.mnist(mnist), 15)


def _show(title: str, rows: Sequence[Any], as_json: bool) -> None:
    if as_json:
        print_json({"rows": [asdict(row) for row in rows]})
    else:
        typer.echo(f"{title}, {_machine()}\n\n{_rows(rows)}")


def _rows(rows: Sequence[Any]) -> str:
    """Fields as columns; those named at_50 and the like, or start, are accuracies."""
    names = [field.name for field in fields(rows[0])]
    headings = [re.sub(r"^at (\d+)$", r"\1 %", name.replace("_", " ")) for name in names]
    return table(headings, [[_cell(value) for value in asdict(row).values()] for row in rows])


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else value


def _machine() -> str:
    return f"{torch.get_num_threads()} threads, torch {torch.__version__}, {platform.machine()}"


def print_json(data: dict[str, Any]) -> None:
    """One object on stdout, whatever that was redirected to."""
    typer.echo(json.dumps(data), file=sys.__stdout__)
