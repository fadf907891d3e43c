"""What a rule is, and where rules are found."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal, TypeVar

import torch
from torch import fx

from secateur.errors import ArgumentError, ModelError
from secateur.plugins import load_plugins, place_of_function
from secateur.structure.keep_mask import KeepMask
from secateur.structure.rules.net import Axes, Net

Infer = Callable[[Net, fx.Node, dict[str, Any]], Axes | list[Axes]]
Resize = Callable[[Net, fx.Node, dict[str, Any], KeepMask], dict[str, Any]]

# How derivatives pass backward through an operation, seen as a function of one input:
#   pointwise  each output from one input value (broadcasting aside)
#   move       linear with coefficients 0 and 1: views, permutations, concatenation, sums
#   pick       each output one of the input's values, by place or by size, or a constant
#   contract   linear, with the other tensors as coefficients
#   average    linear, each output with one coefficient for all values of a box
#   output     one of several outputs of the call before, of which only the first is differentiated
Derivative = Literal["pointwise", "move", "pick", "contract", "average", "output"]

GROUP = "secateur.rules"  # the entry points of other packages' rules
OWN = "aten::"  # the namespace of names that are given without one
POINTWISE = "aten::pointwise"  # stands for all operations that PyTorch tags so, and that have no rule of their own


class NotCoveredError(Exception):
    """Says that a rule does not know this form of its operation: all axes that reach it are fixed, and listed so.

    Its text is what the rule does not cover.
    """

    def __init__(self, form: str = "this form of it") -> None:
        super().__init__(form)


@dataclass(frozen=True)
class Rule:
    """The axes of an operation's output from those of its inputs, and the kind of its derivative."""

    infer: Infer
    derivative: Derivative | None


_RULES: dict[str, Rule] = {}  # by the operation's name with its namespace
_RESIZE: dict[str, Resize] = {}

Registered = TypeVar("Registered")


def rule(*names: str, derivative: Derivative | None = None) -> Callable[[Infer], Infer]:
    """Register the decorated function for operations of these names, in all overloads.

    It is called with the axes known so far, the call, and the call's arguments by name; it states which axes are
    equal, fixed or summed over, and returns the axes of the output, or of each of several.

    Args:
        names: "mykernels::linear"; without a namespace it is "aten::".
        derivative: How derivatives pass through; None for an operation that second-derivative back-propagation
            does not apply to.

    Raises:
        ArgumentError: There is a rule for one of them.
    """

    def register(infer: Infer) -> Infer:
        for name in names:
            _put("rule", name, _RULES, Rule(infer, derivative), lambda known: known.infer, infer)
        return infer

    return register


def resize(*names: str) -> Callable[[Resize], Resize]:
    """Register what the sizes among the arguments of these operations are when units are gone.

    The decorated function returns the arguments that change, by name; under ``"target"`` another operation.

    Raises:
        ArgumentError: One of the operations has such a function.
    """

    def register(function: Resize) -> Resize:
        for name in names:
            _put("resize", name, _RESIZE, function, lambda known: known, function)
        return function

    return register


def _put(
    what: str, name: str, table: dict[str, Registered], entry: Registered,
    function_of: Callable[[Registered], Callable[..., Any]], function: Callable[..., Any],
) -> None:  # fmt: skip
    """Enter something under an operation's full name.

    Raises:
        ArgumentError: There is something already.
    """
    key = name if "::" in name else OWN + name
    if key in table:
        first = place_of_function(function_of(table[key]))
        raise ArgumentError(f"{what}: {key} has one, {first}; {place_of_function(function)} cannot be another")
    table[key] = entry


def load_rules() -> None:
    """Load the rules of this package, and those of others."""
    import_module(__package__ or "")
    load_plugins(GROUP, lambda loaded: any(loaded in (known.infer, _RESIZE.get(k)) for k, known in _RULES.items()))


def key_of(node: fx.Node) -> str:
    """Return the operation's name with its namespace, without overload: "aten::linear", "operator::getitem"."""
    schema = getattr(node.target, "_schema", None)
    if schema:
        return str(schema.name)
    module = str(getattr(node.target, "__module__", "")).lstrip("_")
    return f"{module}::{getattr(node.target, '__name__', node.target)}"


def name_of(node: fx.Node) -> str:
    """Return the operation's name without overload, and without the namespaces "aten" and "operator"."""
    return key_of(node).removeprefix(OWN).removeprefix("operator::")


def find_rule(node: fx.Node) -> Rule | None:
    """Return the rule for a call: by name, else that of all pointwise operations."""
    named = _RULES.get(key_of(node))
    if named is None and torch.Tag.pointwise in getattr(node.target, "tags", ()):
        return _RULES[POINTWISE]
    return named


def find_resize(node: fx.Node) -> Resize | None:
    """Return what adapts the sizes among the arguments of a call; None where there are none."""
    return _RESIZE.get(key_of(node))


@contextlib.contextmanager
def blamed(function: Callable[..., Any], node: fx.Node) -> Iterator[None]:
    """Show what goes wrong in a rule as its fault, unless it says that it does not cover a form.

    Raises:
        ModelError: Something does.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, NotCoveredError):
            raise
        raise ModelError(
            f"the rule for {name_of(node)} failed at {node.name} ({type(error).__name__}: {error}); "
            f"it is {place_of_function(function)}"
        ) from error


def arguments(node: fx.Node) -> dict[str, Any]:
    """The call's arguments by their names in the schema, defaults filled in."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return {str(i): argument for i, argument in enumerate(node.args)}
    given = dict(zip((a.name for a in schema.arguments), node.args, strict=False)) | dict(node.kwargs)
    return {a.name: given.get(a.name, a.default_value if a.has_default_value() else None) for a in schema.arguments}


def require_form(holds: bool, otherwise: str) -> None:
    """Go on with a rule only for the forms of an operation that it covers.

    Args:
        holds: Whether this is one.
        otherwise: What the form is if it is none.

    Raises:
        NotCoveredError: It is none.
    """
    if not holds:
        raise NotCoveredError(otherwise)


def dim_of(given: dict[str, Any], axes: Axes, name: str = "dim") -> int:
    """Return the dimension that an argument names, counted from the first.

    Raises:
        NotCoveredError: It names none: the tensor is a scalar, or taken as one row.
    """
    require_form(given[name] is not None, "a tensor taken as one row")
    require_form(bool(axes), "a scalar")
    return int(given[name]) % len(axes)
