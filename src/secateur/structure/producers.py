"""The weights that make units, which tell their names and kinds, and those that consume them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from torch import fx

from secateur.structure.axis import Axis, find, fix, leaves, mark_sliced
from secateur.structure.capture import Captured
from secateur.structure.infer import ancestors
from secateur.structure.ops.net import Axes, Consumer, Net
from secateur.structure.ops.registry import find_op, name_of


class Producer(NamedTuple):
    """The origin of a leaf in the activations: a call, and the layer whose weight it uses."""

    layer: str
    node: fx.Node


def name_leaves(captured: Captured, net: Net, makers: dict[Axis, Producer]) -> dict[Axis, str]:
    """Return each leaf that a weight has, in order of computation, named after the layer that makes it.

    Fixed ones are named after the weight and its dimension; those of unused weights are fixed here.
    """
    used = dict(_weight_leaves(captured, net, used=True))
    places = dict(_weight_leaves(captured, net, used=False)) | used
    for axis in places.keys() - used.keys():
        fix(axis, "forward does not use it")
    ordered = {axis: maker.layer for axis, maker in makers.items()}
    ordered |= {axis: place for axis, place in places.items() if axis not in makers}
    return distinct({axis: places[axis] if axis.reason else name for axis, name in ordered.items()})


def _weight_leaves(captured: Captured, net: Net, used: bool) -> Iterator[tuple[Axis, str]]:
    """Return the leaves of weights that forward uses or does not, with where they are first; in reverse."""
    for node in reversed(captured.graph.nodes):
        if node.name in captured.weights and bool(node.users) == used:
            for dim, axis in enumerate(net.axes(node)):
                yield from ((leaf, f"{captured.weights[node.name]}[{dim}]") for leaf in leaves(axis))


def find_producers(captured: Captured, net: Net) -> dict[Axis, Producer]:
    """Return the leaves that activations have and that are not fixed, with the layer whose weight brings them in."""
    makers: dict[Axis, Producer] = {}
    of_weights = {
        node: {leaf for axis in net.axes(node) for leaf in leaves(axis)}
        for node in captured.graph.nodes
        if node.name in captured.weights
    }
    for node in net.known:
        if node.op == "call_function" and net.depends_on_inputs(node):
            carried = [leaf for axes in net.outputs_of(node) for axis in axes for leaf in leaves(axis)]
            free = {leaf for leaf in carried if not leaf.reason and leaf not in makers}
            for source in map(_source, node.all_input_nodes) if free else ():
                if source in of_weights:
                    name = captured.weights[source.name]
                    brought = [leaf for leaf in carried if leaf in free & of_weights[source] and leaf not in makers]
                    makers |= {leaf: Producer(name.rpartition(".")[0] or name, node) for leaf in brought}
    return makers


def distinct(names: dict[Axis, str]) -> dict[Axis, str]:
    """Give numbers to names used twice."""
    twice, seen = Counter(names.values()), Counter[str]()
    for axis, name in names.items():
        if twice[name] > 1:
            names[axis] = f"{name}[{seen[name]}]"
            seen[name] += 1
    return names


def _source(node: fx.Node) -> fx.Node:
    """Return the placeholder that a value is a view of, or else the value itself."""
    while node.op == "call_function" and len(node.all_input_nodes) == 1:
        op = find_op(node)
        if op is None or op.derivative not in ("move", "output"):
            return node
        node = node.all_input_nodes[0]
    return node


def outgoing_weights(
    captured: Captured, net: Net, consumers: tuple[Consumer, ...]
) -> tuple[tuple[str, int], ...] | None:
    """Return the weights of these consumers, where each is used for nothing but consuming along that dimension."""
    weights: dict[tuple[str, int], None] = {}
    for consumer in consumers:
        source, dim = _weight_of(net, consumer)
        if source is None or source.name not in captured.weights:
            return None
        roles = [c for c in net.consumers if _weight_of(net, c) == (source, dim)]
        if len(roles) != _uses(source):
            return None
        weights[captured.weights[source.name], dim] = None
    return tuple(weights)


def _weight_of(net: Net, consumer: Consumer) -> tuple[fx.Node | None, int]:
    """Return the value whose view the consumer multiplies with, and which of its dimensions is summed over."""
    if consumer.partner is None:
        return None, 0
    source = _source(consumer.partner)
    if source is consumer.partner:
        return source, consumer.partner_dim
    dims = [i for i, axis in enumerate(net.axes(source)) if find(axis) is find(consumer.axis)]
    return (source, dims[0]) if len(dims) == 1 else (None, 0)


def _uses(node: fx.Node) -> int:
    """Return how many calls use a value, counting through its views."""
    return sum(_uses(user) if _source(user) is not user else 1 for user in node.users)


def mark_statistics(captured: Captured, net: Net, makers: Mapping[Axis, Producer]) -> None:
    """State that those left decide about all where weights are computed from sums over units (a spectral norm)."""
    for consumer in net.consumers:
        if not net.depends_on_inputs(consumer.node):
            hint = _how_to_fix_weights(captured, consumer.node)
            for leaf in leaves(consumer.axis):
                if leaf in makers:
                    mark_sliced(leaf, f"weights are computed by {name_of(consumer.node)} over it{hint}")


def _how_to_fix_weights(captured: Captured, node: fx.Node) -> str:
    """Return how to make a weight constant that a parametrisation computes; "" of other weights."""
    names = (captured.weights.get(operand.name, "") for operand in ancestors([node]))
    path, _, tensor = next((name for name in names if ".parametrizations." in name), "").partition(".parametrizations.")
    remove = f"torch.nn.utils.parametrize.remove_parametrizations(model.{path}, {tensor.split('.')[0]!r})"
    return f" ({remove} makes them constant)" if tensor else ""


def units_chosen(net: Net, weights: Iterable[Axes]) -> dict[Axis, int]:
    """Return how many units of an axis must stay, so that a choice among them finds as many as it always does.

    Those that have matrices of their own are experts.
    """
    chosen: dict[Axis, int] = {}
    for axis, number in net.choices:
        if len(leaves(axis)) > 1:
            fix(axis, "a choice is made among the units of several axes")
        if number >= axis.size:
            fix(axis, "all of it are chosen")
        chosen[find(axis)] = max(number, chosen.get(find(axis), 1))
    for axes in weights:
        net.kinds += [(axes[0], "expert")] if len(axes) > 2 and find(axes[0]) in chosen else []
    return chosen


class Kinds:
    """The kinds of the leaves of a network."""

    def __init__(self, net: Net) -> None:
        ranked = sorted(net.kinds, key=lambda pair: ("expert", "recurrent width", "head", "head width").index(pair[1]))
        self._stated: dict[Axis, str] = {}
        for axis, kind in ranked:
            for leaf in leaves(axis):
                self._stated.setdefault(leaf, kind)
        self._residual = _residual(net)

    def of(self, axis: Axis, maker: Producer | None, consumers: tuple[Consumer, ...]) -> str:
        """Return an axis's kind: "channel", "expert", "head", "head width", "residual width", "neuron" ...

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
