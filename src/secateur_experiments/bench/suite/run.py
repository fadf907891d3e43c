"""The networks of the suite, each in a process of its own with a time limit."""

from __future__ import annotations

import importlib
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

LIMIT = 240  # seconds for one network


def importable(folder: str | None) -> None:
    """Let torchvision and transformers be imported where a tvshim.py in that folder makes up for missing operators."""
    if folder is not None and Path(folder, "tvshim.py").is_file():
        sys.path.insert(0, folder)
        importlib.import_module("tvshim")


def attempt(name: str, verbose: bool, folder: str | None) -> dict[str, Any]:
    """Return the row of one network, with an error as a result."""
    from secateur_experiments.bench.suite.checks import examine, reason

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    try:
        importable(folder)
        with redirect_stdout(sys.stderr):
            return examine(name, verbose)
    except ModuleNotFoundError as error:
        return {"name": name, "skipped": f"{error.name} is not installed"}
    except Exception as error:
        if verbose:
            raise
        return {"name": name, "error": reason(error)}


def _send(connection: Connection, name: str, verbose: bool, folder: str | None) -> None:
    connection.send(attempt(name, verbose, folder))


def rows(names: Sequence[str], verbose: bool = False, folder: str | None = None) -> Iterator[dict[str, Any]]:
    """Examine networks one after the other.

    Args:
        names: In the suite.
        verbose: Print tracebacks of what fails on stderr.
        folder: Where a tvshim.py is, which torchvision may need to be imported.

    Yields:
        Their rows, as they are done.
    """
    context = get_context("spawn")
    for name in names:
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_send, args=(theirs, name, verbose, folder))
        process.start()
        theirs.close()
        try:
            yield ours.recv() if ours.poll(LIMIT) else {"name": name, "error": f"more than {LIMIT} s"}
        except EOFError:
            process.join()
            yield {"name": name, "error": f"the process ended with exit code {process.exitcode}"}
        finally:
            process.kill()
            process.join()
