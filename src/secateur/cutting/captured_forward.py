"""Forwards made of captured calls, for modules whose own code cannot compute with the sizes that are left."""

from __future__ import annotations

import copy
import operator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_flatten

from secateur.errors import DataError
from secateur.own_code.module_calls import ModuleCall
from secateur.structure.calls.trees import pack
from secateur.structure.capture import Captured, broken_guard, counts_samples, is_free, name_of_size, times
from secateur.structure.inputs import InputSpec, check_as_captured
from secateur.structure.sliced_graph import Sliced, needed_between


class CapturedForward:
    """A forward that computes what a module did in the captured graph, with the module's weights at the time of a call.

    It computes as in eval mode, in training mode too; gradients reach the weights.

    Args:
        module: The module whose weights are used, by name.
        graph: The captured calls; its placeholders are the weights, the constants and the inputs, in this order.
        weights: The names of those weights in the module.
        constants: Tensors that the module made itself.
        call: The call of the module that was captured.
        shapes: The shapes of the tensors among its inputs; a name for a size that depends on the network's inputs.
        guards: What the network's code takes for granted of such sizes.
        spec: The form of the inputs, where the module is the whole network.
    """

    def __init__(
        self,
        module: nn.Module,
        graph: fx.Graph,
        weights: list[str],
        constants: list[Tensor],
        call: ModuleCall,
        shapes: dict[fx.Node, list[int | str]],
        guards: tuple[str, ...],
        spec: InputSpec | None,
    ) -> None:
        self.module, self.weights, self.constants, self.spec = module, weights, constants, spec
        self.guards = guards
        self.name, self.in_spec, self.out_spec, self.plain = call.name, call.in_spec, call.out_spec, call.constants
        self.shapes = [None if node is None else shapes[node] for node in call.inputs]
        self.places = [call.inputs.index(node) for node in dict.fromkeys(call.inputs) if node is not None]
        self.code = fx.GraphModule(nn.Module(), graph)

    def __deepcopy__(self, memo: dict[int, Any]) -> CapturedForward:
        """Return the forward of the module's copy; what describes inputs and results never changes and is shared."""
        twin = memo[id(self)] = copy.copy(self)
        twin.module = copy.deepcopy(self.module, memo)
        twin.constants = copy.deepcopy(self.constants, memo)
        twin.code = copy.deepcopy(self.code, memo)
        return twin

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the module returns.

        Raises:
            DataError: It is called in another way than when it was captured.
        """
        values = self._in_order(args, kwargs)
        sizes: dict[str, int] = {}
        for shape, then, now in zip(self.shapes, self.plain, values, strict=True):
            check_as_captured(self.name or "inputs", shape is not None, then, now)
            if shape is not None and not _fits(now.shape, shape, sizes):
                wanted = _described(shape, sizes)
                raise DataError(f"{self.name or 'inputs'}: captured for ({wanted}), got {tuple(now.shape)}")
        broken = broken_guard(self.guards, sizes)
        if broken is not None:
            raise DataError(f"{self.name or 'inputs'}: captured for sizes with {broken}, got {sizes}")
        weights = [_find(self.module, name) for name in self.weights]
        constants = [tensor.to(weights[0].device) if weights else tensor for tensor in self.constants]
        results = self.code.forward(*weights, *constants, *(values[place] for place in self.places))
        return self.out_spec.unflatten(results)

    def _in_order(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        if self.spec is None:
            values, form = tree_flatten((args, kwargs))
            if form != self.in_spec:
                raise DataError(f"{self.name}: must be called as when it was captured, with {self.in_spec}")
            return values
        return self.spec.in_order(pack((args, kwargs)))


def _fits(shape: torch.Size, wanted: list[int | str], sizes: dict[str, int]) -> bool:
    """Return whether a tensor has the shape that is wanted; the sizes of free dimensions are added to those known."""
    pairs = zip(shape, wanted, strict=False)
    return len(shape) == len(wanted) and all(
        size == "any" or (size if isinstance(size, int) else sizes.setdefault(size, have)) == have
        for have, size in pairs
    )


def _described(shape: list[int | str], sizes: dict[str, int]) -> str:
    words = [sizes.get(size, "any") if isinstance(size, str) and size != "samples" else size for size in shape]
    return ", ".join(map(str, words))


def captured_parts(network: nn.Module) -> tuple[str, ...]:
    """Return the modules of a cut network that compute by captured calls, not by their own code; "" is the whole."""
    return tuple(name for name, module in network.named_modules() if _is_captured(module))


def _is_captured(module: nn.Module) -> bool:
    return isinstance(getattr(vars(module).get("forward"), "__self__", None), CapturedForward)


def replace_forward(network: nn.Module, captured: Captured, sliced: Sliced, call: ModuleCall) -> bool:
    """Let a module compute by its part of the sliced graph; False where that has more than its weights and inputs."""
    module = network.get_submodule(call.name)
    captured_forward = _captured_forward(module, captured, sliced, call)
    if captured_forward is not None:
        for inner in list(module.modules())[1:]:
            if _is_captured(inner):
                del inner.forward  # never called any more
        module.forward = captured_forward.forward
    return captured_forward is not None


def _find(module: nn.Module, name: str) -> Tensor:
    path, _, attribute = name.rpartition(".")
    tensor: Tensor = getattr(module.get_submodule(path), attribute)
    return tensor


def _captured_forward(
    module: nn.Module, captured: Captured, sliced: Sliced, call: ModuleCall
) -> CapturedForward | None:
    """Return the part of a sliced graph between the inputs and the outputs of a call; None if it takes more inputs."""
    inputs = {sliced.copies[node]: node for node in call.inputs if node is not None}
    wanted = [sliced.copies[node] for node in call.outputs if isinstance(node, fx.Node)]
    needed = needed_between(set(inputs), wanted)
    prefix = f"{call.name}." if call.name else ""
    placeholders = {sliced.copies[n]: n.name for n in captured.graph.find_nodes(op="placeholder")}  # copies are renamed
    placeholders = {n: name for n, name in placeholders.items() if n in needed and n not in inputs}
    weights = [n for n, name in placeholders.items() if name in captured.weights]
    names = [captured.weights[placeholders[n]] for n in weights]
    constants = [n for n, name in placeholders.items() if name in captured.constants]
    outside = [n for n, name in placeholders.items() if name in captured.inputs]
    used = {user.target for n in outside for user in n.users if user in needed and user not in inputs}
    if used - {torch.ops.aten.sym_size.int} or not all(name.startswith(prefix) for name in names):
        return None  # of the whole network's inputs a part may use nothing but their sizes
    asked = [n for n in needed if n not in inputs and not set(outside).isdisjoint(n.all_input_nodes)]
    sizes = {node: _place_of_size(node, inputs, sliced) for node in asked}
    if None in sizes.values():
        return None
    graph = fx.Graph()
    copies = {node: graph.placeholder(node.name) for node in (*weights, *constants, *inputs)}
    for node in sliced.graph.nodes:
        if node in needed and node not in copies and node not in outside:
            place = sizes.get(node)
            copies[node] = graph.node_copy(node, copies.__getitem__) if place is None else _size(graph, copies, *place)
    plain = [None if isinstance(value, Tensor) else value for value in call.returned] or list(call.outputs)
    results = zip(call.outputs, plain, strict=True)
    graph.output([copies[sliced.copies[n]] if isinstance(n, fx.Node) else value for n, value in results])
    shapes = {node: _shape(node, sliced) for node in inputs.values()}
    tensors = [captured.constants[placeholders[n]] for n in constants]
    spec = None if call.name else captured.spec
    own_names = [name.removeprefix(prefix) for name in names]
    return CapturedForward(module, graph, own_names, tensors, call, shapes, captured.guards, spec)


def _shape(node: fx.Node, sliced: Sliced) -> list[int | str]:
    pairs = zip(sliced.net.axes(node), node.meta["val"].shape, strict=True)
    return [
        name_of_size(size) if counts_samples(size) or is_free(size) else sliced.left.count(axis) for axis, size in pairs
    ]


def _place_of_size(asked: fx.Node, inputs: dict[fx.Node, fx.Node], sliced: Sliced) -> tuple[fx.Node, int, int] | None:
    """Return an input and its dimension that is so many times a size of the whole network's inputs; None without."""
    for node, original in inputs.items():
        for dim, (axis, size) in enumerate(zip(sliced.net.axes(original), original.meta["val"].shape, strict=True)):
            multiple = times(size, asked.meta["val"])
            if multiple:
                return node, dim, multiple * sliced.left.count(axis) // axis.size
    return None


def _size(graph: fx.Graph, copies: dict[fx.Node, fx.Node], node: fx.Node, dim: int, multiple: int) -> fx.Node:
    size = graph.call_function(torch.ops.aten.sym_size.int, (copies[node], dim))
    return size if multiple == 1 else graph.call_function(operator.floordiv, (size, multiple))
