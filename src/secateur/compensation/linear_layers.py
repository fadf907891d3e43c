"""Layers that sum units up and whose weights can make up for those that go: dense and convolutional ones."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from secateur.structure.axis import BATCH, Axis, leaves
from secateur.structure.capture import sizes
from secateur.structure.keep_mask import KeepMask
from secateur.structure.ops.linear import Linear
from secateur.structure.ops.registry import arguments, linear_of
from secateur.structure.unit_set import UnitSet
from secateur.structure.units import Units


@dataclass(frozen=True, eq=False)
class Layer:
    """One weight matrix W [D, O], the call that multiplies its input by it, and the bias that is added.

    Attributes:
        call: The node of the captured graph, the only one that uses the weight.
        linear: The place of the operation's matrix.
        weight: The parameter.
        bias: The parameter, None where there is none.
        inputs: The axis of its inputs; of a convolution each has `kernel` rows of W.
        outputs: The axis of its outputs.
        kernel: Positions of the kernel.
        samples_first: Whether rows are ordered by sample, and within a sample by position.
    """

    call: fx.Node
    linear: Linear
    weight: str
    bias: str | None
    inputs: Axis
    outputs: Axis
    kernel: int
    samples_first: bool

    @property
    def height(self) -> int:
        """Rows of W."""
        return self.inputs.size * self.kernel

    @property
    def width(self) -> int:
        """Rows and columns of W together."""
        return self.height + self.outputs.size

    @property
    def positions(self) -> int:
        """Rows of one sample, of the example's size."""
        return math.prod(sizes(self.call.meta["val"], 1)) // self.outputs.size

    def operand(self, call: fx.Node) -> fx.Node:
        """Return the input of the call, or of a copy of it."""
        operand: fx.Node = arguments(call)[self.linear.operand]
        return operand

    def places(self, call: fx.Node) -> dict[str, fx.Node]:
        """Return where the call, or a copy of it, has weight and bias."""
        weights, bias = {self.weight: arguments(call)[self.linear.weight]}, _bias(call, self.linear)
        return weights if self.bias is None or bias is None else weights | {self.bias: bias}

    def rows(self, value: Tensor, chosen: Tensor | None = None) -> Tensor:
        """Return what the matrix is multiplied with [M, D], a row for each sample and position, from the call's input.

        Args:
            value: The input.
            chosen: Numbers of rows; None for all.
        """
        view, leading = self._view(value)
        if chosen is None:
            return view.flatten(leading).flatten(0, leading - 1)
        return view[torch.unravel_index(chosen, view.shape[:leading])].flatten(1)

    def leading(self, value: Tensor) -> torch.Size:
        """Return the dimensions that rows are counted in, samples and positions."""
        view, leading = self._view(value)
        return view.shape[:leading]

    def _view(self, value: Tensor) -> tuple[Tensor, int]:
        operands = arguments(self.call)
        return self.linear.rows(value, operands[self.linear.weight].meta["val"].shape[2:], operands)

    def targets(self, value: Tensor) -> Tensor:
        """Return the call's output [M, O], in the same order."""
        return (value.movedim(1, -1) if self.linear.channels_first else value).flatten(0, -2)

    def matrix(self, weight: Tensor) -> Tensor:
        """Return W [D, O] as it multiplies rows."""
        return weight if self.linear.inputs_first else weight.flatten(1).t()

    def weight_of(self, matrix: Tensor, shape: Sequence[int]) -> Tensor:
        """Return the parameter, of this shape, whose W is a matrix [D, O]."""
        return matrix if self.linear.inputs_first else matrix.t().reshape(shape)

    def tensor(self, old: Tensor, inputs: Tensor, outputs: Tensor, matrix: Tensor) -> Tensor:
        """Return the parameter with other numbers [n, o] in some rows and columns of W."""
        new = old.clone(memory_format=torch.contiguous_format)
        flat, numbers = new.flatten(1), matrix.to(new)  # a view
        rows, columns, numbers = (
            (inputs, outputs, numbers) if self.linear.inputs_first else (outputs, inputs, numbers.t())
        )
        if len(rows) == len(flat):  # faster
            flat.index_copy_(1, columns, numbers.contiguous())
        else:
            flat[rows] = flat[rows].index_copy(1, columns, numbers.contiguous())
        return new

    def rows_of(self, indices: Tensor) -> Tensor:
        """Return the rows of W that belong to some inputs [..., n], [..., n · kernel]."""
        each = torch.arange(self.kernel, device=indices.device)
        return (indices[..., None] * self.kernel + each).flatten(-2)

    def rows_of_units(self, unit_set: UnitSet) -> Tensor:
        """Return the rows of W that belong to each unit [size, p]."""
        return self.rows_of(unit_set.positions(self.inputs))

    def rows_kept(self, left: KeepMask) -> Tensor:
        """Return which rows of W belong to inputs that are left [D]."""
        return left.mask(self.inputs).repeat_interleave(self.kernel)


