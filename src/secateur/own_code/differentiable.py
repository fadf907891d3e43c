"""Whether PyTorch can differentiate what a module's code computes: it may write over values that derivatives need."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from secateur.structure.capture import call_model, evaluating
from secateur.structure.inputs import Call


def is_differentiable(module: nn.Module, call: Call) -> bool:
    """Return whether the outputs can be differentiated in the module's parameters."""
    try:
        with evaluating(module), torch.enable_grad():
            return has_derivatives(module, call_model(module, call))
    except RuntimeError:
        return False


def has_derivatives(module: nn.Module, outputs: Any) -> bool:
    """Return whether outputs that were computed with gradients switched on can be differentiated."""
    ends = [end for end in tree_leaves(outputs) if isinstance(end, Tensor) and end.requires_grad]
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    try:
        if ends and parameters:
            torch.autograd.grad(ends, parameters, [torch.ones_like(end) for end in ends], allow_unused=True)
    except RuntimeError:
        return False
    return True
