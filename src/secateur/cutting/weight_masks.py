"""Masks of single weights, which are set to zero and stay zero through any training that follows.

Masks are given by parameter name, as in ``model.named_parameters()``, tied ones under the first: a bool tensor of the
parameter's shape, True where the weight is kept.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from secateur.errors import ArgumentError, PlanError

Masks = Mapping[str, Tensor]


def freeze(model: nn.Module, masks: Masks) -> None:
    """Set the removed weights to zero, in place, and let no gradient reach them: ∂E/∂u ← m ∂E/∂u.

    An optimiser made afterwards never moves them: with u = 0 and a gradient that is always 0 momentum, running
    moments and weight decay are 0 too. One made before still holds momentum and needs `rezero` after its steps.
    Names and number of the parameters, and so the state_dict, stay as they are; a parameter with
    ``requires_grad=False`` is frozen for when that changes. Parameters not named are left alone; calling it again
    replaces the masks of those that are. Cost: one byte per weight, one product per backward pass.

    What goes past the parameters' own gradients is not held back: ``torch.func`` on other tensors, assigning or
    loading weights. `copy.deepcopy` and pickle drop gradient hooks, so copies have the zeros but are not frozen:
    freeze them again.

    Args:
        model: Changed in place.
        masks: Parameter name → which of its weights are kept [the parameter's shape], on any device.

    Raises:
        ArgumentError: A mask is no tensor of bools.
        PlanError: The model has no such parameter, or it has another shape. Then nothing was changed.

    >>> layer = nn.Linear(2, 1, bias=False)
    >>> freeze(layer, {"weight": torch.tensor([[True, False]])})
    >>> _ = layer(torch.ones(1, 2)).sum().backward()
    >>> layer.weight.grad
    tensor([[1., 0.]])
    """
    rezero(model, masks)
    for name, parameter in check_masks(model, masks).items():
        _hook(parameter, masks[name].to(parameter.device, copy=True))


def rezero(model: nn.Module, masks: Masks) -> None:
    """Set the removed weights to zero again, after training code that may have moved them.

    Raises:
        ArgumentError: As for `freeze`.
        PlanError: As for `freeze`.

    >>> layer = nn.Linear(2, 1)
    >>> masks = {"weight": torch.tensor([[True, False]])}
    >>> count_moved(layer, masks), rezero(layer, masks), count_moved(layer, masks)
    (1, None, 0)
    """
    with torch.no_grad():
        for name, parameter in check_masks(model, masks).items():
            parameter[~masks[name].to(parameter.device)] = 0


def count_moved(model: nn.Module, masks: Masks) -> int:
    """Return how many removed weights are not zero.

    Raises:
        ArgumentError: As for `freeze`.
        PlanError: As for `freeze`.
    """
    parameters = check_masks(model, masks)
    return sum(int(p.detach()[~masks[name].to(p.device)].count_nonzero()) for name, p in parameters.items())


def check_masks(model: nn.Module, masks: Masks) -> dict[str, nn.Parameter]:
    """Return the parameters that the masks are for.

    Raises:
        ArgumentError: A mask is no tensor of bools.
        PlanError: The model has no such parameter, or it has another shape.
    """
    parameters = dict(model.named_parameters())
    for name, mask in masks.items():
        if name not in parameters:
            raise PlanError(f"masks: {name!r} is no parameter of the model; those are: {', '.join(parameters)}")
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            raise ArgumentError(f"masks: that of {name!r} must be a tensor of torch.bool, got {got}")
        if mask.shape != parameters[name].shape:
            wanted = tuple(parameters[name].shape)
            raise PlanError(f"masks: that of {name!r} has shape {tuple(mask.shape)}, the parameter has {wanted}")
    return {name: parameters[name] for name in masks}


class _KeepZero:
    """A gradient hook that is known by its class, so that a parameter has one at most."""

    def __init__(self, kept: Tensor) -> None:
        self.kept = kept

    def __call__(self, gradient: Tensor) -> Tensor:
        self.kept = self.kept.to(gradient.device)  # the model may have been moved
        if gradient.is_sparse:
            return gradient * self.kept
        return torch.where(self.kept, gradient, 0)  # no product: 0 · ∞ would be NaN


def _hook(parameter: nn.Parameter, kept: Tensor) -> None:
    """Put the parameter's gradients under this mask, a gradient that it already has too."""
    hook = next((h for h in (parameter._backward_hooks or {}).values() if isinstance(h, _KeepZero)), None)
    if hook is not None:
        hook.kept = kept
    elif parameter.is_floating_point() or parameter.is_complex():
        hook = _KeepZero(kept)
        trained = parameter.requires_grad
        parameter.requires_grad_(True).register_hook(hook)  # type: ignore[no-untyped-call]  # refused without
        parameter.requires_grad_(trained)  # the hook outlives this
    if hook is not None and parameter.grad is not None:
        parameter.grad = hook(parameter.grad)
