"""A module's own code tried on the sizes that are left: what modules within it return is handed to it, not computed.

So each trial costs the module's own calls alone, whatever it contains. The truth is the module's part of the sliced
graph, with the same values handed to it.
"""

from __future__ import annotations

import copy
import itertools
import linecache
import traceback
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from secateur.own_code.attribute_search import Choice, Slot, choices, is_a_layer, sizes_at, slots, trials
from secateur.own_code.module_attributes import update_attributes
from secateur.own_code.module_calls import (
    ModuleCall,
    Recording,
    copied_leaf,
    modules_of,
    near,
    noise_of,
    record_calls,
    whole_call,
)
from secateur.process_state import as_exported
from secateur.structure.axis import BATCH, Axis, expand, leaves
from secateur.structure.calls.trees import pack, unpack
from secateur.structure.exporting.outputs import flatten_outputs
from secateur.structure.graph_run import TOLERANCE, in_double, run_once
from secateur.structure.inputs import Call, named_tensors
from secateur.structure.keep_mask import KeepMask
from secateur.structure.ops.net import Axes
from secateur.structure.sliced_graph import slice_graph, slice_tensor
from secateur.structure.units import Units

MOST_TRIALS = 32  # of one module's numbers
LONGEST = 60  # characters of a line of code that are quoted


class Change(NamedTuple):
    """A number that a module must keep in place of another.

    Attributes:
        path: The module's path in the one that was tried.
        attribute: The attribute's name.
        position: The member of a tuple or list; None for the attribute itself.
        value: The new number.
    """

    path: str
    attribute: str
    position: int | None
    value: int

    def make(self, module: nn.Module) -> None:
        """Let a copy of the module that was tried keep the number."""
        Slot(module.get_submodule(self.path), self.attribute, self.position, self.value).set(self.value)


class Outcome(NamedTuple):
    """The end of a trial.

    Attributes:
        changes: The numbers with which the code computes what it should; None where there are none.
        line: The line of the code that failed; "" where none did.
    """

    changes: list[Change] | None
    line: str = ""


class OtherValuesError(Exception):
    """The error that a module within is called with other values than it should be."""


