"""Optimal Brain Damage with the second derivative by the paper's recursion."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from secateur.curvature.second_order_backprop import at_outputs, second_derivatives
from secateur.curvature.weight_loss import ByParameter, WeightLoss
from secateur.curvature.weight_vjp import run_graph, values_of
from secateur.objective.losses import differentiable
from secateur.saliency.criterion import criterion
from secateur.saliency.weight_score import Saliencies
from secateur.saliency.weights.obd import obd_saliency
from secateur.structure.graph_run import outputs


@criterion("obd_recursion", "weight")
def obd_recursion(weights: WeightLoss) -> Saliencies:
    """Return ½ h_ii u_i², h_ij = Σ a_j² ∂²E/∂x_i² by back-propagation (LeCun et al. 1990; 003 eq. 73-79)."""
    return obd_saliency(weights, recursion(weights))


def recursion(weights: WeightLoss) -> ByParameter:
    """Return ∂²E/∂u² of the removable weights by second-derivative back-propagation; cross terms are dropped.

    Raises:
        ModelError: The network has an operation that the recursion does not apply to.
    """
    captured = weights.captured
    curvature = {name: torch.zeros_like(u) for name, u in weights.present().items()}
    placeholders = captured.graph.find_nodes(op="placeholder")
    wanted = {p: captured.weights[p.name] for p in placeholders if captured.weights.get(p.name) in curvature}
    for share, batch in weights.shares():
        values, _ = run_graph(captured, values_of(captured, weights.model, batch.call))

        def loss(returned: Any, share: float = share, targets: Any = batch.targets) -> Tensor:
            return share * differentiable(weights.loss, outputs(captured, returned), targets)

        start = at_outputs(captured.graph.output_node(), values, loss)
        for node, (_, second) in second_derivatives(captured.graph, values, start, wanted).items():
            curvature[wanted[node]] += second.double()
    return curvature
