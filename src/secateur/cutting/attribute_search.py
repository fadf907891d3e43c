"""The search for modules' attributes with which their own code computes with the sizes that are left.

A module's forward often uses numbers such as `num_heads` that are no size of a parameter. From the inside out,
each submodule is run on what the sliced graph says its inputs are, and held against what its outputs should be;
numbers equal to an old size are replaced until it agrees. Where none does, the submodule's forward is replaced
by its own part of the graph.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves, tree_unflatten

from secateur.cutting.captured_forward import replace_forward
from secateur.cutting.probe_weights import holding
from secateur.cutting.verify import Truth
from secateur.structure.axis import BATCH, Axis, find, parts, product
from secateur.structure.axis import cat as cat_axes
from secateur.structure.calls.trees import unpack
from secateur.structure.capture import Captured, evaluating
from secateur.structure.graph_run import bind, compile_graph, difference, in_double
from secateur.structure.inputs import Call, like_model
from secateur.structure.module_calls import ModuleCall, module_calls, whole_call
from secateur.structure.sliced_graph import Sliced

MOST_TRIALS = 32  # of one submodule's numbers


class Slot(NamedTuple):
    """A whole number that a module keeps: an attribute, or one member of a tuple or list."""

    module: nn.Module
    attribute: str
    position: int | None
    value: int

    def set(self, value: int) -> None:
        """Replace the number."""
        if self.position is None:
            return setattr(self.module, self.attribute, value)
        members = getattr(self.module, self.attribute)
        changed = [*members[: self.position], value, *members[self.position + 1 :]]
        setattr(self.module, self.attribute, type(members)(changed))
        return None


Choice = tuple[Slot, list[int]]


@dataclass(frozen=True)
class Expected:
    """The sliced graph's values at the inputs and outputs of submodules, and how far rounding may lead from them."""

    values: dict[fx.Node, Tensor]
    allowed: float

    def agrees(self, module: nn.Module, call: ModuleCall) -> bool:
        """Return whether a submodule computes the expected outputs from the expected inputs."""
        flat = [c if n is None else self.values[n].clone() for n, c in zip(call.inputs, call.constants, strict=True)]
        args, kwargs = unpack(tree_unflatten(flat, call.in_spec))
        try:
            with evaluating(module), torch.no_grad():
                got = tree_leaves(module(*args, **kwargs))
        except Exception:  # noqa: BLE001 - whatever it is, these are not the numbers
            return False
        if len(got) != len(call.outputs):
            return False
        pairs = [(self.values[n], output) for n, output in zip(call.outputs, got, strict=True) if n is not None]
        return all(isinstance(b, Tensor) and difference(a, b)[1] <= self.allowed for a, b in pairs)


def search_attributes(model: nn.Module, small: nn.Module, captured: Captured, sliced: Sliced, probe: Truth) -> None:
    """Bring the submodules of `small` in line with the sliced graph.

    Args:
        model: The original, from which the calls of submodules are learnt.
        small: Its sliced copy; changed.
        captured: The original's graph.
        sliced: The original's graph for the sizes that are left.
        probe: Inputs and weights to compare with.
    """
    calls = [*module_calls(model, captured, like_model(model, probe.call)), whole_call(captured)]
    sizes = _sizes_within(captured, sliced)
    proven = {call.name for call in calls}
    with holding(small, probe.weights):
        expected = Expected(_values(small, captured, sliced, probe.call, calls), probe.allowed)
        for call in calls:
            module = small.get_submodule(call.name)
            choices = _choices(_slots(call.name, module, proven), sizes.get(call.name, {}))
            if _is_a_layer(module) and not choices:
                continue  # right by its attributes already
            if not _settle(module, call, choices, expected) and call.name:
                replace_forward(small, captured, sliced, call)


def _is_a_layer(module: nn.Module) -> bool:
    """Return whether a module is one of PyTorch's own layers."""
    return type(module).__module__.startswith("torch.nn.") and not list(module.children())


def _settle(module: nn.Module, call: ModuleCall, choices: list[Choice], expected: Expected) -> bool:
    """Change as few numbers as make the module compute what it should, and return whether any do."""
    if expected.agrees(module, call):
        return True
    for trial in itertools.islice(_trials(choices), MOST_TRIALS):
        for (slot, _), value in zip(choices, trial, strict=True):
            slot.set(value)
        if expected.agrees(module, call):
            for (slot, _), value in zip(choices, trial, strict=True):
                slot.set(slot.value)  # it may have another meaning
                if not expected.agrees(module, call):
                    slot.set(value)
            return True
    for slot, _ in choices:
        slot.set(slot.value)
    return False


