"""Unit sets: what can be removed together by index, every slice that goes with it, and what it costs."""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Iterator, Mapping, Set
from functools import cached_property
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from secateur.arguments import require_instance
from secateur.errors import ArgumentError, ModelError, choose
from secateur.structure.axis import BATCH, Axis, count, expand, leaves
from secateur.structure.capture import Captured
from secateur.structure.inputs import named_tensors
from secateur.structure.ops.net import Axes, Net
from secateur.structure.producers import (
    Kinds,
    Producer,
    distinct,
    find_producers,
    mark_statistics,
    name_leaves,
    units_chosen,
)
from secateur.structure.unit_set import Fixed, UnitSet
from secateur.text import format_bytes, table

Include = Literal["gated", "all"]


class Units:
    """The unit sets of a model, in the order in which it computes them, printed as a table.

    Iterates over `UnitSet`s; ``units["fc1"]`` finds one; `fixed` lists what cannot be removed, with reasons.
    Made by `find_units`.
    """

    def __init__(
        self, captured: Captured, net: Net, model: nn.Module, include: Include = "gated",
        names: Mapping[Axis, str] | None = None,
    ) -> None:  # fmt: skip
        self.captured = captured
        self.net = net
        self.include = include
        self.axes = {
            captured.weights[node.name]: net.axes(node)
            for node in captured.graph.nodes
            if node.name in captured.weights
        }
        named = named_tensors(model)
        self._forms = _forms(model, self.axes)
        self._weights = [
            (name, self.axes.get(name), tensor.numel(), tensor.element_size(), isinstance(tensor, nn.Parameter))
            for name, tensor in named.items()
        ]
        makers = find_producers(captured, net)
        self._names = names = name_leaves(captured, net, makers) | dict(names or {})
        mark_statistics(captured, net, makers)
        self._chosen = units_chosen(net, self.axes.values())
        met = makers.keys() | {leaf for consumer in net.consumers for leaf in leaves(consumer.axis)}
        reasons = {axis: _why_fixed(axis, met, include) for axis in names}
        self.fixed = tuple(Fixed(names[axis], axis.size, reason) for axis, reason in reasons.items() if reason)
        free = {axis: name for axis, name in names.items() if not reasons[axis]}
        self.sets = self._sets(free, makers)

    def _sets(self, free: dict[Axis, str], makers: dict[Axis, Producer]) -> tuple[UnitSet, ...]:
        consumers = _by_leaf((c, [c.axis]) for c in self.net.consumers)
        weights = _by_leaf((w, w[1]) for w in self._weights if w[1] is not None)
        macs = _by_leaf((axes, axes) for axes in self.net.macs)
        kinds = Kinds(self.net)
        sets = []
        for axis, name in free.items():
            consuming = tuple(consumers.get(axis, ()))
            one_less = {axis: axis.size - 1}
            params = size = 0
            for _, axes, numel, element, is_parameter in weights.get(axis, ()):
                gone = numel - math.prod(count(part, one_less) for part in axes or ())
                params, size = params + gone * is_parameter, size + gone * element
            cost = [_macs(macs.get(axis, []), counts) for counts in ({}, one_less)]
            kind, removal = kinds.of(axis, makers.get(axis), consuming), "sliced" if axis.sliced else "gated"
            sets.append(
                UnitSet(
                    name,
                    kind,
                    axis.size,
                    removal,
                    params,
                    size,
                    cost[0] - cost[1],
                    axis,
                    consuming,
                    self._chosen.get(axis, 1),
                    self,
                )
            )
        return tuple(sets)

    def __iter__(self) -> Iterator[UnitSet]:
        return iter(self.sets)

    def __len__(self) -> int:
        return len(self.sets)

    def __getitem__(self, name: str) -> UnitSet:
        require_instance("unit set", name, str, "its name, a str")
        sets = {unit_set.name: unit_set for unit_set in self.sets}
        reasons = {fixed.name: fixed.reason for fixed in self.fixed}
        if name in reasons and name not in sets:
            raise ArgumentError(f"{name!r} cannot lose units: {reasons[name]}")
        return choose("unit set", name, sets)

    def again(self, model: nn.Module) -> Units:
        """Return the units as their axes are now; those that have become one carry the names of all."""
        names: dict[Axis, list[str]] = {}
        for axis, name in self._names.items():
            for leaf in dict.fromkeys(leaves(axis)):
                names.setdefault(leaf, []).append(name)
        joined = {leaf: "+".join([own[0], *(n.rpartition(".")[2] for n in own[1:])]) for leaf, own in names.items()}
        return Units(self.captured, self.net, model, self.include, distinct(joined))

    def check_model(self, model: nn.Module) -> None:
        """Refuse a model that these are not the units of.

        Raises:
            ModelError: It has other parameters, or lacks a buffer that the graph uses; or the shape or the dtype of one
                is another.
        """
        forms = _forms(model, self.axes)
        for name in (*self._forms, *forms):
            wanted, got = self._forms.get(name, "none"), forms.get(name, "none")
            if wanted != got:
                raise ModelError(f"units: found on a model whose {name} is {wanted}, this model's is {got}")

    @property
    def sizes(self) -> dict[str, int]:
        """The number of units of each set."""
        return {unit_set.name: unit_set.size for unit_set in self.sets}

    @property
    def least(self) -> dict[str, int]:
        """The number of units of each set that must stay."""
        return {unit_set.name: unit_set.least for unit_set in self.sets}

    @property
    def total(self) -> int:
        """The number of units in all sets together."""
        return sum(unit_set.size for unit_set in self.sets)

    @cached_property
    def places(self) -> list[tuple[str, int]]:
        """Set and index of each unit, in the order of vectors over all units."""
        return [(unit_set.name, i) for unit_set in self.sets for i in range(unit_set.size)]

    @property
    def set_of_each(self) -> Tensor:
        """The number of the set that each unit belongs to [total]."""
        return torch.repeat_interleave(torch.tensor([unit_set.size for unit_set in self.sets]))

    def split(self, vector: Tensor) -> dict[str, Tensor]:
        """Return a vector [..., total] over all units as one piece per set."""
        pieces = torch.split(vector, [unit_set.size for unit_set in self.sets], -1)
        return {unit_set.name: piece for unit_set, piece in zip(self.sets, pieces, strict=True)}

    def expand(self, axis: Axis, vector: Tensor) -> Tensor:
        """Return the values [..., total] of all units at each position of an axis [..., n]."""
        pieces = self.split(vector)
        return expand(axis, {unit_set.axis: pieces[unit_set.name] for unit_set in self.sets}, vector)

    def collect(self, axis: Axis, values: Tensor) -> Tensor:
        """Return values [n] at the positions of an axis summed for each unit, [total], the reverse of `expand`."""
        ones = torch.ones(self.total, dtype=values.dtype, device=values.device, requires_grad=True)
        total = (self.expand(axis, ones) * values).sum() + 0 * ones.sum()
        return torch.autograd.grad(total, ones)[0]

    def params(self, kept: Mapping[str, int]) -> int:
        """Return the number of parameters of the model with so many units left in each set."""
        return self._totals(self._counts(kept))[0]

    def bytes(self, kept: Mapping[str, int]) -> int:
        """Return the bytes of its parameters and buffers."""
        return self._totals(self._counts(kept))[1]

    def macs(self, kept: Mapping[str, int]) -> int:
        """Return the multiplications with addition for one sample of the example's sizes."""
        return _macs(self.net.macs, self._counts(kept))

    def shapes(self, kept: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
        """Return the shape of each captured parameter and buffer."""
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

    def to_json(self) -> dict[str, Any]:
        """Return the table as plain data."""
        shown = ("name", "kind", "size", "removal", "params_per_unit", "bytes_per_unit", "macs_per_unit")
        return {
            "sets": [{name: getattr(s, name) for name in shown} | {"consumers": s.consumed_by} for s in self],
            "fixed": [fixed._asdict() for fixed in self.fixed],
            "params": self.params({}),
            "bytes": self.bytes({}),
            "macs": self.macs({}),
            "notes": self.notes,
        }

    def __str__(self) -> str:
        columns = ["unit set", "kind", "size", "params/unit", "bytes/unit", "MACs/unit", "consumers", "removal"]
        rows = [
            (s.name, s.kind, s.size, s.params_per_unit, format_bytes(s.bytes_per_unit), s.macs_per_unit,
             _listed(s.consumed_by), s.removal) for s in self
        ]  # fmt: skip
        text = table(columns, rows, f"{len(self)} unit sets, {self.total} units")
        return "\n\n".join([text, self._fixed_table(), *self.notes])

    @property
    def notes(self) -> list[str]:
        """Further facts about the units, one sentence each."""
        n, sizes = self.captured.spec.fixed, ", ".join(map(str, self.captured.spec.free.values()))
        fixed = f"The model's code fixes the batch at {n} samples: all sizes are for these, all data comes so."
        if self.captured.spec.undivided:
            fixed = "The inputs cannot be divided into samples: all sizes are for the example, each input is a batch."
        free = f"Inputs may have other sizes in place of {sizes}: MACs and memory are counted for these."
        checks = f"Checks of values in the model's code are not followed: {'; '.join(self.captured.checks)}."
        noise = "The model draws noise: losses and proofs are for one fixed draw, the cut network draws afresh."
        every = {fixed: n, free: sizes, checks: self.captured.checks, noise: self.captured.noisy}
        return [note for note, holds in every.items() if holds]

    def _fixed_table(self) -> str:
        """Return every fixed axis, or where there are many one row for each reason."""
        title = f"{len(self.fixed)} axes are fixed"
        if len(self.fixed) <= 20:
            return table(["fixed", "size", "why"], self.fixed, title)
        by_reason: dict[str, list[str]] = {}
        for fixed in self.fixed:
            by_reason.setdefault(fixed.reason, []).append(fixed.name)
        rows = [(names[0], len(names) - 1 or None, reason) for reason, names in by_reason.items()]
        return table(["fixed", "and more", "why"], rows, title)

    __repr__ = __str__


def _forms(model: nn.Module, used: Container[str]) -> dict[str, str]:
    """Return shape and dtype of each parameter and of the buffers that are used."""
    return {
        name: f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
        for name, tensor in named_tensors(model).items()
        if isinstance(tensor, nn.Parameter) or name in used
    }


def _listed(names: list[str]) -> str:
    return ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")


Entry = TypeVar("Entry")


def _by_leaf(entries: Iterable[tuple[Entry, Axes]]) -> dict[Axis, list[Entry]]:
    """Return each leaf's entries, in order, found by the axes that come with them."""
    by_leaf: dict[Axis, list[Entry]] = {}
    for entry, axes in entries:
        for leaf in dict.fromkeys(leaf for axis in axes for leaf in leaves(axis)):
            by_leaf.setdefault(leaf, []).append(entry)
    return by_leaf


def _macs(products: list[Axes], counts: Mapping[Axis, int]) -> int:
    """Return sizes multiplied within each product, for one sample, and summed."""
    return sum(math.prod(_of_one_sample(count(axis, counts)) for axis in axes) for axes in products)


def _of_one_sample(size: int) -> int:
    return size if size % BATCH else size // BATCH


def _why_fixed(axis: Axis, met: Set[Axis], include: Include) -> str | None:
    if axis not in met:  # positions that the example does not reach, a dimension of size 1
        return axis.reason or "no value that is computed has it"
    sliced = axis.sliced and include == "gated"
    return axis.reason or (f"{axis.sliced}; include='all' removes it as sliced" if sliced else None)


def require_units(units: Units) -> Units:
    """Return the same units.

    Raises:
        ModelError: There are none.
    """
    if not units.sets:
        reasons = "; ".join(f"{f.name} ({f.size}): {f.reason}" for f in units.fixed) or "it has no parameters"
        raise ModelError(f"the model has no removable units: {reasons}")
    return units
