"""A network as the rules see it, and all that they state about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, fx
from torch.fx.experimental.symbolic_shapes import statically_known_true

from secateur.structure.axis import Axis, fix, leaf, mark_sliced, unify
from secateur.structure.capture import is_free, sizes

Axes = list[Axis]  # of one tensor, one per dimension


OF_INPUTS = "how many positions there are depends on the inputs"

Kind = Literal["expert", "head", "head width", "recurrent width"]


class NotCoveredError(Exception):
    """The error that a rule does not know this form of its operation: all axes that reach it are fixed, and listed so.

    Its text is what the rule does not cover.
    """

    def __init__(self, form: str = "this form of it") -> None:
        super().__init__(form)


def require_form(holds: bool, otherwise: str) -> None:
    """Go on with a rule only for the forms of an operation that it covers.

    Args:
        holds: True if this is one.
        otherwise: The name of the form if it is none.

    Raises:
        NotCoveredError: It is none.
    """
    if not holds:
        raise NotCoveredError(otherwise)


def dim_of(operands: dict[str, Any], axes: Axes, name: str = "dim") -> int:
    """Return the dimension that an argument names, counted from the first.

    Raises:
        NotCoveredError: It names none: the tensor is a scalar, or taken as one row.
    """
    require_form(operands[name] is not None, "a tensor taken as one row")
    require_form(bool(axes), "a scalar")
    return int(operands[name]) % len(axes)


def rank_of(value: Any) -> int:
    """Return the number of dimensions of a traced tensor; 0 where that is not known."""
    traced = value.meta.get("val") if isinstance(value, fx.Node) else None
    return traced.ndim if isinstance(traced, Tensor) else 0


def same_size(a: fx.Node, i: int, b: fx.Node, j: int) -> bool:
    """Return whether two dimensions of traced tensors have the same size whatever that of the inputs."""
    return statically_known_true(a.meta["val"].shape[i] == b.meta["val"].shape[j])


@dataclass(frozen=True)
class Consumer:
    """The place where units are summed over and carry their gates: an operand of a node, at one dimension."""

    node: fx.Node
    operand: fx.Node
    dim: int
    axis: Axis  # of the operand's dimension, with leaves of their own for the factors that are not summed over
    partner: fx.Node | None  # the other factor, usually a weight
    partner_dim: int
    occurrence: int = 0  # which, where the operand is there several times


@dataclass
class Net:
    """The axes of every value so far, and where they are consumed."""

    known: dict[fx.Node, Any] = field(default_factory=dict)
    consumers: list[Consumer] = field(default_factory=list)
    macs: list[Axes] = field(default_factory=list)  # per contraction: the product of their sizes
    of_inputs: set[fx.Node] = field(default_factory=set)  # nodes that depend on the model's inputs
    groups: dict[fx.Node, Axis] = field(default_factory=dict)  # of grouped convolutions and norms
    kinds: list[tuple[Axis, Kind]] = field(default_factory=list)  # what an operation says its units are
    places: dict[tuple[fx.Node, int], Axis] = field(default_factory=dict)  # call, output → the axis it has places along
    looked_up: set[tuple[fx.Node, fx.Node]] = field(default_factory=set)  # calls, and the places that they look up
    gathered: set[fx.Node] = field(default_factory=set)  # weights at places that a choice found
    choices: list[tuple[Axis, int]] = field(default_factory=list)  # among the units of an axis, and of how many
    used: bool = True  # whether the outputs depend on the call whose rule runs

    def axes(self, node: fx.Node) -> Axes:
        """Return the axes of a tensor."""
        axes: Axes = self.known[node]
        return list(axes)

    def outputs(self, node: fx.Node) -> list[Axes]:
        """Return the axes of each of several outputs."""
        results: list[Axes] = self.known[node]
        return results

    def outputs_of(self, node: fx.Node) -> list[Axes]:
        """Return the axes of each output, also where there is only one."""
        return [self.axes(node)] if self.is_tensor(node) else self.outputs(node)

    def is_tensor(self, node: Any) -> bool:
        """Return whether this argument is a tensor."""
        return isinstance(node, fx.Node) and isinstance(node.meta.get("val"), Tensor)

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        """Return the traced size of each dimension."""
        return sizes(node.meta["val"])

    def depends_on_inputs(self, node: fx.Node) -> bool:
        """Return whether a value is an activation, not a weight."""
        return node in self.of_inputs

    def is_activation(self, node: fx.Node) -> bool:
        """Return whether a value depends on the inputs otherwise than by the choice of a weight."""
        return node in self.of_inputs and node not in self.gathered

    def fresh_outputs(self, node: fx.Node, reason: str | None = None) -> list[Axes]:
        """Return new axes for each output of a node."""
        values = node.meta["val"]
        results = values if isinstance(values, tuple | list) else [values]
        return [[leaf(n, reason) for n in sizes(v)] if isinstance(v, Tensor) else [] for v in results]

    def fix_all(self, tensors: Sequence[Axes], reason: str) -> None:
        """State that none of these axes can lose a unit."""
        for axes in tensors:
            for axis in axes:
                fix(axis, reason)

    def broadcast(self, tensors: Sequence[Axes], name: str) -> Axes:
        """Return the common axes, aligned from the last; one of size 1 met by a larger one is fixed."""
        return [self._common([t[-i] for t in tensors if len(t) >= i], name) for i in _downward(max(map(len, tensors)))]

    def _common(self, axes: Axes, name: str) -> Axis:
        widest = max(axes, key=lambda axis: axis.size)
        for axis in axes:
            if axis.size == widest.size:
                unify(axis, widest)
            else:
                fix(axis, f"{name} broadcasts it")
        return widest

    def slice_all(self, axes: Axes, reason: str) -> None:
        """State that what is left of these axes decides about all values: their units are sliced, not gated."""
        for axis in axes if self.used else ():
            mark_sliced(axis, reason)

    def consume(
        self,
        node: fx.Node,
        operand: fx.Node,
        dim: int,
        partner: fx.Node | None = None,
        partner_dim: int = 0,
        axis: Axis | None = None,
        occurrence: int = 0,
    ) -> None:
        """State that `node` sums over dimension `dim` of `operand`, weighted by `partner` if there is one.

        Where it sums over some factors of that dimension only, `axis` has other leaves for the rest.
        """
        axis = self.axes(operand)[dim] if axis is None else axis
        if is_free(operand.meta["val"].shape[dim]):
            fix(axis, OF_INPUTS)
        self.consumers.append(Consumer(node, operand, dim, axis, partner, partner_dim, occurrence))

    def choose(
        self, node: fx.Node, operand: fx.Node, dim: int, reason: str, number: int = 1, output: int = 0
    ) -> None:  # fmt: skip
        """State that one of a call's outputs holds the places of so many values along a dimension.

        A gate makes a unit's value less likely to be chosen; without the unit the choice is among the others.
        """
        axis = self.axes(operand)[dim]
        mark_sliced(axis, reason)
        self.consume(node, operand, dim)
        self.choices.append((axis, number))
        self.places[node, output] = axis

    def look_up(self, node: fx.Node, index: fx.Node, axis: Axis, otherwise: str) -> None:
        """State that a call takes what lies at some places of an axis: it is fixed, unless a choice found them."""
        place = self.places.get((index, 0))
        if place is None or place.size != axis.size:
            fix(axis, otherwise)
            return
        unify(axis, place)
        self.looked_up.add((node, index))
        if not self.depends_on_inputs(node.all_input_nodes[0]):
            self.gathered.add(node)

    def state_kind(self, kind: Kind, *axes: Axis) -> None:
        """State what the units of these axes are."""
        self.kinds += [(axis, kind) for axis in axes]


def _downward(n: int) -> range:
    return range(n, 0, -1)
