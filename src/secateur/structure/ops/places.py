"""Whole numbers that are positions along an axis: a choice finds them, and what looks them up has that axis, too.

Where units are gone the choice is made again, among the others, and finds their new positions. What does anything else
with such numbers depends on how many units there were before each: the axis is fixed then.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import fx

from secateur.structure.axis import Axis, find, fix, leaves, mark_sliced, unify
from secateur.structure.ops.net import Axes, Net
from secateur.structure.ops.registry import name_of

KEEPING = frozenset({
    "view", "reshape", "_unsafe_view", "flatten", "unflatten", "unsqueeze", "squeeze", "t", "transpose", "permute",
    "movedim", "unbind", "split", "chunk", "split_with_sizes", "slice", "narrow", "select", "expand", "broadcast_to",
    "repeat", "repeat_interleave", "clone", "contiguous", "detach", "alias", "to", "_to_copy", "index", "gather",
    "index_select",
})  # fmt: skip  # operations whose results are values of their first operand


def choose(net: Net, node: fx.Node, operand: fx.Node, dim: int, number: int, output: int = 0) -> None:
    """State that one of a call's outputs holds the places of so many values along a dimension.

    A gate makes a unit's value less likely to be chosen; without the unit the choice is among the others.
    """
    axis = net.axes(operand)[dim]
    mark_sliced(axis, f"{name_of(node)} chooses along it")
    net.consume(node, operand, dim)
    net.choices.append((axis, number))
    net.places[node, output] = axis


def look_up(net: Net, node: fx.Node, index: fx.Node, axis: Axis, otherwise: str) -> None:
    """State that a call takes what lies at some positions of an axis: it is fixed, unless a choice along it found them.

    Args:
        net: The network.
        node: The call.
        index: The positions.
        axis: The axis.
        otherwise: The reason why it is fixed.
    """
    place = net.places.get((index, 0))
    if place is None or place.size != axis.size:
        fix(axis, otherwise)
    else:
        unify(axis, place)
        net.looked_up.add((node, index))
        if not net.depends_on_inputs(node.all_input_nodes[0]):
            net.gathered.add(node)


def follow_places(net: Net, node: fx.Node) -> None:
    """State where the places go that a call is given, after its rule has stated which of them it looks up."""
    first = node.all_input_nodes[:1]
    if net.gathered.issuperset(first) and len(node.all_input_nodes) == 1:
        net.gathered.add(node)
    op, operands = name_of(node), [n for n in node.all_input_nodes if (n, 0) in net.places or _several(net, n)]
    for operand in operands:
        if op == "getitem":
            _take_output(net, node, operand)
        elif (node, operand) not in net.looked_up:
            place = net.places[operand, 0]
            if op in KEEPING and node.args[0] is operand:
                for output in range(len(net.outputs_of(node))):
                    net.places[node, output] = place
            else:
                fix(place, f"{op} counts along it")


def _several(net: Net, node: fx.Node) -> bool:
    return not net.is_tensor(node) and any(of is node for of, _ in net.places)


def _take_output(net: Net, node: fx.Node, operand: fx.Node) -> None:
    place = net.places.get((operand, node.args[1]))  # type: ignore[arg-type]
    if place is not None:
        net.places[node, 0] = place


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
