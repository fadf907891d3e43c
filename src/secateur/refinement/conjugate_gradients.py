"""Preconditioned conjugate gradients on parameters by name (Hestenes & Stiefel 1952)."""

from __future__ import annotations

from collections.abc import Callable

import torch

from secateur.refinement.small_network import Tensors

STEPS = 8
Product = Callable[[Tensors], Tensors]


def solve(
    product: Product, precondition: Product, slope: Tensors, damping: float, steps: int = STEPS
) -> tuple[Tensors, float]:
    """Return about x = −(G + λI)⁻¹ s, and how much the parabola sᵀx + ½ xᵀGx falls.

    Args:
        product: G v.
        precondition: An approximation of (G + λI)⁻¹ v, symmetric and positive.
        slope: s.
        damping: λ.
        steps: How many steps are made, each with one product.

    >>> import torch
    >>> solve(lambda v: v, lambda v: v, {"w": torch.tensor([3.0])}, damping=0.5)
    ({'w': tensor([-2.])}, 4.0)
    """
    x = {name: torch.zeros_like(s) for name, s in slope.items()}
    residual = {name: -s for name, s in slope.items()}
    direction = precondition(residual)
    height = dot(residual, direction)
    for _ in range(steps):
        if not height > 0:
            break
        image = plus(product(direction), damping, direction)
        length = height / dot(direction, image)
        x, residual = plus(x, length, direction), plus(residual, -length, image)
        towards = precondition(residual)
        before, height = height, dot(residual, towards)
        direction = plus(towards, height / before, direction)
    curved = -dot(x, slope) - dot(x, residual) - damping * dot(x, x)  # xᵀGx, since (G + λI) x = −s − residual
    return x, -dot(slope, x) - curved / 2


def dot(a: Tensors, b: Tensors) -> float:
    """Return aᵀb."""
    return sum((a[name].double() * b[name].double()).sum().item() for name in a)


def plus(a: Tensors, factor: float, b: Tensors) -> Tensors:
    """Return a + factor · b."""
    return {name: a[name] + factor * b[name] for name in a}
