"""What a model returns: its tensors and plain values, taken out of the objects that hold them and put back."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

PLAIN = (int, float, str, type(None), torch.SymInt, torch.SymFloat, torch.SymBool)


@dataclass(frozen=True)
class OutputSpec:
    """The form of what a model returns.

    Attributes:
        tree: The containers that PyTorch knows.
        objects: Other objects whose attributes hold outputs, by their place among the leaves of `tree`.
    """

    tree: TreeSpec
    objects: dict[int, ObjectSpec]

    def unflatten(self, leaves: Iterable[Any]) -> Any:
        """Return outputs of this form that hold these leaves; None stands where an object was left out."""
        rest = iter(leaves)
        return tree_unflatten([self._leaf(place, rest) for place in range(self.tree.num_leaves)], self.tree)

    def _leaf(self, place: int, rest: Iterator[Any]) -> Any:
        if place not in self.objects:
            return next(rest)
        kind, form, length = self.objects[place]
        twin: Any = object.__new__(kind)
        for name, value in form.unflatten([next(rest) for _ in range(length)]).items():
            object.__setattr__(twin, name, value)  # of frozen dataclasses, too
        return twin


class ObjectSpec(NamedTuple):
    """An object that PyTorch does not look into.

    Attributes:
        kind: Its class.
        form: The form of the dict of its attributes.
        length: The number of leaves in that.
    """

    kind: type
    form: OutputSpec
    length: int


def flatten_outputs(returned: Any, whole: bool = True) -> tuple[list[Any], OutputSpec]:
    """Return the tensors and plain values among a model's outputs, and their form.

    Of objects that PyTorch does not look into, dataclasses are looked into, and any others where there is no tensor
    elsewhere. Else they are left out: the cache of a decoder is for its next call, no output.

    Args:
        returned: What the model returns.
        whole: Whether that is all it returns.
    """
    leaves, tree = tree_flatten(returned)
    look = whole and not any(isinstance(leaf, Tensor) for leaf in leaves)
    values: list[Any] = []
    objects: dict[int, ObjectSpec] = {}
    for place, leaf in enumerate(leaves):
        if isinstance(leaf, (Tensor, *PLAIN)):
            values.append(leaf)
        elif not isinstance(leaf, type) and (dataclasses.is_dataclass(leaf) or (look and hasattr(leaf, "__dict__"))):
            inner, form = flatten_outputs(_attributes(leaf), whole=False)
            objects[place] = ObjectSpec(type(leaf), form, len(inner))
            values += inner
        else:
            values.append(None)
    return values, OutputSpec(tree, objects)


def _attributes(value: Any) -> dict[str, Any]:
    fields = dataclasses.fields(value) if dataclasses.is_dataclass(value) else ()
    return {field.name: getattr(value, field.name) for field in fields} or dict(vars(value))
