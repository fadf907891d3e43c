"""What is read: models and data named by text, as on the command line."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from secateur.errors import ArgumentError, DataError


def find_model(name: str) -> nn.Module:
    """What the factory ``package.module:factory`` returns; modules in the current folder are found.

    Raises:
        ArgumentError: There is no such factory, or it returns no module.
    """
    model = find_function("MODEL", name)()
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"MODEL {name!r}: expected a torch.nn.Module, got {type(model).__name__}")
    return model


def find_data(name: str) -> Any:
    """Tensors x and y of a .npz or .safetensors file, or what ``package.module:loader`` returns.

    Raises:
        DataError: The file cannot be read, or has no x and y.
    """
    path = Path(name)
    if path.suffix not in (".npz", ".safetensors"):
        return find_function("DATA", name)()
    try:
        arrays = dict(np.load(path)) if path.suffix == ".npz" else load_file(path)
    except (OSError, ValueError, SafetensorError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    if not {"x", "y"} <= arrays.keys():
        raise DataError(f"{path}: expected arrays x and y, found {', '.join(sorted(arrays)) or 'none'}")
    return torch.as_tensor(arrays["x"]), torch.as_tensor(arrays["y"])


def find_function(what: str, name: str) -> Callable[..., Any]:
    """What ``package.module:function`` names; modules in the current folder are found.

    Raises:
        ArgumentError: There is no such function.
    """
    module, _, attribute = name.partition(":")
    if not attribute:
        files = " or a .npz or .safetensors file" if what == "DATA" else ""
        raise ArgumentError(f"{what} {name!r}: expected package.module:function{files}")
    sys.path.insert(0, str(Path.cwd()))
    try:
        function = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ArgumentError(f"{what} {name!r}: {error}") from error
    finally:
        sys.path.pop(0)
    if not callable(function):
        raise ArgumentError(f"{what} {name!r}: {type(function).__name__} is no function")
    return function  # type: ignore[no-any-return]
