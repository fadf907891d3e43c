"""Unit sets: what can be removed together by index, every slice that goes with it, and what it costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from secateur.errors import ModelError, choose
from secateur.structure.axis import Axis, count, expand, leaves
from secateur.structure.capture import BATCH, Captured, capture
from secateur.structure.infer import infer
from secateur.structure.inputs import Call, as_call, like_model
from secateur.structure.rules.net import Axes, Consumer, Net
from secateur.structure.run import check_capture
from secateur.structure.weights import name_leaves, outgoing_weights
from secateur.text import format_bytes, table


@dataclass(frozen=True, eq=False)
class Slice:
    """The part of one tensor that belongs to each unit: row k of `index` [units, positions] along `dim`."""

    tensor: str
    dim: int
    index: Tensor


class Fixed(NamedTuple):
    """An axis that cannot lose a unit, and why."""

    name: str
    size: int
    reason: str


@dataclass(frozen=True, eq=False)
class UnitSet:
    """All units along one axis.

    Attributes:
        name: The layer that makes the units.
        kind: What one unit is: "neuron".
        size: The number of units.
        removal: "gated": removing a unit is exactly a gate of zero.
        params_per_unit: Parameters that go with one unit while all others are there.
        bytes_per_unit: The same in bytes, with its buffers.
        slices: Every slice of every parameter and buffer that goes with each unit.
        outgoing: The slices of the consumers' weights alone, on which a factor acts as a gate; None where
            a consumer has no weight of its own.
        consumers: Where the units are summed over.
    """

    name: str
    kind: str
    size: int
    removal: str
    params_per_unit: int
    bytes_per_unit: int
    axis: Axis
    consumers: tuple[Consumer, ...]
    _axes: Mapping[str, Axes]
    _outgoing: tuple[tuple[str, int], ...] | None

    @cached_property
    def slices(self) -> tuple[Slice, ...]:
        """One for each dimension of each tensor that the axis reaches."""
        return tuple(
            self._slice(name, dim, axis)
            for name, axes in self._axes.items()
            for dim, axis in enumerate(axes)
            if self.axis in leaves(axis)
        )

    @cached_property
    def outgoing(self) -> tuple[Slice, ...] | None:
        """Weights that multiply these units and do nothing else."""
        if self._outgoing is None:
            return None
        return tuple(self._slice(name, dim, self._axes[name][dim]) for name, dim in self._outgoing)

    def _slice(self, name: str, dim: int, axis: Axis) -> Slice:
        without = expand(axis, {self.axis: ~torch.eye(self.size, dtype=torch.bool)}, torch.ones(1, dtype=torch.bool))
        return Slice(name, dim, (~without).nonzero()[:, 1].reshape(self.size, -1))


class Units:
    """The unit sets of a model, in the order in which it computes them; prints as a table.

    Iterates over `UnitSet`s; ``units["fc1"]`` finds one; `fixed` lists what cannot be removed, with reasons.
    Made by `find_units`.
    """

    def __init__(self, captured: Captured, net: Net, model: nn.Module) -> None:
        self.captured = captured
        self.macs_of = net.macs
        self.axes = {
            captured.weights[node.name]: net.axes(node)
            for node in captured.graph.nodes
            if node.name in captured.weights
        }
        named = dict(model.named_parameters()) | dict(model.named_buffers())
        self._weights = [
            (name, self.axes.get(name), tensor.numel(), tensor.element_size(), isinstance(tensor, nn.Parameter))
            for name, tensor in named.items()
        ]
        found = name_leaves(captured, net)
        self.fixed = tuple(Fixed(name, axis.size, axis.reason) for axis, name in found.items() if axis.reason)
        self.sets: tuple[UnitSet, ...] = ()
        self._names = {axis: name for axis, name in found.items() if not axis.reason}
        self.sets = tuple(self._set(axis, name, net) for axis, name in self._names.items())

    def _set(self, axis: Axis, name: str, net: Net) -> UnitSet:
        consumers = tuple(c for c in net.consumers if axis in leaves(c.axis))
        before, after = (self._totals({axis: axis.size - gone}) for gone in (0, 1))
        freed = [a - b for a, b in zip(before, after, strict=True)]
        outgoing = outgoing_weights(self.captured, net, consumers)
        return UnitSet(name, "neuron", axis.size, "gated", freed[0], freed[1], axis, consumers, self.axes, outgoing)

    def __iter__(self) -> Iterator[UnitSet]:
        return iter(self.sets)

    def __len__(self) -> int:
        return len(self.sets)

    def __getitem__(self, name: str) -> UnitSet:
        return choose("unit set", name, {unit_set.name: unit_set for unit_set in self.sets})

    def check_model(self, model: nn.Module) -> None:
        """Refuse a model that these are not the units of.

        Raises:
            ModelError: It lacks one of their weights, or has it in another shape.
        """
        named = dict(model.named_parameters()) | dict(model.named_buffers())
        for name, axes in self.axes.items():
            wanted = tuple(axis.size for axis in axes)
            if name not in named or tuple(named[name].shape) != wanted:
                given = tuple(named[name].shape) if name in named else "none"
                raise ModelError(f"units: found on a model whose {name} is {wanted}, this model's is {given}")

    @property
    def total(self) -> int:
        """The number of units in all sets together."""
        return sum(unit_set.size for unit_set in self.sets)

    @cached_property
    def places(self) -> list[tuple[str, int]]:
        """Set and index of each unit, in the order of vectors over all units."""
        return [(unit_set.name, i) for unit_set in self.sets for i in range(unit_set.size)]

    def split(self, vector: Tensor) -> dict[str, Tensor]:
        """A vector [..., total] over all units as one piece per set."""
        pieces = torch.split(vector, [unit_set.size for unit_set in self.sets], -1)
        return {unit_set.name: piece for unit_set, piece in zip(self.sets, pieces, strict=True)}

    def expand(self, axis: Axis, vector: Tensor) -> Tensor:
        """The values [..., total] of all units at each position of an axis [..., n]."""
        pieces = self.split(vector)
        return expand(axis, {unit_set.axis: pieces[unit_set.name] for unit_set in self.sets}, vector)

    def collect(self, axis: Axis, values: Tensor) -> Tensor:
        """The reverse of `expand`: values [n] at the positions of an axis summed for each unit, [total]."""
        ones = torch.ones(self.total, dtype=values.dtype, device=values.device, requires_grad=True)
        total = (self.expand(axis, ones) * values).sum() + 0 * ones.sum()
        return torch.autograd.grad(total, ones)[0]

    def params(self, kept: Mapping[str, int]) -> int:
        """Parameters of the model with so many units left in each set."""
        return self._totals(self._counts(kept))[0]

    def bytes(self, kept: Mapping[str, int]) -> int:
        """Bytes of its parameters and buffers."""
        return self._totals(self._counts(kept))[1]

    def macs(self, kept: Mapping[str, int]) -> int:
        """Multiplications with addition for one sample."""
        counts = self._counts(kept)
        total = 0
        for axes in self.macs_of:
            one = 1
            for axis in axes:
                one *= count(axis, counts | {a: a.size // BATCH for a in leaves(axis) if a.size % BATCH == 0})
            total += one
        return total

    def shapes(self, kept: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
        """The shape of each captured parameter and buffer."""
        counts = self._counts(kept)
        return {name: tuple(count(axis, counts) for axis in axes) for name, axes in self.axes.items()}

    def _counts(self, kept: Mapping[str, int]) -> dict[Axis, int]:
        return {unit_set.axis: kept.get(unit_set.name, unit_set.size) for unit_set in self.sets}

    def _totals(self, counts: Mapping[Axis, int]) -> tuple[int, int]:
        params = size = 0
        for _, axes, whole, element, is_parameter in self._weights:
            numel = whole
            if axes is not None:
                numel = 1
                for axis in axes:
                    numel *= count(axis, counts)
            params += numel if is_parameter else 0
            size += numel * element
        return params, size

    def __str__(self) -> str:
        columns = ["unit set", "kind", "size", "params/unit", "bytes/unit", "removal"]
        rows = [(s.name, s.kind, s.size, s.params_per_unit, format_bytes(s.bytes_per_unit), s.removal) for s in self]
        text = table(columns, rows, f"{len(self)} unit sets, {self.total} units")
        return text + "\n\n" + table(["fixed", "size", "why"], self.fixed, f"{len(self.fixed)} axes are fixed")

    __repr__ = __str__


def find_units(model: nn.Module, example_inputs: Any) -> Units:
    """All units that can be removed from a model, and why the others cannot.

    The model is captured by `torch.export`; each dimension of each value becomes an axis, and axes that an
    operation ties together are one (see `secateur.structure.axis`). An axis that reaches no input, output
    or unknown operation is a unit set. Cost: one export, seconds; inference itself is milliseconds.

    Args:
        model: Any `torch.nn.Module` that torch.export can capture; left as it was.
        example_inputs: A tensor, a tuple of positional inputs or a dict of keyword inputs, samples first.

    Returns:
        The unit sets; empty where nothing can be removed.

    Raises:
        ModelError: The model cannot be captured, or its weights are not finite.

    >>> from torch import nn
    >>> units = find_units(nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)), torch.zeros(2, 3))
    >>> [(s.name, s.size, s.params_per_unit) for s in units], [f.reason for f in units.fixed]
    ([('0', 5, 6)], ['a model output', 'a model input'])
    """
    return units_of(model, as_call(example_inputs))


def units_of(model: nn.Module, call: Call) -> Units:
    """The same for inputs given as (args, kwargs)."""
    call = like_model(model, call)
    captured = capture(model, call)
    check_capture(model, captured, call)
    return Units(captured, infer(captured), model)


def require_units(units: Units) -> Units:
    """The same units.

    Raises:
        ModelError: There are none.
    """
    if not units.sets:
        reasons = "; ".join(f"{f.name} ({f.size}): {f.reason}" for f in units.fixed) or "it has no parameters"
        raise ModelError(f"the model has no removable units: {reasons}")
    return units
