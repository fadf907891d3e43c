"""The command line: arguments, calls, exit codes."""

from __future__ import annotations

import _thread
import math
import signal
import sys
import threading
from dataclasses import asdict
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup
from typer.main import get_group

from secateur.artifacts.safetensors import check_path
from secateur.artifacts.sources import find_data, find_function, find_model
from secateur.cli_options import Json, Picture, print_json
from secateur.errors import ArgumentError, SecateurError
from secateur.objective.data import first_inputs
from secateur.objective.question import Question
from secateur.planning.budget import Budget
from secateur.planning.plan import Plan
from secateur.planning.weight_plan import WeightPlan
from secateur.reporting.paths import check_page
from secateur.reporting.progress import progress_bar
from secateur.reporting.tables import pairs, saliencies, spread
from secateur.result import Result
from secateur.saliency.criterion import criteria
from secateur.saliency.interactions import correlation
from secateur.saliency.interactions import interactions as run_interactions
from secateur.saliency.score import score as run_score
from secateur.saliency.score import standard_errors
from secateur.shrinking import shrink as run_shrink
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
Include = Annotated[
    Literal["gated", "all"],
    typer.Option(help="gated: units that go exactly as by a gate of zero; all: also those that a norm is taken over"),
]
MaxMemory = Annotated[
    str | None, typer.Option(metavar="SIZE", help="held beside model and data: 500MB, 2GiB; a quarter of what is free")
]
Criterion = Annotated[
    str | None,
    typer.Option(
        help="obs if left out, to score oracle; of a quadratic ranking ggn, with refresh hessian; of weights obd"
    ),
]
Granularity = Annotated[
    Literal["unit", "weight"], typer.Option(help="unit: neurons, channels, heads; weight: single weights, set to zero")
]
Threshold = Annotated[str | None, typer.Option(help="mean or median: estimates above it are replaced by it")]


