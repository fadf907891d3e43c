"""What a decoder keeps of earlier tokens, in terms of the captured graph: recognised by its values."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from secateur.errors import ArgumentError
from secateur.structure.capture import call_model, evaluating
from secateur.structure.graph_run import bind, difference, tolerance
from secateur.structure.inputs import Call
from secateur.structure.lengths import few
from secateur.structure.units import Units

OPTION = "use_cache"  # by which networks are asked to keep what they need of earlier tokens


def cached_values(model: nn.Module, units: Units, call: Call) -> dict[fx.Node, int]:
    """Return the calls whose results a model keeps of earlier tokens, each with the number of tokens of the inputs.

    The model is run with and without a cache; the tensors that it returns besides are those that it keeps.

    Args:
        model: The model; left as it was.
        units: The model's units.
        call: Inputs; two samples of them are run.

    Raises:
        ArgumentError: It keeps nothing, or something that the captured graph does not compute.
    """
    name = type(model).__name__
    if OPTION not in inspect.signature(model.forward).parameters:
        raise ArgumentError(f"Budget: kv_cache: {name} keeps nothing of earlier tokens")
    args, options = call = few(call, units.captured.spec)
    tokens = next(leaf.shape[1] for leaf in tree_leaves(call) if isinstance(leaf, Tensor) and leaf.ndim > 1)
    with evaluating(model), torch.no_grad():
        returned = [call_model(model, (args, {**options, OPTION: cached})) for cached in (False, True)]
        without, kept = (list(_tensors(outputs)) for outputs in returned)
        kept = [tensor for tensor in kept if tokens in tensor.shape and not any(_same(tensor, o) for o in without)]
        nodes = _computed(model, units, call, kept)
    if not kept:
        raise ArgumentError(f"Budget: kv_cache: {name} keeps nothing of earlier tokens")
    if len(nodes) < len(kept):
        raise ArgumentError(
            f"Budget: kv_cache: {name} keeps {len(kept)} tensors, its captured graph computes {len(nodes)} of them"
        )
    return dict.fromkeys(nodes, tokens)


def _computed(model: nn.Module, units: Units, call: Call, tensors: list[Tensor]) -> list[fx.Node]:
    """Return the first calls of the graph that compute these tensors."""
    run = _Matching(units.captured.graph, tensors, tolerance(model))
    run.run(*bind(units.captured, model, call))
    return run.nodes


class _Matching(fx.Interpreter):
    """A run of a graph that notes which of its calls compute some tensors."""

    def __init__(self, graph: fx.Graph, tensors: list[Tensor], allowed: float) -> None:
        super().__init__(fx.GraphModule(nn.Module(), graph))
        self.graph = graph
        self.waiting, self.allowed, self.nodes = list(tensors), allowed, list[fx.Node]()

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        for place, tensor in enumerate(self.waiting):
            if n.op == "call_function" and isinstance(value, Tensor) and _same(tensor, value, self.allowed):
                del self.waiting[place]
                self.nodes.append(n)
                break
        return value


def _same(tensor: Tensor, other: Tensor, allowed: float = 0.0) -> bool:
    return tensor.shape == other.shape and difference(tensor, other)[1] <= allowed


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in a value, in containers and in attributes of objects."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)
    elif hasattr(value, "__dict__") and not isinstance(value, type | nn.Module):
        yield from _tensors(vars(value))
