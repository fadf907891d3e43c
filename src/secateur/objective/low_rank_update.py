"""Layers whose results are updated where one unit's gate changes, and activations that may overwrite their operands.

A gate changes what the layer behind it sums up by (γ − g_k) o_k w_k alone, whatever its other inputs are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from secateur.structure.ops.linear import Linear
from secateur.structure.ops.registry import arguments, find_op, key_of, linear_of


def updated_layer(node: fx.Node, operand: fx.Node) -> Linear | None:
    """Return the record of a layer that can be updated where `operand` is its input; None for any other call."""
    linear = linear_of(node)
    if linear is None or linear.update is None:
        return None
    operands, taken = arguments(node), list[fx.Node]()
    fx.map_arg((node.args, node.kwargs), taken.append)
    alone = operands[linear.operand] is operand and taken.count(operand) == 1
    return linear if alone and linear.is_one_matrix(operands) else None


def weight_of(node: fx.Node, linear: Linear) -> fx.Node:
    """Return the weight of a layer's call."""
    weight: fx.Node = arguments(node)[linear.weight]
    return weight


def overwrite(graph: fx.Graph, fresh: set[fx.Node]) -> bool:
    """Let activations overwrite what they alone take: of calls, and of placeholders whose memory is given away.

    Returns:
        True if what the graph returns may be overwritten, too.
    """
    fresh = set(fresh)
    for node in graph.nodes:
        op, target = find_op(node), _in_place(node)
        if op is not None and op.memory == "fresh":
            fresh.add(node)
        elif target is not None and len(node.args[0].users) == 1 and node.args[0] in fresh:
            node.target = target
            fresh.add(node)
    return all(node in fresh for node in graph.output_node().all_input_nodes)


def _in_place(node: fx.Node) -> Any:
    """Return the operation that writes over the operand of this one; None where there is none."""
    op = find_op(node)
    if op is None or op.memory != "reusable" or node.target._overloadname != "default":  # type: ignore[union-attr]
        return None
    namespace, name = key_of(node).split("::")
    return getattr(getattr(torch.ops, namespace), f"{name}_").default
