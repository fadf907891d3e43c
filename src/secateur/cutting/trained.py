"""A cut network as the user's function trains it: other values, the same structure."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from secateur.arguments import describe
from secateur.errors import ArgumentError, ModelError
from secateur.structure.capture import check_finite
from secateur.structure.inputs import named_tensors

Retrain = Callable[[nn.Module], object]


def trained(network: nn.Module, retrain: Retrain) -> nn.Module:
    """Return the network as a function trains it; modes, and gradients asked for, are as before.

    Raises:
        ArgumentError: The function returns neither None nor a module.
        ModelError: It returns or leaves a network of other parameters or buffers, or weights that are not finite.
    """
    modes = {name: module.training for name, module in network.named_modules()}
    requires = {name: parameter.requires_grad for name, parameter in network.named_parameters()}
    before = _forms(network)
    with torch.enable_grad():
        returned = retrain(network)
    if returned is not None and not isinstance(returned, nn.Module):
        raise ArgumentError(f"retrain: expected a function that returns None or the network, got {describe(returned)}")
    network = network if returned is None else returned
    _check_same(before, _forms(network))
    try:
        check_finite(network)
    except ModelError as error:
        raise ModelError(f"after retrain: {error}") from error
    for name, module in network.named_modules():
        module.training = modes.get(name, module.training)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(requires[name])
    network.zero_grad()
    return network


def _forms(network: nn.Module) -> dict[str, str]:
    return {
        name: f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
        for name, tensor in named_tensors(network).items()
    }


def _check_same(before: Mapping[str, str], after: Mapping[str, str]) -> None:
    """Refuse a network with other parameters or buffers.

    Raises:
        ModelError: It has.
    """
    for name in (*before, *after):
        was, now = before.get(name, "none"), after.get(name, "none")
        if was != now:
            raise ModelError(
                f"after retrain: {name} is {now}, before it was {was}; training may change the values of "
                "parameters and buffers, and nothing else"
            )
