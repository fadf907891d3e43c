"""A forward made of captured calls, for modules whose own code cannot compute with the sizes that are left."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from secateur.errors import DataError
from secateur.structure.axis import BATCH
from secateur.structure.capture import Captured, ModuleCall, whole_call
from secateur.structure.sliced import Sliced


class CapturedForward:
    """Computes what a module did in the captured graph, with the module's weights as they are at the call.

    Args:
        module: Whose weights are used, by name.
        graph: Its placeholders are the weights, the constants and the inputs, in this order.
        weights: The names of those weights in the module.
        constants: Tensors that the module made itself.
        inputs: From (args, kwargs) to the inputs of the graph.
        results: From the outputs of the graph to what the module returns.
    """

    def __init__(
        self,
        module: nn.Module,
        graph: fx.Graph,
        weights: list[str],
        constants: list[Tensor],
        inputs: Callable[[Any, Any], list[Any]],
        results: Callable[[Any], Any],
    ) -> None:
        self.module, self.weights, self.constants, self.inputs, self.results = (
            module, weights, constants, inputs, results,
        )  # fmt: skip
        self.code = fx.GraphModule(nn.Module(), graph)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the module returns."""
        weights = [_find(self.module, name) for name in self.weights]
        constants = [tensor.to(weights[0].device) if weights else tensor for tensor in self.constants]
        return self.results(self.code.forward(*weights, *constants, *self.inputs(args, kwargs)))


class GraphNetwork(nn.Module):
    """The pruned graph of a whole network: the original's modules hold the weights, their code is not run.

    It computes as the original does in eval mode, in training mode too, and its weights can be trained.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        for name, module in network.named_children():
            self.add_module(name, module)
        for name, parameter in network.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        for name, buffer in network.named_buffers(recurse=False):
            self.register_buffer(name, buffer, persistent=name not in network._non_persistent_buffers_set)
        self.training = network.training
        self.captured: CapturedForward | None = None  # set once the weights are here

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the original returns."""
        assert self.captured is not None, "made by graph_network alone"
        return self.captured(*args, **kwargs)


def captured_parts(network: nn.Module) -> tuple[str, ...]:
    """The submodules of a cut network that compute by captured calls, not by their own code; "" is the whole."""
    if isinstance(network, GraphNetwork):
        return ("",)
    modules = network.named_modules()
    return tuple(name for name, module in modules if isinstance(vars(module).get("forward"), CapturedForward))


def _find(module: nn.Module, name: str) -> Tensor:
    path, _, attribute = name.rpartition(".")
    found: Tensor = getattr(module.get_submodule(path), attribute)
    return found


def graph_network(small: nn.Module, captured: Captured, sliced: Sliced) -> GraphNetwork:
    """The whole sliced graph as a network, with the weights of a sliced copy."""
    network = GraphNetwork(small)
    given = partial(_by_name, len(captured.inputs), captured.keywords)
    made = captured_forward(network, captured, sliced, whole_call(captured), given)
    assert made is not None, "a whole network has all its weights"
    network.captured = made
    return network


def submodule_forward(
    network: nn.Module, captured: Captured, sliced: Sliced, call: ModuleCall
) -> CapturedForward | None:
    """The forward of a submodule; None where it uses more than its own weights and arguments."""
    places = tuple(call.inputs.index(node) for node in dict.fromkeys(call.inputs) if node is not None)
    module = network.get_submodule(call.name)
    return captured_forward(module, captured, sliced, call, partial(_in_places, call.name, call.in_spec, places))


def captured_forward(
    module: nn.Module, captured: Captured, sliced: Sliced, call: ModuleCall, inputs: Callable[[Any, Any], list[Any]]
) -> CapturedForward | None:
    """The part of a sliced graph between the inputs and the outputs of a call."""
    given = {sliced.copies[node]: node for node in call.inputs if node is not None}
    wanted = [sliced.copies[node] for node in call.outputs if isinstance(node, fx.Node)]
    needed = _between(set(given), wanted)
    prefix = f"{call.name}." if call.name else ""
    placeholders = {sliced.copies[n]: n.name for n in captured.graph.find_nodes(op="placeholder")}  # copies are renamed
    placeholders = {n: name for n, name in placeholders.items() if n in needed and n not in given}
    weights = [n for n, name in placeholders.items() if name in captured.weights]
    names = [captured.weights[placeholders[n]] for n in weights]
    constants = [n for n, name in placeholders.items() if name in captured.constants]
    outside = [n for n, name in placeholders.items() if name in captured.inputs]
    if not all(name.startswith(prefix) for name in names):
        return None
    used = {user.target for n in outside for user in n.users if user in needed and user not in given}
    if used - {torch.ops.aten.sym_size.int}:  # of the whole network's inputs nothing but the number of samples
        return None
    graph = fx.Graph()
    copies = {node: graph.placeholder(node.name) for node in (*weights, *constants, *given)}
    for node in sliced.graph.nodes:
        if node in needed and node not in copies and node not in outside:
            of_outside = node.target is torch.ops.aten.sym_size.int and node.args[0] in outside
            copies[node] = (
                _batch_size(graph, copies, given, sliced) if of_outside else graph.node_copy(node, copies.__getitem__)
            )
    graph.output([copies[sliced.copies[node]] if isinstance(node, fx.Node) else node for node in call.outputs])
    return CapturedForward(
        module,
        graph,
        [name.removeprefix(prefix) for name in names],
        [captured.constants[placeholders[n]] for n in constants],
        inputs,
        partial(tree_unflatten, treespec=call.out_spec),
    )


def _between(given: set[fx.Node], wanted: list[fx.Node]) -> set[fx.Node]:
    needed: set[fx.Node] = set()
    rest = list(wanted)
    while rest:
        node = rest.pop()
        if node not in needed:
            needed.add(node)
            rest += [] if node in given else node.all_input_nodes
    return needed


def _batch_size(
    graph: fx.Graph, copies: dict[fx.Node, fx.Node], given: dict[fx.Node, fx.Node], sliced: Sliced
) -> fx.Node:
    """The number of samples, from the first input that has a dimension which is a multiple of it.

    Raises:
        AssertionError: None has, which no graph of a submodule lets happen.
    """
    for node, original in given.items():
        for dim, axis in enumerate(sliced.net.axes(original)):
            if axis.size % BATCH == 0:
                size = graph.call_function(torch.ops.aten.sym_size.int, (copies[node], dim))
                times = sliced.left.count(axis) // BATCH
                return size if times == 1 else graph.call_function(operator.floordiv, (size, times))
    raise AssertionError("a submodule whose inputs have no samples asks for their number")


def _by_name(count: int, keywords: tuple[str, ...], args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    if len(args) + len(kwargs) != count or set(kwargs) != set(keywords):
        wanted = f"{count - len(keywords)} positional, keywords {sorted(keywords)}"
        raise DataError(f"inputs: expected {wanted}, got {len(args)} positional, keywords {sorted(kwargs)}")
    return [*args, *(kwargs[name] for name in keywords)]


def _in_places(
    name: str, spec: Any, places: tuple[int, ...], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> list[Any]:
    values, form = tree_flatten((args, kwargs))
    if form != spec:
        raise DataError(f"{name}: is now part of a captured graph and must be called as it was then: {spec}")
    return [values[i] for i in places]
