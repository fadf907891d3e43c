"""The phases of a job on stderr: bars with the time left on a terminal, now and then a line in a log."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TextIO

from secateur.phases import Job, Phase, current_job, phase, working_on
from secateur.text import format_seconds

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

EVERY = 10.0  # seconds between two lines of a log
LONG = 2.0  # seconds that a phase takes to be worth a line at its end
WIDTH = 40  # characters of a bar


@contextlib.contextmanager
def showing(shown: bool = True) -> Iterator[Job]:
    """Show the phases of what is done in the block, within those that are shown already.

    Raises:
        KeyboardInterrupt: The work was interrupted; the text says where.
    """
    job = current_job()
    if shown and job is not None:
        yield job
        return
    job = Job()
    with working_on(job), _on_terminal_or_log(job) if shown else contextlib.nullcontext():
        yield job


@contextlib.contextmanager
def progress_bar(what: str, shown: bool = True) -> Iterator[Callable[[int, int], None]]:
    """Show one phase while the block runs; the function that is yielded takes (done, total)."""
    with showing(shown), phase(what) as running:

        def update(done: int, total: int) -> None:
            running.done, running.total = done, total

        yield update


def _on_terminal_or_log(job: Job) -> contextlib.AbstractContextManager[None]:
    from rich.console import Console  # not needed by those who import Secateur and show nothing

    console = Console(stderr=True)
    return _terminal(job, console) if console.is_terminal else log(job, sys.stderr)


@contextlib.contextmanager
def _terminal(job: Job, console: Console) -> Iterator[None]:
    from rich.live import Live

    job.say = console.print
    with Live(get_renderable=lambda: bars(job), console=console, transient=True):
        yield


def bars(job: Job) -> Table:
    """Return a bar for each phase that runs now."""
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    table = Table.grid(padding=(0, 1))
    for running in list(job.phases):
        bar = ProgressBar(running.total, running.done, WIDTH, pulse=not running.total)
        table.add_row(running.name, bar, running.steps, _left(running))
    return table


def _left(running: Phase) -> str:
    return "" if running.seconds_left is None else f"{format_seconds(running.seconds_left)} left"


@contextlib.contextmanager
def log(job: Job, stream: TextIO) -> Iterator[None]:
    """Write a line every ten seconds while the block runs, and one for each long phase that ended.

    Args:
        job: Whose phases it tells of.
        stream: Where lines go.
    """
    ended = threading.Event()

    def say(line: str) -> None:
        stream.write(f"{line}\n")
        stream.flush()

    def tell_now_and_then() -> None:
        while not ended.wait(EVERY):
            say(now(job))

    def tell_end(over: Phase) -> None:
        if over.seconds >= LONG:
            say(f"{over.name}: done after {format_seconds(over.seconds)}")

    job.say, job.on_end = say, tell_end
    teller = threading.Thread(target=tell_now_and_then, daemon=True)
    teller.start()
    try:
        yield
    finally:
        ended.set()
        teller.join()


def now(job: Job) -> str:
    """Return the phases that run now, how far they are and the time left, in a line."""
    texts = (", ".join(filter(None, (str(running), _left(running)))) for running in list(job.phases))
    return ": ".join(texts) or "working"
