"""Plugins: criteria and rules that other packages add to Secateur, found by their entry points."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import Any

from secateur.errors import ArgumentError

_LOCK = threading.RLock()
_FAILURES: dict[str, list[str]] = {}  # by group of entry points; a group is there once it was loaded


def load_plugins(group: str, is_registered: Callable[[Any], bool]) -> list[str]:
    """Load, once, what the installed packages offer under a group of entry points.

    An entry point names a module, which registers something when it is imported, or a function that registers itself
    by its decorator. An entry point that fails is warned of, and the others are loaded.

    Args:
        group: The entry points' group.
        is_registered: Whether a function that was loaded is known to the registry.

    Returns:
        For each entry point that failed, which it is and why.
    """
    with _LOCK:
        if group not in _FAILURES:
            failures = _FAILURES[group] = []  # before the first is loaded, which may ask for the others
            for point in sorted(entry_points(group=group), key=_place):
                try:
                    _load(point, is_registered)
                except Exception as error:  # noqa: BLE001 - code of another package, which may fail in any way
                    failures.append(f"{_place(point)} failed ({type(error).__name__}: {error})")
            for failure in failures:
                warnings.warn(failure, RuntimeWarning, stacklevel=2)
        return _FAILURES[group]


def _load(point: EntryPoint, is_registered: Callable[[Any], bool]) -> None:
    """Import what an entry point names.

    Raises:
        ArgumentError: It is neither a module nor registered.
    """
    loaded = point.load()
    if not isinstance(loaded, ModuleType) and not is_registered(loaded):
        raise ArgumentError(f"{point.value} is neither a module nor a decorated function")


def _place(point: EntryPoint) -> str:
    package = point.dist.name if point.dist else "an unknown package"
    return f"entry point {point.name!r} of {package}, group {point.group!r},"


def name_of_function(function: Callable[..., Any]) -> str:
    """Return the name of a function, of a partial one's function, or of a callable object's class.

    >>> name_of_function(partial(max, 1)), name_of_function(lambda: 0)
    ('max', '<lambda>')
    """
    while isinstance(function, partial):
        function = function.func
    return str(getattr(function, "__name__", type(function).__name__))


def place_of_function(function: Callable[..., Any]) -> str:
    """Return where a function is defined, as messages say it: module, name, file and line."""
    while isinstance(function, partial):
        function = function.func
    name = getattr(function, "__qualname__", type(function).__qualname__)
    code = getattr(function, "__code__", None)
    line = f" (line {code.co_firstlineno} of {code.co_filename})" if code else ""
    return f"{function.__module__}.{name}{line}"
