"""Numbers that modules keep as attributes, such as `num_heads`, and what they may be when units are gone.

A module's forward often uses numbers that are no size of a parameter. Those equal to an old size of what it computes
with may have to be the new one.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterable, Iterator, Set
from functools import partial
from typing import NamedTuple

from torch import fx, nn

from secateur.structure.axis import BATCH, Axis, find, parts, product
from secateur.structure.axis import cat as cat_axes
from secateur.structure.keep_mask import KeepMask
from secateur.structure.ops.net import Net


class Slot(NamedTuple):
    """A whole number that a module keeps: an attribute, or one member of a tuple or list."""

    module: nn.Module
    attribute: str
    position: int | None
    value: int

    def set(self, value: int) -> None:
        """Replace the number."""
        if self.position is None:
            return setattr(self.module, self.attribute, value)
        members = getattr(self.module, self.attribute)
        changed = [*members[: self.position], value, *members[self.position + 1 :]]
        setattr(self.module, self.attribute, type(members)(changed))
        return None


Choice = tuple[Slot, list[int]]


def trials(choices: list[Choice]) -> Iterator[tuple[int, ...]]:
    """Yield new values for all numbers: first one new value for each old one, then any combination."""
    options = {slot.value: values for slot, values in choices}
    for chosen in itertools.product(*options.values()):
        new = dict(zip(options, chosen, strict=True))
        yield tuple(new[slot.value] for slot, _ in choices)
    if len(options) < len(choices):
        yield from itertools.product(*(values for _, values in choices))


def choices(numbers: Iterable[Slot], sizes: dict[int, list[int]]) -> list[Choice]:
    """Return for each number that is an old size what it may be now, changed values first."""
    changed = [slot for slot in numbers if sizes.get(slot.value, [slot.value]) != [slot.value]]
    return [(slot, list(dict.fromkeys([*sizes[slot.value], slot.value]))) for slot in changed]


def is_a_layer(module: nn.Module) -> bool:
    """Return whether a module is one of PyTorch's own layers."""
    return type(module).__module__.startswith("torch.nn.") and not list(module.children())


def slots(name: str, module: nn.Module, tried: Set[str]) -> Iterator[Slot]:
    """Yield the module's own numbers, and those of modules within it that are not tried themselves."""
    for path, inner in module.named_modules():
        full = ".".join(part for part in (name, path) if part)
        if inner is not module and full in tried:
            continue
        if is_a_layer(inner) and list(inner.parameters()):
            continue  # its sizes are those of its parameters
        for attribute, value in vars(inner).items():
            if isinstance(value, int) and not isinstance(value, bool):
                yield Slot(inner, attribute, None, value)
            elif type(value) in (tuple, list):
                for i, member in enumerate(value):
                    if isinstance(member, int) and not isinstance(member, bool):
                        yield Slot(inner, attribute, i, member)


def sizes_at(nodes: Iterable[fx.Node], net: Net, left: KeepMask) -> dict[int, list[int]]:
    """Return the sizes of all axes that these calls see: old → new ones, changed ones first."""
    sizes: dict[int, dict[int, None]] = {}
    tensors = dict.fromkeys(n for node in nodes for n in (node, *node.all_input_nodes) if n in net.known)
    for axis in {find(a): None for n in tensors for axes in net.outputs_of(n) for a in axes}:
        for old, new in _pairs(axis, left):
            sizes.setdefault(old, {})[new] = None
    return {old: sorted(new, key=partial(operator.eq, old)) for old, new in sizes.items()}


def runs_of(axis: Axis) -> list[Axis]:
    """Return the axis, its parts, and runs of neighbouring parts."""
    if axis.kind == "leaf":
        return [axis]
    inside = parts(axis)
    join = product if axis.kind == "product" else cat_axes
    runs = [join(inside[i:j]) for i in range(len(inside)) for j in range(i + 1, len(inside) + 1) if j - i > 1]
    return [run for part in inside for run in runs_of(part)] + runs


def _pairs(axis: Axis, left: KeepMask) -> list[tuple[int, int]]:
    """Return old and new size of the axis, of its parts, and of runs of neighbouring parts."""
    return [(run.size, left.count(run)) for run in runs_of(find(axis)) if run.size % BATCH]
