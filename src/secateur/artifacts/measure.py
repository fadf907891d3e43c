"""Sizes of networks: parameters, bytes on disk, multiplications, memory while they run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from secateur.arguments import checked_call
from secateur.artifacts.header import network_sizes
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
        ram: The bytes of the values alive at the same time, at most, for one sample: each lives from its call to its
            last use, inputs from the beginning, outputs to the end; views take none.
        loss: The loss on the data it was shrunk with, or on the validation data; None where not measured.
        accuracy: The accuracy on the same samples; None also where there are no classes.
        metric: The metric on the same samples; None also where there is none.
        kv_cache: The bytes that a decoder keeps of each earlier token; None where no budget bounds them.
        latency_ms: The milliseconds that one sample takes here; None where no budget bounds them.
    """

    params: int
    bytes: int
    macs: int
    ram: int
    loss: float | None = None
    accuracy: float | None = None
    metric: float | None = None
    kv_cache: int | None = None
    latency_ms: float | None = None

    def __str__(self) -> str:
        text = (
            f"{self.params:,} parameters, {format_bytes(self.bytes)} on disk, {self.macs:,} MACs, "
            f"{format_bytes(self.ram)} of activations"
        )
        text += "" if self.kv_cache is None else f", {format_bytes(self.kv_cache)} kept of each token"
        return text + ("" if self.latency_ms is None else f", {self.latency_ms:.3g} ms for one sample")


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
    costs = network_sizes(model, units, plan).costs(plan.kept)
    return Sizes(costs.params, costs.bytes, costs.macs, costs.ram)
