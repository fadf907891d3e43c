"""The page of the benchmark: figures and their bars side by side, and how times grow."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from secateur.reporting.plots import STYLES, plain, write_picture
from secateur.text import format_bytes, table
from secateur_experiments.bench.scale.growth import Trend
from secateur_experiments.bench.scale.measure import Row, Settings
from secateur_experiments.bench.scale.rows import ENTRIES, Entry

METHOD = (
    "`job`: the whole of `shrink`, from the network and the data to the proven smaller network (of `wide_resnet50_2`: "
    "`find_units`, `rank` and `cut`). `floor`: what cannot be avoided, done plainly and once: a pass of the data in "
    "which the second moments of each layer's inputs are taken, a factorisation and an inverse of each, the order of "
    "each set's units to its end in closed form, another pass, and one solution for each layer. `memory`: the most "
    "that the process held during the job above model and data. Behind ≤ and ≥ stand the bars; `missed` names the "
    "figures beyond theirs. Each network has a process of its own. Networks of torchvision and timm and the Llama have "
    "random weights."
)
MEASURES = ("floor", "ratio", "seconds", "memory")


def cell(name: str, value: float) -> str:
    """Return a figure as text.

    >>> cell("memory", 1.5e9), cell("ratio", 12.345), cell("cosine", 0.97), cell("seconds", 180.0)
    ('1.5 GB', '12.3', '0.970', '180')
    """
    if name == "memory":
        return format_bytes(int(value))
    return f"{value:.3f}" if value < 1 and name != "floor" else f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def beside_bar(name: str, figures: Mapping[str, float], entry: Entry) -> str:
    """Return a figure and its bar; empty where there is neither.

    >>> beside_bar("ratio", {"ratio": 12.0}, Entry(lambda _: None, {"ratio": 10.0}))
    '12 ≤ 10'
    """
    signs = {"≤": entry.at_most, "≥": entry.at_least}
    bars = [f"{sign} {cell(name, bars[name])}" for sign, bars in signs.items() if name in bars]
    value = [cell(name, figures[name])] if name in figures else []
    return " ".join([*value, *bars])


def figures_table(rows: Sequence[Row], entries: Mapping[str, Entry] = ENTRIES) -> str:
    """Return a table with a line for each network; of one that was not measured the bars alone."""
    return table(
        ["network", "units", "removed", "parameters", "left", *MEASURES, "quality", "missed"],
        [_cells(row, entries[row.network]) for row in rows],
    )


def _cells(row: Row, entry: Entry) -> list[str]:
    counts = [f"{count:,}" if count else "" for count in (row.units, row.removed, row.params, row.left)]
    measures = [beside_bar(name, row.figures, entry) for name in MEASURES]
    qualities = [name for name in {**row.figures, **entry.at_most, **entry.at_least} if name not in MEASURES]
    quality = ", ".join(f"{name} {beside_bar(name, row.figures, entry)}" for name in qualities)
    return [row.network, *counts, *measures, quality, ", ".join(row.missed)]


def line(row: Row, entries: Mapping[str, Entry] = ENTRIES) -> str:
    """Return what was measured of one network, or why it was not, in a line.

    >>> line(Row("MiniLM", figures={"seconds": 80.0, "cosine": 0.98}))
    'MiniLM: seconds 80 ≤ 90, cosine 0.980 ≥ 0.970'
    """
    figures = [f"{name} {beside_bar(name, row.figures, entries[row.network])}" for name in row.figures]
    return f"{row.network}: {row.note or ', '.join(figures)}"


def notes(rows: Sequence[Row]) -> str:
    """Return why networks were not measured, a line for each."""
    return "\n".join(f"- {row.network}: {row.note}" for row in rows if row.note)


def growth_table(trends: Sequence[Trend]) -> str:
    """Return a table of exponents with their bars and of all seconds.

    >>> print(growth_table([Trend("units", {256: 0.5, 512: 2.0}, 2.0, 2.3)]))
    against  exponent     seconds
    units    2.00 ≤ 2.30  256: 0.50, 512: 2.00
    """
    cells = [
        (trend.what, f"{trend.exponent:.2f} ≤ {trend.bar:.2f}",
         ", ".join(f"{size:,}: {time:.2f}" for size, time in trend.seconds.items()))
        for trend in trends
    ]  # fmt: skip
    return table(["against", "exponent", "seconds"], cells)


def text(rows: Sequence[Row], trends: Sequence[Trend]) -> str:
    """Return all tables."""
    parts = [figures_table(rows), notes(rows)] if rows else []
    return "\n\n".join(part for part in [*parts, growth_table(trends) if trends else ""] if part)


def command(only: Sequence[str], quick: bool, settings: Settings) -> str:
    """Return the command that measures the same again.

    >>> command(["MiniLM"], False, Settings(3))
    'secateur bench scale --only MiniLM --runs 3 --out DIR'
    """
    folders = {"--mnist DIR": settings.folders.mnist, "--zoo DIR": settings.folders.shim}
    words = [
        *(f"--only {shlex.quote(name)}" for name in only),
        *(["--quick"] if quick else []),
        f"--runs {settings.runs}",
        *(f"--ranking {name}" for name in [settings.ranking] if name),
        *(option for option, folder in folders.items() if folder),
    ]
    return " ".join(["secateur bench scale", *words, "--out DIR"])


def document(rows: Sequence[Row], trends: Sequence[Trend], command: str, setting: str, picture: str) -> str:
    """Return the whole page, in Markdown.

    Args:
        rows: The networks.
        trends: How times grow, if that was measured.
        command: The one that wrote the page.
        setting: The machine and how often it was measured.
        picture: The name of the file of how times grow.
    """
    parts = ["# Scale: figures", f"Written by the command below. {setting}", f"```\n$ {command}\n```"]
    if rows:
        parts += [METHOD, f"```\n{figures_table(rows)}\n```", notes(rows)]
    if trends:
        parts += [
            "## How times grow",
            "Half of the units of a random dense network go: one layer of so many units, so many layers of 64, two of "
            "256 with so many samples. The exponent is the slope of the line through all times, both in logarithms.",
            f"```\n{growth_table(trends)}\n```",
            f"![Seconds of the job against units, layers and samples]({picture})",
        ]
    return "\n\n".join(part for part in parts if part) + "\n"


def picture(trends: Sequence[Trend], path: str | os.PathLike[str]) -> None:
    """Draw seconds against what grows, both in log scale, a panel for each, beside the growth that is allowed.

    Args:
        trends: What was measured.
        path: Where to write it, .png.

    Raises:
        ArtifactError: The file cannot be written.
    """
    figure = Figure(figsize=(4.2 * len(trends), 3.8), layout="constrained")
    for panel, trend in zip(figure.subplots(1, len(trends), squeeze=False)[0], trends, strict=True):
        sizes, times = list(trend.seconds), list(trend.seconds.values())
        allowed = [times[0] * (size / sizes[0]) ** trend.bar for size in sizes]
        panel.loglog(sizes, allowed, "--", color=STYLES[0][0], label=f"exponent {trend.bar}")
        panel.loglog(sizes, times, "-s", color=STYLES[1][0], label=f"measured, {trend.exponent:.2f}")
        panel.set(xlabel=trend.what, ylabel="seconds", title=f"seconds against {trend.what}")
        panel.set_xticks(sizes, [f"{size:,}" for size in sizes])
        panel.minorticks_off()
        plain(panel)
        panel.legend(frameon=False)
    write_picture(figure, path)
