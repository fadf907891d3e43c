"""The phases of a long job: whoever works says how far a phase is, and whoever shows it reads that at any time."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TypeVar

from secateur.text import format_seconds

Item = TypeVar("Item")


@dataclass
class Phase:
    """A part of a job.

    Attributes:
        name: What is done.
        total: Its steps; None where they are not known.
        done: Those behind.
        began: When it began, by the clock.
    """

    name: str
    total: int | None = None
    done: int = 0
    began: float = field(default_factory=time.monotonic)

    def advance(self, steps: int = 1) -> None:
        """Say that some steps more are done."""
        self.done += steps

    def through(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield items, each a step that is done when the next one is asked for."""
        for item in items:
            yield item
            self.advance()

    @property
    def seconds(self) -> float:
        """The time since it began."""
        return time.monotonic() - self.began

    @property
    def seconds_left(self) -> float | None:
        """The time that it takes on, if it goes on as it did; None where that cannot be known."""
        return self.seconds * (self.total - self.done) / self.done if self.total and self.done else None

    @property
    def steps(self) -> str:
        """How many steps are done, of how many; empty where they are not known."""
        return f"{self.done:,} of {self.total:,}" if self.total else ""

    def __str__(self) -> str:
        """Return its name and how far it is."""
        return ", ".join(filter(None, (self.name, self.steps)))


@dataclass
class Job:
    """The phases that run now, each within the one before it.

    Attributes:
        began: When the job began, by the clock.
        phases: The outermost first.
        on_end: Called with each outermost phase that ended.
        say: Shows a line of text.
        interrupted: What an interrupt interrupted.
    """

    began: float = field(default_factory=time.monotonic)
    phases: list[Phase] = field(default_factory=list)
    on_end: Callable[[Phase], None] = lambda _: None
    say: Callable[[str], None] = lambda _: None
    interrupted: str | None = None

    def __str__(self) -> str:
        """Return the phases that run now, and how far they are."""
        return ": ".join(map(str, self.phases))

    @contextlib.contextmanager
    def during(self, phase: Phase) -> Iterator[Phase]:
        """Hold a phase among those that run now.

        Raises:
            KeyboardInterrupt: The block was interrupted.
        """
        self.phases.append(phase)
        try:
            yield phase
        except KeyboardInterrupt:
            self.interrupted = self.interrupted or str(self)
            raise
        finally:
            self.phases.pop()
        if not self.phases:
            self.on_end(phase)

    def explain(self, interrupt: KeyboardInterrupt) -> None:
        """Give an interrupt a text that says what was done."""
        where = f"while {self.interrupted}, " if self.interrupted else ""
        took = format_seconds(time.monotonic() - self.began)
        interrupt.args = (f"interrupted {where}after {took}; nothing was written",)


_JOB: ContextVar[Job | None] = ContextVar("job", default=None)


def current_job() -> Job | None:
    """Return the job that this thread works on, if somebody listens."""
    return _JOB.get()


@contextlib.contextmanager
def working_on(job: Job) -> Iterator[Job]:
    """Make a job the one that this thread works on.

    Raises:
        KeyboardInterrupt: The block was interrupted; the text says where.
    """
    token = _JOB.set(job)
    try:
        yield job
    except KeyboardInterrupt as interrupt:
        job.explain(interrupt)
        raise
    finally:
        _JOB.reset(token)


@contextlib.contextmanager
def phase(name: str, total: int | None = None) -> Iterator[Phase]:
    """Say that a phase runs while the block does; where nobody listens, nothing else happens.

    >>> with working_on(Job()) as job, phase("fitting layers", 18) as fitting:
    ...     fitting.advance(3)
    ...     str(job)
    'fitting layers, 3 of 18'
    """
    job = current_job()
    with contextlib.nullcontext(Phase(name, total)) if job is None else job.during(Phase(name, total)) as running:
        yield running
