"""The proof that the cut network computes what the gated one does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secateur.cutting.slices import gates
from secateur.errors import VerificationError
from secateur.objective.gated_graph import GatedGraph
from secateur.own_code.probe_weights import holding, probe_weights
from secateur.own_code.slices import keep_mask_of
from secateur.structure.capture import Captured, call_model, evaluating
from secateur.structure.graph_run import (
    bind,
    compile_graph,
    difference,
    fill,
    in_double,
    outputs,
    tolerance_of,
    weights_of,
)
from secateur.structure.inputs import Call, map_tensors, named_tensors, sample_weight
from secateur.structure.keep_mask import KeepMask
from secateur.structure.sliced_graph import slice_tensor
from secateur.structure.units import Units

Kept = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Truth:
    """The outputs that a cut network should return for some inputs, and how far rounding may take it from them.

    Attributes:
        call: The inputs.
        outputs: The outputs that it should return.
        allowed: The largest difference allowed, relative to the largest output.
        params: The number of parameters it should have.
        weights: The values that its parameters and buffers hold meanwhile; None for its own.
    """

    call: Call
    outputs: Any
    allowed: float
    params: int
    weights: Mapping[str, Tensor] | None = None

    def check(self, small: nn.Module) -> float:
        """Return the largest absolute difference of the cut network's outputs from these, in eval mode.

        Raises:
            VerificationError: It is more than rounding explains, the cut network does not run, or it has another
                number of parameters than predicted.
        """
        have = sum(p.numel() for p in small.parameters())
        if have != self.params:
            raise VerificationError(f"the cut network has {have:,} parameters, the plan predicts {self.params:,}")
        got = self._run(small)
        absolute, relative = difference(self.outputs, got)
        if not relative <= self.allowed:
            raise VerificationError(
                f"the cut network differs from the gated one by {absolute:.2e}, {relative:.1e} of the largest output; "
                f"rounding explains {self.allowed:.0e}. Nothing was made."
            )
        return absolute

    def _run(self, small: nn.Module) -> object:
        try:
            with torch.no_grad(), evaluating(small), holding(small, self.weights):
                return call_model(small, self.call)
        except Exception as error:
            raise VerificationError(
                f"the cut network does not run ({type(error).__name__}: {error}); its forward uses sizes that "
                "are written in its code"
            ) from error


def truth(model: nn.Module, units: Units, kept: Kept, call: Call) -> Truth:
    """Return the outputs of the original with gates of zero; units that no gate removes exactly are sliced out.

    Args:
        model: The original.
        units: The original's units.
        kept: The units that stay.
        call: The inputs.
    """
    expected = _gated(model, units, kept, bind(units.captured, model, call))
    return Truth(call, expected, tolerance_of(units.captured, sample_weight(model).dtype), _params(units, kept))


def exact_truths(model: nn.Module, units: Units, kept: Kept, calls: Sequence[Call]) -> list[Truth]:
    """Return the outputs in float64, where no error can hide in rounding, with weights that are nowhere zero.

    They are in the model's own dtype where the network runs in no other.
    """
    try:
        _run_in_double(model, calls[0])
        return probe_truths(model, units, kept, calls, double=True)
    except RuntimeError:
        return probe_truths(model, units, kept, calls, double=False)


def _run_in_double(model: nn.Module, call: Call) -> None:
    """Run the original in float64: its graph may hold other operations than its code, which know this dtype.

    Raises:
        RuntimeError: It does not run.
    """
    with torch.no_grad(), evaluating(model), holding(model, probe_weights(model)):
        call_model(model, map_tensors(call, in_double))


def check_masked(
    original: nn.Module, network: nn.Module, captured: Captured, masks: Mapping[str, Tensor], call: Call
) -> float:
    """Return how far a network without single weights is, at most, from the graph with the masked weights.

    Args:
        original: The network with the weights that the masks are put on.
        network: The copy with zeros.
        captured: The graph of both.
        masks: Parameter → which of its weights are kept.
        call: The inputs.

    Raises:
        VerificationError: It is more than rounding explains.
    """
    mask_of = {id(p): masks[name].to(p.device) for name, p in original.named_parameters() if name in masks}
    with torch.no_grad():
        weights = {k: w * mask_of[id(w)] if id(w) in mask_of else w for k, w in weights_of(captured, original).items()}
        expected = outputs(captured, compile_graph(captured.graph)(*fill(captured, weights, call)))
    allowed = tolerance_of(captured, sample_weight(network).dtype)
    return Truth(call, expected, allowed, sum(p.numel() for p in network.parameters())).check(network)


def probe_truths(model: nn.Module, units: Units, kept: Kept, calls: Sequence[Call], double: bool) -> list[Truth]:
    """Return the outputs for some inputs with weights that are nowhere zero, in float64 or in the model's own dtype."""
    weights = probe_weights(model)
    if not double:
        tensors = named_tensors(model)
        weights = {name: value.to(tensors[name].dtype) for name, value in weights.items()}
    by_placeholder = {placeholder: weights[name] for placeholder, name in units.captured.weights.items()}
    calls = [map_tensors(call, in_double) for call in calls] if double else calls
    filled = [fill(units.captured, by_placeholder, call) for call in calls]
    expected = [_gated(model, units, kept, values) for values in filled]  # constants in their dtype, as code makes them
    dtype = torch.float64 if double else sample_weight(model).dtype
    keep_mask, allowed = keep_mask_of(units, kept), tolerance_of(units.captured, dtype)
    held = {name: slice_tensor(value, units.axes.get(name, []), keep_mask) for name, value in weights.items()}
    params = _params(units, kept)
    return [Truth(call, out, allowed, params, held) for call, out in zip(calls, expected, strict=True)]


def _gated(model: nn.Module, units: Units, kept: Kept, values: Sequence[Any]) -> Any:
    """Return the gated outputs for these values of the graph's placeholders."""
    masks = keep_mask_of(units, kept).masks
    graph = GatedGraph(
        units, KeepMask({s.axis: masks[s.axis] for s in units if s.removal == "sliced" and s.axis in masks})
    )
    with torch.no_grad():
        return graph.run(graph.frontier(values), gates(model, units, kept))


def _params(units: Units, kept: Kept) -> int:
    return units.params({name: len(indices) for name, indices in kept.items()})
