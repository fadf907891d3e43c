"""The picture of the loss against the bytes of the written file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Protocol

from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from secateur.process_state import one_at_a_time
from secateur.reporting.plots import STYLES, plain, write_picture


class Point(Protocol):
    """A network along an order of removals."""

    @property
    def bytes(self) -> int:
        """The size of its file."""

    @property
    def loss(self) -> float | None:
        """Its loss; None where it was not measured."""


@one_at_a_time  # Matplotlib's settings are the process's
def loss_by_bytes(
    order: Sequence[Point], files: Sequence[tuple[int, float | None]], path: str | os.PathLike[str]
) -> None:
    """Draw the loss against the bytes: a line along an order of removals, a dot for each file.

    Args:
        order: The networks along the order; those without a loss are left out.
        files: The bytes and the loss of each file that was written.
        path: The file to write, a PNG.

    Raises:
        ArtifactError: The file cannot be written.
    """
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    panel = figure.subplots()
    line = [(point.bytes, point.loss) for point in order if point.loss is not None]
    dots = [(size, loss) for size, loss in files if loss is not None]
    for points, style, label in ((line, "-", "along the order"), (dots, "o", "written")):
        if points:
            panel.plot(*zip(*points, strict=True), style, color=STYLES[1 if style == "-" else 2][0], label=label)
    panel.set(xlabel="bytes as .safetensors", ylabel="loss", title="Loss against the size of the file")
    panel.xaxis.set_major_formatter(EngFormatter("B"))
    plain(panel)
    if line or dots:
        panel.legend(frameon=False)
    write_picture(figure, path)
