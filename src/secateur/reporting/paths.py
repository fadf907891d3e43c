"""Paths of pages and pictures, checked before any work is done for them and without the libraries that draw."""

from __future__ import annotations

import os
from tempfile import TemporaryFile

from secateur.arguments import require_path
from secateur.errors import ArgumentError, PathError


def check_picture(path: str | os.PathLike[str]) -> None:
    """Refuse a path that no picture can be written to, before any work is done for it.

    Raises:
        ArgumentError: It ends in something else than .png.
        PathError: Its folder does not exist or cannot be written to.
    """
    _check_file(path, "pictures", ".png")


def check_page(path: str | os.PathLike[str]) -> None:
    """Refuse a path that no page can be written to, before any work is done for it.

    Raises:
        ArgumentError: It ends in something else than .html or .htm.
        PathError: Its folder does not exist or cannot be written to.
    """
    _check_file(path, "pages", ".html", ".htm")


def _check_file(path: str | os.PathLike[str], what: str, *suffixes: str) -> None:
    """Refuse a path that no such file can be written to.

    Args:
        path: The file to write.
        what: The name of such files, in the plural.
        suffixes: The possible ends of their names, in small letters.

    Raises:
        ArgumentError: It is no path, or ends in something else.
        PathError: Its folder does not exist or cannot be written to.
    """
    path = require_path(path)
    if path.suffix.lower() not in suffixes:
        suffix = path.suffix or "no extension"
        raise ArgumentError(f"{path}: {what} are written as {' or '.join(suffixes)}, not as {suffix!r}")
    if path.is_dir():
        raise PathError(f"{path}: cannot be written, it is a folder")
    try:
        TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise PathError(f"{path}: cannot be written ({error.strerror})") from error
