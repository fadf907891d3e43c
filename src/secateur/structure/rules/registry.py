"""What a rule is, and where rules are found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import fx

from secateur.structure.left import Left
from secateur.structure.rules.net import Axes, Net

Infer = Callable[[Net, fx.Node, dict[str, Any]], Axes | list[Axes]]
Resize = Callable[[Net, fx.Node, dict[str, Any], Left], dict[str, Any]]

# How derivatives pass backward through an operation, seen as a function of one input:
#   pointwise  each output from one input value (broadcasting aside)
#   move       linear with coefficients 0 and 1: views, permutations, concatenation, sums
#   pick       each output one of the input's values, by place or by size, or a constant
#   contract   linear, with the other tensors as coefficients
#   average    linear, each output with one coefficient for all values of a box
#   output     one of several outputs of the call before, of which only the first is differentiated
Derivative = Literal["pointwise", "move", "pick", "contract", "average", "output"]


@dataclass(frozen=True)
class Rule:
    """The axes of an operation's output from those of its inputs, and the kind of its derivative."""

    infer: Infer
    derivative: Derivative | None


_RULES: dict[str, Rule] = {}
_RESIZE: dict[str, Resize] = {}


def rule(*names: str, derivative: Derivative | None = None) -> Callable[[Infer], Infer]:
    """Register the decorated function for operations of these names (all overloads)."""

    def register(infer: Infer) -> Infer:
        for name in names:
            _RULES[name] = Rule(infer, derivative)
        return infer

    return register


def resize(*names: str) -> Callable[[Resize], Resize]:
    """Register what the sizes among the arguments of these operations are when units are gone.

    The decorated function returns the arguments that change, by name; under ``"target"`` another operation.
    """

    def register(function: Resize) -> Resize:
        for name in names:
            _RESIZE[name] = function
        return function

    return register


def name_of(node: fx.Node) -> str:
    """The operation's name without namespace and overload: "linear", "getitem"."""
    schema = getattr(node.target, "_schema", None)
    return schema.name.split("::")[1] if schema else getattr(node.target, "__name__", str(node.target))


def find_rule(node: fx.Node) -> Rule | None:
    """The rule for a call: by name, else that of all pointwise operations."""
    named = _RULES.get(name_of(node))
    if named is None and torch.Tag.pointwise in getattr(node.target, "tags", ()):
        return _RULES["pointwise"]
    return named


def find_resize(node: fx.Node) -> Resize | None:
    """What adapts the sizes among the arguments of a call; None where there are none."""
    return _RESIZE.get(name_of(node))


def arguments(node: fx.Node) -> dict[str, Any]:
    """The call's arguments by their names in the schema, defaults filled in."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return {str(i): argument for i, argument in enumerate(node.args)}
    given = dict(zip((a.name for a in schema.arguments), node.args, strict=False)) | dict(node.kwargs)
    return {a.name: given.get(a.name, a.default_value if a.has_default_value() else None) for a in schema.arguments}
