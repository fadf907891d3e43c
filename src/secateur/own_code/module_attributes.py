"""The sizes that modules keep as attributes, brought in line with their sliced parameters."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from torch import Tensor, nn

from secateur.own_code.sliced_attention import SlicedAttention, slice_attention
from secateur.structure.capture import module_of
from secateur.structure.keep_mask import KeepMask
from secateur.structure.ops.net import Axes, Net
from secateur.structure.ops.registry import find_module_sizes

# What attributes are called that say how many channels, features or neurons there are; not how many layers or pixels.
NAME_OF_SIZE = re.compile(
    r"(?i)(feature|channel|chan|plane|width|neuron|embed|(^|_)dims?($|_)|d_model|d_ff|d_inner|"
    r"(hidden|embedding|intermediate|input|output|in|out)_?(size|dim|ch))"
)
MOST_SIZES = 32  # that are tried one by one


def update_attributes(
    model: nn.Module, net: Net, axes: Mapping[str, Axes], keep_mask: KeepMask, path: str = ""
) -> None:
    """Set the attributes of the modules of `torch.nn` from the shapes of their parameters and buffers.

    The number of groups is not seen in a shape: it is taken from the captured graph. Attention whose own forward
    cannot compute with what is left becomes `SlicedAttention`.

    Args:
        model: A sliced copy of the network, or of a module of it.
        net: The network's axes.
        axes: The axes of its parameters.
        keep_mask: The units that stay.
        path: The module's path in the network.
    """
    groups = {module_of(node): keep_mask.count(axis) for node, axis in net.groups.items()}
    for inner, module in model.named_modules(remove_duplicate=False):
        name = ".".join(filter(None, (path, inner)))
        sizes, weight = find_module_sizes(module), getattr(module, "weight", None)
        shape = tuple(weight.shape) if isinstance(weight, Tensor) else ()
        kept = {} if sizes is None else sizes.attributes(module, shape, groups.get(name))
        for attribute, size in kept.items():
            setattr(module, attribute, size)
        if isinstance(module, nn.MultiheadAttention):
            slice_attention(module, axes, keep_mask, name)
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder) and any(isinstance(m, SlicedAttention) for m in module.modules()):
            module.use_nested_tensor = False  # only kernels that know no other widths take these


class _Size(NamedTuple):
    """A whole number that a module of the user's keeps, equal to a size that its parameters had and have no more."""

    module: nn.Module
    attribute: str
    before: int
    after: int

    def set(self, value: int) -> None:
        setattr(self.module, self.attribute, value)


def update_own_sizes(model: nn.Module, small: nn.Module, is_right: Callable[[], bool]) -> None:
    """Set the numbers that modules of the user's keep of the sizes of their parameters, where those are not ambiguous.

    Args:
        model: The original.
        small: The cut network; changed.
        is_right: The test that it computes what it should; a number with which it does not stays as it was.
    """
    sizes = list(_own_sizes(small, _changed_sizes(model, small)))
    for size in sizes:
        size.set(size.after)
    if sizes and not is_right():
        for size in sizes:
            size.set(size.before)
        for size in sizes[:MOST_SIZES]:
            size.set(size.after)
            if not is_right():
                size.set(size.before)


def _own_sizes(small: nn.Module, changed: Mapping[str, Mapping[int, set[int]]]) -> Iterator[_Size]:
    for name, module in small.named_modules():
        if type(module).__module__.startswith("torch.nn."):
            continue
        for attribute, value in vars(module).items():
            new = changed.get(name, {}).get(value, set()) if type(value) is int else set()
            if len(new) == 1 and value not in new and NAME_OF_SIZE.search(attribute):
                yield _Size(module, attribute, value, *new)


def _changed_sizes(model: nn.Module, small: nn.Module) -> dict[str, dict[int, set[int]]]:
    """Return for each module what became of each size of the parameters within it: old → new ones."""
    changed: dict[str, dict[int, set[int]]] = {}
    before = dict(model.named_parameters(remove_duplicate=False))
    for name, parameter in small.named_parameters(remove_duplicate=False):
        path = name.split(".")[:-1]
        old = before[name].shape if name in before else parameter.shape
        for i in range(len(path) + 1):
            sizes = changed.setdefault(".".join(path[:i]), {})
            for size, new in zip(old, parameter.shape, strict=True):
                sizes.setdefault(size, set()).add(new)
    return changed
