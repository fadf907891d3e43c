"""Pictures, drawn without any global state of matplotlib's."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from tempfile import TemporaryFile
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import PercentFormatter
from torch import Tensor

from secateur.arguments import require_path
from secateur.artifacts.safetensors import whole_file
from secateur.errors import ArgumentError, ArtifactError

# Okabe and Ito's colours, told apart by people with any colour vision, and a dash and a marker for print.
STYLES = (
    ("#000000", "-", "o"),
    ("#0072B2", "-", "s"),
    ("#D55E00", "-", "^"),
    ("#009E73", "-", "D"),
    ("#E69F00", "--", "v"),
    ("#CC79A7", "--", "P"),
    ("#56B4E9", ":", "X"),
    ("#882255", "-.", "<"),  # and three more that differ from them in brightness
    ("#999999", ":", "*"),
    ("#332288", "-", "p"),
)
ORDER = ("oracle", "hessian", "taylor2", "taylor1", "activation", "magnitude", "random", "ggn", "fisher", "obs")


def degradation(
    curves: Mapping[str, Mapping[str, Sequence[Any]]],
    total: int,
    title: str,
    path: str | os.PathLike[str],
    error: str = "mean loss",
) -> None:
    """Error and accuracy against the share of units removed (003 figures 2, 3, 7, 8): a row for each ranking.

    Args:
        curves: "criterion/ranking" → lists `removed`, `loss`, `accuracy`.
        total: Units there were.
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
    for ranking, panels in zip(rankings, grid, strict=True):
        chosen = {name.split("/")[0]: curve for name, curve in curves.items() if name.endswith(f"/{ranking}")}
        for panel, (what, label) in zip(panels, (("loss", error), ("accuracy", "accuracy")), strict=True):
            _draw(panel, {name: chosen[name] for name in criteria if name in chosen}, criteria, what, total)
            panel.set(title=f"{ranking} ranking", ylabel=label)
    for panel in grid[-1]:
        panel.set_xlabel("share of hidden units removed")
        panel.xaxis.set_major_formatter(PercentFormatter(1.0))
    figure.suptitle(title, fontweight="bold")
    lines, names = grid[0][0].get_legend_handles_labels()
    figure.legend(lines, names, loc="outside lower center", ncols=5, frameon=False)
    write(figure, path)


def growth(times: Mapping[int, float], slope: float, path: str | os.PathLike[str]) -> None:
    """Seconds for all K saliencies of a layer against K, both in log scale, beside a line of slope 1.

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
    write(figure, path)


def heat_map(correlations: Tensor, sets: Mapping[str, int], title: str, path: str | os.PathLike[str]) -> None:
    """How units depend on each other, −1 … 1: blue and red, white for not at all; lines between unit sets.

    Args:
        correlations: From `secateur.saliency.interactions.correlation` [K, K].
        sets: Unit set → its units, in the matrix's order.
        title: Above the picture.
        path: Where to write it, as PNG.

    Raises:
        ArtifactError: The file cannot be written.
    """
    figure = Figure(figsize=(7.4, 6.4), layout="constrained")
    panel = figure.subplots()
    image = matrix(panel, correlations.tolist(), list(sets.values()))
    ends = list(itertools.accumulate(sets.values(), initial=0))
    middles = [(a + b - 1) / 2 for a, b in itertools.pairwise(ends)]
    panel.set_xticks(middles, list(sets), rotation=45 if len(sets) > 3 else 0)
    panel.set_yticks(middles, list(sets))
    panel.set(title=title, xlabel="units by set", ylabel="units by set")
    figure.colorbar(image, label="correlation in the loss, $H_{jk} / \\sqrt{|H_{jj} H_{kk}|}$")
    write(figure, path)


def matrix(panel: Axes, values: Sequence[Sequence[float]], sizes: Sequence[int]) -> AxesImage:
    """Numbers from −1 to 1 in blue and red, white for 0; lines between unit sets of these sizes."""
    for end in list(itertools.accumulate(sizes))[:-1]:
        panel.axhline(end - 0.5, color="black", linewidth=0.8)
        panel.axvline(end - 0.5, color="black", linewidth=0.8)
    return panel.imshow(values, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")


def plain(panel: Axes) -> None:
    """A light grid, and no frame at the top and on the right."""
    panel.grid(alpha=0.3)
    panel.spines[["top", "right"]].set_visible(False)


def check_picture(path: str | os.PathLike[str]) -> None:
    """Refuse a path that no picture can be written to, before any work is done for it.

    Raises:
        ArgumentError: It ends in something else than .png.
        ArtifactError: Its folder does not exist or cannot be written to.
    """
    check_file(path, "pictures", ".png")


def check_file(path: str | os.PathLike[str], what: str, *suffixes: str) -> None:
    """Refuse a path that no such file can be written to, before any work is done for it.

    Args:
        path: Where to write.
        what: Such files, in the plural.
        suffixes: How their names may end, in small letters.

    Raises:
        ArgumentError: It is no path, or ends in something else.
        ArtifactError: Its folder does not exist or cannot be written to.
    """
    path = require_path(path)
    if path.suffix.lower() not in suffixes:
        found = path.suffix or "no extension"
        raise ArgumentError(f"{path}: {what} are written as {' or '.join(suffixes)}, not as {found!r}")
    if path.is_dir():
        raise ArtifactError(f"{path}: cannot be written, it is a folder")
    try:
        TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be written ({error.strerror})") from error


def write(figure: Figure, path: str | os.PathLike[str]) -> None:
    """As PNG, whole or not at all.

    Raises:
        ArtifactError: The file cannot be written.
    """
    with whole_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130, metadata={"Software": None})


def _draw(
    panel: Axes, curves: Mapping[str, Mapping[str, Sequence[Any]]], criteria: Sequence[str], what: str, total: int
) -> None:
    for name in curves:
        i = criteria.index(name)  # the same style in every panel
        colour, dash, marker = STYLES[i % len(STYLES)]
        x = [removed / total for removed in curves[name]["removed"]]
        panel.plot(
            x, curves[name][what], dash, color=colour, label=name, linewidth=1.6, zorder=3 - 0.1 * i,
            marker=marker, markersize=5, markevery=(i * total // 70, max(1, total // 10)),
        )  # fmt: skip
    panel.set_xlim(0, 1)
    plain(panel)
