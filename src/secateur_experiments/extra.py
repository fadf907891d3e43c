"""Libraries that come with the extra `experiments`."""

from __future__ import annotations

import importlib
from typing import Any

from secateur import SecateurError


def from_extra(module: str) -> Any:
    """Import a module of one of the extra's libraries.

    Raises:
        SecateurError: The library is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise SecateurError(
            f"{module} is needed, which comes with the experiments: pip install 'secateur[experiments]' ({error})"
        ) from error
