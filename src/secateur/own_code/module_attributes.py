"""The sizes that modules of PyTorch keep as attributes, brought in line with their sliced parameters."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from secateur.own_code.sliced_attention import SlicedAttention, slice_attention
from secateur.structure.capture import module_of
from secateur.structure.keep_mask import KeepMask
from secateur.structure.ops.net import Axes, Net
from secateur.structure.ops.registry import find_module_sizes


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
