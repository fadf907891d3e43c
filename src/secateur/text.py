"""Tables and numbers as text."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Sequence
from decimal import Decimal

from secateur.errors import ArgumentError

_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def parse_bytes(size: int | str, name: str = "bytes") -> int:
    """Return a number of bytes from 1500 or "1.5 kB", "64 KiB", "2 MB".

    Raises:
        ArgumentError: It is not such a size.

    >>> parse_bytes("64 KiB"), parse_bytes("1.5MB")
    (65536, 1500000)
    """
    if isinstance(size, int) and not isinstance(size, bool):
        return size
    number = r"(\d+(?:_\d+)*(?:\.\d+)?|\.\d+)"
    match = re.fullmatch(rf"\s*{number}\s*([a-z]*)\s*", size.lower()) if isinstance(size, str) else None
    if match is None or match[2] not in _UNITS or (not match[2] and "." in match[1]):
        raise ArgumentError(f"{name}: expected an int or a size such as '200 kB', '64 KiB' or '1.5 MB', got {size!r}")
    return int(Decimal(match[1]) * _UNITS[match[2]])


def format_bytes(size: int) -> str:
    """Return a number of bytes as people read it, in powers of ten.

    >>> format_bytes(318_040)
    '318.0 kB'
    """
    for power, unit in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if size >= power:
            return f"{size / power:.1f} {unit}"
    return f"{size} B"


def format_seconds(seconds: float) -> str:
    """Return a time as people read it.

    >>> format_seconds(0.4), format_seconds(72), format_seconds(7_500)
    ('0 s', '1 min 12 s', '2 h 5 min')
    """
    whole = round(seconds)
    for size, unit, smaller, part in ((3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // smaller} {part}"
    return f"{whole} s"


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], title: str | None = None) -> str:
    """Lay out rows under headings; a column whose first value is a number is aligned to the right."""
    from rich.console import Console  # not needed by those who import Secateur and print nothing
    from rich.table import Table
    from rich.text import Text

    cells = [["" if cell is None else str(cell) for cell in row] for row in rows]
    laid_out = Table(box=None, pad_edge=False, header_style="bold")
    for i, column in enumerate(columns):
        numeric = bool(cells) and bool(re.match(r"[-+.]?\d", next((row[i] for row in cells if row[i]), "")))
        laid_out.add_column(Text(column), justify="right" if numeric else "left", no_wrap=True)
    for row in cells:
        laid_out.add_row(*map(Text, row))
    out = io.StringIO()
    Console(file=out, width=10_000, color_system=None).print(laid_out)
    lines = [line.rstrip() for line in out.getvalue().rstrip().splitlines()]
    return "\n".join([*([] if title is None else [title]), *lines])  # a table's own title would wrap at its width
