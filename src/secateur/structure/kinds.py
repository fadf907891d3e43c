"""What one unit of a set is, in the words of the field."""

from __future__ import annotations

from secateur.structure.axis import Axis, leaves
from secateur.structure.rules.net import Consumer, Net
from secateur.structure.rules.registry import name_of
from secateur.structure.weights import Maker


class Kinds:
    """Tells the kind of each leaf of a network."""

    def __init__(self, net: Net) -> None:
        ranked = sorted(net.kinds, key=lambda pair: ("recurrent width", "head", "head width").index(pair[1]))
        self._stated: dict[Axis, str] = {}
        for axis, kind in ranked:
            for one in leaves(axis):
                self._stated.setdefault(one, kind)
        self._residual = _residual(net)

    def of(self, axis: Axis, maker: Maker | None, consumers: tuple[Consumer, ...]) -> str:
        """The kind of an axis: "channel", "head", "head width", "recurrent width", "residual width", "neuron" ...

        A neuron becomes a width where a layer is applied at every position of a sequence.
        """
        if axis in self._stated:
            return self._stated[axis]
        if maker is not None and name_of(maker.node).startswith("conv"):
            return "channel"
        if axis in self._residual:
            return "residual width"
        at_positions = all(len(consumer.operand.meta["val"].shape) > 2 for consumer in consumers)
        dense = maker is not None and name_of(maker.node) in ("linear", "matmul", "addmm")
        return "feed-forward width" if dense and consumers and at_positions else "neuron"


def _residual(net: Net) -> set[Axis]:
    """The leaves along which activations at positions of a sequence are added to each other."""
    found: set[Axis] = set()
    for node in net.known:
        both = [n for n in node.all_input_nodes if net.is_tensor(n) and net.depends_on_inputs(n)]
        if name_of(node) == "add" and len(both) == 2 and all(len(net.axes(n)) > 2 for n in both):
            found |= set.intersection(*({one for axis in net.axes(n) for one in leaves(axis)} for n in both))
    return found
