"""Options of the commands, shared with those of other packages; how JSON is printed, and how an interrupt ends one."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from secateur.errors import ArgumentError
from secateur.reporting.paths import check_picture


class Commands(TyperGroup):
    """The commands; an interrupt ends one with what was done, and exit code 130."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command.

        Raises:
            Exit: It was interrupted.
        """
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as interrupt:
            typer.echo(f"secateur: {interrupt}" if interrupt.args else "secateur: interrupted", err=True)
            raise typer.Exit(130) from interrupt


def _leave_stdout(context: typer.Context, as_json: bool) -> bool:
    """Send all that the user's own code prints to stderr, so that the JSON object stays alone on stdout."""
    if as_json:
        context.with_resource(redirect_stdout(sys.stderr))
    return as_json


def _checked(path: Path | None) -> Path | None:
    """Refuse a picture that cannot be written, before the work."""
    if path is not None:
        check_picture(path)
    return path


Json = Annotated[bool, typer.Option("--json", help="print one JSON object and nothing else", callback=_leave_stdout)]
PicturePath = Annotated[Path | None, typer.Option(metavar="FILE", help="a picture, .png", callback=_checked)]
SizesPicture = Annotated[
    Path | None,
    typer.Option("--picture", metavar="FILE", help="a picture of the loss against bytes, .png", callback=_checked),
]
Model = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL", help="a .pt2 file of torch.export.save, or package.module:factory, which returns the model"
    ),
]
HuggingFace = Annotated[
    Path | None,
    typer.Option(
        "--hf", metavar="DIR", help="in place of MODEL a folder of Hugging Face's; no code of the folder's is run"
    ),
]
MaxTokens = Annotated[
    int | None, typer.Option(help="tokens that are read of each text, at most; 128 if left out", min=1)
]
Data = Annotated[
    str,
    typer.Option(
        metavar="DATA",
        help="a .npz or .safetensors file with x and y, or package.module:loader; with --hf also a .txt file, one text "
        "a line, or arrays with the names of inputs in place of x",
    ),
]
Loss = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="cross_entropy, binary_cross_entropy or squared_error; output or distribution, which keep what the model "
        "gives and need no y; left out for magnitude ..., and with --hf and no y one of these two",
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
Out = Annotated[
    list[str] | None,
    typer.Option(
        metavar="FILE",
        help="where to write the small network: .safetensors, .pt2, .onnx, .int8.onnx, .pte, .int8.pte; with --hf and "
        "no such ending a folder; needed to shrink; {bytes} stands for what --bytes gives",
    ),
]
Estimate = Annotated[
    bool, typer.Option("--estimate", help="print how long it would take and what memory, and do nothing else")
]
Report = Annotated[
    str | None, typer.Option(metavar="FILE", help="where to write a page on it with figures and tables, .html")
]
Bytes = Annotated[
    list[str] | None,
    typer.Option(help="of the written file: 200kB, 64KiB, 1.5MB; may be repeated, for a file of each size"),
]
Params = Annotated[int | None, typer.Option(help="parameters left")]
Macs = Annotated[int | None, typer.Option(help="multiplications left for one sample")]
Ram = Annotated[str | None, typer.Option(help="bytes of activations alive at the same time, at most, for one sample")]
KvCache = Annotated[str | None, typer.Option(help="bytes that a decoder keeps of each earlier token")]
LatencyMs = Annotated[
    float | None, typer.Option(help="milliseconds of one sample, measured on this machine: best effort")
]
RemoveFraction = Annotated[
    list[str] | None,
    typer.Option(help="share of all units to remove; or NAME=SHARE for unit sets, * in it for any; may be repeated"),
]
MultipleOf = Annotated[
    list[str] | None,
    typer.Option(help="of which number what is left of a set is a multiple; or NAME=NUMBER for unit sets"),
]
RemoveUnits = Annotated[int | None, typer.Option(help="units to remove")]
MaxLossIncrease = Annotated[float | None, typer.Option(help="rise of the loss allowed")]
MaxAccuracyDrop = Annotated[float | None, typer.Option(help="fall of the accuracy allowed; 0.01 is a point")]
MaxMetricDrop = Annotated[float | None, typer.Option(help="fall of what --metric gives allowed")]
Metric = Annotated[
    str | None,
    typer.Option(
        metavar="package.module:function",
        help="of all outputs and targets: a number, the higher the better, measured where the loss is",
    ),
]
Scope = Annotated[
    Literal["global", "set", "uniform"],
    typer.Option(help="remove-fraction is a share of all units, or of each set; uniform: as many from every layer"),
]
MinUnits = Annotated[int, typer.Option(help="units that each set keeps")]
Protect = Annotated[list[str] | None, typer.Option(help="unit set to leave whole; may be repeated")]
Ranking = Annotated[
    str | None,
    typer.Option(help="single, iterative, quadratic or layerwise; iterative if left out, of large networks layerwise"),
]
Validation = Annotated[str | None, typer.Option(metavar="DATA", help="where loss and accuracy are measured")]
Shortlist = Annotated[
    int | None,
    typer.Option(help="iterative: units evaluated exactly at each step, after compensation; of the oracle by taylor1"),
]
Refresh = Annotated[
    int | None,
    typer.Option(help="removals after which a quadratic ranking begins again, or all weights are fitted again"),
]
Swaps = Annotated[
    bool, typer.Option("--swaps", help="with the quadratic ranking: exchange units as long as that helps")
]
Retrain = Annotated[
    str | None, typer.Option(metavar="package.module:function", help="trains the network it is given, after each round")
]
Rounds = Annotated[int, typer.Option(help="how often to score, remove and retrain")]
NoCompensate = Annotated[bool, typer.Option("--no-compensate", help="leave all other weights as they are, bit by bit")]
Ridge = Annotated[
    float | None, typer.Option(help="how much the weights are held back in that; chosen on the data if left out")
]
Weighting = Annotated[str, typer.Option(help="ggn, or none: whether the loss's curvature weighs samples in that")]
Recalibrate = Annotated[bool, typer.Option("--recalibrate", help="estimate BatchNorm's statistics again")]
AddBias = Annotated[bool, typer.Option("--add-bias", help="give layers without a bias one, to make up with")]
Refine = Annotated[
    str,
    typer.Option(
        help="Gauss-Newton steps on all weights left, after the fit: a number, or auto until they gain no more"
    ),
]
Unlabelled = Annotated[
    str | None,
    typer.Option(metavar="DATA", help="more inputs, which need no y, for the fit at the end and its refinement"),
]
Augment = Annotated[
    str | None,
    typer.Option(
        metavar="package.module:function", help="(inputs, generator) to inputs, changed: more samples for --refine"
    ),
]
Seed = Annotated[int, typer.Option(help="of criteria that draw random numbers")]


def by_set(option: str, values: list[str] | None, number: Callable[[str], Any]) -> Any:
    """Return a number, or numbers by unit set, from what an option gives; None without.

    Args:
        option: The option.
        values: "0.5" alone, or "name=0.5" for any number of sets.
        number: Reads a number.

    Raises:
        ArgumentError: It is neither.
    """
    if not values:
        return None
    parts = [value.rpartition("=") for value in values]
    try:
        if len(parts) == 1 and not parts[0][1]:
            return number(values[0])
        named = {name: number(text) for name, separator, text in parts if separator}
    except ValueError:
        named = {}
    if len(named) != len(values):
        raise ArgumentError(f"{option}: expected one number, or NAME=NUMBER for sets of units; got {' '.join(values)}")
    return named


def print_json(data: dict[str, Any] | list[dict[str, Any]]) -> None:
    """Print one object, or one list of them, on stdout, whatever that was redirected to."""
    typer.echo(json.dumps(data), file=sys.__stdout__)
