"""The sizes that modules of PyTorch keep as attributes, brought in line with their sliced parameters."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from secateur.structure.capture import module_of
from secateur.structure.keep_mask import KeepMask
from secateur.structure.rules.net import Net


def update_attributes(model: nn.Module, net: Net, keep_mask: KeepMask) -> None:
    """Set the attributes of the modules of `torch.nn` from the shapes of their parameters and buffers.

    The number of groups is not seen in a shape: it is taken from the captured graph.
    """
    groups = {module_of(node): keep_mask.count(axis) for node, axis in net.groups.items()}
    for name, module in model.named_modules(remove_duplicate=False):
        for attribute, size in _sizes(module, groups.get(name)).items():
            setattr(module, attribute, size)


def _sizes(module: nn.Module, groups: int | None) -> dict[str, Any]:
    weight = getattr(module, "weight", None)
    shape = tuple(weight.shape) if isinstance(weight, Tensor) else ()
    if isinstance(module, nn.modules.conv._ConvNd):
        return _convolution(module, shape, groups)
    if isinstance(module, nn.Linear):
        return {"out_features": shape[0], "in_features": shape[1]}
    if isinstance(module, nn.Bilinear):
        return {"out_features": shape[0], "in1_features": shape[1], "in2_features": shape[2]}
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return {"num_embeddings": shape[0], "embedding_dim": shape[1]}
    if isinstance(module, nn.GroupNorm):
        return ({"num_channels": shape[0]} if shape else {}) | ({"num_groups": groups} if groups else {})
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        return {"normalized_shape": shape} if shape else {}
    if isinstance(module, nn.modules.batchnorm._NormBase):
        vector = module.running_mean if weight is None else weight
        return {} if vector is None else {"num_features": len(vector)}
    if isinstance(module, nn.PReLU):
        return {"num_parameters": shape[0]}
    if isinstance(module, nn.RNNCellBase):
        return {"input_size": module.weight_ih.shape[1], "hidden_size": module.weight_hh.shape[1]}
    return _recurrent(module) if isinstance(module, nn.RNNBase) else {}


def _convolution(module: nn.modules.conv._ConvNd, shape: tuple[int, ...], groups: int | None) -> dict[str, Any]:
    groups = groups or module.groups
    per_group, whole = ("out_channels", "in_channels") if module.transposed else ("in_channels", "out_channels")
    return {per_group: shape[1] * groups, whole: shape[0], "groups": groups}


def _recurrent(module: nn.RNNBase) -> dict[str, Any]:
    first, again = (getattr(module, name) for name in ("weight_ih_l0", "weight_hh_l0"))
    gates = {"LSTM": 4, "GRU": 3}.get(module.mode, 1)
    flat = [getattr(module, name) for name in module._flat_weights_names]
    sizes = {"input_size": first.shape[1], "hidden_size": again.shape[0] // gates, "_flat_weights": flat}
    return sizes | ({"proj_size": again.shape[1]} if module.proj_size else {})
