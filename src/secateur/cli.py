"""The command line: commands, their calls, exit codes."""

from __future__ import annotations

import math
import signal
import sys
from importlib.metadata import entry_points
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_group

from secateur import cli_options as opt
from secateur.artifacts.sources import find_function
from secateur.cli_options import Commands, print_json
from secateur.commands.files import measure
from secateur.commands.inputs import Source
from secateur.commands.outputs import Outputs
from secateur.errors import ArgumentError, DataError, SecateurError
from secateur.estimating.estimate import estimate as run_estimate
from secateur.objective.data import first_inputs
from secateur.objective.question import Question
from secateur.objective.unlabelled import MoreInputs
from secateur.options import Ranking, compensation_of
from secateur.own_code.find_units import find_units, units_of
from secateur.planning.budget import Budget
from secateur.process_state import INTERRUPTED, interrupt
from secateur.reporting.progress import progress_bar
from secateur.reporting.tables import pairs, saliencies, spread
from secateur.saliency.criterion import criteria
from secateur.saliency.interactions import correlation
from secateur.saliency.interactions import interactions as run_interactions
from secateur.saliency.score import score as run_score
from secateur.saliency.score import standard_errors
from secateur.shrinking import shrink as run_shrink
from secateur.shrinking import shrink_to_each, tightest
from secateur.structure.inputs import InputSpec, as_call
from secateur.text import table

