"""Pictures of how networks learn by several optimisers, and of how times grow."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from secateur.reporting.plots import STYLES, plain, write_picture


def training(
    curves: Mapping[str, Mapping[str, Sequence[Any]]],
    title: str,
    path: str | os.PathLike[str],
    error: str = "mean training loss",
) -> None:
    """Draw training loss, in log scale, and test accuracy against the step.

    Args:
        curves: Optimiser → lists `step`, `loss`, `accuracy`.
        title: Above the picture.
        path: Where to write it, .png.
        error: What the loss is, with its unit.

    Raises:
        ArtifactError: The file cannot be written.
    """
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    panels = figure.subplots(1, 2, sharex=True)
    for panel, what, label in zip(panels, ("loss", "accuracy"), (error, "test accuracy"), strict=True):
        for i, (name, curve) in enumerate(curves.items()):
            colour, dash, marker = STYLES[i % len(STYLES)]
            every = max(1, len(curve["step"]) // 7)
            panel.plot(
                curve["step"], curve[what], dash, color=colour, label=name, linewidth=1.6,
                marker=marker, markersize=5, markevery=(i % every, every),
            )  # fmt: skip
        panel.set(xlabel="steps", ylabel=label, title=f"{what} against steps")
        plain(panel)
    panels[0].set_yscale("log")
    panels[1].set_ylim(0, 1)
    figure.suptitle(title, fontweight="bold")
    lines, names = panels[0].get_legend_handles_labels()
    figure.legend(lines, names, loc="outside lower center", ncols=3, frameon=False)
    write_picture(figure, path)


def growth(times: Mapping[int, float], slope: float, path: str | os.PathLike[str]) -> None:
    """Draw seconds for all K saliencies of a layer against K, both in log scale, beside a line of slope 1.

    Args:
        times: By K.
        slope: Of the line through them.
        path: Where to write it, as PNG.

    Raises:
        ArtifactError: The file cannot be written.
    """
    figure = Figure(figsize=(6, 4.2), layout="constrained")
    panel = figure.subplots()
    first = next(iter(times))
    straight = [times[first] * width / first for width in times]
    panel.loglog(list(times), straight, "--", color=STYLES[0][0], label="in proportion to K")
    panel.loglog(list(times), list(times.values()), "-s", color=STYLES[1][0], label=f"measured, slope {slope:.2f}")
    panel.set(xlabel="hidden units K", ylabel="seconds", title="All exact saliencies of 784-K-10")
    panel.set_xticks(list(times), [str(width) for width in times])
    panel.minorticks_off()
    plain(panel)
    panel.legend(frameon=False)
    write_picture(figure, path)
