"""What a network costs: parameters, bytes on disk, multiplications, memory while it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from secateur.arguments import checked_call
from secateur.artifacts.safetensors import file_size
from secateur.planning.plan import Plan
from secateur.structure.process_state import one_at_a_time
from secateur.structure.units import Units, find_units
from secateur.text import format_bytes


@dataclass(frozen=True)
class Sizes:
    """What a network costs.

    Attributes:
        params: Parameters, tied ones once.
        bytes: Of its safetensors file.
        macs: Multiplications with addition for one sample.
        ram: Bytes of its weights and of the values alive at the same time, at most, for one sample.
        loss: On the data it was shrunk with or its validation; None where not measured.
        accuracy: Likewise; None also without classes.
    """

    params: int
    bytes: int
    macs: int
    ram: int
    loss: float | None = None
    accuracy: float | None = None

    def __str__(self) -> str:
        return (
            f"{self.params:,} parameters, {format_bytes(self.bytes)} on disk, {self.macs:,} MACs, "
            f"{format_bytes(self.ram)} in memory"
        )


@checked_call
@one_at_a_time
def measure(model: nn.Module, example_inputs: Any) -> Sizes:
    """What a network costs.

    Args:
        model: Left as it was.
        example_inputs: As for `find_units`.

    Raises:
        ArgumentError: The model or the inputs are no such thing.
        ModelError: The model cannot be captured.

    >>> import torch
    >>> measure(nn.Linear(3, 2), torch.zeros(2, 3)).params
    8
    """
    return measure_units(model, find_units(model, example_inputs))


def measure_units(model: nn.Module, units: Units, plan: Plan | None = None) -> Sizes:
    """Return what a network of known units costs, or will cost when it is cut by a plan; nothing is captured again.

    Args:
        model: With the biases that the plan adds.
        units: Its units.
        plan: Which of them stay; None for all.
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
    last: dict[fx.Node, int] = {}
    for i, node in enumerate(graph.nodes):
        for operand in node.all_input_nodes:
            last[_owner(operand)] = i
    alive: dict[fx.Node, int] = {}
    peak = 0
    for i, node in enumerate(graph.nodes):
        if node.op == "call_function" and _owner(node) is node:
            alive[node] = units.bytes_of_value(node, kept)
        peak = max(peak, sum(alive.values()))
        alive = {value: size for value, size in alive.items() if last.get(value, i) > i}
    return peak


def _owner(node: fx.Node) -> fx.Node:
    while getattr(node.target, "is_view", False):
        node = node.all_input_nodes[0]
    return node
