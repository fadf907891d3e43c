"""The exact second derivative of the loss in each gate."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from secateur.saliency.criterion import criterion
from secateur.saliency.gates import Gated, derivative


@criterion("hessian")
def hessian(gated: Gated, g: Tensor) -> Tensor:
    """ΔE_k ≈ −g_k ∂E/∂g_k + ½ g_k² ∂²E/∂g_k², all interactions within the network included.

    Two nested backward passes: one more through the suffix for each unit that is left, per batch.
    """
    first = torch.zeros(len(g), dtype=torch.float64, device=g.device)
    second = torch.zeros_like(first)
    active = g.nonzero()[:, 0].tolist()
    g = g.detach().requires_grad_()
    with sdpa_kernel(SDPBackend.MATH):  # the only attention that PyTorch differentiates twice
        for piece in gated.losses(g):
            gradient = derivative(piece, g, create_graph=True)
            first += gradient.detach().double()
            for k in active:
                second[k] += derivative(gradient[k], g, retain_graph=True)[k].double()
    return -first + 0.5 * second
