"""Optimal Brain Damage: what a single weight is worth, from the second derivative in it (note 004 eq. 5)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from secateur.curvature.second_order_backprop import at_outputs, second_derivatives
from secateur.curvature.weight_loss import Values, Weights
from secateur.curvature.weight_vjp import evaluate, values_of
from secateur.objective.losses import differentiable
from secateur.saliency.criterion import criterion
from secateur.saliency.weight_score import Saliencies
from secateur.structure.graph_run import outputs


@criterion("obd", "weight")
def obd(weights: Weights) -> Saliencies:
    """ΔE ≈ ½ h_ii u_i², h_ii = ∂²E/∂u_i² exactly: a product with the Hessian for each neuron or weight."""
    return _damage(weights, weights.hessian())


@criterion("obd_ggn", "weight")
def obd_ggn(weights: Weights) -> Saliencies:
    """The same with h_ii by Gauss and Newton, never negative: one backward pass for each output."""
    return _damage(weights, weights.ggn())


@criterion("obd_fisher", "weight")
def obd_fisher(weights: Weights) -> Saliencies:
    """The same with targets drawn from the model's own distribution: one backward pass."""
    return _damage(weights, weights.fisher())


@criterion("obd_recursion", "weight")
def obd_recursion(weights: Weights) -> Saliencies:
    """The same by second-derivative back-propagation, h_ij = Σ a_j² ∂²E/∂x_i² (LeCun et al. 1990; 003 eq. 73-79)."""
    return _damage(weights, recursion(weights))


@criterion("magnitude", "weight", needs="nothing", in_loss_units=False)
def magnitude(weights: Weights) -> Saliencies:
    """|u|."""
    return {name: u.abs() for name, u in weights.present().items()}


@criterion("random", "weight", needs="nothing", in_loss_units=False)
def random(weights: Weights) -> Saliencies:
    """Uniform in [0, 1), from the seed."""
    draw = weights.generator
    return {
        n: torch.rand(u.shape, generator=draw, dtype=torch.float64).to(u.device) for n, u in weights.present().items()
    }


def _damage(weights: Weights, curvature: Values) -> Saliencies:
    return {name: 0.5 * curvature[name] * u.square() for name, u in weights.present().items()}


def recursion(weights: Weights) -> Values:
    """∂²E/∂u² of the removable weights by second-derivative back-propagation; cross terms are dropped.

    Raises:
        ModelError: The network has an operation that the recursion does not apply to.
    """
    captured = weights.captured
    found = {name: torch.zeros_like(u) for name, u in weights.present().items()}
    placeholders = captured.graph.find_nodes(op="placeholder")
    wanted = {p: captured.weights[p.name] for p in placeholders if captured.weights.get(p.name) in found}
    for share, batch in weights.shares():
        values, _ = evaluate(captured, values_of(captured, weights.model, batch.call))

        def loss(returned: Any, share: float = share, targets: Any = batch.targets) -> Tensor:
            return share * differentiable(weights.loss, outputs(captured, returned), targets)

        start = at_outputs(captured.graph.output_node(), values, loss)
        for node, (_, second) in second_derivatives(captured.graph, values, start, wanted).items():
            found[wanted[node]] += second.double()
    return found
