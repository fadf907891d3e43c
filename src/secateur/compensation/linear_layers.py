"""Layers that sum units up and whose weights can make up for those that go: dense and convolutional ones."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from secateur.objective.low_rank_update import CONVOLUTIONS
from secateur.structure.axis import Axis, leaves
from secateur.structure.keep_mask import KeepMask
from secateur.structure.rules.registry import arguments
from secateur.structure.unit_set import UnitSet
from secateur.structure.units import Units

_aten = torch.ops.aten


@dataclass(frozen=True, eq=False)
class Layer:
    """One weight matrix W [D, O], the call that multiplies its input by it, and the bias that is added.

    Attributes:
        call: The node of the captured graph, the only one that uses the weight.
        weight: The parameter.
        bias: The parameter, None where there is none.
        inputs: The axis of its inputs; of a convolution each has `kernel` rows of W.
        outputs: The axis of its outputs.
        kernel: Positions of the kernel.
    """

    call: fx.Node
    weight: str
    bias: str | None
    inputs: Axis
    outputs: Axis
    kernel: int

    @property
    def width(self) -> int:
        """Rows and columns of W together."""
        return self.inputs.size * self.kernel + self.outputs.size

    @property
    def _form(self) -> _Form:
        return _FORMS[self.call.target]

    def operand(self, call: fx.Node) -> fx.Node:
        """The input of the call, or of a copy of it."""
        found: fx.Node = arguments(call)[self._form.operand]
        return found

    def places(self, call: fx.Node) -> dict[str, fx.Node]:
        """Where the call, or a copy of it, has weight and bias."""
        found, bias = {self.weight: arguments(call)[self._form.weight]}, _bias(call)
        return found if self.bias is None or bias is None else found | {self.bias: bias}

    def rows(self, value: Tensor, chosen: Tensor | None = None) -> Tensor:
        """What the matrix is multiplied with [M, D], a row for each sample and position, from the call's input.

        Args:
            value: The input.
            chosen: Numbers of rows; None for all.
        """
        view, leading = self._form.rows(arguments(self.call), value)
        if chosen is None:
            return view.flatten(leading).flatten(0, leading - 1)
        return view[torch.unravel_index(chosen, view.shape[:leading])].flatten(1)

    def count(self, value: Tensor) -> int:
        """How many rows there are."""
        view, leading = self._form.rows(arguments(self.call), value)
        return view.shape[:leading].numel()

    def targets(self, value: Tensor) -> Tensor:
        """The call's output [M, O], in the same order."""
        return (value.movedim(1, -1) if self._form.channels_first else value).flatten(0, -2)

    def matrix(self, weight: Tensor) -> Tensor:
        """W [D, O] as it multiplies rows."""
        return weight if self._form.inputs_first else weight.flatten(1).t()

    def tensor(self, old: Tensor, inputs: Tensor, outputs: Tensor, matrix: Tensor) -> Tensor:
        """The parameter with other numbers [n, o] in some rows and columns of W."""
        new = old.clone(memory_format=torch.contiguous_format)
        flat, given = new.flatten(1), matrix.to(new)  # a view
        rows, columns, given = (inputs, outputs, given) if self._form.inputs_first else (outputs, inputs, given.t())
        if len(rows) == len(flat):  # faster
            flat.index_copy_(1, columns, given.contiguous())
        else:
            flat[rows] = flat[rows].index_copy(1, columns, given.contiguous())
        return new

    def rows_of(self, indices: Tensor) -> Tensor:
        """The rows of W that belong to some inputs [..., n], [..., n · kernel]."""
        each = torch.arange(self.kernel, device=indices.device)
        return (indices[..., None] * self.kernel + each).flatten(-2)

    def rows_of_units(self, unit_set: UnitSet) -> Tensor:
        """The rows of W that belong to each unit [size, p]."""
        return self.rows_of(unit_set.positions(self.inputs))

    def rows_kept(self, left: KeepMask) -> Tensor:
        """Which rows of W belong to inputs that are left [D]."""
        return left.mask(self.inputs).repeat_interleave(self.kernel)


# A view of the input by the call's arguments, and how many of its dimensions are rows.
Rows = Callable[[dict[str, Any], Tensor], tuple[Tensor, int]]


@dataclass(frozen=True)
class _Form:
    """How an operation has its input, weight and bias."""

    rows: Rows
    operand: str
    weight: str
    inputs_first: bool = False
    channels_first: bool = False