class OwnCode:
    """The code of a model's modules, to be tried on any units kept.

    Args:
        model: The original, in eval mode, holding the values that the recording was made with.
        units: Its units.
        recording: Its calls.
        allowed: How far rounding may take values from the graph's, relative to the largest.

    Attributes:
        double: Whether the code is tried in float64, whatever the model's dtype is.
        traced: The code as torch.export runs it, which must follow, too; None where it is the same.
        calls: The calls that can be tried alone, innermost first, the whole model last.
    """

    def __init__(self, model: nn.Module, units: Units, recording: Recording, allowed: float) -> None:
        self.model, self.units, self.recording, self.allowed = model, units, recording, allowed
        self.double = False
        self.traced: OwnCode | None = None
        self.calls = [*recording.calls, whole_call(units.captured)]
        self._named = named_tensors(model)
        self._first = {id(tensor): name for name, tensor in self._named.items()}
        self._nodes_of: dict[str, list[fx.Node]] = {}
        for node in units.captured.graph.nodes:
            for name in {"", *modules_of(node)} if node.op == "call_function" else ():
                self._nodes_of.setdefault(name, []).append(node)

    @classmethod
    def of(cls, model: nn.Module, units: Units, call: Call, allowed: float) -> OwnCode:
        """Return the code of a model's modules, recorded on some inputs."""
        code = cls(model, units, record_calls(model, units.captured, call, allowed), allowed)
        if code.recording.asking:
            traced = record_calls(model, units.captured, call, allowed, as_exported)
            code.traced = cls(model, units, traced, allowed)
        return code

    def precise(self, call: ModuleCall) -> OwnCode | None:
        """Return what tries a module in float64, or else in the model's dtype; None where it cannot be tried alone."""
        single, double = copy.copy(self), copy.copy(self)
        double.double, double.allowed = True, TOLERANCE[torch.float64]
        single.traced = double.traced = None
        code = next((code for code in (double, single) if code.works(call)), None)
        traced = self._traced(call)
        if code is not None and self.traced is not None and traced is not None:
            code.traced = self.traced.precise(traced)
        return code

    def _traced(self, call: ModuleCall) -> ModuleCall | None:
        """Return the same module's call as torch.export runs it; None where that is no other."""
        calls = self.traced.calls if self.traced is not None else []
        traced = next((other for other in calls if other.name == call.name), None)
        same = traced is None or (traced.inputs == call.inputs and call.name not in self.recording.asking)
        return None if same else traced

    def works(self, call: ModuleCall) -> bool:
        """Return whether a trial with all units there succeeds, as it should."""
        try:
            return self.follows(call, KeepMask({})).changes == []
        except RuntimeError:  # of the graph: some operations know no float64
            return False

    def drop(self, call: ModuleCall) -> None:
        """Try a module no more alone, but as a part of those around it."""
        self.calls.remove(call)
        traced = self._traced(call)
        if self.traced is not None and traced is not None:
            self.traced.calls.remove(traced)

    def nodes(self, call: ModuleCall) -> list[fx.Node]:
        """Return the calls that a module's own code makes, without those of modules within that are tried alone."""
        within = {node for inner in self.inner(call) for node in self._nodes_of.get(inner.name, ())}
        return [node for node in self._nodes_of.get(call.name, ()) if node not in within]

    def inner(self, call: ModuleCall) -> list[ModuleCall]:
        """Return the outermost calls within."""
        within = [other for other in self.calls if _is_within(other.name, call.name)]
        names = {other.name for other in within}
        return [c for c in within if not any(_is_within(c.name, name) for name in names)]

    def follows(self, call: ModuleCall, left: KeepMask) -> Outcome:
        """Return whether a module's own code computes with the units left, and with which numbers."""
        outcome, traced = self._follows(call, left), self._traced(call)
        if outcome.changes is None or self.traced is None or traced is None:
            return outcome
        other = self.traced._follows(traced, left)
        return other if other.changes is None else Outcome(list(dict.fromkeys([*outcome.changes, *other.changes])))

    def _follows(self, call: ModuleCall, left: KeepMask) -> Outcome:
        original = self.model.get_submodule(call.name)
        if is_a_layer(original) and not self._choices(call, original, left):
            return Outcome([])  # right by its attributes
        part = _Part(self, call, left)
        return part.tried(part.module(original), lambda module: self._choices(call, module, left))

    def value(self, node: fx.Node, left: KeepMask) -> Any:
        """Return the recorded value of a seam or placeholder, sliced."""
        recording, net = self.recording, self.units.net
        value = recording.bound[node] if node in recording.bound else recording.values[node]
        for dim, axis in enumerate(net.axes(node) if node in net.known and isinstance(value, Tensor) else ()):
            if left.count(axis) != axis.size:
                value = value.index_select(dim, _positions(axis, value.shape[dim], left).to(value.device))
        if (node, 0) in net.places:
            value = left.renumbered(net.places[node, 0], value)
        return in_double(value) if self.double else value

    def arguments(self, call: ModuleCall, values: Mapping[fx.Node, Any]) -> Call:
        """Return the arguments of a call: copies, which its code may change."""
        leaves = (c if n is None else values[n] for n, c in zip(call.inputs, call.constants, strict=True))
        flat = [copied_leaf(leaf) for leaf in leaves]
        args, kwargs = unpack(tree_unflatten(flat, call.in_spec))
        return args, kwargs

    def _choices(self, call: ModuleCall, module: nn.Module, left: KeepMask) -> list[Choice]:
        tried = {inner.name for inner in self.inner(call)}
        return choices(slots(call.name, module, tried), sizes_at(self.nodes(call), self.units.net, left))


