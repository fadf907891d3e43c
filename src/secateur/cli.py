"""The command line: arguments, calls, exit codes."""

from __future__ import annotations

import _thread
import json
import platform
import signal
import sys
import threading
from dataclasses import asdict, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer

from secateur.artifacts.safetensors import check_path
from secateur.artifacts.sources import find_data, find_model
from secateur.bench import oracle as benches
from secateur.errors import ArgumentError, SecateurError, choose
from secateur.papers import data as datasets
from secateur.papers.demo import demo as run_demo
from secateur.planning.budget import Budget
from secateur.reporting.plots import growth
from secateur.saliency.criterion import criteria
from secateur.saliency.criterion import score as run_score
from secateur.saliency.data import first_inputs
from secateur.shrink import shrink as run_shrink
from secateur.structure.inputs import InputSpec, as_call
from secateur.structure.units import find_units, units_of
from secateur.text import table

app = typer.Typer(
    help="Shrink trained networks to a byte budget, exactly, and prove it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


Model = Annotated[str, typer.Argument(metavar="MODEL", help="package.module:factory, which returns the trained model")]
Data = Annotated[
    str, typer.Option(metavar="DATA", help="a .npz or .safetensors file with x and y, or package.module:loader")
]
Loss = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="cross_entropy, binary_cross_entropy or squared_error; left out for magnitude ..."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="print one JSON object and nothing else")]
Include = Annotated[
    Literal["gated", "all"],
    typer.Option(help="gated: units that go exactly as by a gate of zero; all: also those that a norm is taken over"),
]
MaxMemory = Annotated[
    str | None, typer.Option(metavar="SIZE", help="held beside model and data: 500MB, 2GiB; a quarter of what is free")
]
Threshold = Annotated[str | None, typer.Option(help="mean or median: estimates above it are replaced by it")]


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="folder for pictures and networks")] = Path("demo-out"),
    mnist: Annotated[
        Path | None, typer.Option(metavar="DIR", help="MNIST's four .gz files, instead of the digits")
    ] = None,
    as_json: Json = False,
) -> None:
    """The main job on real digits: train, prune by every criterion, cut, save, load, compare."""
    data, epochs = (datasets.digits(), 300) if mnist is None else (datasets.mnist(mnist), 15)
    reports = run_demo(data, [[100], [50, 50]], out, epochs)
    if as_json:
        _print_json({"networks": [report.to_json() for report in reports]})
    else:
        typer.echo("\n\n\n".join(map(str, reports)))
        typer.echo(f"\nThe pictures are in {out.resolve()}")


@app.command()
def shrink(
    model: Model,
    data: Data,
    out: Annotated[Path, typer.Option(metavar="FILE", help="where to write the small network, .safetensors")],
    bytes: Annotated[str | None, typer.Option(help="of the written file: 200kB, 64KiB, 1.5MB")] = None,
    params: Annotated[int | None, typer.Option(help="parameters left")] = None,
    remove_fraction: Annotated[float | None, typer.Option(help="share of all units to remove")] = None,
    remove_units: Annotated[int | None, typer.Option(help="units to remove")] = None,
    max_loss_increase: Annotated[float | None, typer.Option(help="rise of the loss allowed")] = None,
    max_accuracy_drop: Annotated[
        float | None, typer.Option(help="fall of the accuracy allowed; 0.01 is a point")
    ] = None,
    scope: Annotated[
        Literal["global", "set"], typer.Option(help="what remove-fraction is a share of: all units, or each set")
    ] = "global",
    min_units: Annotated[int, typer.Option(help="units that each set keeps")] = 1,
    protect: Annotated[list[str] | None, typer.Option(help="unit set to leave whole; may be repeated")] = None,
    loss: Loss = None,
    include: Include = "gated",
    criterion: Annotated[str, typer.Option(help="how saliency is computed")] = "oracle",
    ranking: Annotated[str, typer.Option(help="single or iterative")] = "iterative",
    threshold: Threshold = None,
    validation: Annotated[str | None, typer.Option(metavar="DATA", help="where loss and accuracy are measured")] = None,
    shortlist: Annotated[
        int | None,
        typer.Option(help="with the iterative oracle: units evaluated exactly at each step, chosen by taylor1"),
    ] = None,
    max_memory: MaxMemory = None,
    seed: Annotated[int, typer.Option(help="of criteria that draw random numbers")] = 0,
    as_json: Json = False,
) -> None:
    """Remove units until the budget is met, and write the small network."""
    budget = Budget(
        bytes=bytes, params=params, remove_fraction=remove_fraction,
        remove_units=remove_units, max_loss_increase=max_loss_increase, max_accuracy_drop=max_accuracy_drop,
        scope=scope, min_units=min_units, protect=tuple(protect or ()),
    )  # fmt: skip
    check_path(out)
    network, batches = find_model(model), find_data(data)
    result = run_shrink(
        network, batches, loss, budget, units=find_units(network, first_inputs(batches), include), criterion=criterion,
        ranking=ranking, threshold=threshold, validation=validation and find_data(validation), seed=seed,
        shortlist=shortlist, max_memory=max_memory,
    )  # fmt: skip
    written = result.save(out)
    if as_json:
        _print_json(
            {
                "before": asdict(result.before),
                "after": asdict(result.after),
                "removed": len(result.plan.steps),
                "kept": result.plan.kept,
                "verified": True,
                "max_difference": result.max_difference,
                "captured": result.captured,
                "artifact": {"path": str(out), "bytes": written},
            }
        )
    else:
        typer.echo(f"{result}\nwritten to {out}")


