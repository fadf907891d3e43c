"""The calls of submodules, in terms of the captured graph.

The graph is run beside the model; what goes into a module and what comes out of it is recognised by its values.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_flatten, tree_structure

from secateur.process_state import asked, own_forwards
from secateur.structure.calls.tensor_spec import TensorSpec
from secateur.structure.calls.trees import pack
from secateur.structure.capture import Captured, twice
from secateur.structure.exporting.noise import SteadyNoise
from secateur.structure.graph_run import bind, difference
from secateur.structure.inputs import Call, call_on_copies
from secateur.structure.lengths import one_shorter

COMPARED = 64  # numbers of a tensor, before all are
State = Callable[[], contextlib.AbstractContextManager[None]]
PLAIN = (bool, int, float, str, type(None))  # arguments that are no tensors


@dataclass(frozen=True)
class ModuleCall:
    """One call of a submodule, in terms of the captured graph.

    Attributes:
        name: The submodule's.
        inputs: The nodes of its flattened arguments, None for what is no tensor.
        constants: The arguments that are no tensors, in the same places.
        outputs: The nodes of its flattened outputs, None also for what nobody uses.
        in_spec: The structure of packed (args, kwargs).
        out_spec: The structure of the outputs.
        returned: The outputs that were seen, flattened.
    """

    name: str
    inputs: tuple[fx.Node | None, ...]
    constants: tuple[Any, ...]
    outputs: tuple[fx.Node | None, ...]
    in_spec: Any
    out_spec: Any
    returned: tuple[Any, ...] = ()

    @property
    def nodes(self) -> list[fx.Node]:
        """The nodes of its inputs and outputs."""
        return [node for node in (*self.inputs, *self.outputs) if node is not None]


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


@dataclass(frozen=True)
class Recording:
    """The calls of a model on some inputs, with the values at their seams.

    Attributes:
        calls: The calls of submodules that are called once, with tensors and plain values, innermost first.
        values: The graph's values there.
        bound: The value of each placeholder.
        state: How the model was run.
        asking: The modules whose code asked whether it is traced, and those around them.
    """

    calls: list[ModuleCall]
    values: dict[fx.Node, Any]
    bound: dict[fx.Node, Any]
    state: State
    asking: set[str]


def record_calls(
    model: nn.Module, captured: Captured, call: Call, allowed: float, state: State = own_forwards
) -> Recording:
    """Return the calls of all submodules that the graph tells.

    Cost: a forward pass of the model and of the graph.

    Args:
        model: In eval mode, without gradients.
        captured: Its graph.
        call: The inputs.
        allowed: How far rounding may take the graph's values from the model's, relative to the largest.
        state: How the model is run.
    """
    values = bind(captured, model, call)
    run = _Run(captured.graph)
    with noise_of(captured):
        run.run(*values)
        watched, asking = _watched(model, call, state)
    model.train()  # modules drop what they made of their weights in the call: trials have others
    model.eval()
    known = _Known(captured.graph, run.seen, allowed)
    calls = [known.call(name, *seen) for name, seen in watched.items()]
    found = sorted((c for c in calls if c is not None), key=lambda module_call: -module_call.name.count("."))
    kept = {node for module_call in found for node in module_call.nodes}
    placeholders = dict(zip(captured.graph.find_nodes(op="placeholder"), values, strict=True))
    return Recording(
        found, {node: value for node, value in run.seen.items() if node in kept}, placeholders, state, asking
    )


def noise_of(captured: Captured) -> contextlib.AbstractContextManager[Any]:
    """Return the context in which a model and its graph draw the same noise, if they draw any."""
    return SteadyNoise() if captured.noisy else contextlib.nullcontext()  # type: ignore[no-untyped-call]


def same_at_other_sizes(model: nn.Module, captured: Captured, call: Call) -> set[str]:
    """Return the submodules that take and return, beside tensors, the same plain values for inputs of other sizes."""
    plain = _plain_values(model, call)
    if captured.spec.fixed is None or captured.spec.free:
        others = _plain_values(model, one_shorter(twice(call, captured.spec), captured.spec))
        plain = {name: values for name, values in plain.items() if values == others.get(name)}
    return set(plain)


def _plain_values(model: nn.Module, call: Call) -> dict[str, list[Any]]:
    seen, _ = _watched(model, call, own_forwards)
    both = {name: [*values.inputs, *values.outputs] for name, values in seen.items()}
    plain = {name: [value for value in values if not isinstance(value, Tensor)] for name, values in both.items()}
    return {name: values for name, values in plain.items() if all(isinstance(value, PLAIN) for value in values)}


def modules_of(node: fx.Node) -> tuple[str, ...]:
    """Return the paths of the modules whose code led to a call, the outermost first; () for a placeholder."""
    return tuple(name for name, _ in node.meta.get("nn_module_stack", {}).values())


def near(expected: Tensor, got: Tensor, allowed: float) -> bool:
    """Return whether tensors are equal, or differ by no more than is allowed of the largest value."""
    return torch.equal(expected, got) or difference(expected, got)[1] <= allowed


class _Run(fx.Interpreter):
    """A run of a graph that keeps the values at the seams of modules."""

    def __init__(self, graph: fx.Graph) -> None:
        super().__init__(fx.GraphModule(nn.Module(), graph))
        self.graph = graph
        self.seen: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor) and any(modules_of(user) != modules_of(n) for user in n.users):
            self.seen[n] = value
        return value


class _Seen(NamedTuple):
    """What went into a module and what came out, flattened, with its structure."""

    inputs: list[Any]
    in_spec: Any
    outputs: list[Any]
    out_spec: Any


def _watched(model: nn.Module, call: Call, state: State) -> tuple[dict[str, _Seen], set[str]]:
    """Return what each submodule takes and returns that is called once, and where code asks whether it is traced.

    Values are copied, for code may work in place.
    """
    taken: dict[str, list[tuple[list[Any], Any]]] = {}
    seen: dict[str, _Seen] = {}
    running, asking = [""], set[str]()

    def copied(value: Any) -> tuple[list[Any], Any]:
        leaves, spec = tree_flatten(pack(value))
        return list(map(copied_leaf, leaves)), spec

    def before(name: str) -> Any:
        def note(_: nn.Module, args: Any, kwargs: Any) -> None:
            taken.setdefault(name, []).append(copied((args, kwargs)))
            running.append(name)

        return note

    def after(name: str) -> Any:
        def note(_: nn.Module, args: Any, result: Any) -> None:  # noqa: ARG001
            seen[name] = _Seen(*taken[name][0], *copied(result))
            running.pop()

        return note

    named = [(name, module) for name, module in model.named_modules() if name]
    handles = [module.register_forward_pre_hook(before(name), with_kwargs=True) for name, module in named]
    handles += [module.register_forward_hook(after(name)) for name, module in named]
    try:
        with state(), asked(lambda: asking.update(running)):
            call_on_copies(model, call)
    finally:
        for handle in handles:
            handle.remove()
    return {name: values for name, values in seen.items() if len(taken[name]) == 1}, asking


def copied_leaf(value: Any) -> Any:
    """Return a copy of a tensor or of an object that code may change, such as a decoder's cache; itself without one."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    with contextlib.suppress(Exception):
        return value if isinstance(value, PLAIN) else copy.deepcopy(value)
    return value