def _trials(choices: list[Choice]) -> Iterator[tuple[int, ...]]:
    """Yield new values for all numbers: first one new value for each old one, then any combination."""
    options = {slot.value: values for slot, values in choices}
    for chosen in itertools.product(*options.values()):
        new = dict(zip(options, chosen, strict=True))
        yield tuple(new[slot.value] for slot, _ in choices)
    if len(options) < len(choices):
        yield from itertools.product(*(values for _, values in choices))


def _choices(slots: Iterable[Slot], sizes: dict[int, list[int]]) -> list[Choice]:
    """Return for each number that is an old size what it may be now, changed values first."""
    changed = [slot for slot in slots if sizes.get(slot.value, [slot.value]) != [slot.value]]
    return [(slot, list(dict.fromkeys([*sizes[slot.value], slot.value]))) for slot in changed]


def _values(
    small: nn.Module, captured: Captured, sliced: Sliced, call: Call, calls: list[ModuleCall]
) -> dict[fx.Node, Tensor]:
    """Return the values of the sliced graph at inputs and outputs of the calls."""
    wanted = {node for module_call in calls for node in (*module_call.inputs, *module_call.outputs)}
    nodes = [node for node in captured.graph.nodes if node in wanted and node in sliced.copies]
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    graph.graph_copy(sliced.graph, copies)
    graph.output([copies[sliced.copies[node]] for node in nodes])
    values = bind(captured, small, call)
    if any(isinstance(value, Tensor) and value.dtype == torch.float64 for value in values):
        values = list(map(in_double, values))
    with torch.no_grad():
        return dict(zip(nodes, compile_graph(graph)(*values), strict=True))


def _slots(name: str, module: nn.Module, proven: set[str]) -> Iterator[Slot]:
    """Yield the module's own numbers, and those of modules within it that are not proven themselves."""
    for path, inner in module.named_modules():
        full = ".".join(part for part in (name, path) if part)
        if inner is not module and full in proven:
            continue
        if _is_a_layer(inner) and list(inner.parameters()):
            continue  # its sizes are those of its parameters
        for attribute, value in vars(inner).items():
            if isinstance(value, int) and not isinstance(value, bool):
                yield Slot(inner, attribute, None, value)
            elif type(value) in (tuple, list):
                for i, member in enumerate(value):
                    if isinstance(member, int) and not isinstance(member, bool):
                        yield Slot(inner, attribute, i, member)


def _sizes_within(captured: Captured, sliced: Sliced) -> dict[str, dict[int, list[int]]]:
    """Return for each module the sizes of all axes that its calls see: old → new ones, changed ones first."""
    sizes_of: dict[str, dict[int, dict[int, None]]] = {}
    cache: dict[Axis, list[tuple[int, int]]] = {}
    known = sliced.net.known
    for node in (n for n in captured.graph.nodes if n.op == "call_function" and n in known):
        names = dict.fromkeys(["", *(name for name, _ in node.meta.get("nn_module_stack", {}).values())])
        tensors = [node, *(n for n in node.all_input_nodes if n in known)]
        for axis in {find(a): None for n in tensors for axes in sliced.net.outputs_of(n) for a in axes}:
            if axis not in cache:
                cache[axis] = _pairs(axis, sliced)
            for name, (old, new) in itertools.product(names, cache[axis]):
                sizes_of.setdefault(name, {}).setdefault(old, {})[new] = None
    return {
        name: {old: sorted(new, key=partial(operator.eq, old)) for old, new in sizes.items()}
        for name, sizes in sizes_of.items()
    }


def _pairs(axis: Axis, sliced: Sliced) -> list[tuple[int, int]]:
    """Return old and new size of the axis, of its parts, and of runs of neighbouring parts."""
    if axis.kind == "leaf":
        runs, nested = [axis], []
    else:
        inside = parts(axis)
        join = product if axis.kind == "product" else cat_axes
        runs = [join(inside[i:j]) for i in range(len(inside)) for j in range(i + 1, len(inside) + 1)]
        nested = [pair for part in inside if part.kind != "leaf" for pair in _pairs(part, sliced)]
    return nested + [(run.size, sliced.left.count(run)) for run in runs if run.size % BATCH]