@app.command()
def inspect(
    model: Model,
    data: Annotated[
        str | None, typer.Option(metavar="DATA", help="example inputs; not needed where a dense layer comes first")
    ] = None,
    include: Include = "all",
    as_json: Json = False,
) -> None:
    """What can be removed, what each unit costs, and what is fixed and why."""
    network = find_model(model)
    units = units_of(
        network, InputSpec.guess(network).sample(network) if data is None else as_call(first_inputs(find_data(data))),
        include,
    )  # fmt: skip
    if as_json:
        _print_json(units.to_json())
    else:
        typer.echo(str(units))


@app.command()
def score(
    model: Model,
    data: Data,
    loss: Loss = None,
    include: Include = "gated",
    criterion: Annotated[str, typer.Option(help="how saliency is computed")] = "oracle",
    threshold: Threshold = None,
    max_memory: MaxMemory = None,
    seed: Annotated[int, typer.Option(help="of criteria that draw random numbers")] = 0,
    as_json: Json = False,
) -> None:
    """The saliency of every unit, lowest first."""
    network, batches = find_model(model), find_data(data)
    units = find_units(network, first_inputs(batches), include)
    scores = run_score(network, batches, loss, units, criterion, threshold, seed, max_memory)
    if as_json:
        _print_json({name: values.tolist() for name, values in scores.items()})
    else:
        rows = [(value, name, k) for name, values in scores.items() for k, value in enumerate(values.tolist())]
        typer.echo(table([criterion, "unit set", "unit"], [(f"{v:.6g}", name, k) for v, name, k in sorted(rows)]))
        approximate = criteria()[criterion].approximate_for(units)
        if approximate:
            typer.echo(f"\napproximate, since a norm is taken over the units: {', '.join(approximate)}")


@app.command()
def bench(
    name: Annotated[Literal["oracle"], typer.Argument(help="what is timed")],
    only: Annotated[list[str] | None, typer.Option(help="a network; may be repeated; all if left out")] = None,
    samples: Annotated[int, typer.Option(help="of each network; at most 256 images of the two large ones")] = 10_000,
    runs: Annotated[int, typer.Option(help="of each side, of which the median is taken")] = 5,
    dtype: Annotated[Literal["float32", "float64"], typer.Option(help="of weights and data")] = "float64",
    mnist: Annotated[Path | None, typer.Option(metavar="DIR", help="MNIST's four .gz files, not random pixels")] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="a picture of the time against K, .png")] = None,
    as_json: Json = False,
) -> None:
    """The fast path beside K passes of the whole model, alternating in one process."""
    names = [choose("only", one, benches.tasks(samples)) and one for one in only or benches.tasks(samples)]
    kind = getattr(torch, dtype)
    rows = list(benches.compare(names, samples, runs, kind, mnist))
    times, slope = benches.growth(samples, runs, kind, mnist)
    seconds = benches.sweep(samples, kind, mnist)
    if out is not None:
        growth(times, slope, out)
    if as_json:
        _print_json({"rows": [asdict(row) for row in rows], "growth_s": times, "slope": slope, "sweep_s": seconds})
        return
    machine = f"{torch.get_num_threads()} threads, torch {torch.__version__}, {platform.machine()}"
    title = f"{name}: {samples} samples, {dtype}, medians of {runs}, {machine}"
    cells = [[f"{value:.3g}" if isinstance(value, float) else value for value in asdict(row).values()] for row in rows]
    typer.echo(title + "\n\n" + table([field.name for field in fields(benches.Row)], cells))
    typer.echo(f"\n784-K-10: seconds for all K saliencies, log-log slope {slope:.2f}\n")
    typer.echo(table(["K", "seconds"], [(width, f"{time:.3f}") for width, time in times.items()]))
    typer.echo(f"\n784-100-10: 10 units, 10,001 gains each: {seconds:.1f} seconds")


def _print_json(data: dict[str, Any]) -> None:
    typer.echo(json.dumps(data))


def interrupt(*_: object) -> None:
    """Raise KeyboardInterrupt now and every second until the program ends: imports of libraries drop or replace it.

    Raises:
        KeyboardInterrupt: Always.
    """
    again = threading.Timer(1, _thread.interrupt_main)
    again.daemon = True
    again.start()
    raise KeyboardInterrupt


def main() -> None:
    """Exit with 0 when done, 1 when the work failed or a budget cannot be met, 2 on wrong usage."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell's background jobs ignore it
        signal.signal(signal.SIGINT, interrupt)
    try:
        app()
    except SecateurError as error:
        typer.echo(f"secateur: {error}", err=True)
        sys.exit(2 if isinstance(error, ArgumentError) else 1)


if __name__ == "__main__":
    main()