def find_layers(units: Units, every: bool = False) -> list[Layer]:
    """Return the layers that sum units up, with parameters of their own as weight and bias, in order of execution.

    Args:
        units: The units.
        every: Whether layers that take no units are returned, too.
    """
    consumed = {consumer.node for unit_set in units for consumer in unit_set.consumers}
    names = Counter(units.captured.weights.values())
    layers = []
    for node in units.captured.graph.nodes:
        linear = linear_of(node)
        if linear is not None and (every or node in consumed) and _fits(units, node, linear, names):
            layers.append(_layer(units, node, linear))
    return layers


def _own(units: Units, node: Any, call: fx.Node, names: Counter[str]) -> str | None:
    """Return the name of a parameter that this call alone uses."""
    name = units.captured.weights.get(node.name) if isinstance(node, fx.Node) else None
    return name if name is not None and {*node.users} == {call} and names[name] == 1 else None


def _fits(units: Units, node: fx.Node, linear: Linear, names: Counter[str]) -> bool:
    """Return whether the weight is one matrix of the call's own that multiplies every position of the input."""
    operands = arguments(node)
    operand, weight = operands[linear.operand], operands[linear.weight]
    own = _own(units, weight, node, names) is not None and operand is not weight
    bias = _bias(node, linear)
    own = own and (bias is None or (_own(units, bias, node, names) is not None and bias.meta["val"].ndim == 1))
    return linear.is_one_matrix(operands) and own and (not linear.inputs_first or weight.meta["val"].ndim == 2)


def _layer(units: Units, node: fx.Node, linear: Linear) -> Layer:
    weight, bias = arguments(node)[linear.weight], _bias(node, linear)
    axes = units.net.axes(weight)
    inputs, outputs = (axes[0], axes[1]) if linear.inputs_first else (axes[1], axes[0])
    kernel = 1 if linear.inputs_first else weight.meta["val"].shape[2:].numel()
    added = None if bias is None else units.captured.weights[bias.name]
    first = leaves(units.net.axes(arguments(node)[linear.operand])[0])[0].size in (BATCH, units.captured.spec.fixed)
    return Layer(node, linear, units.captured.weights[weight.name], added, inputs, outputs, kernel, first)


def _bias(call: fx.Node, linear: Linear) -> fx.Node | None:
    bias: fx.Node | None = None if linear.bias is None else arguments(call)[linear.bias]
    return bias


def layers_of(unit_set: UnitSet, layers: list[Layer]) -> list[Layer]:
    """Return the layers that sum a set's units up."""
    nodes = {consumer.node for consumer in unit_set.consumers}
    return [layer for layer in layers if layer.call in nodes and unit_set.axis in leaves(layer.inputs)]


def compensable(unit_set: UnitSet, layers: list[Layer]) -> bool:
    """Return whether all that sums its units up is among the layers."""
    calls = {layer.call for layer in layers_of(unit_set, layers)}
    return unit_set.removal == "gated" and all(consumer.node in calls for consumer in unit_set.consumers)
