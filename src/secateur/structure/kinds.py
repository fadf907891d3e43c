"""The kinds of units, in the words of the field."""

from __future__ import annotations

from torch import fx

from secateur.structure.axis import Axis, leaves
from secateur.structure.ops.net import Consumer, Net
from secateur.structure.ops.registry import find_op
from secateur.structure.producers import Producer


class Kinds:
    """The kinds of the leaves of a network."""

    def __init__(self, net: Net) -> None:
        ranked = sorted(net.kinds, key=lambda pair: ("recurrent width", "head", "head width").index(pair[1]))
        self._stated: dict[Axis, str] = {}
        for axis, kind in ranked:
            for leaf in leaves(axis):
                self._stated.setdefault(leaf, kind)
        self._residual = _residual(net)

    def of(self, axis: Axis, maker: Producer | None, consumers: tuple[Consumer, ...]) -> str:
        """Return an axis's kind: "channel", "head", "head width", "recurrent width", "residual width", "neuron" ...

        A neuron becomes a width where a layer is applied at every position of a sequence.
        """
        if axis in self._stated:
            return self._stated[axis]
        if axis in self._residual:
            return "residual width"
        op = None if maker is None else find_op(maker.node)
        if op is not None and op.makes == "channel":
            return "channel"
        at_positions = all(len(consumer.operand.meta["val"].shape) > 2 for consumer in consumers)
        dense = op is not None and op.makes == "width"
        return "feed-forward width" if dense and consumers and at_positions else "neuron"


def _residual(net: Net) -> set[Axis]:
    """Return the leaves of the last dimension along which activations at positions of a sequence are added up."""
    summed: set[Axis] = set()
    for node in net.known:
        op = find_op(node)
        both = [n for n in node.all_input_nodes if net.is_tensor(n) and net.depends_on_inputs(n)]
        if op is not None and op.adds and len(both) == 2 and all(len(net.axes(n)) > 2 for n in both) and _apart(*both):
            summed |= set.intersection(*(set(leaves(net.axes(n)[-1])) for n in both))
    return summed


def _apart(a: fx.Node, b: fx.Node) -> bool:
    """Return whether two values are not made of the same ones by pointwise operations alone, as in an activation."""
    return _origins(a) != _origins(b)


def _origins(node: fx.Node) -> set[fx.Node]:
    op = find_op(node)
    if op is None or op.derivative != "pointwise":
        return {node}
    return {origin for operand in node.all_input_nodes for origin in _origins(operand)}
