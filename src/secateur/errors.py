"""Errors: everything that Secateur refuses, in one tree.

    SecateurError
    ├── ModelError          the model: cannot be captured, holds NaN, has nothing to remove
    ├── DataError           the data or the loss: empty, read once, NaN, targets out of range
    │   └── InputsError     inputs that the model does not run on (also a ModelError)
    ├── ArgumentError       a name or a value that is not one of those possible (also a ValueError)
    │   ├── CallError       an argument too many, missing, or of an unknown name (also a TypeError)
    │   └── PlanError       a plan that does not fit the model
    ├── BudgetError         a budget that cannot be met; says how far one can get
    ├── VerificationError   the cut network does not compute what the gated one does
    └── ArtifactError       a file that cannot be written or read
        └── PathError       a path that nothing can be written to, told before the work (also an ArgumentError)

Every message says where, what was given and what is possible.
"""

from collections.abc import Mapping
from typing import TypeVar

Value = TypeVar("Value")


class SecateurError(Exception):
    """The root of the tree, which catches everything that Secateur refuses."""


class ModelError(SecateurError):
    """A model that cannot be captured, holds NaN, or has nothing to remove."""


class DataError(SecateurError):
    """Data or a loss that cannot be used."""


class InputsError(ModelError, DataError):
    """Inputs that the model does not run on."""


class ArgumentError(SecateurError, ValueError):
    """An argument that is not one of those possible."""


class CallError(ArgumentError, TypeError):
    """A call with an argument too many, without a required one, or with an unknown name."""


class PlanError(ArgumentError):
    """A plan that does not fit the model it is applied to."""


class BudgetError(SecateurError):
    """A budget that cannot be met."""


class VerificationError(SecateurError):
    """A cut network that does not compute what the gated one does."""


class ArtifactError(SecateurError):
    """A file that cannot be written or read."""


class PathError(ArtifactError, ArgumentError):
    """A path that nothing can be written to, told before the work."""


def choose(what: str, name: str, table: Mapping[str, Value], note: str = "") -> Value:
    """Return the entry of a table that has a name.

    Raises:
        ArgumentError: There is none; the message lists those there are, and ends with the note.

    >>> choose("ranking", "best", {"single": 1, "iterative": 2})
    Traceback (most recent call last):
    secateur.errors.ArgumentError: unknown ranking 'best'; one of: single, iterative
    """
    if not isinstance(name, str) or name not in table:
        raise ArgumentError(f"unknown {what} {name!r}; one of: {', '.join(table)}{note}")
    return table[name]
