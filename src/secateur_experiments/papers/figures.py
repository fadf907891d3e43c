"""The papers' figures, drawn from numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from secateur.reporting.plots import STYLES, matrix, plain

RED = "#D55E00"
WAYS = ("oracle", "taylor1", "taylor2", "hessian", "quadratic", "obs, compensated", "trained from scratch")
Values = Sequence[float]


class Band(NamedTuple):
    """Values over the share removed: the median of several networks, the least and the largest."""

    shares: Values
    middle: Values
    low: Values
    high: Values


def bands(curves: Sequence[Sequence[Values]], total: int) -> list[Band]:
    """Return for each quantity the median over networks of equal sizes, and the spread, after 0, 1, 2 ... removals.

    Args:
        curves: Quantity → network → values.
        total: Units there were.
    """
    spread = []
    for several in curves:
        length = min(map(len, several))
        values = np.array([curve[:length] for curve in several])
        shares = (np.arange(length) / total).tolist()
        rows = (np.median(values, 0), values.min(0), values.max(0))
        spread.append(Band(shares, *(row.tolist() for row in rows)))
    return spread


def degradation(
    title: str, lines: Mapping[str, Sequence[Band]], error: str, points: Mapping[str, Sequence[Band]] | None = None
) -> Figure:
    """Draw error (left) and accuracy (right) against the share of units removed; bands from the least to the largest.

    Args:
        title: Above the picture.
        lines: Label → error, accuracy.
        error: What the error is, with its unit.
        points: Likewise, drawn as single points.
    """
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    panels = figure.subplots(1, 2)
    for label, pair in {**lines, **(points or {})}.items():
        for panel, values in zip(panels, pair, strict=True):
            band(panel, values, label, joined=label in lines)
    panels[0].set(ylabel=error, title="error")
    panels[1].set(ylabel="accuracy", title="accuracy", ylim=(0, 1.02))
    for panel in panels:
        shares(panel)
    return with_legend(figure, panels[0], title)


def band(panel: Axes, values: Band, label: str, joined: bool = True) -> None:
    """Draw a line with its spread, or points with theirs: one way looks the same in all figures.

    Args:
        panel: Where.
        values: What.
        label: One of `WAYS`.
        joined: Whether the points are joined.
    """
    i = WAYS.index(label)
    colour, dash, marker = STYLES[i % len(STYLES)]
    every = max(1, len(values.shares) // 9) if joined else 1
    panel.plot(
        values.shares, values.middle, linestyle=dash if joined else "none", color=colour, label=label, marker=marker,
        markersize=5, markevery=(i % every, every), linewidth=1.6, zorder=3 - 0.1 * i,
    )  # fmt: skip
    if joined:
        panel.fill_between(values.shares, values.low, values.high, color=colour, alpha=0.13, linewidth=0)
    else:
        below, above = np.subtract(values.middle, values.low), np.subtract(values.high, values.middle)
        panel.errorbar(values.shares, values.middle, [below, above], fmt="none", ecolor=colour, elinewidth=1)


def shares(panel: Axes) -> None:
    """Show a share of the units along x."""
    panel.set(xlabel="share of hidden units removed", xlim=(0, 1))
    panel.xaxis.set_major_formatter(PercentFormatter(1.0))
    plain(panel)


def with_legend(figure: Figure, panel: Axes, title: str) -> Figure:
    """Put a title above, and a panel's legend below."""
    figure.suptitle(title, fontweight="bold")
    handles, labels = panel.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    return figure


def surfaces(title: str, gains: Values, losses: Mapping[int, Values], error: str) -> Figure:
    """Draw the error against the gain of the unit that goes next, in log (left) and real scale (right).

    Args:
        title: Above the picture.
        gains: The values of α.
        losses: Units removed so far → the error at each gain.
        error: What it is, with its unit.
    """
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    panels = figure.subplots(1, 2)
    colours, scale = colormaps["viridis_r"], Normalize(0, max(max(losses), 1))
    for panel, kind in zip(panels, ("log", "linear"), strict=True):
        for removed, values in losses.items():
            panel.plot(gains, values, color=colours(scale(removed)), linewidth=1.5, label=f"{removed}")
        panel.axvline(1, color=RED, linewidth=1.2, linestyle="--", label="α = 1: as learned")
        panel.set(xlabel="gain α of the unit's output", ylabel=error, yscale=kind, title=f"{kind} scale", xlim=(0, 10))
        plain(panel)
    panels[1].set_title("real scale")
    figure.suptitle(title, fontweight="bold")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside right center", frameon=False, title="units gone before", fontsize="small",
    )  # fmt: skip
    return figure


