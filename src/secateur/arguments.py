"""Checks of what callers pass: an error says which argument it is, what is possible and what was given."""

from __future__ import annotations

import functools
import inspect
import operator
import os
import reprlib
from collections.abc import Callable, Iterable
from numbers import Integral, Number, Real
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
from torch import fx, nn
from torch.export import UnflattenedModule

from secateur.errors import ArgumentError, CallError, PlanError

Kind = TypeVar("Kind")
Parameters = ParamSpec("Parameters")
Returned = TypeVar("Returned")


def describe(value: object) -> str:
    """Return how an error names a value: a number or a text by itself, anything else by its type.

    >>> describe(1.5), describe(nn.Linear), describe([1, 2])
    ('1.5', 'the class Linear', 'list')
    """
    if isinstance(value, str | bytes | Number | None):
        return reprlib.repr(value)
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__


def checked_call(function: Callable[Parameters, Returned]) -> Callable[Parameters, Returned]:
    """Let a function refuse a call that does not fit its signature by a `CallError`.

    >>> checked_call(lambda x: x)(1, 2)
    Traceback (most recent call last):
    secateur.errors.CallError: <lambda>: too many positional arguments; it is called as <lambda>(x)
    """
    signature = inspect.signature(function)
    name = function.__name__
    keywords = [p.name for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY]
    positional = [p.name for p in signature.parameters.values() if p.kind is not p.KEYWORD_ONLY]
    form = f"{name}({', '.join(positional)})" + (f", by keyword: {', '.join(keywords)}" if keywords else "")

    @functools.wraps(function)
    def checked(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Returned:
        try:
            signature.bind(*args, **kwargs)
        except TypeError as error:
            raise CallError(f"{name}: {error}; it is called as {form}") from None
        return function(*args, **kwargs)

    return checked


def require_instance(name: str, value: object, kind: type[Kind], expected: str) -> Kind:
    """Return the value if it is an instance of a class.

    Args:
        name: The argument's name.
        value: The argument.
        kind: The class.
        expected: The text by which the error says what is possible.

    Raises:
        ArgumentError: It is no instance.

    >>> require_instance("model", nn.Linear, nn.Module, "a torch.nn.Module")
    Traceback (most recent call last):
    secateur.errors.ArgumentError: model: expected a torch.nn.Module, got the class Linear; call it first
    """
    if not isinstance(value, kind):
        hint = "; call it first" if isinstance(value, type) and issubclass(value, kind) else ""
        raise ArgumentError(f"{name}: expected {expected}, got {describe(value)}{hint}")
    return value


def require_model(model: object) -> nn.Module:
    """Return the model if it is one with Python code; what a `DistributedDataParallel` wraps.

    Raises:
        ArgumentError: It is no `torch.nn.Module`, or a part of it was compiled, exported or quantised.
    """
    model = require_instance("model", model, nn.Module, "a torch.nn.Module")
    if isinstance(model, nn.parallel.DistributedDataParallel):
        return require_model(model.module)
    for path, module in model.named_modules():
        reason = _without_code(module)
        if reason is not None:
            raise ArgumentError(f"model: {f'its part {path!r}' if path else 'it'} is {reason}")
    return model


def _without_code(module: nn.Module) -> str | None:
    """Return what a module is that has no Python code which can be followed, and what to hand in instead."""
    if isinstance(module, torch.jit.ScriptModule):
        return "TorchScript, which has no Python code to follow; hand in the module that was scripted or traced"
    exported = isinstance(module, fx.GraphModule) and "train" in vars(module)  # the method that only refuses
    if exported or isinstance(module, UnflattenedModule):
        return "the graph of a torch.export, which is for the sizes of then; hand in the module that was exported"
    home = type(module).__module__
    if home.startswith("torch.ao.") and "quantized" in home.split("."):
        return "quantised, its weights are packed integers; cut the network first, then quantise what is left"
    return None


def require_flag(name: str, value: object) -> bool:
    """Return the value if it is True or False.

    Raises:
        ArgumentError: It is neither, though it may count as one of them.
    """
    return require_instance(name, value, bool, "True or False")


def require_whole(name: str, value: Any, least: int, expected: str, most: float = float("inf")) -> int:
    """Return the value as an int if it is a whole number within bounds.

    Args:
        name: The argument's name.
        value: The argument; integers of NumPy are whole numbers, bools are none.
        least: The least possible value.
        expected: The text by which the error says what is possible.
        most: The largest possible value.

    Raises:
        ArgumentError: It is no such number.

    >>> require_whole("rounds", 0, 1, "a number of rounds above 0")
    Traceback (most recent call last):
    secateur.errors.ArgumentError: rounds: expected a number of rounds above 0, got 0
    """
    whole = not isinstance(value, bool) and isinstance(value, Integral)
    if not (whole and least <= value <= most):
        raise ArgumentError(f"{name}: expected {expected}, got {describe(value)}")
    return int(value)


def require_seed(seed: object) -> int:
    """Return the seed if `torch.Generator` takes it.

    Raises:
        ArgumentError: It does not.
    """
    return require_whole("seed", seed, -(2**63), "a whole number from -2**63 to 2**64 - 1", 2**64 - 1)


def require_number(name: str, value: Any, above: float, most: float, expected: str) -> float:
    """Return the value as a float if it is a number within bounds.

    Args:
        name: The argument's name.
        value: The argument; bools and NaN are no numbers.
        above: The bound that it has to be greater than.
        most: The largest possible value.
        expected: The text by which the error says what is possible.

    Raises:
        ArgumentError: It is no such number.

    >>> require_number("ridge", 1e300, 0, 1e6, "a number above 0, at most 1e6")
    Traceback (most recent call last):
    secateur.errors.ArgumentError: ridge: expected a number above 0, at most 1e6, got 1e+300
    """
    number = not isinstance(value, bool) and isinstance(value, Real)
    if not (number and above < value <= most):
        raise ArgumentError(f"{name}: expected {expected}, got {describe(value)}")
    return float(value)


def require_path(path: object, name: str = "path") -> Path:
    """Return the path if it is one.

    Raises:
        ArgumentError: It is no text and no `os.PathLike` of a text.
    """
    text = os.fspath(path) if isinstance(path, os.PathLike) else path
    if not isinstance(text, str):
        raise ArgumentError(f"{name}: expected a path, a str or an os.PathLike, got {describe(path)}")
    return Path(text)


def require_indices(name: str, indices: Iterable[int]) -> tuple[int, ...]:
    """Return the indices that stay of one unit set, in order.

    Raises:
        ArgumentError: The unit set is not given by its name.
        PlanError: They are negative or repeated, none is left, or they are no whole numbers.
    """
    require_instance("kept", name, str, "names of unit sets, each a str")
    expected = f"kept[{name!r}]: expected one or more different indices from 0, got "
    try:
        listed = list(indices)
        chosen = tuple(sorted(map(operator.index, listed)))
    except TypeError:
        raise PlanError(f"{expected}{indices!r}") from None
    if any(isinstance(index, bool) or getattr(index, "dtype", None) == torch.bool for index in listed):
        raise PlanError(f"{expected}a mask of True and False")
    if not chosen or chosen[0] < 0 or len(set(chosen)) < len(chosen):
        raise PlanError(f"{expected}{list(chosen)}")
    return chosen
