"""A class for sizes that no configuration says: a small file of code beside the weights.

It makes the network that the original's class makes, and gives its parameters and modules the sizes that the
configuration lists under `resized`. It is loaded with `trust_remote_code=True`.
"""

from __future__ import annotations

import copy
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateur.artifacts.config_search import shapes_of
from secateur.structure.inputs import named_tensors

FILE = "modeling_resized.py"
PLAIN = (bool, int, float, str, type(None))
CODE = '''"""{name} with sizes of its own; load it with trust_remote_code=True."""

from torch import nn

from {module} import {name}


class Resized{name}({name}):
    """{name}, whose modules have the numbers and parameters the sizes that `config.resized` lists."""

    def __init__(self, config, *args, **kwargs):
        super().__init__(config, *args, **kwargs)
        for path, numbers in config.resized["numbers"].items():
            for attribute, value in numbers.items():
                setattr(self.get_submodule(path), attribute, tuple(value) if isinstance(value, list) else value)
        for tensor, shape in config.resized["shapes"].items():
            path, _, attribute = tensor.rpartition(".")
            module = self.get_submodule(path)
            old = getattr(module, attribute)
            if isinstance(old, nn.Parameter):
                setattr(module, attribute, nn.Parameter(old.new_zeros(shape), old.requires_grad))
            else:
                module.register_buffer(attribute, old.new_zeros(shape))
        self.tie_weights()
'''


def resized(model: Any, folder: Path) -> nn.Module:
    """Return an instance of such a class for a network; its file is written into the folder.

    Raises:
        ImportError: The network's class cannot be imported by its name.
    """
    kind = type(model)
    if getattr(sys.modules.get(kind.__module__), kind.__qualname__, None) is not kind or kind.__module__ == "__main__":
        raise ImportError(kind.__qualname__)
    path = folder / FILE
    path.write_text(CODE.format(name=kind.__name__, module=kind.__module__), encoding="utf-8")
    config = copy.deepcopy(model.config)
    config.resized = {"numbers": dict(_numbers(model)), "shapes": dict(_shapes(model))}
    name = f"Resized{kind.__name__}"
    config.auto_map = dict.fromkeys(_auto_classes(model), f"{path.stem}.{name}")
    config.architectures = [name]
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made: nn.Module = getattr(module, name)(config)
    return made


def _made_anew(model: Any) -> nn.Module:
    """Return what the class makes of the configuration, without memory for its parameters."""
    with torch.device("meta"):
        made: nn.Module = type(model)(model.config)
    return made


def _numbers(model: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the numbers of each module that differ from those that its class gives it."""
    modules = dict(_made_anew(model).named_modules())
    for path, module in model.named_modules():
        before = vars(modules[path])
        changed = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in vars(module).items()
            if _is_plain(value) and name in before and before[name] != value and name != "training"
        }
        if changed:
            yield path, changed


def _is_plain(value: Any) -> bool:
    return isinstance(value, PLAIN) or (isinstance(value, tuple) and all(isinstance(item, PLAIN) for item in value))


def _shapes(model: Any) -> Iterator[tuple[str, list[int]]]:
    """Yield the shapes of parameters and buffers that differ, those of buffers that are not saved, too."""
    made = _made_anew(model)
    before = {name: tuple(tensor.shape) for name, tensor in named_tensors(made).items()} | shapes_of(made)
    for name, tensor in named_tensors(model).items():
        if before[name] != tuple(tensor.shape):
            yield name, list(tensor.shape)


def _auto_classes(model: Any) -> list[str]:
    """Return the names of the classes that choose a network's class by its configuration, and choose this one."""
    import transformers

    autos = {name: getattr(transformers, name) for name in dir(transformers) if name.startswith("AutoModel")}
    mappings = {name: getattr(auto, "_model_mapping", None) for name, auto in autos.items()}
    chosen = {name: known.get(type(model.config), ()) for name, known in mappings.items() if known is not None}
    return [name for name, kinds in chosen.items() if type(model) in (kinds if isinstance(kinds, tuple) else (kinds,))]