class _Known:
    """The values of a graph, by which tensors are recognised."""

    def __init__(self, graph: fx.Graph, values: dict[fx.Node, Tensor], allowed: float) -> None:
        self.values, self.allowed = values, allowed
        self._order = {node: i for i, node in enumerate(graph.nodes)}
        self._start: dict[str, int] = {}  # of each module's code in the graph
        for node, i in self._order.items():
            for name in modules_of(node):
                self._start.setdefault(name, i)
        by_form: dict[Any, list[fx.Node]] = {}
        for node, value in values.items():
            by_form.setdefault((value.shape, value.dtype), []).append(node)
        self._by_form = {
            form: (nodes, torch.stack([_beginning(values[node]) for node in nodes])) for form, nodes in by_form.items()
        }

    def call(self, name: str, inputs: list[Any], in_spec: Any, outputs: list[Any], out_spec: Any) -> ModuleCall | None:
        """Return a call in terms of the graph; None where one of its arguments is none of the graph's values."""
        into = tuple(self._node(value, name, inside=False) for value in inputs)
        out = tuple(self._node(value, name, inside=True) for value in outputs)
        known = all(not isinstance(value, Tensor) or node is not None for value, node in zip(inputs, into, strict=True))
        if not known or not any(out):
            return None
        constants = tuple(None if isinstance(value, Tensor) else value for value in inputs)
        return ModuleCall(name, into, constants, out, in_spec, out_spec, tuple(outputs))

    def _node(self, value: Any, name: str, inside: bool) -> fx.Node | None:
        """Return the last node of this value, of those inside the module or of those before it."""
        matches = self._matches(value) if isinstance(value, Tensor) else []
        start = self._start.get(name, len(self._order))
        wanted = [node for node in matches if (name in modules_of(node) if inside else self._order[node] < start)]
        return next(reversed(wanted or matches), None)

    def _matches(self, tensor: Tensor) -> list[fx.Node]:
        """Return the nodes of this value: those that begin like it are compared whole."""
        if (tensor.shape, tensor.dtype) not in self._by_form or not tensor.numel():
            return []
        nodes, beginnings = self._by_form[tensor.shape, tensor.dtype]
        gaps = torch.where(beginnings == _beginning(tensor), 0, beginnings - _beginning(tensor)).abs().amax(1)
        scale = _in_double(tensor).abs().nan_to_num(posinf=0).max().item()
        likely = [node for node, gap in zip(nodes, gaps.tolist(), strict=True) if gap <= 2 * self.allowed * scale]
        return [node for node in likely if near(self.values[node], tensor, self.allowed)]


def _beginning(tensor: Tensor) -> Tensor:
    """Return the first few numbers of a tensor."""
    return _in_double(tensor.flatten()[:COMPARED])


def _in_double(tensor: Tensor) -> Tensor:
    return (torch.view_as_real(tensor).flatten() if tensor.is_complex() else tensor).double()
