"""The modules of a cut network brought to compute with the sizes that are left: by their own code where it can."""

from __future__ import annotations

import torch
from torch import nn

from secateur.cutting.captured_forward import replace_forward
from secateur.own_code.differentiable import is_differentiable
from secateur.own_code.module_calls import ModuleCall, same_at_other_sizes
from secateur.own_code.probe_weights import holding, probe_weights
from secateur.own_code.trial import OwnCode
from secateur.structure.capture import evaluating
from secateur.structure.graph_run import tolerance
from secateur.structure.inputs import Call, like_model, named_tensors
from secateur.structure.rewrites.writes import has_writes
from secateur.structure.sliced_graph import Sliced
from secateur.structure.units import Units


def settle_modules(model: nn.Module, small: nn.Module, units: Units, sliced: Sliced, call: Call) -> None:
    """Give modules of a sliced copy the numbers with which their code computes, or else their part of the graph.

    A module's forward often uses numbers such as `num_heads` that are no size of a parameter. Each module is tried
    from the inside out.

    Args:
        model: The original.
        small: Its sliced copy; changed.
        units: The original's units.
        sliced: The original's graph for the sizes that are left.
        call: Inputs to try on.
    """
    named, writes, allowed = named_tensors(model), has_writes(units.captured.graph), tolerance(model)
    weights = {name: value.to(named[name].dtype) for name, value in probe_weights(model).items()}
    with holding(model, weights), evaluating(model), torch.no_grad():
        code = OwnCode.of(model, units, call, allowed)
        plain = same_at_other_sizes(model, units.captured, call)
        for module_call in list(code.calls):
            precise, module = code.precise(module_call), small.get_submodule(module_call.name)
            if precise is None:
                code.drop(module_call)  # it cannot be tried alone
                continue
            changes = precise.follows(module_call, sliced.left).changes
            for change in changes or ():
                change.make(module)
            if changes is not None and (not writes or _trainable(module, code, module_call, sliced)):
                continue
            if module_call.name and not _replaced(small, units, sliced, module_call, plain):
                code.drop(module_call)


def _replaced(small: nn.Module, units: Units, sliced: Sliced, call: ModuleCall, plain: set[str]) -> bool:
    return call.name in plain and replace_forward(small, units.captured, sliced, call)


def _trainable(module: nn.Module, code: OwnCode, call: ModuleCall, sliced: Sliced) -> bool:
    """Return whether a module can be differentiated; its code may write over values that derivatives need."""
    values = {node: code.value(node, sliced.left) for node in call.inputs if node is not None}
    return is_differentiable(module, like_model(module, code.arguments(call, values)))
