"""Biases for layers that have none, which can make up for the mean of removed inputs exactly."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import nn

from secateur.compensation.linear_layers import find_layers
from secateur.errors import PlanError
from secateur.structure.ops.registry import find_module_sizes
from secateur.structure.units import Units


def without_bias(model: nn.Module, units: Units) -> tuple[str, ...]:
    """Return the names of the modules that sum up units and could have a bias but have none.

    >>> from secateur import find_units
    >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2, bias=False))
    >>> without_bias(model, find_units(model, torch.ones(1, 3)))
    ('2',)
    """
    names = [layer.weight.rpartition(".")[0] for layer in find_layers(units) if layer.bias is None]
    return tuple(name for name in names if _lacks(model.get_submodule(name)))


def with_biases(model: nn.Module, names: Iterable[str]) -> nn.Module:
    """Return a copy in which these modules have a bias of zero; the model itself where no module is named.

    Raises:
        PlanError: There is no such module, or it has a bias or can have none.
    """
    names = tuple(names)
    if not names:
        return model
    model = copy.deepcopy(model)
    modules = dict(model.named_modules())
    for name in names:
        module = modules.get(name)
        if module is None or not _lacks(module):
            raise PlanError(f"the plan adds a bias to {name!r}, which is no dense or convolutional layer without one")
        weight: torch.Tensor = module.weight
        width = getattr(module, str(_size_of_bias(module)))
        module.bias = nn.Parameter(weight.new_zeros(width), weight.requires_grad)
    return model


def _lacks(module: nn.Module) -> bool:
    return _size_of_bias(module) is not None and module.bias is None


def _size_of_bias(module: nn.Module) -> str | None:
    """The attribute that is the size of the bias that a module has or could have; None of modules without."""
    sizes = find_module_sizes(module)
    return None if sizes is None else sizes.bias
