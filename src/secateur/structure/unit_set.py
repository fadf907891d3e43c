"""One unit set: every slice that goes with each unit, where it is consumed, what it costs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from secateur.structure.axis import Axis, expand, leaves
from secateur.structure.capture import module_of
from secateur.structure.ops.net import Consumer
from secateur.structure.producers import outgoing_weights

if TYPE_CHECKING:
    from secateur.structure.units import Units


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
        kind: The name of one unit: "neuron", "channel", "expert", "head", "head width", "feed-forward width", "residual
            width", "recurrent width".
        size: The number of units.
        removal: "gated": removing a unit is exactly a gate of zero; "sliced": a norm or another statistic is
            taken over the units, and over the survivors when some are gone.
        params_per_unit: Parameters that go with one unit while all others are there.
        bytes_per_unit: Bytes of these parameters, and of the buffers that go with the unit.
        macs_per_unit: Multiplications with addition for one sample, likewise.
        slices: Every slice of every parameter and buffer that goes with each unit.
        outgoing: The slices of the consumers' weights alone, on which a factor acts as a gate; None where
            a consumer has no weight of its own.
        consumers: The places where the units are summed over.
        least: The number of units that must stay: as many as are chosen among them at once, where that is done.
    """

    name: str
    kind: str
    size: int
    removal: str
    params_per_unit: int
    bytes_per_unit: int
    macs_per_unit: int
    axis: Axis
    consumers: tuple[Consumer, ...]
    least: int
    _units: Units

    @cached_property
    def slices(self) -> tuple[Slice, ...]:
        """The slices, one for each dimension of each tensor that the axis reaches."""
        return tuple(
            self._slice(name, dim, axis)
            for name, axes in self._units.axes.items()
            for dim, axis in enumerate(axes)
            if self.axis in leaves(axis)
        )

    @cached_property
    def outgoing(self) -> tuple[Slice, ...] | None:
        """The weights that multiply these units and do nothing else."""
        weights = outgoing_weights(self._units.captured, self._units.net, self.consumers)
        if weights is None:
            return None
        return tuple(self._slice(name, dim, self._units.axes[name][dim]) for name, dim in weights)

    @property
    def consumed_by(self) -> list[str]:
        """The modules in which the units are summed over; an operation in the model's own code by its name."""
        return list(dict.fromkeys(module_of(c.node) or c.node.name for c in self.consumers))

    def positions(self, axis: Axis) -> Tensor:
        """Return where each unit lies along an axis [size, positions]."""
        without = expand(axis, {self.axis: ~torch.eye(self.size, dtype=torch.bool)}, torch.ones(1, dtype=torch.bool))
        return (~without).nonzero()[:, 1].reshape(self.size, -1)

    def _slice(self, name: str, dim: int, axis: Axis) -> Slice:
        return Slice(name, dim, self.positions(axis))
