"""What commands share, those of other packages too: some options, and how JSON is printed."""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import typer

from secateur.reporting.paths import check_picture


def _leave_stdout(context: typer.Context, as_json: bool) -> bool:
    """Send what the user's own code prints to stderr, so that the JSON object stays alone on stdout."""
    if as_json:
        context.with_resource(redirect_stdout(sys.stderr))
    return as_json


def _checked(path: Path | None) -> Path | None:
    """Refuse a picture that cannot be written, before the work."""
    if path is not None:
        check_picture(path)
    return path


Json = Annotated[bool, typer.Option("--json", help="print one JSON object and nothing else", callback=_leave_stdout)]
Picture = Annotated[Path | None, typer.Option(metavar="FILE", help="a picture, .png", callback=_checked)]


def print_json(data: dict[str, Any]) -> None:
    """Print one object on stdout, whatever that was redirected to."""
    typer.echo(json.dumps(data), file=sys.__stdout__)
