"""`secateur demo`, and the options that all commands of the experiments share.

The command line imports this file for its help, so what is slow to import is imported by the command that needs it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from secateur.cli_options import Json, print_json

Mnist = Annotated[Path | None, typer.Option(metavar="DIR", help="MNIST's four .gz files")]
Seeds = Annotated[int, typer.Option(help="networks of each kind, of which medians are taken", min=1)]


def demo(
    out: Annotated[Path, typer.Option(help="folder for pictures and networks")] = Path("demo-out"),
    mnist: Annotated[
        Path | None, typer.Option(metavar="DIR", help="MNIST's four .gz files, instead of the digits")
    ] = None,
    as_json: Json = False,
) -> None:
    """Do the main job on real digits: train, prune by every criterion, cut, save, load, compare."""
    from secateur_experiments.datasets import digits_or_mnist
    from secateur_experiments.demo import demo as run

    data, epochs = digits_or_mnist(mnist)
    reports = run(data, [[100], [50, 50]], out, epochs)
    if as_json:
        print_json({"networks": [report.to_json() for report in reports]})
    else:
        typer.echo("\n\n\n".join(map(str, reports)))
        typer.echo(f"\nThe pictures are in {out.resolve()}")
