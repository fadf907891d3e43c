"""Recurrent layers: one operation for all layers, directions and steps."""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from secateur.structure.axis import cat, leaf, product, unify
from secateur.structure.ops.net import Axes, Net
from secateur.structure.ops.registry import module_sizes, name_of, rule

_GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}


@rule("lstm", "gru", "rnn_tanh", "rnn_relu", fused=True)
def recurrent(net: Net, node: fx.Node, operands: dict[str, Any]) -> list[Axes]:
    """State h_t from x_t and h_{t−1}, in every layer and direction with the same hidden units.

    One state [layers × directions, N, H] holds them all, so that they are one axis. It is consumed inside the
    operation: its gates are on the weights of the recurrence and of the layers above.
    """
    if "batch_sizes" in operands or operands["train"]:
        reason = f"{name_of(node)} of packed sequences or with dropout"
        net.fix_all([net.axes(n) for n in node.all_input_nodes if net.is_tensor(n)], reason)
        return net.fresh_outputs(node, reason)
    states = operands["hx"] if isinstance(operands["hx"], list | tuple) else [operands["hx"]]
    first = net.axes(states[0])
    hidden, directions = first[-1], 2 if operands["bidirectional"] else 1
    outputs = hidden
    if name_of(node) == "lstm":
        outputs, hidden = first[-1], net.axes(states[1])[-1]  # of another width where h is projected
    x = net.axes(operands["input"])
    _weights(net, node, operands, x[-1], hidden, outputs, directions)
    if outputs.size == hidden.size:
        unify(outputs, hidden)
    out = [*x[:-1], cat([outputs] * directions)]
    net.state_kind("recurrent width", outputs, hidden)
    fresh = net.fresh_outputs(node, "layers and directions")
    return [out, *([*state[:-1], axis] for state, axis in zip(fresh[1:], (outputs, hidden), strict=False))]


@rule("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
def cell(net: Net, node: fx.Node, operands: dict[str, Any]) -> Axes | list[Axes]:
    """State one step of one layer."""
    states = operands["hx"] if isinstance(operands["hx"], list | tuple) else [operands["hx"]]
    x, state = net.axes(operands["input"]), net.broadcast([net.axes(tensor) for tensor in states], name_of(node))
    rows = product([leaf(_GATES[name_of(node).removesuffix("_cell")], "the gates of a recurrent unit"), state[-1]])
    for name, inputs in (("w_ih", x[-1]), ("w_hh", state[-1]), ("b_ih", None), ("b_hh", None)):
        if operands[name] is not None:
            axes = net.axes(operands[name])
            unify(axes[0], rows)
            if inputs is not None:
                unify(axes[1], inputs)
                net.macs.append([*x[:-1], *axes])
    net.consume(node, operands["input"], len(x) - 1)
    net.consume(node, operands["w_hh"], 1)
    net.state_kind("recurrent width", state[-1])
    return [state] * len(states) if isinstance(node.meta["val"], tuple | list) else state


def _weights(
    net: Net, node: fx.Node, operands: dict[str, Any], below: Any, hidden: Any, outputs: Any, directions: int
) -> None:
    """State the axes of every weight: [gates × H, inputs], [gates × H, H], biases, a projection [outputs, H]."""
    gates = _GATES[name_of(node)]
    params = operands["params"]
    projected = outputs.size != hidden.size
    each = 2 + 2 * bool(operands["has_biases"]) + projected
    for k in range(0, len(params), each):
        first_layer = k // each < directions
        inputs = below if first_layer else cat([outputs] * directions)
        rows = product([leaf(gates, "the gates of a recurrent unit"), hidden])
        for i, weight in enumerate(params[k : k + each]):
            axes = net.axes(weight)
            if projected and i == each - 1:
                unify(axes[0], outputs)
                unify(axes[1], hidden)
                net.consume(node, weight, 1)
            else:
                unify(axes[0], rows)
            if i < 2:
                unify(axes[1], inputs if i == 0 else outputs)
            if len(axes) == 2:
                net.macs.append([*net.axes(operands["input"])[:-1], *axes])
            if i == 1 or (i == 0 and not first_layer):
                net.consume(node, weight, 1)
    net.consume(node, operands["input"], len(net.axes(operands["input"])) - 1)


@module_sizes(nn.RNNBase)
def layer_attributes(module: nn.RNNBase, shape: tuple[int, ...], groups: int | None) -> dict[str, Any]:
    """Return the widths, and the list of weights that is given to the operation."""
    first, again = (getattr(module, name) for name in ("weight_ih_l0", "weight_hh_l0"))
    gates = {"LSTM": 4, "GRU": 3}.get(module.mode, 1)
    flat = [getattr(module, name) for name in module._flat_weights_names]
    sizes = {"input_size": first.shape[1], "hidden_size": again.shape[0] // gates, "_flat_weights": flat}
    return sizes | ({"proj_size": again.shape[1]} if module.proj_size else {})


@module_sizes(nn.RNNCellBase)
def cell_attributes(module: Any, shape: tuple[int, ...], groups: int | None) -> dict[str, Any]:
    """Return the widths."""
    return {"input_size": module.weight_ih.shape[1], "hidden_size": module.weight_hh.shape[1]}
