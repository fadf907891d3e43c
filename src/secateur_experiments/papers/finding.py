"""What one experiment of the papers gave: text, drawings, tables, numbers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from secateur.reporting.page import Picture, Section, Table, svg


class Drawing(NamedTuple):
    """A picture, what it shows in words for those who cannot see it, and its caption."""

    figure: Figure
    alt: str
    caption: str


@dataclass(frozen=True)
class Finding:
    """One figure or table of the papers, made again.

    Attributes:
        title: What it is.
        text: Paragraphs.
        drawings: Pictures.
        tables: Tables.
        numbers: Plain data, for `--json` and for the claims.
    """

    title: str
    text: tuple[str, ...] = ()
    drawings: tuple[Drawing, ...] = ()
    tables: tuple[Table, ...] = ()
    numbers: dict[str, Any] = field(default_factory=dict)

    def section(self, name: str) -> Section:
        """Of a report."""
        pictures = [Picture(svg(one.figure), one.alt, one.caption) for one in self.drawings]
        return Section(name, self.title, self.text, pictures, self.tables)
