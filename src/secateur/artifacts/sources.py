"""Sources: models, data and functions named by text, as on the command line."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
import zlib
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from secateur.arguments import require_instance
from secateur.errors import ArgumentError, DataError
from secateur.objective.kept_outputs import KEPT
from secateur.structure.exporting.programs import load_program


def find_model(name: str) -> nn.Module:
    """Return the network of a .pt2 file, or what ``package.module:factory`` returns; the current folder is looked in.

    Raises:
        ArgumentError: The file cannot be read, or there is no such factory, it needs arguments, or returns no module.
    """
    if Path(name).suffix == ".pt2":
        return load_program(name)
    _refuse_pickle("MODEL", name, "a .pt2 file of torch.export.save or package.module:factory")
    return require_instance(f"MODEL {name!r}", _call("MODEL", name), nn.Module, "a torch.nn.Module")


def find_data(name: str, labelled: bool = True, inputs: Collection[str] = ()) -> Any:
    """Return inputs and targets of a .npz or .safetensors file, or what ``package.module:loader`` returns.

    Args:
        name: The file, with x and y, or the loader.
        labelled: Whether there have to be targets y; otherwise None stands for those that a file does not have.
        inputs: The names of keyword inputs, which arrays may have in place of x.

    Raises:
        ArgumentError: There is no such loader, or it needs arguments.
        DataError: The file cannot be read, or has no inputs, or no y where that is needed.
    """
    path = Path(name)
    _refuse_pickle("DATA", name, "a .npz or .safetensors file with x and y, or package.module:loader")
    if path.suffix not in (".npz", ".safetensors"):
        return _call("DATA", name)
    try:
        arrays = _tensors(path)
    except _UNREADABLE as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    named = {key: array for key, array in arrays.items() if key != "y"}
    x = arrays.get("x", named if named and named.keys() <= set(inputs) else None)
    if x is None or (labelled and "y" not in arrays):
        others = f", or {', '.join(inputs)} in place of x" if inputs and x is None else ""
        without = f"; without targets y the loss can be {' or '.join(KEPT)}" if x is not None else ""
        found = ", ".join(sorted(arrays)) or "none"
        raise DataError(f"{path}: expected arrays x and y{others}, found {found}{without}")
    return x, arrays.get("y")


PICKLES = (".pt", ".pth", ".pkl", ".pickle", ".bin", ".ckpt", ".joblib", ".npy")


def _refuse_pickle(what: str, name: str, expected: str) -> None:
    """Refuse a file that holds a pickle by its name, or may do so.

    Raises:
        ArgumentError: It is one.
    """
    if Path(name).suffix in PICKLES:
        raise ArgumentError(f"{what} {name!r}: such a file can hold a pickle, which is never read; expected {expected}")


_UNREADABLE = (OSError, ValueError, TypeError, EOFError, BadZipFile, zlib.error, SafetensorError)


def _tensors(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        return load_file(path)
    with path.open("rb") as file:  # numpy leaves a broken one open
        return {name: torch.as_tensor(array) for name, array in dict(np.load(file, allow_pickle=False)).items()}


def find_function(what: str, name: str) -> Callable[..., Any]:
    """Return the function that ``package.module:function`` names; modules in the current folder are found.

    Raises:
        ArgumentError: There is no such function.
    """
    if not re.fullmatch(r"\w+(\.\w+)*:\w+", name):
        files = {"DATA": " or a .npz or .safetensors file", "MODEL": " or a .pt2 file"}.get(what, "")
        raise ArgumentError(f"{what} {name!r}: expected package.module:function{files}")
    if str(Path.cwd()) not in sys.path:  # for good: what is called may import more
        sys.path.insert(0, str(Path.cwd()))
    module, attribute = name.split(":")
    try:
        function = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ArgumentError(f"{what} {name!r}: {error}") from error
    if not callable(function):
        raise ArgumentError(f"{what} {name!r}: {type(function).__name__} is no function")
    return function  # type: ignore[no-any-return]


def _call(what: str, name: str) -> Any:
    """Return what the function of that name returns.

    Raises:
        ArgumentError: There is no such function, or it needs arguments.
    """
    function = find_function(what, name)
    try:
        inspect.signature(function).bind()
    except TypeError as error:
        raise ArgumentError(f"{what} {name!r}: expected a function without arguments ({error})") from error
    return function()
