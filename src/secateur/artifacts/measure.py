"""Sizes of networks: parameters, bytes on disk, multiplications, memory while they run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from secateur.arguments import checked_call
from secateur.artifacts.header import file_size
from secateur.own_code.find_units import find_units
from secateur.planning.plan import Plan
from secateur.process_state import one_at_a_time
from secateur.structure.units import Units
from secateur.text import format_bytes


@dataclass(frozen=True)
class Sizes:
    """The sizes of a network, and its quality where that was measured.

    Attributes:
        params: The number of parameters, tied ones counted once.
        bytes: The size of its safetensors file.
        macs: The number of multiplications with addition for one sample.
        ram: The bytes of its weights and of the values alive at the same time, at most, for one sample.
        loss: The loss on the data it was shrunk with, or on the validation data; None where not measured.
        accuracy: The accuracy on the same samples; None also where there are no classes.
        metric: The metric on the same samples; None also where there is none.
    """

    params: int
    bytes: int
    macs: int
    ram: int
    loss: float | None = None
    accuracy: float | None = None
    metric: float | None = None

    def __str__(self) -> str:
        return (
            f"{self.params:,} parameters, {format_bytes(self.bytes)} on disk, {self.macs:,} MACs, "
            f"{format_bytes(self.ram)} in memory"
        )


@checked_call
@one_at_a_time
def measure(model: nn.Module, example_inputs: Any) -> Sizes:
    """Return what a network costs.

    Args:
        model: The network; left as it was.
        example_inputs: As for `find_units`.

    Raises:
        ArgumentError: The model is no module, or the inputs are no inputs.
        ModelError: The model cannot be captured.

    >>> import torch
    >>> measure(nn.Linear(3, 2), torch.zeros(2, 3)).params
    8
    """
    return measure_units(model, find_units(model, example_inputs))


def measure_units(model: nn.Module, units: Units, plan: Plan | None = None) -> Sizes:
    """Return what a network of known units costs, or will cost when it is cut by a plan; nothing is captured again.

    Args:
        model: The network, with the biases that the plan adds.
        units: The network's units.
        plan: Says which of them stay; None for all.
    """
    if plan is None:
        everything = tuple((unit_set.name, tuple(range(unit_set.size))) for unit_set in units)
        plan = Plan(everything, inputs=units.captured.spec)
    counts = {name: len(indices) for name, indices in plan.kept_indices}
    ram = units.bytes(counts) + peak_activations(units, counts)
    return Sizes(units.params(counts), file_size(model, units, plan), units.macs(counts), ram)


def peak_activations(units: Units, kept: Mapping[str, int]) -> int:
    """Return the bytes of the values alive at the same time, at most, with so many units left in each set.

    Each value lives from its call to its last use; views are free.
    """
    graph = units.captured.graph
    last_use: dict[fx.Node, int] = {}
    for i, node in enumerate(graph.nodes):
        for operand in node.all_input_nodes:
            last_use[_owner(operand)] = i
    alive: dict[fx.Node, int] = {}
    peak = 0
    for i, node in enumerate(graph.nodes):
        if node.op == "call_function" and _owner(node) is node:
            alive[node] = units.bytes_of_value(node, kept)
        peak = max(peak, sum(alive.values()))
        alive = {value: size for value, size in alive.items() if last_use.get(value, i) > i}
    return peak


def _owner(node: fx.Node) -> fx.Node:
    while getattr(node.target, "is_view", False):
        node = node.all_input_nodes[0]
    return node