@app.command()
def shrink(
    model: Model,
    data: Data,
    out: Annotated[Path, typer.Option(metavar="FILE", help="where to write the small network, .safetensors")],
    report: Annotated[
        Path | None, typer.Option(metavar="FILE", help="where to write a page on it with figures and tables, .html")
    ] = None,
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
    criterion: Criterion = None,
    ranking: Annotated[str, typer.Option(help="single, iterative or quadratic")] = "iterative",
    threshold: Threshold = None,
    validation: Annotated[str | None, typer.Option(metavar="DATA", help="where loss and accuracy are measured")] = None,
    shortlist: Annotated[
        int | None,
        typer.Option(
            help="iterative: units evaluated exactly at each step, after compensation; of the oracle by taylor1"
        ),
    ] = None,
    refresh: Annotated[
        int | None,
        typer.Option(help="removals after which a quadratic ranking begins again, or all weights are fitted again"),
    ] = None,
    swaps: Annotated[
        bool, typer.Option("--swaps", help="with the quadratic ranking: exchange units as long as that helps")
    ] = False,
    granularity: Granularity = "unit",
    retrain: Annotated[
        str | None,
        typer.Option(metavar="package.module:function", help="with weights: trains the network it is given"),
    ] = None,
    rounds: Annotated[int, typer.Option(help="with weights: how often to score, remove and retrain")] = 1,
    no_compensate: Annotated[
        bool, typer.Option("--no-compensate", help="leave all other weights as they are, bit by bit")
    ] = False,
    ridge: Annotated[
        float | None, typer.Option(help="how much the weights are held back in that; chosen on the data if left out")
    ] = None,
    weighting: Annotated[
        str, typer.Option(help="ggn, or none: whether the loss's curvature weighs samples in that")
    ] = "ggn",
    recalibrate: Annotated[bool, typer.Option("--recalibrate", help="estimate BatchNorm's statistics again")] = False,
    add_bias: Annotated[
        bool, typer.Option("--add-bias", help="give layers without a bias one, to make up with")
    ] = False,
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
    if report is not None:
        check_page(report)
    network, batches = find_model(model), find_data(data)
    measured = None if validation is None else find_data(validation)
    train = None if retrain is None else find_function("--retrain", retrain)
    result = run_shrink(
        network, batches, loss, budget, units=find_units(network, first_inputs(batches), include), criterion=criterion,
        ranking=ranking, threshold=threshold, validation=measured, seed=seed, shortlist=shortlist, refresh=refresh,
        swaps=swaps, granularity=granularity, retrain=train, rounds=rounds, max_memory=max_memory,
        compensate=not no_compensate, ridge=ridge, weighting=weighting, recalibrate=recalibrate, add_bias=add_bias,
    )  # fmt: skip
    written = result.save(out)
    if report is not None:
        result.report(report)
    if as_json:
        print_json(
            {
                "before": asdict(result.before),
                "after": asdict(result.after),
                "removed": len(result.plan.steps) if isinstance(result.plan, Plan) else result.plan.removed,
                "kept": result.plan.kept,
                "measured": _measured(result),
                **_options(result.plan),
                "verified": True,
                "max_difference": result.max_difference,
                "captured": result.captured,
                "artifact": {"path": str(out), "bytes": written},
                "report": None if report is None else str(report),
            }
        )
    else:
        typer.echo(f"{result}\nwritten to {out}" + ("" if report is None else f", the report to {report}"))


def _measured(result: Result) -> dict[str, Any] | None:
    """Return on which samples loss and accuracy were measured, as plain data."""
    basis, accuracy = result.plan.basis, result.after.accuracy
    if basis is None:
        return None
    return {
        "on": basis.where,
        "samples": basis.samples,
        "fitted_on": basis.fitted,
        "accuracy_standard_error": None if accuracy is None else basis.standard_error(accuracy),
    }


def _options(plan: Plan | WeightPlan) -> dict[str, Any]:
    """Return how a plan of units was made, as plain data."""
    if isinstance(plan, WeightPlan):
        return {"ranking": None, "compensation": None, "swaps": None}
    return {
        "ranking": plan.made_by and plan.made_by.to_json(),
        "compensation": plan.compensation and plan.compensation.to_json(),
        "swaps": plan.swaps and asdict(plan.swaps),
    }


@app.command()
def inspect(
    model: Model,
    data: Annotated[
        str | None, typer.Option(metavar="DATA", help="example inputs; not needed where a dense layer comes first")
    ] = None,
    include: Include = "all",
    as_json: Json = False,
) -> None:
    """List what can be removed, what each unit costs, and what is fixed and why."""
    network = find_model(model)
    units = units_of(
        network, InputSpec.guess(network).sample(network) if data is None else as_call(first_inputs(find_data(data))),
        include,
    )  # fmt: skip
    if as_json:
        print_json(units.to_json())
    else:
        typer.echo(str(units))


@app.command()
def score(
    model: Model,
    data: Data,
    loss: Loss = None,
    include: Include = "gated",
    criterion: Criterion = None,
    threshold: Threshold = None,
    granularity: Granularity = "unit",
    max_memory: MaxMemory = None,
    seed: Annotated[int, typer.Option(help="of criteria that draw random numbers")] = 0,
    as_json: Json = False,
) -> None:
    """List the saliency of every unit, lowest first; of single weights what lies between the least and the largest."""
    network, batches = find_model(model), find_data(data)
    units = find_units(network, first_inputs(batches), include)
    with progress_bar("scoring"):
        scores = run_score(
            network, batches, loss, units=units, criterion=criterion, threshold=threshold, granularity=granularity,
            seed=seed, max_memory=max_memory,
        )  # fmt: skip
    if as_json:
        print_json({name: _plain(values.tolist()) for name, values in scores.items()})
    elif granularity == "weight":
        rows = [(name, *spread(values)) for name, values in scores.items()]
        typer.echo(table(["parameter", "weights", "least", "quarter", "median", "three quarters", "largest"], rows))
    else:
        name = criterion or "oracle"
        drawn = threshold is None  # and not replaced by the mean
        question = Question(network, batches, loss, units, seed=seed, max_memory=max_memory)
        errors = standard_errors(question, name) if drawn else None
        typer.echo(saliencies(name, scores, errors))
        approximate = criteria()[name].approximate_for(units)
        if approximate:
            typer.echo(f"\napproximate, since a norm is taken over the units: {', '.join(approximate)}")


@app.command()
def interactions(
    model: Model,
    data: Data,
    loss: Loss = None,
    include: Include = "gated",
    curvature: Annotated[str, typer.Option(help="ggn, fisher or hessian")] = "ggn",
    out: Picture = None,
    most: Annotated[int, typer.Option(help="pairs to list", min=1)] = 20,
    max_memory: MaxMemory = None,
    seed: Annotated[int, typer.Option(help="of fisher")] = 0,
    as_json: Json = False,
) -> None:
    """Show how units depend on each other: the pairs whose removals know most of each other, and a picture of all."""
    network, batches = find_model(model), find_data(data)
    units = find_units(network, first_inputs(batches), include)
    with progress_bar(f"interactions by {curvature}"):
        matrix = run_interactions(
            network, batches, loss, units=units, curvature=curvature, seed=seed, max_memory=max_memory
        )
    related = correlation(matrix)
    if out is not None:
        from secateur.reporting.plots import heat_map  # matplotlib is slow to import

        sizes = {unit_set.name: unit_set.size for unit_set in units}
        heat_map(related, sizes, "How removing one unit changes what another costs", out)
    if as_json:
        print_json({"units": units.places, "matrix": matrix.tolist()})
    else:
        typer.echo(pairs(matrix, related, units.places, most))


def command_line() -> TyperGroup:
    """Return our commands with those that other packages offer by entry points of the group `secateur.commands`.

    The value of each is a function or a `typer.Typer`, in a module that is quick to import.

    Raises:
        SecateurError: There is a command of that name already, or it cannot be imported.
    """
    group = get_group(app)
    for point in entry_points(group="secateur.commands"):
        where = f"entry point {point.name} = {point.value} of secateur.commands"
        if point.name in group.commands:
            raise SecateurError(f"{where}: there is a command of that name already")
        try:
            command = point.load()
        except Exception as error:
            raise SecateurError(f"{where}: cannot be imported ({error})") from error
        one = typer.Typer()
        one.add_typer(command, name=point.name) if isinstance(command, typer.Typer) else one.command(point.name)(
            command
        )
        group.add_command(get_group(one).commands[point.name])
    return group


def _plain(values: list[Any]) -> list[Any]:
    """Return nested numbers as JSON has them: null for those that are infinite."""
    return [_plain(one) if isinstance(one, list) else one if math.isfinite(one) else None for one in values]


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
        command_line()()
    except SecateurError as error:
        typer.echo(f"secateur: {error}", err=True)
        sys.exit(2 if isinstance(error, ArgumentError) else 1)


if __name__ == "__main__":
    main()
