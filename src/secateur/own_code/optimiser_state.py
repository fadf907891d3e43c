"""The optimiser of a cut network, which goes on with the state of the original's."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import ArgumentError
from secateur.structure.keep_mask import KeepMask
from secateur.structure.sliced_graph import slice_tensor
from secateur.structure.units import Units

Optimizer = torch.optim.Optimizer


class StateTransfer:
    """What a cut makes of each parameter of the original, and of the state that an optimiser keeps of it.

    Args:
        model: The original.
        small: The cut network.
        units: The original's units.
        keep_mask: The positions left of every axis.
        biases: The layers that got a bias.
    """

    def __init__(
        self, model: nn.Module, small: nn.Module, units: Units, keep_mask: KeepMask, biases: Iterable[str]
    ) -> None:
        self.names = {parameter: name for name, parameter in model.named_parameters()}
        self.new = dict(small.named_parameters(remove_duplicate=False))
        self.axes, self.keep_mask = units.axes, keep_mask
        self.biases = {f"{layer}.weight": f"{layer}.bias" for layer in biases}

    def optimizer(self, optimizer: Optimizer) -> Optimizer:
        """Return an optimiser of the same class and settings for the cut network; the other one is left as it is.

        Raises:
            ArgumentError: A parameter of its is not the original's, or its state is not one of numbers per weight.
        """
        transferred = copy.copy(optimizer)
        self._copy_attributes(optimizer, transferred)
        transferred.defaults, transferred.state = dict(optimizer.defaults), defaultdict(dict)
        transferred.param_groups = [self._group(group) for group in optimizer.param_groups]
        for parameter, state in optimizer.state.items():
            name = self._name(parameter)
            transferred.state[self._new(name)] = {
                key: self._value(name, parameter, key, value) for key, value in state.items()
            }
        return transferred

    def _copy_attributes(self, optimizer: Optimizer, transferred: Optimizer) -> None:
        """Copy settings of the optimiser's own class, which PyTorch leaves out; not methods that a schedule replaced.

        Raises:
            ArgumentError: One of them is no plain value and may belong to the original.
        """
        for name, value in vars(optimizer).items():
            if hasattr(transferred, name):
                continue
            if not isinstance(value, int | float | str | None):
                raise ArgumentError(
                    f"optimizer: its attribute {name!r} is a {type(value).__name__}, which may belong to the original; "
                    "make a new optimiser for the small network"
                )
            setattr(transferred, name, value)

    def _group(self, group: dict[str, Any]) -> dict[str, Any]:
        names = [self._name(parameter) for parameter in group["params"]]
        added = [self.biases[name] for name in names if name in self.biases]
        changed = {"params": [self._new(name) for name in [*names, *added]]}
        labels = {"param_names": [*group["param_names"], *added]} if "param_names" in group else {}
        return {**group, **changed, **labels}

    def _name(self, parameter: Tensor) -> str:
        name = self.names.get(parameter)  # type: ignore[call-overload]
        if name is None:
            shape = tuple(parameter.shape)
            raise ArgumentError(f"optimizer: one of its parameters, of shape {shape}, is none of the model's")
        return str(name)

    def _new(self, name: str) -> nn.Parameter:
        """Return the cut network's parameter.

        Raises:
            ArgumentError: It has none of that name, or one of another shape than the plan leaves.
        """
        axes, parameter = self.axes.get(name), self.new.get(name)
        got = None if parameter is None else tuple(parameter.shape)
        left = got if axes is None else tuple(map(self.keep_mask.count, axes))
        if parameter is None or got != left:
            raise ArgumentError(f"small: expected {name} of shape {left}, as the plan leaves it, got {got}")
        return parameter

    def _value(self, name: str, parameter: Tensor, key: str, value: Any) -> Any:
        """Return what is left of a value that is kept of a parameter: its slice; what counts steps is copied.

        Raises:
            ArgumentError: It is neither of the parameter's shape nor one number.
        """
        if isinstance(value, Tensor) and value.shape == parameter.shape:
            return slice_tensor(value, self.axes.get(name, []), self.keep_mask).clone().to(self._new(name).device)
        if (isinstance(value, Tensor) and value.numel() == 1) or isinstance(value, int | float | None):
            return copy.deepcopy(value)
        form = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ArgumentError(
            f"optimizer: its state {key!r} of {name} is {form}, which has no slice for the weights that stay; "
            "make a new optimiser for the small network"
        )
