"""`secateur bench`: arguments and tables.

The command line imports this file for its help, so what is slow to import is imported by the command that needs it.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer

from secateur.artifacts.safetensors import make_folder, whole_file
from secateur.cli_options import Json, PicturePath, print_json
from secateur.errors import ArgumentError, choose
from secateur.reporting.paths import check_picture
from secateur.text import table
from secateur_experiments.bench.artifacts_command import artifacts
from secateur_experiments.bench.suite.commands import suite
from secateur_experiments.commands import Mnist, Seeds

bench = typer.Typer(help="Compare two sides in one process, and print their ratio.", no_args_is_help=True)
bench.command()(suite)
bench.command()(artifacts)
PICTURE, GROWTH_PICTURE = "compensation-accuracy.png", "scale-growth.png"


def _folder(path: Path | None) -> Path | None:
    """Make a folder if it is not there, and refuse it before the work where it cannot be written to.

    Raises:
        ArtifactError: It cannot be made.
    """
    if path is not None:
        check_picture(make_folder(path) / PICTURE)
    return path


def _zoo(path: Path) -> Path:
    """Refuse a folder without a zoo.

    Raises:
        ArgumentError: There is no zoo.py in it.
    """
    if not (path / "zoo.py").is_file():
        raise ArgumentError(f"zoo: there is no zoo.py in {path}")
    return path


Runs = Annotated[int, typer.Option(help="of each side, of which the median is taken", min=1)]
Kind = Annotated[Literal["float32", "float64"], typer.Option(help="of weights and data")]
Only = Annotated[list[str] | None, typer.Option(help="a network; may be repeated; all if left out")]


@bench.command()
def oracle(
    only: Only = None,
    samples: Annotated[
        int, typer.Option(help="of each network; at most 256 images of the two large ones", min=1)
    ] = 10_000,
    runs: Runs = 5,
    dtype: Kind = "float64",
    mnist: Mnist = None,
    out: PicturePath = None,
    as_json: Json = False,
) -> None:
    """Set exact saliencies beside passes of the whole model; time against K; time a gain sweep."""
    from secateur_experiments.bench import oracle as oracles
    from secateur_experiments.bench.pictures import growth

    names = [choose("only", name, oracles.tasks(samples)) and name for name in only or oracles.tasks(samples)]
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
    """Set second derivatives beside BackPACK, torch.func.hessian and plain backward passes."""
    from secateur_experiments.bench import curvature as curvatures

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
    """Set the quadratic ranking beside the iterative oracle: accuracy, share removed within one point, time."""
    from secateur_experiments.bench import quadratic as quadratics
    from secateur_experiments.datasets import digits_or_mnist
    from secateur_experiments.study import Study

    study = Study(*digits_or_mnist(mnist), range(seeds))
    rows = quadratics.compare(study)
    share = "test accuracy on {} with that share of the hidden units removed, {} networks each"
    _show(f"quadratic: {share.format(study.data.name, seeds)}", rows, as_json)


@bench.command()
def weights(mnist: Mnist = None, as_json: Json = False) -> None:
    """Set Optimal Brain Damage beside magnitude on single weights, without and with retraining; count bytes written."""
    from secateur_experiments.bench import single_weights
    from secateur_experiments.datasets import digits_or_mnist
    from secateur_experiments.study import Study

    study = Study(*digits_or_mnist(mnist))
    rows = single_weights.compare(study)
    share = "test accuracy on {} with that share of the weights removed, {} rounds"
    _show(f"weights: {share.format(study.data.name, single_weights.ROUNDS)}", rows, as_json)


@bench.command()
def compensation(
    mnist: Mnist = None,
    only: Only = None,
    seeds: Seeds = 3,
    cache: Annotated[
        Path | None, typer.Option(metavar="DIR", help="keeps networks and curves; an interrupted run goes on from it")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="for compensation.md and its picture", callback=_folder)
    ] = None,
    as_json: Json = False,
) -> None:
    """Set removal with the weights that are left fitted anew beside removal alone: accuracy, share within one point."""
    from secateur_experiments.bench import compensation as compensations
    from secateur_experiments.bench import compensation_page as pages
    from secateur_experiments.bench import fitting
    from secateur_experiments.curves import rows
    from secateur_experiments.datasets import digits_or_mnist
    from secateur_experiments.study import Study
    from secateur_experiments.subjects import subjects

    data, epochs = digits_or_mnist(mnist)
    known = subjects(data, epochs)
    chosen = {name: choose("only", name, known) for name in only or known}
    study = Study(data, epochs, range(seeds), folder=cache)
    curves = compensations.compare(study, chosen)
    sections = compensations.sections(curves, chosen)
    spent = [asdict(cost) for cost in (fitting.costs(data) if only is None else ())]
    if out is not None:
        pages.picture(sections, out / PICTURE)
        words = [*(["--mnist DIR"] if mnist else []), *(f"--only {name}" for name in only or ())]
        command = " ".join(["secateur bench compensation", *words, f"--seeds {seeds}", "--out DIR"])
        page = pages.document(sections, command, compensations.setting(study, curves), PICTURE, spent)
        with whole_file(out / "compensation.md") as temporary:
            temporary.write_text(page, encoding="utf-8")
    if as_json:
        shares = {section.name: section.ratio for section in sections}
        print_json({"rows": [asdict(row) for row in rows(curves)], "ratios": shares, "costs": spent})
        return
    typer.echo("\n\n".join([*map(pages.text, sections), *([pages.costs(spent)] if spent else [])]))


@bench.command()
def optimisers(out: PicturePath = None, as_json: Json = False) -> None:
    """Set TaylorRoot beside SGD and Adam on the digits."""
    from secateur_experiments.bench import optimisers as trainings
    from secateur_experiments.bench import pictures
    from secateur_experiments.datasets import digits

    runs = trainings.compare(digits())
    if out is not None:
        pictures.training({name: asdict(run) for name, run in runs.items()}, "64-32-10 on the digits", out)
    if as_json:
        print_json({name: asdict(run) for name, run in runs.items()})
    else:
        typer.echo(trainings.summary(runs))


@bench.command()
def architectures(
    zoo: Annotated[
        Path, typer.Option(metavar="DIR", envvar="ZOO_DIR", help="holds zoo.py, which builds models", callback=_zoo)
    ],
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[MODEL ...]", help="of the zoo; all if left out")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="for the table in Markdown")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object for each row")] = False,
) -> None:
    """Remove half of every unit set from every architecture of a zoo, and prove each result."""
    from secateur_experiments.bench.architectures import compare, markdown, text
    from secateur_experiments.bench.sections import write_section

    rows = []
    for row in compare(str(zoo), names or []):
        rows.append(row)
        print_json(row) if as_json else typer.echo(text(row))
    if out is not None:
        write_section(out, markdown(rows, f"secateur bench architectures --out {out}"))


@bench.command()
def scale(
    only: Annotated[
        list[str] | None, typer.Option(help="a network, or growth; may be repeated; all if left out")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="the small networks alone, under 5 minutes")] = False,
    runs: Runs = 1,
    ranking: Annotated[str | None, typer.Option(help="the library's default if left out; of growth layerwise")] = None,
    mnist: Mnist = None,
    zoo: Annotated[
        Path | None, typer.Option(metavar="DIR", help="holds tvshim.py, where torchvision needs one to be imported")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="for scale.md and its picture", callback=_folder)
    ] = None,
    as_json: Json = False,
) -> None:
    """Set the main job on networks of real size beside the work that cannot be avoided: time, memory, quality."""
    from secateur_experiments.bench.scale import growth, page
    from secateur_experiments.bench.scale.measure import Settings, compare
    from secateur_experiments.bench.scale.rows import GROWTH, chosen
    from secateur_experiments.bench.scale.task import Folders

    names = chosen(only or [], quick)
    settings = Settings(runs, ranking, Folders(mnist, zoo))
    rows = []
    for row in compare([name for name in names if name != GROWTH], settings):
        typer.echo(page.line(row), err=True)  # a network takes minutes
        rows.append(row)
    trends = list(growth.trends(ranking or "layerwise", runs)) if GROWTH in names else []
    if out is not None:
        if trends:
            page.picture(trends, out / GROWTH_PICTURE)
        command = page.command(only or [], quick, settings)
        setting = f"Medians of {runs}, {_machine()}, {os.cpu_count()} cores."
        with whole_file(out / "scale.md") as temporary:
            document = page.document(rows, trends, command, setting, GROWTH_PICTURE)
            temporary.write_text(document, encoding="utf-8")
    if as_json:
        print_json({"rows": [asdict(row) for row in rows], "growth": [asdict(trend) for trend in trends]})
    else:
        typer.echo(f"scale: medians of {runs}, {_machine()}\n\n{page.text(rows, trends)}")


def _show(title: str, rows: Sequence[Any], as_json: bool) -> None:
    if as_json:
        print_json({"rows": [asdict(row) for row in rows]})
    else:
        typer.echo(f"{title}, {_machine()}\n\n{_rows(rows)}")


def _rows(rows: Sequence[Any]) -> str:
    """Return fields as columns; those named at_50 and the like, or start, are accuracies."""
    names = [field.name for field in fields(rows[0])]
    headings = [re.sub(r"^at (\d+)$", r"\1 %", name.replace("_", " ")) for name in names]
    return table(headings, [[_cell(value) for value in asdict(row).values()] for row in rows])


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else value


def _machine() -> str:
    return f"{torch.get_num_threads()} threads, torch {torch.__version__}, {platform.machine()}"
