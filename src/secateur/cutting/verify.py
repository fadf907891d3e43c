"""The proof: the cut network computes what the gated one does."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from secateur.cutting.slices import gates
from secateur.errors import VerificationError
from secateur.saliency.gates import GatedGraph
from secateur.structure.capture import Captured, evaluating
from secateur.structure.inputs import Call, map_tensors
from secateur.structure.run import (
    bind,
    compile_graph,
    difference,
    doubled,
    fill,
    in_double,
    outputs,
    tolerance,
    weights_of,
)
from secateur.structure.sliced import Sliced
from secateur.structure.units import Units

Kept = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Truth:
    """What a cut network should return for some inputs, and how far rounding may take it from that."""

    call: Call
    outputs: Any
    allowed: float
    double: bool
    params: int

    def check(self, small: nn.Module) -> float:
        """The largest absolute difference of the cut network's outputs from these, in eval mode.

        Raises:
            VerificationError: It is more than rounding explains, the cut network does not run, or it has another
                number of parameters than predicted.
        """
        have = sum(p.numel() for p in small.parameters())
        if have != self.params:
            raise VerificationError(f"the cut network has {have:,} parameters, the plan predicts {self.params:,}")
        with torch.no_grad(), evaluating(small), doubled(small) if self.double else nullcontext():
            got = _run(small, self.call)
        absolute, relative = difference(self.outputs, got)
        if not relative <= self.allowed:
            raise VerificationError(
                f"the cut network differs from the gated one by {absolute:.2e}, {relative:.1e} of the largest output; "
                f"rounding explains {self.allowed:.0e}. Nothing was made."
            )
        return absolute


def truth(model: nn.Module, units: Units, sliced: Sliced, kept: Kept, call: Call) -> Truth:
    """The outputs of the captured graph with gates of zero, on the original's weights, in its dtype.

    Where units are removed that a gate does not take away exactly: of the sliced graph, on the original's weights
    without the slices that the unit sets name.

    Args:
        model: The original.
        units: The original's units.
        sliced: Its graph for the sizes that are left.
        kept: The units that stay.
        call: The inputs.
    """
    params = units.params({name: len(indices) for name, indices in kept.items()})
    removed = {s.removal for s in units if len(kept.get(s.name, range(s.size))) < s.size}
    with torch.no_grad():
        if "sliced" in removed:
            with evaluating(model):
                values = fill(units.captured, _without(model, units, kept), call)
                expected = outputs(units.captured, compile_graph(sliced.graph)(*values))
        else:
            graph = GatedGraph(units)
            expected = graph.run(graph.frontier(model, call), gates(model, units, kept))
    return Truth(call, expected, tolerance(model), False, params)


def _without(model: nn.Module, units: Units, kept: Kept) -> dict[str, Tensor]:
    """The weights by placeholder, each dimension without the positions that removed units have in it."""
    weights = weights_of(units.captured, model)
    stay: dict[tuple[str, int], Tensor] = {}
    for unit_set in units:
        removed = sorted(set(range(unit_set.size)) - set(kept.get(unit_set.name, range(unit_set.size))))
        for part in unit_set.slices if removed else ():
            size = units.axes[part.tensor][part.dim].size
            mask = stay.setdefault((part.tensor, part.dim), torch.ones(size, dtype=torch.bool))
            mask[part.index[removed].flatten()] = False
    for placeholder, name in units.captured.weights.items():
        for dim in range(weights[placeholder].ndim):
            if (name, dim) in stay:
                index = stay[name, dim].nonzero()[:, 0].to(weights[placeholder].device)
                weights[placeholder] = weights[placeholder].index_select(dim, index)
    return weights


def exact_truth(small: nn.Module, units: Units, sliced: Sliced, kept: Kept, call: Call) -> Truth | None:
    """The outputs of the sliced graph in float64, where an error cannot hide in rounding.

    None where the network runs in no other dtype than its own.
    """
    params = units.params({name: len(indices) for name, indices in kept.items()})
    call = map_tensors(call, in_double)
    try:
        with torch.no_grad(), evaluating(small), doubled(small):
            values = map(in_double, bind(units.captured, small, call))
            expected = outputs(units.captured, compile_graph(sliced.graph)(*values))
    except RuntimeError:
        return None
    return Truth(call, expected, exact_tolerance(units.captured), True, params)


def exact_tolerance(captured: Captured) -> float:
    """What rounding may do to a run in float64; more where the graph itself computes in a lower one."""
    return 3e-6 if has_lower_literals(captured) else 1e-9


def has_lower_literals(captured: Captured) -> bool:
    """Whether the code names a dtype lower than float64 itself."""
    low = (torch.float32, torch.float16, torch.bfloat16)
    return any(one in low for node in captured.graph.nodes for one in tree_leaves((node.args, node.kwargs)))


def _run(small: nn.Module, call: Call) -> object:
    try:
        return small(*call[0], **call[1])
    except Exception as error:
        raise VerificationError(
            f"the cut network does not run ({type(error).__name__}: {error}); its forward uses sizes that "
            "are written in its code"
        ) from error
