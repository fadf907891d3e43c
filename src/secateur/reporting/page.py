"""Reports as one HTML file that needs nothing else: no script, no font, no request."""

from __future__ import annotations

import io
import os
import platform
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import matplotlib
import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from matplotlib.collections import Collection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from secateur.artifacts.safetensors import whole_file
from secateur.errors import ArgumentError
from secateur.reporting.paths import check_page

Cell = str | int | float | None
OWN = ("summary", "settings", "environment")  # the sections that every page has
BROKEN = 40  # characters of a cell, above which its column has lines
WIDE = 1.7  # times as wide as high: such a picture has a row of its own
LONG = 150_000  # characters of a picture, so that 25 of them stay below 5 MB


@dataclass(frozen=True)
class Picture:
    """A picture with what it says in words.

    Attributes:
        svg: The picture, as `svg` returns it.
        alt: The text for readers who do not see it.
        caption: The text below it.

    Raises:
        ArgumentError: It is no inline SVG, or has no words.
    """

    svg: str
    alt: str
    caption: str

    def __post_init__(self) -> None:
        if not self.svg.startswith("<svg "):
            raise ArgumentError(f"Picture: svg must be what secateur.reporting.page.svg returns, got {self.svg[:20]!r}")
        if not self.alt.strip():
            raise ArgumentError(f"Picture: alt must say what is to be seen, got {self.alt!r}")

    @property
    def wide(self) -> bool:
        """Whether it needs the page's width."""
        size = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', self.svg)
        return size is not None and float(size[1]) > WIDE * float(size[2])


@dataclass(frozen=True)
class Table:
    """Rows under headings; the first cell of a row is its heading, numbers are aligned to the right.

    Attributes:
        columns: The headings.
        rows: The cells; whole numbers are shown with all digits, others with four, None as a dash.
        caption: The text above it.
        note: The text below it.

    Raises:
        ArgumentError: A row has not a cell for each column.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str
    note: str = ""

    def __post_init__(self) -> None:
        for n, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise ArgumentError(f"Table: row {n} has {len(row)} cells for {len(self.columns)} columns: {row!r}")

    @property
    def kinds(self) -> list[str]:
        """The kind of each column: "" for numbers, "t" for text, "t long" for text that is broken into lines."""
        columns = list(zip(*self.rows, strict=True)) or [()] * len(self.columns)
        words = [[len(cell) for cell in column if isinstance(cell, str)] for column in columns]
        return [("t long" if max(lengths) > BROKEN else "t") if lengths else "" for lengths in words]


@dataclass(frozen=True)
class Section:
    """A heading and the content below it.

    Attributes:
        name: The name for links to it: small letters, digits and hyphens.
        title: The heading.
        text: The paragraphs.
        pictures: The pictures, below the paragraphs.
        tables: The tables, at the end; tables of more than 40 rows are folded up.
    """

    name: str
    title: str
    text: Sequence[str] = ()
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()


@dataclass(frozen=True)
class Page:
    """A whole report.

    Attributes:
        title: The title of the page.
        summary: The labels and values at the top.
        settings: The settings that led to the results.
        environment: The machine and libraries, as `environment` returns them.
        sections: The sections between summary and settings.

    Raises:
        ArgumentError: A section's name cannot be linked to, or is there twice.
    """

    title: str
    summary: Sequence[tuple[str, str]]
    settings: Mapping[str, str]
    environment: Mapping[str, str]
    sections: Sequence[Section] = ()

    def __post_init__(self) -> None:
        for name, times in Counter([*OWN, *(section.name for section in self.sections)]).items():
            if times > 1:
                raise ArgumentError(f"Page: {times} sections are named {name!r}; every page has {', '.join(OWN)}")
            if not re.fullmatch(r"[a-z][a-z0-9-]*", name):
                raise ArgumentError(f"Page: a section's name is small letters, digits and hyphens, got {name!r}")


def text_of(value: Cell) -> str:
    """Return a cell as it is shown.

    >>> text_of(12345), text_of(0.123456), text_of(None), text_of("fc1")
    ('12,345', '0.1235', '–', 'fc1')
    """
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def environment() -> dict[str, str]:
    """Return what may change figures, without a date, so that the same run gives the same page.

    >>> list(environment())
    ['Secateur', 'Python', 'PyTorch', 'Platform', 'Processors', 'Threads']
    """
    return {
        "Secateur": version("secateur"),
        "Python": platform.python_version(),
        "PyTorch": torch.__version__,
        "Platform": platform.platform(),
        "Processors": str(os.cpu_count()),
        "Threads": str(torch.get_num_threads()),
    }


def svg(figure: Figure) -> str:
    """Return the figure as inline SVG: the same figure gives the same text, and letters are outlines without a font.

    Args:
        figure: The figure; where it takes more than 150 kB, its lines become pixels.

    >>> svg(Figure()).startswith("<svg ")
    True
    """
    drawn = _drawn(figure)
    if len(drawn) > LONG:
        for artist in (*figure.findobj(Line2D), *figure.findobj(Collection)):
            artist.set_rasterized(True)
        drawn = _drawn(figure)
    return drawn


def _drawn(figure: Figure) -> str:
    out = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "secateur", "svg.fonttype": "path"}):
        figure.savefig(out, format="svg", dpi=150, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = out.getvalue()
    return re.sub(r"<!--.*?-->\s*", "", text[text.index("<svg ") :], flags=re.DOTALL).strip()


def html(page: Page) -> str:
    """Return the page's text; the same page gives the same text.

    >>> page = Page("Half of it", [("Parameters", "100 → 50")], {}, {})
    >>> "<h1>Half of it</h1>" in html(page)
    True
    """
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    templates.filters |= {"cell": text_of, "inline": _inline}
    return templates.get_template("report.html.j2").render(page=page, version=version("secateur"))


def write_page(page: Page, path: str | os.PathLike[str]) -> None:
    """Write the page as one file, whole or not at all.

    Raises:
        ArgumentError: The path ends in something else than .html or .htm.
        ArtifactError: The file cannot be written.
    """
    check_page(path)
    with whole_file(path) as temporary:
        temporary.write_text(html(page), encoding="utf-8", newline="\n")


def _inline(picture: Picture, name: str) -> Markup:
    """Return the picture with its text alternative, and ids that no other picture of the page has."""
    drawn = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", picture.svg)
    head, rest = drawn.split(">", 1)
    title = f'<title id="{name}">{escape(picture.alt)}</title>'
    return Markup(f'{head} role="img" aria-labelledby="{name}">{title}{rest}')  # drawn by us, alt escaped