def intuition(title: str, gains: Values, lines: Mapping[str, Values], error: str) -> Figure:
    """Draw a unit's true error and its expansions against its gain; the distance at α = 0 is what its removal costs.

    Args:
        title: Above the picture.
        gains: The values of α, from 0.
        lines: Label → error at each.
        error: What it is, with its unit.
    """
    figure = Figure(figsize=(6.6, 4.6), layout="constrained")
    panel = figure.subplots()
    for i, (label, values) in enumerate(lines.items()):
        colour = STYLES[i][0]
        panel.plot(gains, values, ("-", "-.", "--")[i % 3], color=colour, label=label, linewidth=2.2 - 0.3 * i)
        panel.plot([gains[0]], [values[0]], "o", color=colour, markersize=6, clip_on=False, zorder=4)
    panel.axvline(1, color=RED, linewidth=1.2, linestyle=":", label="α = 1: as learned")
    panel.set(xlabel="gain α of the unit's output; 0: removed", ylabel=error, xlim=(gains[0], gains[-1]))
    plain(panel)
    return with_legend(figure, panel, title)


def calibration(title: str, panels: Mapping[str, tuple[Values, Values]], unit: str) -> Figure:
    """Draw the measured against the predicted rise of the error, a point for each removal; on the line they agree.

    Args:
        title: Above the picture.
        panels: Criterion → predicted, measured.
        unit: What both are in.
    """
    figure = Figure(figsize=(3.3 * len(panels), 3.9), layout="constrained")
    axes = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
    largest = max(abs(value) for pair in panels.values() for values in pair for value in values)
    small = 1e-3 * largest or 1.0  # nothing at all is drawn on a line
    for i, (panel, (name, (predicted, measured))) in enumerate(zip(axes, panels.items(), strict=True)):
        panel.plot([-largest, largest], [-largest, largest], color="black", linewidth=1, linestyle="--")
        panel.plot(predicted, measured, ".", color=STYLES[1 + i % 4][0], markersize=4, alpha=0.6)
        panel.set_xscale("symlog", linthresh=small)
        panel.set_yscale("symlog", linthresh=small)
        ticks = [-largest, 0, largest]
        panel.set(title=name, xlabel="predicted rise", xticks=ticks, yticks=ticks)
        for axis in (panel.xaxis, panel.yaxis):
            axis.set_major_formatter(lambda value, _: f"{value:.0e}" if value else "0")
            axis.minorticks_off()
        plain(panel)
    axes[0].set_ylabel(f"measured rise, {unit}")
    figure.suptitle(title, fontweight="bold")
    return figure


def lines_over_shares(title: str, panels: Mapping[str, Mapping[str, tuple[Values, Values]]]) -> Figure:
    """Draw panels of lines against the share of units removed.

    Args:
        title: Above the picture.
        panels: What is drawn → label → shares, values.
    """
    figure = Figure(figsize=(5 * len(panels), 4.4), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for panel, (what, lines) in zip(axes, panels.items(), strict=True):
        for i, (label, (x, y)) in enumerate(lines.items()):
            colour, dash, marker = STYLES[1 + i % (len(STYLES) - 1)]
            panel.plot(x, y, dash, color=colour, marker=marker, markersize=4, label=label)
        shares(panel)
        panel.set(ylabel=what)
    return with_legend(figure, axes[0], title)


def heat_maps(title: str, maps: Mapping[str, tuple[Sequence[Values], Sequence[int]]], label: str) -> Figure:
    """Draw matrices with values from −1 to 1, blue and red; lines between unit sets.

    Args:
        title: Above the picture.
        maps: Network → matrix, sizes of its unit sets.
        label: Of the colours.
    """
    figure = Figure(figsize=(5.2 * len(maps) + 0.8, 4.8), layout="constrained")
    axes = figure.subplots(1, len(maps), squeeze=False)[0]
    for panel, (name, (values, sizes)) in zip(axes, maps.items(), strict=True):
        image = matrix(panel, values, sizes)
        panel.set(title=name, xlabel="unit", ylabel="unit")
    figure.colorbar(image, ax=list(axes), label=label, shrink=0.85)
    figure.suptitle(title, fontweight="bold")
    return figure
