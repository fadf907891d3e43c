"""What the demonstration shows of a network: JSON, text with a table at each tenth, a picture of all curves."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from secateur.artifacts.measure import Sizes
from secateur.reporting.plots import STYLES, plain, write_picture
from secateur.result import Result
from secateur.text import format_bytes, table
from secateur_experiments.curves import TENTHS, Curve, units_of

ORDER = ("oracle", "hessian", "taylor2", "taylor1", "activation", "magnitude", "random", "ggn", "fisher", "obs")
What = Literal["loss", "accuracy"]


@dataclass(frozen=True)
class Report:
    """What became of one network.

    Attributes:
        name: Its widths.
        units: Hidden units it had.
        curves: "criterion/ranking" → loss and accuracy on the test digits.
        result: The best plan, cut to the byte budget.
        best: Which that is: the least loss on the training digits.
        artifact: The written file.
        reloaded_difference: Between the outputs here and those of the file in a fresh process.
        picture: The plot of the curves.
    """

    name: str
    units: int
    curves: Mapping[str, Curve]
    result: Result
    best: str
    artifact: Path
    reloaded_difference: float
    picture: Path

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "name": self.name,
            "before": _cost(self.result.before),
            "after": _cost(self.result.after),
            "best": self.best,
            "curves": {
                name: {"removed": list(curve.removed), "loss": list(curve.loss), "accuracy": list(curve.accuracy)}
                for name, curve in self.curves.items()
            },
            "verified": True,  # or there would be no result
            "max_difference": self.result.max_difference,
            "reloaded_difference": self.reloaded_difference,
            "artifact": {"path": str(self.artifact), "bytes": self.artifact.stat().st_size},
            "picture": str(self.picture),
        }

    def __str__(self) -> str:
        before, after = self.result.before, self.result.after
        return "\n".join(
            [
                f"{self.name}: {before.params:,} parameters, test accuracy {before.accuracy:.3f}",
                "",
                at_tenths(self.curves, "accuracy", "accuracy on test digits, by share of units removed"),
                "",
                at_tenths(self.curves, "loss", "squared error per test digit, by share of units removed"),
                "",
                f"cut to half the bytes by {self.best}, {len(self.result.plan.steps)} of {self.units} units removed:",
                f"  {before.params:,} → {after.params:,} parameters, "
                f"{format_bytes(before.bytes)} → {format_bytes(after.bytes)}, "
                f"accuracy {before.accuracy:.3f} → {after.accuracy:.3f}",
                f"  cut and gated network differ by {self.result.max_difference:.1e}, "
                f"file loaded in a fresh process by {self.reloaded_difference:.1e}",
                f"  file     {self.artifact}",
                f"  picture  {self.picture}",
            ]
        )


def _cost(sizes: Sizes) -> dict[str, Any]:
    return {name: value for name, value in asdict(sizes).items() if name in ("params", "bytes", "loss", "accuracy")}


def at_tenths(curves: Mapping[str, Curve], what: What, title: str) -> str:
    """Return a table with a row for each curve and a column for each tenth of the units removed.

    >>> print(at_tenths({"a/single": Curve([0, 1], [1.0, 0.5], 2)}, "accuracy", "accuracy"))
    accuracy
    criterion/ranking   10 %   20 %   30 %   40 %   50 %  60 %  70 %  80 %  90 %
    a/single           0.500  0.500  0.500  0.500  0.500     –     –     –     –
    """
    rows = [
        (name, *(_number(curve.at(units_of(tenth, curve.total), what)) for tenth in TENTHS))
        for name, curve in curves.items()
    ]
    return table(["criterion/ranking", *(f"{tenth} %" for tenth in TENTHS)], rows, title)


def _number(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "–"


def degradation(
    curves: Mapping[str, Curve], title: str, path: str | os.PathLike[str], error: str = "mean loss"
) -> None:
    """Draw error and accuracy against the share of units removed (003 figures 2, 3, 7, 8): a row for each ranking.

    Args:
        curves: By "criterion/ranking".
        title: Above the picture.
        path: Where to write it, as PNG.
        error: What the loss is, with its unit.

    Raises:
        ArtifactError: The file cannot be written.
    """
    criteria, rankings = (list(dict.fromkeys(name.split("/")[i] for name in curves)) for i in (0, 1))
    criteria.sort(key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))
    figure = Figure(figsize=(10, 0.8 + 3.6 * len(rankings)), layout="constrained")
    grid = figure.subplots(len(rankings), 2, sharex=True, sharey="col", squeeze=False)
    sides: tuple[tuple[What, str], ...] = (("loss", error), ("accuracy", "accuracy"))
    for ranking, panels in zip(rankings, grid, strict=True):
        chosen = {name.split("/")[0]: curve for name, curve in curves.items() if name.endswith(f"/{ranking}")}
        for panel, (what, label) in zip(panels, sides, strict=True):
            _draw(panel, {name: chosen[name] for name in criteria if name in chosen}, criteria, what)
            panel.set(title=f"{ranking} ranking", ylabel=label)
    for panel in grid[-1]:
        panel.set_xlabel("share of hidden units removed")
        panel.xaxis.set_major_formatter(PercentFormatter(1.0))
    figure.suptitle(title, fontweight="bold")
    lines, names = grid[0][0].get_legend_handles_labels()
    figure.legend(lines, names, loc="outside lower center", ncols=5, frameon=False)
    write_picture(figure, path)


def _draw(panel: Axes, curves: Mapping[str, Curve], criteria: Sequence[str], what: What) -> None:
    for name, curve in curves.items():
        i = criteria.index(name)  # the same style in every panel
        colour, dash, marker = STYLES[i % len(STYLES)]
        panel.plot(
            [removed / curve.total for removed in curve.removed], getattr(curve, what), dash, color=colour, label=name,
            linewidth=1.6, zorder=3 - 0.1 * i, marker=marker, markersize=5,
            markevery=(i * curve.total // 70, max(1, curve.total // 10)),
        )  # fmt: skip
    panel.set_xlim(0, 1)
    plain(panel)
