"""`secateur bench suite`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from secateur.cli_options import print_json
from secateur.errors import choose


def suite(
    only: Annotated[list[str] | None, typer.Option(help="a network; may be repeated; all if left out")] = None,
    zoo: Annotated[
        Path | None,
        typer.Option(metavar="DIR", envvar="ZOO_DIR", help="holds tvshim.py, where transformers needs one"),
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="for the section of a page in Markdown")] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="print tracebacks of what fails")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object for each row")] = False,
) -> None:
    """Cut tiny networks of many kinds, and use what is left in every way in which the originals can be used."""
    from secateur_experiments.bench.sections import write_section
    from secateur_experiments.bench.suite import page, registry, run

    known = registry.suite()
    for name in only or ():
        choose("only", name, known)
    rows = []
    for row in run.rows(only or list(known), verbose, None if zoo is None else str(zoo)):
        rows.append(row)
        print_json(row) if as_json else typer.echo(page.text(row))
    if out is not None:
        write_section(out, page.section(rows, f"secateur bench suite --out {out}"))
    elif not as_json:
        typer.echo("\n" + "\n".join(page.summary(rows)))
