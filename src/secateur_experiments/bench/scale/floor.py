"""The floor: the work that cannot be avoided, done plainly and once. It is a ruler, and its results are thrown away.

Data go through the network with the input of each layer that loses inputs observed: AᵀA, of so many rows as the library
takes. Each such matrix is factorised and inverted, and the units of each set go one after the other to the last, in
closed form. Then data go through once more, and each layer's weights are solved for without the units that go.
All is done in float32, with a ridge by which that always works: times do not depend on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from secateur.compensation.calibration import EACH, ROWS
from secateur.compensation.elimination import Summation
from secateur.compensation.linear_layers import Layer, find_layers, layers_of
from secateur.compensation.removal_path import removal_path
from secateur.structure.inputs import as_call
from secateur.structure.unit_set import UnitSet
from secateur_experiments.bench.scale.task import Batches, Task

RIDGE = 1e-2  # of the mean diagonal


def floor(task: Task) -> dict[str, list[int]]:
    """Do what cannot be avoided, and return in which order the units of each set go."""
    limits, layers = task.removable, find_layers(task.units)
    layers_by_set = {s: layers_of(s, layers) for s in task.units if limits[s.name]}
    needed = [layer for layer in layers if any(layer in of_set for of_set in layers_by_set.values())]
    moments = observe(task.model, needed, task.data)
    orders = {s: removal_order(task.model, s, of_set, moments) for s, of_set in layers_by_set.items() if of_set}
    gone = {s: order[: round(task.share * s.size)] for s, order in orders.items()}
    moments = observe(task.model, needed, task.data)
    for layer in needed:
        rows = [layer.rows_of_units(s)[gone[s]].flatten() for s in gone if layer in layers_by_set[s]]
        solve(task.model, layer, moments[layer], torch.cat(rows))
    return {s.name: order for s, order in orders.items()}


def observe(model: nn.Module, layers: Sequence[Layer], data: Batches) -> dict[Layer, Tensor]:
    """Return AᵀA [D, D] of the inputs of each layer, in one pass over the data."""
    moments: dict[Layer, Tensor] = {}
    with ExitStack() as hooks, torch.no_grad():
        for layer in layers:
            weight = model.get_parameter(layer.weight)
            width = layer.height
            moments[layer] = torch.zeros(width, width, dtype=torch.float32, device=weight.device)
            module = model.get_submodule(layer.weight.rpartition(".")[0])
            hook = module.register_forward_pre_hook(_adding(layer, moments[layer], len(data)))
            hooks.callback(hook.remove)
        for inputs, _ in data:
            args, kwargs = as_call(inputs)
            model(*args, **kwargs)
    return moments


def _adding(layer: Layer, moments: Tensor, batches: int) -> Any:
    """Return a hook that adds the products of a batch's rows, evenly so many of them as the library takes."""
    most = max(ROWS, EACH * layer.width) // batches

    def add(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        count = layer.leading(args[0]).numel()
        chosen = None if count <= most else torch.arange(most, device=args[0].device) * count // most
        rows = layer.rows(args[0], chosen).float()
        moments.addmm_(rows.T, rows)

    return add


def removal_order(
    model: nn.Module, unit_set: UnitSet, layers: Sequence[Layer], moments: dict[Layer, Tensor]
) -> list[int]:
    """Return the order in which the units of one set go, all but one."""
    summations = [summation(model, layer, unit_set, moments[layer]) for layer in layers]
    return [point.unit for point in removal_path(summations, unit_set.size - 1)]


def summation(model: nn.Module, layer: Layer, unit_set: UnitSet, moments: Tensor) -> Summation:
    """Return a layer as what sums the units of a set up."""
    weight = layer.matrix(model.get_parameter(layer.weight).detach()).float()
    identity, rows = torch.eye(weight.shape[1]).to(weight), layer.rows_of_units(unit_set).to(weight.device)
    return Summation(moments[None], ridge_of(moments)[None], weight[None], identity[None], rows)


def ridge_of(moments: Tensor) -> Tensor:
    """Return λ [1, 1]."""
    return (RIDGE * moments.diagonal().mean()).clamp(min=RIDGE).reshape(1, 1)


def solve(model: nn.Module, layer: Layer, moments: Tensor, gone: Tensor) -> Tensor:
    """Return the weights without the rows of some units that best give what all gave [D', O]."""
    kept = torch.ones(len(moments), dtype=torch.bool)
    kept[gone] = False
    weight = layer.matrix(model.get_parameter(layer.weight).detach()).float()
    left = moments[kept][:, kept]
    left.diagonal().add_(ridge_of(moments)[0])
    return torch.cholesky_solve(moments[kept] @ weight, torch.linalg.cholesky(left))
