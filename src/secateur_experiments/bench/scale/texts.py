"""Texts that every Python brings along: what the sources of its standard library say of themselves."""

from __future__ import annotations

import ast
import random
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path

SHORTEST, LONGEST = 20, 300  # characters of a sentence


def sources() -> list[Path]:
    """Return the modules of the standard library, in order."""
    return sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))


def docstrings(paths: list[Path]) -> Iterator[str]:
    """Yield the docstrings of modules, classes and functions, file after file."""
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8", errors="replace"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = ast.get_docstring(node)
                if text:
                    yield text


def sentences_of(text: str) -> Iterator[str]:
    """Yield the sentences of a text, those that end with a full stop and are neither very short nor very long.

    >>> list(sentences_of("Return the first of all items.  No!  Raise an error if there is none."))
    ['Return the first of all items.', 'Raise an error if there is none.']
    """
    for sentence in re.split(r"(?<=[.!?])\s+|\n\s*\n", text):
        plain = " ".join(sentence.split())
        if SHORTEST <= len(plain) <= LONGEST and plain.endswith("."):
            yield plain


def shuffled(texts: Iterator[str], seed: int = 0) -> list[str]:
    """Return texts in an order that depends on them and the seed alone, each once."""
    ordered = sorted(set(texts))
    random.Random(seed).shuffle(ordered)
    return ordered


def sentences(count: int) -> list[str]:
    """Return so many sentences of the standard library's docstrings."""
    texts = (sentence for text in docstrings(sources()) for sentence in sentences_of(text))
    return shuffled(texts)[:count]
