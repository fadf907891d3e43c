"""The calls of submodules, in terms of the captured graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves, tree_structure

from secateur.errors import ModelError
from secateur.structure.calls.tensor_spec import TensorSpec
from secateur.structure.capture import Captured, at_least_two, call_model, evaluating, twice
from secateur.structure.export import export_model, is_check
from secateur.structure.inputs import Call
from secateur.structure.lengths import one_shorter


@dataclass(frozen=True)
class ModuleCall:
    """One call of a submodule, in terms of the captured graph."""

    name: str
    inputs: tuple[fx.Node | None, ...]  # of its flattened arguments, None for what is no tensor
    constants: tuple[Any, ...]  # those, in the same places
    outputs: tuple[fx.Node | None, ...]  # None also for what nobody uses
    in_spec: Any  # of packed arguments
    out_spec: Any


def whole_call(captured: Captured) -> ModuleCall:
    """Return the call of the model itself."""
    placeholders = {node.name: node for node in captured.graph.find_nodes(op="placeholder")}
    values = captured.spec.leaves.values()
    inputs = tuple(
        placeholders[name] if isinstance(value, TensorSpec) else None
        for name, value in zip(captured.inputs, values, strict=True)
    )
    returned: Any = captured.graph.output_node().args[0]
    outputs = tuple(returned[i] for i in captured.outputs)
    form = tree_structure((captured.spec.args, dict(captured.spec.kwargs)))
    return ModuleCall("", inputs, tuple(values), outputs, form, captured.out_spec)


def module_calls(model: nn.Module, captured: Captured, call: Call) -> list[ModuleCall]:
    """Return the call of each submodule that is called once, with tensors and plain values, innermost first.

    Cost: a forward pass or two and one more export; where torch.export cannot tell the calls of some modules apart,
    a few more.
    """
    calls = _calls_of(_with_plain_arguments(model, captured, call), model, captured, call, attempts=3)
    return sorted(calls, key=lambda module_call: -module_call.name.count("."))


def _calls_of(
    names: Sequence[str], model: nn.Module, captured: Captured, call: Call, attempts: int
) -> list[ModuleCall]:
    """Return the calls of these modules; where that fails, of each half of them."""
    if not names or not attempts:
        return []
    try:
        with evaluating(model):
            call = call if captured.spec.fixed else at_least_two(call, captured.spec)
            program = export_model(model, call, captured.spec, preserve_module_call_signature=tuple(names)).program
    except ModelError:
        half = len(names) // 2
        pieces = (names[:half], names[half:]) if half else ()
        return [
            module_call for piece in pieces for module_call in _calls_of(piece, model, captured, call, attempts - 1)
        ]
    theirs, ours = (_counted(graph) for graph in (program.graph, captured.graph))
    if [n.target for n in theirs] != [n.target for n in ours]:
        return []
    same = {a.name: b for a, b in zip(theirs, ours, strict=True)}
    placeholders = (graph.find_nodes(op="placeholder") for graph in (program.graph, captured.graph))
    same |= {a.name: b for a, b in zip(*placeholders, strict=True)}
    entries = [entry for entry in program.module_call_graph if entry.signature and entry.fqn]
    again = {entry.fqn.partition("@")[0] for entry in entries if "@" in entry.fqn}
    calls = [_module_call(entry, same) for entry in entries if entry.fqn not in again and "@" not in entry.fqn]
    return [module_call for module_call in calls if module_call]


def _counted(graph: fx.Graph) -> list[fx.Node]:
    return [node for node in graph.nodes if node.op == "call_function" and not is_check(node)]


def _module_call(entry: Any, same: dict[str, fx.Node]) -> ModuleCall | None:
    taken, returned = entry.signature.inputs, entry.signature.outputs
    if any(not hasattr(argument, "value") and argument.name not in same for argument in taken):
        return None
    inputs, outputs = (
        tuple(same.get(getattr(argument, "name", "")) for argument in signature) for signature in (taken, returned)
    )
    constants = tuple(getattr(argument, "value", None) for argument in taken)
    return ModuleCall(entry.fqn, inputs, constants, outputs, entry.signature.in_spec, entry.signature.out_spec)


def _with_plain_arguments(model: nn.Module, captured: Captured, call: Call) -> list[str]:
    """Return the submodules that take and return tensors and plain values, the same for inputs of any size."""
    called = _others_than_tensors(model, call)
    if captured.spec.fixed is None or captured.spec.free:
        more = _others_than_tensors(model, one_shorter(twice(call, captured.spec), captured.spec))
        called = {name: values for name, values in called.items() if values == more.get(name)}
    return [name for name, values in called.items() if _plain(values)]


def _plain(values: list[Any]) -> bool:
    return all(isinstance(value, bool | int | float | None) for value in values)


def _others_than_tensors(model: nn.Module, call: Call) -> dict[str, list[Any]]:
    """Return what each submodule is called with and returns besides tensors."""
    seen: dict[str, list[Any]] = {}

    def watch(name: str) -> Any:
        def note(_: nn.Module, args: Any, kwargs: Any, returned: Any) -> None:
            values = tree_leaves((args, kwargs, returned))
            seen.setdefault(name, []).extend(value for value in values if not isinstance(value, Tensor))

        return note

    handles = [
        module.register_forward_hook(watch(name), with_kwargs=True) for name, module in model.named_modules() if name
    ]
    try:
        with evaluating(model), torch.no_grad():
            call_model(model, call)
    finally:
        for handle in handles:
            handle.remove()
    return seen