app = typer.Typer(
    cls=Commands,
    help="Shrink trained networks to a byte budget, exactly, and prove it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(measure)


@app.command()
def shrink(
    data: opt.Data,
    model: opt.Model = None,
    hf: opt.HuggingFace = None,
    max_tokens: opt.MaxTokens = None,
    out: opt.Out = None,
    report: opt.Report = None,
    picture: opt.SizesPicture = None,
    bytes: opt.Bytes = None,
    params: opt.Params = None,
    macs: opt.Macs = None,
    ram: opt.Ram = None,
    kv_cache: opt.KvCache = None,
    latency_ms: opt.LatencyMs = None,
    remove_fraction: opt.RemoveFraction = None,
    remove_units: opt.RemoveUnits = None,
    max_loss_increase: opt.MaxLossIncrease = None,
    max_accuracy_drop: opt.MaxAccuracyDrop = None,
    max_metric_drop: opt.MaxMetricDrop = None,
    scope: opt.Scope = "global",
    min_units: opt.MinUnits = 1,
    multiple_of: opt.MultipleOf = None,
    protect: opt.Protect = None,
    loss: opt.Loss = None,
    metric: opt.Metric = None,
    include: opt.Include = "gated",
    criterion: opt.Criterion = None,
    ranking: opt.Ranking = None,
    threshold: opt.Threshold = None,
    validation: opt.Validation = None,
    shortlist: opt.Shortlist = None,
    refresh: opt.Refresh = None,
    swaps: opt.Swaps = False,
    granularity: opt.Granularity = "unit",
    retrain: opt.Retrain = None,
    rounds: opt.Rounds = 1,
    no_compensate: opt.NoCompensate = False,
    ridge: opt.Ridge = None,
    weighting: opt.Weighting = "ggn",
    recalibrate: opt.Recalibrate = False,
    add_bias: opt.AddBias = False,
    refine: opt.Refine = "0",
    unlabelled: opt.Unlabelled = None,
    augment: opt.Augment = None,
    max_memory: opt.MaxMemory = None,
    seed: opt.Seed = 0,
    estimate: opt.Estimate = False,
    as_json: opt.Json = False,
) -> None:
    """Remove units until the budget is met, and write the small network."""
    source = Source(model, hf, max_tokens)
    outputs = Outputs.of(bytes or [], out or [], report, picture, folders=hf is not None)
    sizes: list[str | None] = list(bytes) if bytes else [None]
    budgets = [
        Budget(
            bytes=size, params=params, macs=macs, ram=ram, kv_cache=kv_cache, latency_ms=latency_ms,
            artifact=outputs.artifact if size else "safetensors", remove_units=remove_units,
            remove_fraction=opt.by_set("--remove-fraction", remove_fraction, float),
            max_loss_increase=max_loss_increase, max_accuracy_drop=max_accuracy_drop,
            max_metric_drop=max_metric_drop, scope=scope,
            min_units=min_units, protect=tuple(protect or ()),
            multiple_of=opt.by_set("--multiple-of", multiple_of, int) or 1,
        )
        for size in sizes
    ]  # fmt: skip
    outputs.check(estimate, granularity == "unit", rounds == 1 and retrain is None, measured=bool(loss or hf))
    network = source.network()
    batches, loss = source.data(network, data, loss, metric is not None)
    validation_data = None if validation is None else source.data(network, validation, loss, metric is not None)[0]
    train = None if retrain is None else find_function("--retrain", retrain)
    fitting: dict[str, Any] = {
        "ridge": ridge, "weighting": weighting, "recalibrate": recalibrate, "add_bias": add_bias,
        "refine": int(refine) if refine.isdecimal() else refine,
    }  # fmt: skip
    order: dict[str, Any] = {
        "criterion": criterion, "ranking": ranking, "threshold": threshold, "shortlist": shortlist,
        "refresh": refresh, "swaps": swaps,
    }  # fmt: skip
    more = MoreInputs(
        None if unlabelled is None else source.read(network, unlabelled, "output"),
        None if augment is None else find_function("--augment", augment),
    )
    units = find_units(network, first_inputs(batches), include)
    measured = None if metric is None else find_function("--metric", metric)
    options: dict[str, Any] = {"units": units, "validation": validation_data, "max_memory": max_memory}
    if estimate:
        compensation = compensation_of(not no_compensate, **fitting)
        estimated = run_estimate(
            network,
            batches,
            loss,
            tightest(budgets),
            **options,
            **order,
            compensate=compensation or False,
            metric=measured,
        )
        each = f"each of {rounds} rounds, without the training: " if rounds > 1 else ""
        print_json({**estimated.to_json(), "rounds": rounds}) if as_json else typer.echo(f"{each}{estimated}")
        return
    if len(budgets) > 1:
        question = Question(network, batches, loss, seed=seed, **options).with_more(more).measuring(measured)
        results = shrink_to_each(question, Ranking(**order), compensation_of(not no_compensate, **fitting), budgets)
    else:
        results = [
            run_shrink(
                network, batches, loss, budgets[0], **options, **order, seed=seed, granularity=granularity,
                retrain=train, rounds=rounds, compensate=not no_compensate, metric=measured, **fitting, **vars(more),
            )
        ]  # fmt: skip
    written = outputs.write(results, batches, loss)
    print_json(outputs.to_json(results, written, units)) if as_json else typer.echo(outputs.text(results, written))


@app.command()
def inspect(
    model: opt.Model = None,
    hf: opt.HuggingFace = None,
    data: Annotated[
        str | None, typer.Option(metavar="DATA", help="example inputs; not needed where a dense layer comes first")
    ] = None,
    include: opt.Include = "all",
    as_json: opt.Json = False,
) -> None:
    """List what can be removed, what each unit costs, and what is fixed and why."""
    source = Source(model, hf)
    network = source.network()
    batches = None if data is None else source.read(network, data)
    call = InputSpec.guess(network).sample(network) if batches is None else as_call(first_inputs(batches))
    units = units_of(network, call, include)
    if as_json:
        print_json(units.to_json())
    else:
        typer.echo(str(units))


@app.command()
def score(
    data: opt.Data,
    model: opt.Model = None,
    hf: opt.HuggingFace = None,
    loss: opt.Loss = None,
    include: opt.Include = "gated",
    criterion: opt.Criterion = None,
    threshold: opt.Threshold = None,
    granularity: opt.Granularity = "unit",
    max_memory: opt.MaxMemory = None,
    seed: opt.Seed = 0,
    as_json: opt.Json = False,
) -> None:
    """List the saliency of every unit, lowest first; of single weights what lies between the least and the largest."""
    source = Source(model, hf)
    network = source.network()
    batches, loss = source.data(network, data, loss)
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
        question = Question(network, batches, loss, units, seed=seed, max_memory=max_memory)
        errors = standard_errors(question, name) if threshold is None else None  # none of replaced estimates
        typer.echo(saliencies(name, scores, errors))
        approximate = criteria()[name].approximate_for(units)
        if approximate:
            typer.echo(f"\napproximate, since a norm is taken over the units: {', '.join(approximate)}")


@app.command()
def interactions(
    data: opt.Data,
    model: opt.Model = None,
    hf: opt.HuggingFace = None,
    loss: opt.Loss = None,
    include: opt.Include = "gated",
    curvature: Annotated[str, typer.Option(help="ggn, fisher or hessian")] = "ggn",
    out: opt.PicturePath = None,
    most: Annotated[int, typer.Option(help="pairs to list", min=1)] = 20,
    max_memory: opt.MaxMemory = None,
    seed: Annotated[int, typer.Option(help="of fisher")] = 0,
    as_json: opt.Json = False,
) -> None:
    """Show how units depend on each other: the pairs whose removals know most of each other, and a picture of all."""
    source = Source(model, hf)
    network = source.network()
    batches, loss = source.data(network, data, loss)
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
    """Return Secateur's commands, and those of other packages by entry points of the group `secateur.commands`.

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
        single = typer.Typer()
        if isinstance(command, typer.Typer):
            single.add_typer(command, name=point.name)
        else:
            single.command(point.name)(command)
        group.add_command(get_group(single).commands[point.name])
    return group


def _plain(values: list[Any]) -> list[Any]:
    """Return nested numbers as JSON has them: null for infinite ones."""
    return [_plain(v) if isinstance(v, list) else v if math.isfinite(v) else None for v in values]


def main() -> None:
    """Run a command; exit with 0 when done, 1 if the work failed or a budget cannot be met, 2 on wrong usage.

    Wrong usage is also a model or data that are none, and a path that nothing can be written to.

    An interrupt exits with 130.

    Raises:
        SystemExit: Always; its code is the exit code.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell's background jobs ignore it
        signal.signal(signal.SIGINT, interrupt)
    try:
        command_line()()
    except SecateurError as error:
        typer.echo(f"secateur: {error}", err=True)
        sys.exit(2 if isinstance(error, ArgumentError | DataError) else 1)
    except SystemExit as end:
        if end.code == INTERRUPTED:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # the interrupt that is raised again must not end the end
        raise


if __name__ == "__main__":
    main()
