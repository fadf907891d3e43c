"""Blocks of a forward that switch autocast or gradients on or off, made part of the graph, with every cast in it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._python_dispatch import TorchDispatchMode

from secateur.errors import ModelError

SETTLED = "settled autocast"  # in the metadata of calls whose casts are in the graph


def inline_blocks(module: fx.GraphModule) -> None:
    """Make blocks that switch autocast or gradients part of the graph, those within blocks first.

    Raises:
        ModelError: What autocast does in one cannot be said by casts.
    """
    graph = module.graph
    for node in list(graph.nodes):
        name = getattr(node.target, "__name__", "")
        if node.op != "call_function" or name not in ("wrap_with_set_grad_enabled", "wrap_with_autocast"):
            continue
        is_autocast = name == "wrap_with_autocast"
        body, *operands = node.args[4 if is_autocast else 1 :]
        inner: Any = module.get_submodule(str(body.target))
        inline_blocks(inner)
        copies = dict(zip(inner.graph.find_nodes(op="placeholder"), operands, strict=True))
        with graph.inserting_before(node):
            results: Any = graph.graph_copy(inner.graph, copies)
        if is_autocast:
            _settle(graph, [copies[n] for n in inner.graph.nodes if n.op == "call_function"], *node.args[:3])
        for user in list(node.users):
            user.replace_all_uses_with(results[user.args[1]])
            graph.erase_node(user)
        graph.erase_node(node)
        if not body.users:
            graph.erase_node(body)


def _settle(graph: fx.Graph, calls: list[fx.Node], device: str, dtype: torch.dtype, on: bool) -> None:
    """Write the casts that autocast makes into the graph.

    Raises:
        ModelError: An operation computes in another dtype under autocast than of inputs that are cast.
    """
    for call in calls:
        if on and not call.meta.get(SETTLED) and isinstance(call.meta.get("val"), Tensor | tuple | list):
            for operand, to in _casts(call, device, dtype):
                with graph.inserting_before(call):
                    call.replace_input_with(operand, _cast(graph, operand, to, call))
            if _dtypes(_run(call)) != _dtypes(call.meta["val"]):
                raise ModelError(f"autocast computes {call.target} in another dtype than that of its inputs")
        call.meta[SETTLED] = True


class _Casts(TorchDispatchMode):
    """Watches which tensors are cast."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: dict[int, torch.dtype] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Return the result of an operation."""
        kwargs = kwargs or {}
        if function is torch.ops.aten._to_copy.default and kwargs.get("dtype") is not None:
            self.seen.setdefault(id(args[0]), kwargs["dtype"])
        return function(*args, **kwargs)


def _casts(call: fx.Node, device: str, dtype: torch.dtype) -> list[tuple[fx.Node, torch.dtype]]:
    """Return which inputs of a call autocast casts, and to what."""
    with torch.autocast(device, dtype=dtype, cache_enabled=False), _Casts() as casts:
        _run(call)
    by_input = [(n, casts.seen.get(id(n.meta.get("val")))) for n in call.all_input_nodes]
    return [(n, to) for n, to in by_input if to is not None and to != n.meta["val"].dtype]


def _run(call: fx.Node) -> Any:
    """Return what a call gives for the traced values of its inputs."""
    args, kwargs = fx.map_arg((call.args, call.kwargs), lambda n: n.meta["val"])
    return call.target(*args, **kwargs)  # type: ignore[operator]


def _cast(graph: fx.Graph, operand: fx.Node, dtype: torch.dtype, call: fx.Node) -> fx.Node:
    cast = graph.call_function(torch.ops.aten.to.dtype, (operand, dtype))
    cast.meta = {**call.meta, "val": operand.meta["val"].to(dtype), SETTLED: True}
    return cast


def _dtypes(value: Any) -> list[torch.dtype]:
    return [v.dtype for v in (value if isinstance(value, tuple | list) else [value]) if isinstance(v, Tensor)]
