"""The sizes that `torch.nn` modules keep as attributes, brought in line with their sliced parameters."""

from __future__ import annotations

from torch import nn


def update_attributes(model: nn.Module) -> None:
    """Set `in_features`, `out_features` and `num_features` from the shapes of the parameters and buffers."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.out_features, module.in_features = module.weight.shape
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            vector = module.weight if module.weight is not None else module.running_mean
            module.num_features = module.num_features if vector is None else len(vector)
