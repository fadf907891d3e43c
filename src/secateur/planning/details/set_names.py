"""Names of unit sets: patterns that stand for several of them, and those that differ in the number of a layer alone."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from secateur.errors import ArgumentError

_NUMBER = re.compile(r"(?<![\w\[])\d+(?![\w\]])")  # of a layer: in a name "layers.0.fc1[2]" the 0


def set_names(option: str, names: Any) -> tuple[str, ...]:
    """Return the names that an option of a budget gives: one, or several.

    Raises:
        ArgumentError: They are no names.
    """
    several = (names,) if isinstance(names, str) else names
    if not isinstance(several, tuple | list) or not all(isinstance(name, str) for name in several):
        raise ArgumentError(f"Budget: {option} must be names of unit sets, got {several!r}")
    return tuple(several)


def matches(name: str, pattern: str) -> bool:
    """Return whether a name is the pattern itself, or matches it as files' names do.

    >>> matches("layers.0.fc1[2]", "layers.*"), matches("a[1]", "a[1]")
    (True, True)
    """
    return name == pattern or fnmatchcase(name, pattern)  # names may hold brackets


def first(value: Any, name: str, default: Any) -> Any:
    """Return a value, or of values by patterns the first that a name matches.

    >>> first(3, "a", 1), first({"a*": 2, "*": 4}, "b", 1), first({"a*": 2}, "b", 1)
    (3, 4, 1)
    """
    if not isinstance(value, Mapping):
        return value
    return next((part for pattern, part in value.items() if matches(name, pattern)), default)


@functools.lru_cache(maxsize=8)  # it is asked after each removal
def alike_sets(sizes: tuple[tuple[str, int], ...]) -> dict[str, list[str]]:
    """Return for each set those of its size whose names differ in the number of a layer alone.

    >>> alike_sets((("a.0.b", 4), ("a.1.b", 4), ("a.2.b", 8)))
    {'a.0.b': ['a.0.b', 'a.1.b'], 'a.1.b': ['a.0.b', 'a.1.b'], 'a.2.b': ['a.2.b']}
    """
    groups: dict[tuple[str, int], list[str]] = {}
    for name, size in sizes:
        groups.setdefault((_NUMBER.sub("#", name), size), []).append(name)
    return {name: group for group in groups.values() for name in group}
