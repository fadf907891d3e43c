"""The page of what compensation is worth: tables and a picture of test accuracy against the share removed."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from secateur.reporting.plots import STYLES, plain, write_picture
from secateur.text import table

METHOD = (
    "Units are removed in the order of each way, and nothing is trained. Where it says `compensated`, every layer that "
    "summed removed units up is fitted at the cut to what it gave in the original network: least squares on the "
    "calibration digits, layer after layer, each on what the smaller network before it delivers. `obs` orders units by "
    "the rise of the loss that is left after such a fit, and fits after each removal."
)
NOTES = (
    "`within 1pt`: the largest share of the units removed, in percent, with test accuracy at no point up to there more "
    "than a point below the start; it is measured at every 1 % of the units of logistic networks and at every 2 % of "
    "those of the others, up to 90 %. Left out: not measured, for accuracy had fallen by more than 15 points before.",
    "`order s`: seconds for the whole order, on so many threads as said above, without measuring accuracy.",
    "`trained from scratch`: networks with that share of each layer's neurons left out, trained as the whole one was.",
)
COSTS = (
    "A pass: from the network and the data to the second moments of what its layers take, beside the network's own "
    "forward pass over the same data, in turns; medians. Then units of the last network, with its moments at hand: "
    "each is the one that costs least among all that are left, and the weights are fitted anew after each; the loss is "
    "not measured in between. The weights and the data of that network are random."
)
DROP = 0.17  # below the start: the lowest accuracy that a picture shows


@dataclass(frozen=True)
class Section:
    """One network.

    Attributes:
        name: Its heading.
        about: Its units, its training, its data.
        rows: One for each way: `way`, `start`, `accuracy` at each tenth, `within_1pt`, `seconds`.
        ratio: What the best compensated way removes within a point, to the best without; None if unknown.
        lines: Label → pairs of the share removed, in percent, and the test accuracy.
    """

    name: str
    about: str
    rows: Sequence[Mapping[str, Any]]
    ratio: float | None
    lines: Mapping[str, Sequence[tuple[float, float]]]


def accuracies(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a table with a line for each way.

    >>> print(accuracies([{"way": "a", "start": 0.9, "accuracy": [None], "within_1pt": 22.0, "seconds": 1.234}]))
    way   start  10 %  within 1pt  order s
    a    0.9000                22      1.2
    """
    tenths = [f"{10 * n} %" for n in range(1, len(rows[0]["accuracy"]) + 1)]
    cells = [
        [row["way"], *(_cell(value, ".4f") for value in (row["start"], *row["accuracy"])),
         _cell(row["within_1pt"], ".3g"), _cell(row["seconds"], ".1f")]
        for row in rows
    ]  # fmt: skip
    return table(["way", "start", *tenths, "within 1pt", "order s"], cells)


def _cell(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def text(section: Section) -> str:
    """Return heading, what it is, table and ratio of one network."""
    parts = [f"## {section.name}", section.about, f"```\n{accuracies(section.rows)}\n```"]
    if section.ratio is not None:
        parts.append(f"`obs` with compensation removes {section.ratio:.2f} times the share of the best way without.")
    return "\n\n".join(parts)


def costs(spent: Sequence[Mapping[str, Any]]) -> str:
    """Return what was timed, as a section.

    >>> print(costs([{"task": "net", "seconds": 0.5, "forward": 0.25, "ratio": 2.0}]))
    ## What it costs
    <BLANKLINE>
    ```
    task  seconds  forward pass  ratio
    net     0.500         0.250    2.0
    ```
    """
    headings = ["task", "seconds", "forward pass", "ratio"]
    cells = [
        [cost["task"], f"{cost['seconds']:.3f}", f"{cost['forward']:.3f}", f"{cost['ratio']:,.1f}"] for cost in spent
    ]  # fmt: skip
    return f"## What it costs\n\n```\n{table(headings, cells)}\n```"


def document(
    sections: Sequence[Section], command: str, setting: str, picture: str, spent: Sequence[Mapping[str, Any]] = ()
) -> str:
    """Return the whole page, in Markdown.

    Args:
        sections: One for each network.
        command: That wrote it.
        setting: Machine, data, seeds, in a sentence or two.
        picture: The name of its file.
        spent: What was timed, if anything: `task`, `seconds`, `forward`, `ratio`.
    """
    notes = "\n".join(f"- {note}" for note in NOTES)
    parts = [
        "# Compensation: figures",
        f"Written by the command below. {setting}",
        f"```\n$ {command}\n```",
        METHOD,
        f"![Test accuracy against the share of units removed]({picture})",
        *map(text, sections),
        *([f"{costs(spent)}\n\n{COSTS}"] if spent else []),
        f"## Notes\n\n{notes}",
    ]
    return "\n\n".join(parts) + "\n"


def picture(sections: Sequence[Section], path: str | os.PathLike[str]) -> None:
    """Draw a panel for each network, test accuracy against the share of units removed, one legend below.

    Args:
        sections: One for each network.
        path: Where to write it, .png.

    Raises:
        ArtifactError: The file cannot be written.
    """
    columns = min(3, len(sections))
    across = -(-len(sections) // columns)
    figure = Figure(figsize=(4.4 * columns + 0.4, 3.6 * across + 1.1), layout="constrained")
    panels = list(figure.subplots(across, columns, squeeze=False).flat)
    labels = list(dict.fromkeys(label for section in sections for label in section.lines))
    for section, panel in zip(sections, panels, strict=False):
        _draw(panel, section, labels)
    for panel in panels[len(sections) :]:
        panel.set_axis_off()
    handles = {name: h for p in panels for h, name in zip(*p.get_legend_handles_labels(), strict=True)}
    order = [*labels, *(name for name in handles if name not in labels)]
    figure.legend([handles[name] for name in order], order, loc="outside lower center", ncols=3, frameon=False)
    write_picture(figure, path)


def _draw(panel: Axes, section: Section, labels: Sequence[str]) -> None:
    start = max(points[0][1] for points in section.lines.values())
    panel.axhline(start - 0.01, color="black", linestyle="--", linewidth=0.9, label="one point below the start")
    for label, points in section.lines.items():
        i = labels.index(label)
        colour, dash, marker = STYLES[i % len(STYLES)]
        shares, values = zip(*points, strict=True)
        panel.plot(
            [share / 100 for share in shares], values, dash, color=colour, label=label, linewidth=1.6,
            zorder=3 - 0.1 * i, marker=marker, markersize=5, markevery=(0.03 * (i % 3), 0.1),
        )  # fmt: skip
    panel.set(title=section.name, xlabel="share of units removed", ylabel="test accuracy")
    panel.set(xlim=(0, 0.92), ylim=(start - DROP, start + 0.01))
    panel.xaxis.set_major_formatter(PercentFormatter(1.0))
    plain(panel)
