"""`secateur bench artifacts`: arguments."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from secateur.artifacts.safetensors import whole_file
from secateur.cli_options import Json, print_json
from secateur.planning.details.file_formats import FORMATS, require_libraries
from secateur_experiments.commands import Mnist


def artifacts(
    mnist: Mnist = None,
    epochs: Annotated[int, typer.Option(help="of training", min=1)] = 30,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="for the page in Markdown")] = None,
    as_json: Json = False,
) -> None:
    """Write one network, whole and cut, as every kind of file: bytes, differences, accuracy, memory."""
    for kind in FORMATS:
        require_libraries(FORMATS[kind], f"network{kind}")
    from secateur_experiments.bench.artifacts import TRAINED, compare, page, text

    rows = []
    for row in compare(mnist, epochs):
        rows.append(row)
        if not as_json:
            typer.echo(text(row))
    if as_json:
        print_json({"rows": [asdict(row) for row in rows]})
    if out is not None:
        command = f"secateur bench artifacts{'' if mnist is None else ' --mnist DIR'} --epochs {epochs} --out {out}"
        dataset = "the digits" if mnist is None else f"{TRAINED:,} digits of MNIST"
        with whole_file(out) as temporary:
            temporary.write_text(page(rows, command, dataset), encoding="utf-8")
