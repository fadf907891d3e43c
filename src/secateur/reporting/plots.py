"""Pictures, drawn without any global state of matplotlib's."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from torch import Tensor

from secateur.artifacts.safetensors import whole_file

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


def heat_map(correlations: Tensor, sets: Mapping[str, int], title: str, path: str | os.PathLike[str]) -> None:
    """Draw how units depend on each other, −1 … 1: blue and red, white for not at all; lines between unit sets.

    Args:
        correlations: The correlations of `secateur.saliency.interactions.correlation` [K, K].
        sets: Unit set → the number of its units, in the matrix's order.
        title: The text above the picture.
        path: The file to write, a PNG.

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
    write_picture(figure, path)


def matrix(panel: Axes, values: Sequence[Sequence[float]], sizes: Sequence[int]) -> AxesImage:
    """Draw numbers from −1 to 1 in blue and red, white for 0; lines between unit sets of these sizes."""
    for end in list(itertools.accumulate(sizes))[:-1]:
        panel.axhline(end - 0.5, color="black", linewidth=0.8)
        panel.axvline(end - 0.5, color="black", linewidth=0.8)
    return panel.imshow(values, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")


def plain(panel: Axes) -> None:
    """Give a panel a light grid, and no frame at the top and on the right."""
    panel.grid(alpha=0.3)
    panel.spines[["top", "right"]].set_visible(False)


def write_picture(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write the figure as PNG, whole or not at all.

    Raises:
        ArtifactError: The file cannot be written.
    """
    with whole_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130, metadata={"Software": None})
