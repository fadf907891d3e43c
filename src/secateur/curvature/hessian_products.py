"""Products of a Hessian with many directions at a time."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

Scalar = Callable[[Tensor], Tensor]
VALUES_HELD = 8  # values that two derivatives hold at a time, for each that is computed


def hessian_vector_products(f: Scalar, x: Tensor, directions: Tensor) -> Tensor:
    """Return (∂²f/∂x∂x) d for each direction d (Pearlmutter, Fast exact multiplication by the Hessian, 1994).

    Forward over reverse, for all directions at once. Where an operation has no forward derivative, reverse over
    reverse, and one direction after the other where an operation cannot be batched.

    Args:
        f: A number from x, as a tensor without dimensions; called once or, per way that fails, once more.
        x: A point of any shape.
        directions: [m, *x.shape].

    Returns:
        [m, *x.shape], in x's dtype. Memory is that of m passes with their derivatives.

    Raises:
        RuntimeError: An operation has no second derivative.

    >>> hessian_vector_products(lambda x: x[0] ** 2 * x[1], torch.tensor([1.0, 2.0]), torch.eye(2))
    tensor([[4., 2.],
            [2., 0.]])
    """
    if not len(directions):
        return torch.empty_like(directions)
    twice = sdpa_kernel(SDPBackend.MATH)  # the only attention that PyTorch differentiates twice
    with warnings.catch_warnings(), torch.enable_grad(), twice:
        warnings.filterwarnings("ignore", message="There is a performance drop")  # vmap's, of slower operations
        for way in (_forward_over_reverse, _reverse_over_reverse):
            try:
                return way(f, x.detach(), directions)
            except RuntimeError:  # what an operation lacks is known only when it is tried
                pass
        return _one_by_one(f, x.detach(), directions)


def _forward_over_reverse(f: Scalar, x: Tensor, directions: Tensor) -> Tensor:
    products: Tensor = torch.func.vmap(lambda d: torch.func.jvp(torch.func.grad(f), (x,), (d,))[1])(directions)
    return products


def _reverse_over_reverse(f: Scalar, x: Tensor, directions: Tensor) -> Tensor:
    slope, x = _slope(f, x)
    if not slope.requires_grad:
        return torch.zeros_like(directions)
    return torch.autograd.grad(slope, x, directions, is_grads_batched=True, materialize_grads=True)[0]


def _one_by_one(f: Scalar, x: Tensor, directions: Tensor) -> Tensor:
    slope, x = _slope(f, x)
    products = [torch.autograd.grad(slope, x, d, retain_graph=True, materialize_grads=True)[0] for d in directions]
    return torch.stack(products)


def _slope(f: Scalar, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return ∂f/∂x, and the x of which it is a function.

    Raises:
        RuntimeError: Part of it cannot be differentiated again.
    """
    x = x.requires_grad_()
    y = f(x)
    if not y.requires_grad:
        return torch.zeros_like(x), x
    slope = torch.autograd.grad(y, x, create_graph=True, materialize_grads=True)[0]
    if "torch::autograd::Error" in _operations(slope):  # where gradients would end without a word
        raise RuntimeError("trying to differentiate twice a function that was marked with @once_differentiable")
    return slope, x


def _operations(y: Tensor) -> set[str]:
    """Return the names of the backward operations behind a value."""
    nodes, waiting = {y.grad_fn}, [y.grad_fn]
    while waiting:
        node = waiting.pop()
        new = {source for source, _ in (node.next_functions if node else ())} - nodes
        nodes |= new
        waiting += new
    return {node.name() for node in nodes if node}
