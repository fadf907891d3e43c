"""The proof: the cut network computes what the gated one does."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from secateur.errors import VerificationError
from secateur.saliency.gates import GatedGraph
from secateur.structure.capture import evaluating
from secateur.structure.inputs import Call
from secateur.structure.run import difference, tolerance
from secateur.structure.units import Units


def verify(model: nn.Module, small: nn.Module, units: Units, g: Tensor, call: Call) -> float:
    """The largest absolute difference between the outputs of the cut network and of the gated original.

    Args:
        model: The original.
        small: What was cut from it.
        units: The original's units.
        g: Their gates: 1 kept, 0 removed.
        call: The inputs on which both are run, in eval mode.

    Raises:
        VerificationError: The difference is more than rounding explains, the cut network does not run, or
            it has another number of parameters than predicted.
    """
    counts = {name: int((piece != 0).sum()) for name, piece in units.split(g).items()}
    have, predicted = sum(p.numel() for p in small.parameters()), units.params(counts)
    if have != predicted:
        raise VerificationError(f"the cut network has {have:,} parameters, the plan predicts {predicted:,}")
    graph = GatedGraph(units)
    with torch.no_grad():
        expected = graph.run(graph.frontier(model, call), g)
        got = _run(small, call)
    absolute, relative = difference(expected, got)
    allowed = tolerance(model)
    if not relative <= allowed:
        raise VerificationError(
            f"the cut network differs from the gated one by {absolute:.2e}, {relative:.1e} of the largest output; "
            f"rounding explains {allowed:.0e}. Nothing was made."
        )
    return absolute


def _run(small: nn.Module, call: Call) -> object:
    try:
        with evaluating(small):
            return small(*call[0], **call[1])
    except Exception as error:
        raise VerificationError(
            f"the cut network does not run ({type(error).__name__}: {error}); its forward uses sizes that "
            "are written in its code"
        ) from error