def _dense_rows(given: dict[str, Any], value: Tensor) -> tuple[Tensor, int]:
    return value, value.ndim - 1


def patches(given: dict[str, Any], value: Tensor) -> tuple[Tensor, int]:
    """What a convolution multiplies its kernel with at each place [N, places ..., channels, kernel ...]."""
    kernel = given["weight"].meta["val"].shape[2:]
    n = len(kernel)
    stride, dilation = (_each(given[name], n) for name in ("stride", "dilation"))
    padding = given["padding"]
    reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    if isinstance(padding, str):
        sides = [(r // 2, r - r // 2) if padding == "same" else (0, 0) for r in reach]
    else:
        sides = [(p, p) for p in _each(padding, n)]
    value = F.pad(value, list(itertools.chain(*reversed(sides))))
    for dim in range(n):
        value = value.unfold(dim + 2, reach[dim] + 1, stride[dim])[..., :: dilation[dim]]
    return value.movedim(1, n + 1), n + 1


def _each(given: Any, n: int) -> list[int]:
    values = [given] if isinstance(given, int) else list(given)
    return values * n if len(values) == 1 else values


_FORMS: dict[Any, _Form] = {
    _aten.linear.default: _Form(_dense_rows, "input", "weight"),
    _aten.addmm.default: _Form(_dense_rows, "mat1", "mat2", inputs_first=True),
    _aten.mm.default: _Form(_dense_rows, "self", "mat2", inputs_first=True),
    _aten.matmul.default: _Form(_dense_rows, "self", "other", inputs_first=True),
    **dict.fromkeys(CONVOLUTIONS, _Form(patches, "input", "weight", channels_first=True)),
}


def find_layers(units: Units) -> list[Layer]:
    """The layers that sum units up, with parameters of their own as weight and bias, in order of execution."""
    consumed = {consumer.node for unit_set in units for consumer in unit_set.consumers}
    names = Counter(units.captured.weights.values())
    found = []
    for node in units.captured.graph.nodes:
        form = _FORMS.get(node.target)
        if form is not None and node in consumed and _fits(units, node, form, names):
            found.append(_layer(units, node, form, names))
    return found


def _own(units: Units, node: Any, call: fx.Node, names: Counter[str]) -> str | None:
    """The name of a parameter that this call alone uses."""
    name = units.captured.weights.get(node.name) if isinstance(node, fx.Node) else None
    return name if name is not None and {*node.users} == {call} and names[name] == 1 else None


def _fits(units: Units, node: fx.Node, form: _Form, names: Counter[str]) -> bool:
    """Whether the weight is one matrix of the call's own that multiplies every position of the input."""
    given = arguments(node)
    operand, weight = given[form.operand], given[form.weight]
    plain = given.get("groups", 1) == 1 and given.get("alpha", 1) == 1 and given.get("beta", 1) == 1
    own = _own(units, weight, node, names) is not None and operand is not weight
    bias = _bias(node)
    own = own and (bias is None or (_own(units, bias, node, names) is not None and bias.meta["val"].ndim == 1))
    return plain and own and (not form.inputs_first or weight.meta["val"].ndim == 2)


def _layer(units: Units, node: fx.Node, form: _Form, names: Counter[str]) -> Layer:
    weight, bias = arguments(node)[form.weight], _bias(node)
    axes = units.net.axes(weight)
    inputs, outputs = (axes[0], axes[1]) if form.inputs_first else (axes[1], axes[0])
    kernel = 1 if form.inputs_first else weight.meta["val"].shape[2:].numel()
    added = None if bias is None else units.captured.weights[bias.name]
    return Layer(node, units.captured.weights[weight.name], added, inputs, outputs, kernel)


def _bias(call: fx.Node) -> fx.Node | None:
    named = arguments(call)
    return named["self"] if "mat1" in named else named.get("bias")


def layers_of(unit_set: UnitSet, layers: list[Layer]) -> list[Layer]:
    """Those that sum a set's units up."""
    nodes = {consumer.node for consumer in unit_set.consumers}
    return [one for one in layers if one.call in nodes and unit_set.axis in leaves(one.inputs)]


def compensable(unit_set: UnitSet, layers: list[Layer]) -> bool:
    """Whether all that sums its units up is among the layers."""
    calls = {one.call for one in layers_of(unit_set, layers)}
    return unit_set.removal == "gated" and all(consumer.node in calls for consumer in unit_set.consumers)
