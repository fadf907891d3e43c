"""What one experiment of the papers gave: text, drawings, tables, numbers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from secateur.reporting.page import Picture, Section, Table, svg, text_of
from secateur.text import table


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
        """Return it as a section of a report, under this name."""
        pictures = [Picture(svg(drawing.figure), drawing.alt, drawing.caption) for drawing in self.drawings]
        return Section(name, self.title, self.text, pictures, self.tables)

    def __str__(self) -> str:
        tables = [table(list(t.columns), [list(map(text_of, row)) for row in t.rows], t.caption) for t in self.tables]
        return "\n\n".join([f"# {self.title}", *tables])
