"""BatchNorm's statistics of what the shrunk network gives it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from secateur.compensation.linear_layers import Layer
from secateur.structure.axis import Axis
from secateur.structure.ops.registry import StoredStatistics, arguments, find_op
from secateur.structure.units import Units


@dataclass(frozen=True, eq=False)
class BatchNorm:
    """One BatchNorm behind units: its call and the names of its arguments, its buffers, the axis of its channels."""

    call: fx.Node
    names: StoredStatistics
    mean: str
    variance: str
    channels: Axis

    def operand(self, call: fx.Node) -> fx.Node:
        """Return the input of the call, or of a copy of it."""
        operand: fx.Node = arguments(call)[self.names.operand]
        return operand

    def places(self, call: fx.Node) -> dict[str, fx.Node]:
        """Return where the call, or a copy of it, has its statistics."""
        operands = arguments(call)
        return {self.mean: operands[self.names.mean], self.variance: operands[self.names.variance]}

    def follows(self, layer: Layer) -> bool:
        """Return whether it alone takes what a layer gives, and with it the mean."""
        return self.operand(self.call) is layer.call and {*layer.call.users} == {self.call}

    def tensors(self, statistics: ChannelStatistics, old: Mapping[str, Tensor], channels: Tensor) -> dict[str, Tensor]:
        """Return the buffers, with what was found of some channels."""
        pairs = ((self.mean, statistics.mean), (self.variance, statistics.variance))
        return {name: old[name].index_put((channels,), new.to(old[name])) for name, new in pairs}


class ChannelStatistics:
    """Mean and variance [C] of each channel of x [N, C, ...], from sums in float64."""

    def __init__(self) -> None:
        self.count, self.sums, self.squares = 0, torch.zeros(()), torch.zeros(())

    def add(self, x: Tensor) -> None:
        """Take in a batch."""
        rows = x.double().transpose(0, 1).flatten(1)
        self.count += rows.shape[1]
        self.sums, self.squares = rows.sum(1) + self.sums.to(rows), rows.square().sum(1) + self.squares.to(rows)

    @property
    def mean(self) -> Tensor:
        """The mean of each channel."""
        return self.sums / self.count

    @property
    def variance(self) -> Tensor:
        """The variance of each channel, of the samples at hand."""
        return (self.squares / self.count - self.mean.square()).clamp(min=0)


def find_norms(units: Units) -> list[BatchNorm]:
    """Return the norms behind units whose statistics are buffers that nothing else uses."""
    weights = units.captured.weights
    names = Counter(weights.values())
    norms = []
    for node in units.captured.graph.nodes:
        op = find_op(node)
        if op is None or op.statistics is None:
            continue
        operands = arguments(node)
        buffers = [buffer for name in op.statistics[1:] if isinstance(buffer := operands[name], fx.Node)]
        own = [weights[buffer.name] for buffer in buffers if {*buffer.users} == {node} and buffer.name in weights]
        if len(own) == 2 and all(names[name] == 1 for name in own):
            norms.append(BatchNorm(node, op.statistics, own[0], own[1], units.net.axes(node)[1]))
    return norms
