"""One call at a time: what a call changes for the whole process, no other thread's call sees or changes.

torch.export patches `nn.Module` itself while it traces, and takes warnings, logging and stderr for itself; models are
put into eval mode, and hold other weights while a cut is proven. All of that is undone at the end, which is right only
if nothing else happened in between.
"""

from __future__ import annotations

import _thread
import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar
from unittest.mock import patch

import torch

Parameters = ParamSpec("Parameters")
Returned = TypeVar("Returned")

_LOCK = threading.RLock()  # re-entrant: public functions call each other


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute with one thread: many small operations are no faster with more, and wait for each other's.

    Where other programs keep the cores busy, each of them would wait for a time slice of all its threads.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def own_forwards() -> Iterator[None]:
    """Let layers of `torch.nn` call the modules within them.

    Without gradients Transformers hand their weights to one kernel instead, which computes zeros for padding.
    """
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextlib.contextmanager
def as_exported() -> Iterator[None]:
    """Let modules compute as torch.export saw them: some ask whether they are traced, and leave masks out if not."""
    with own_forwards(), patch.multiple("torch.compiler", _is_compiling_flag=True, _is_exporting_flag=True):
        yield


@contextlib.contextmanager
def asked(note: Callable[[], None]) -> Iterator[None]:
    """Call a function whenever a module asks whether torch.export or torch.compile runs it."""

    def noting(answer: Callable[[], bool]) -> Callable[[], bool]:
        def ask() -> bool:
            note()
            return answer()

        return ask

    compiling, exporting = noting(torch.compiler.is_compiling), noting(torch.compiler.is_exporting)
    with patch.multiple("torch.compiler", is_compiling=compiling, is_exporting=exporting):
        yield


def one_at_a_time(function: Callable[Parameters, Returned]) -> Callable[Parameters, Returned]:
    """Let a function wait until no function so marked runs in another thread.

    >>> one_at_a_time(len)([1, 2])
    2
    """

    @functools.wraps(function)
    def alone(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Returned:
        with _LOCK:
            return function(*args, **kwargs)

    return alone


INTERRUPTED = 130  # the exit code


def interrupt(*_: object) -> None:
    """Raise KeyboardInterrupt now and every second until the program ends: imports of libraries drop or replace it.

    Raises:
        KeyboardInterrupt: Always.
    """
    again = threading.Timer(1, _thread.interrupt_main)
    again.daemon = True
    again.start()
    raise KeyboardInterrupt
