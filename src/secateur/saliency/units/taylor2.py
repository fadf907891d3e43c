"""The second-order Taylor estimate by second-derivative back-propagation (003 eq. 4 and appendix A)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from secateur.curvature.second_order_backprop import Pair, at_outputs, second_derivatives
from secateur.objective.gated_loss import CachedBatch, GatedLoss, per_position
from secateur.objective.losses import differentiable
from secateur.saliency.criterion import criterion
from secateur.structure.graph_run import outputs


@criterion("taylor2")
def taylor2(gated: GatedLoss, g: Tensor) -> Tensor:
    """Return −Σ o ∂E/∂o + ½ Σ o² ∂²E/∂o² (003 eq. 4), the sums over samples and consumers.

    The recursion (003 eq. 73-79) passes both derivatives from the outputs back through each operation:

        o = f(x)       ∂E/∂x = f' ∂E/∂o        ∂²E/∂x² = f'² ∂²E/∂o² + f'' ∂E/∂o
        x_i = Σ w o    ∂E/∂o = Σ w ∂E/∂x       ∂²E/∂o² = Σ w² ∂²E/∂x²

    It drops ∂²E/∂x_i∂x_j between different values. So it equals `hessian` for the last hidden layer where
    loss and output act on each output alone, and is an approximation elsewhere. One forward and a few
    backward passes of each operation, and one through the loss per output.

    Raises:
        ModelError: The network has an operation that the recursion does not apply to.
    """
    saliency = torch.zeros(len(g), dtype=torch.float64, device=g.device)
    for batch in gated.cached:
        values = gated.graph.trace(batch.frontier, g)
        derivatives = _at_gated_values(gated, batch, values)
        for edge in gated.graph.edges:
            if edge.node in derivatives:
                o, (first, second) = values[edge.node], derivatives[edge.node]
                terms = (-o * first + 0.5 * o.square() * second).double()
                saliency += gated.units.collect(edge.axis, per_position(terms, edge.dim).sum(1))
    return saliency


def _at_gated_values(gated: GatedLoss, batch: CachedBatch, values: dict[fx.Node, Any]) -> dict[fx.Node, Pair]:
    """Return both derivatives of the loss at every value that carries a gate."""

    def loss(returned: Any) -> Tensor:
        out = outputs(gated.units.captured, returned)
        return batch.share * differentiable(gated.loss_function, out, batch.targets)

    suffix = gated.graph.suffix
    start = at_outputs(next(reversed(suffix.nodes)), values, loss)
    return second_derivatives(suffix, values, start, {edge.node for edge in gated.graph.edges})
