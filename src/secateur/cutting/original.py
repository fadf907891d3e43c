"""A cut network beside its original: which unit sets are the same ones, and its weights in the original's places."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from secateur.own_code.slices import keep_mask_of
from secateur.structure.axis import expand, leaves
from secateur.structure.inputs import named_tensors
from secateur.structure.keep_mask import KeepMask
from secateur.structure.sliced_graph import unslice_tensor
from secateur.structure.unit_set import UnitSet
from secateur.structure.units import Units

Kept = Mapping[str, tuple[int, ...]]
Places = dict[tuple[str, int], Tensor]


def same_sets(original: Units, kept: Kept, cut: Units) -> dict[str, str]:
    """Return unit set of the cut network → the original's whose kept units it has, in their order.

    They are told by the weights that go with each unit, not by their names. A set that has no other's weights is left
    out: code may tie sets together that it did not tie in the original, or leave one unit that is none any more.

    Args:
        original: The units of the original.
        kept: The original's units that the cut network has.
        cut: The units of the cut network.
    """
    left = keep_mask_of(original, kept)
    by_tensors: dict[tuple[tuple[str, int], ...], list[tuple[str, Places]]] = {}
    for unit_set in original:
        places = _places(original, unit_set, torch.arange(unit_set.size), left)
        by_tensors.setdefault(tuple(sorted(places)), []).append((unit_set.name, places))
    same = {}
    for unit_set in cut:
        for name, places in by_tensors.get(tuple(sorted(_reached(cut, unit_set))), []):
            indices = torch.tensor(kept.get(name, range(original[name].size)))
            if len(indices) == unit_set.size and _equal(places, _places(cut, unit_set, indices)):
                same[unit_set.name] = name
    return same


def _reached(units: Units, unit_set: UnitSet) -> list[tuple[str, int]]:
    """Return the tensors and dimensions that the units of a set lie along."""
    return [
        (name, dim)
        for name, axes in units.axes.items()
        for dim, axis in enumerate(axes)
        if unit_set.axis in leaves(axis)
    ]


def _places(units: Units, unit_set: UnitSet, indices: Tensor, left: KeepMask | None = None) -> Places:
    """Return which unit each position along each dimension belongs to: 2 more than its index, 1 for none."""
    one, places = torch.ones(1, dtype=torch.long), {}
    for name, dim in _reached(units, unit_set):
        axis = units.axes[name][dim]
        of_units = expand(axis, {unit_set.axis: indices + 2}, one)
        places[name, dim] = of_units if left is None else of_units[left.mask(axis)]
    return places


def _equal(places: Places, others: Places) -> bool:
    return all(torch.equal(where, others[key]) for key, where in places.items())


def in_original(model: nn.Module, units: Units, kept: Kept, cut: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the original's parameters and buffers with those of a cut network in the places of what is kept.

    Args:
        model: The original; what was removed has its values.
        units: The original's units.
        kept: The original's units that the cut network has.
        cut: The cut network's parameters and buffers by name.
    """
    left = keep_mask_of(units, kept)
    return {
        name: unslice_tensor(tensor, cut[name], units.axes.get(name, []), left)
        for name, tensor in named_tensors(model).items()
    }