class _Part:
    """A module's part of the sliced graph, and what it should make of the values that are handed to it."""

    def __init__(self, code: OwnCode, call: ModuleCall, left: KeepMask) -> None:
        self.code, self.call, self.left, self.inner = code, call, left, code.inner(call)
        returned = (node for inner in self.inner for node in inner.outputs if node not in inner.inputs)
        handed = [*call.inputs, *returned]
        wanted = [*call.outputs, *(node for inner in self.inner for node in inner.inputs)]
        self.values = {node: code.value(node, left) for node in handed if node is not None}
        self._compute(list(dict.fromkeys(node for node in wanted if isinstance(node, fx.Node))))

    def _compute(self, wanted: Sequence[fx.Node]) -> None:
        units = self.code.units
        sliced = slice_graph(units.captured, units.net, self.left, self.values.keys(), wanted)
        placeholders = [node for node in sliced.copies if sliced.copies[node].op == "placeholder"]
        self.used = [node for node in placeholders if node not in self.values]
        given = [self.values[n] if n in self.values else self.code.value(n, self.left) for n in placeholders]
        with noise_of(units.captured):
            self.values |= dict(zip(wanted, run_once(sliced.graph, given), strict=True))

    def module(self, original: nn.Module) -> nn.Module:
        """Return the module's copy with sliced weights, in which modules within return what is handed to it.

        Weights that its own code does not use have their shapes alone.
        """
        weights, axes, left = self.code.units.captured.weights, self.code.units.axes, self.left
        used = {weights[node.name] for node in self.used if node.name in weights}
        memo: dict[int, Any] = {}
        for tensor in named_tensors(original).values():
            name = self.code._first[id(tensor)]
            if name in used:
                piece = self._weight(tensor.detach(), axes.get(name, []))
            else:
                shape = [left.count(axis) for axis in axes[name]] if name in axes else tensor.shape
                zero = tensor.detach().new_zeros(())
                piece = (in_double(zero) if self.code.double else zero).expand(shape)
            memo[id(tensor)] = nn.Parameter(piece, requires_grad=False) if isinstance(tensor, nn.Parameter) else piece
        module = copy.deepcopy(original, memo)
        update_attributes(module, self.code.units.net, axes, left, self.call.name)
        for inner in self.inner:
            path = inner.name[len(self.call.name) :].lstrip(".")
            module.get_submodule(path).forward = self._stand_in(inner)
        return module

    def _weight(self, tensor: Tensor, axes: Axes) -> Tensor:
        piece = slice_tensor(tensor, axes, self.left).clone()
        return in_double(piece) if self.code.double else piece

    def _stand_in(self, inner: ModuleCall) -> Any:
        def forward(*args: Any, **kwargs: Any) -> Any:
            got = tree_flatten(pack((args, kwargs)))[0]
            if len(got) != len(inner.inputs) or not self._same(inner.inputs, got):
                raise OtherValuesError
            handed = zip(inner.outputs, inner.returned, strict=True)
            values = [seen if node is None else self.values[node] for node, seen in handed]
            return unpack(tree_unflatten([copied_leaf(value) for value in values], inner.out_spec))

        return forward

    def _same(self, nodes: Sequence[fx.Node | None], got: Sequence[Any]) -> bool:
        """Return whether values are those of these nodes."""
        pairs = [(self.values[n], value) for n, value in zip(nodes, got, strict=True) if isinstance(n, fx.Node)]
        return all(isinstance(b, Tensor) and near(a, b, self.code.allowed) for a, b in pairs)

    def tried(self, module: nn.Module, choices_of: Any) -> Outcome:
        """Change as few numbers as make the module compute what it should."""
        line = self._fails(module)
        if line is None:
            return Outcome([])
        numbers: list[Choice] = choices_of(module)
        paths = {id(inner): path for path, inner in module.named_modules()}
        for trial in itertools.islice(trials(numbers), MOST_TRIALS):
            for (slot, _), value in zip(numbers, trial, strict=True):
                slot.set(value)
            if self._fails(module) is None:
                changes = []
                for (slot, _), value in zip(numbers, trial, strict=True):
                    slot.set(slot.value)  # it may have another meaning
                    if self._fails(module) is not None:
                        slot.set(value)
                        changes.append(Change(paths[id(slot.module)], slot.attribute, slot.position, value))
                return Outcome(changes)
        return Outcome(None, line)

    def _fails(self, module: nn.Module) -> str | None:
        """Return the line of the module's code that fails, "" where it computes something else, None where it works."""
        call = self.call
        args, kwargs = self.code.arguments(call, self.values)
        try:
            with torch.no_grad(), self.code.recording.state(), noise_of(self.code.units.captured):
                returned = module(*args, **kwargs)
        except Exception as error:  # noqa: BLE001 - whatever it is, its code cannot follow
            return _line_of(error)
        got = tree_flatten(pack(returned))[0] if call.name else flatten_outputs(returned)[0]
        return None if len(got) == len(call.outputs) and self._same(call.outputs, got) else ""


def _positions(axis: Axis, size: int, left: KeepMask) -> Tensor:
    """Return the positions left of a dimension that may count samples, of which there are any number."""
    samples = size * BATCH // axis.size
    batch = {
        leaf: torch.ones(samples * leaf.size // BATCH, dtype=torch.bool)
        for leaf in leaves(axis)
        if not leaf.size % BATCH
    }
    return expand(axis, {**left.masks, **batch}, torch.ones(1, dtype=torch.bool)).nonzero()[:, 0]


def _is_within(name: str, outer: str) -> bool:
    return name != outer and (not outer or name.startswith(f"{outer}."))


def _line_of(error: Exception) -> str:
    """Return the last line of code outside of PyTorch that an error came through; "" for none."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "/torch/" not in frame.filename and frame.filename != __file__]
    line = linecache.getline(own[-1].filename, own[-1].lineno or 0).strip() if own else ""
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}..."
