"""The Gauss-Newton matrix of the distance to the original's outputs in all parameters, by products with vectors.

    G = 1/N Σ_n J_nᵀ H_n J_n,  J_n = ∂o_n/∂θ,  H_n the Hessian of sample n's distance in its outputs

(Schraudolph 2002; Martens 2010). One product is a forward pass with its derivative, and a backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.func import jvp
from torch.utils._pytree import tree_map

from secateur.curvature.loss_factors import backward, float_outputs
from secateur.errors import ModelError
from secateur.objective.data import Batch
from secateur.refinement.small_network import SmallNetwork, Tensors
from secateur.refinement.teacher import Teacher
from secateur.structure.export import first_line


class Distance:
    """The mean distance of the network that is left to the original on some batches, a function of its parameters.

    Args:
        network: What is left.
        teacher: The original.
        batches: Samples.
    """

    def __init__(self, network: SmallNetwork, teacher: Teacher, batches: list[Batch]) -> None:
        self.network, self.teacher, self.batches = network, teacher, batches
        self.samples = sum(batch.size for batch in batches)

    def shares(self) -> Iterator[tuple[Batch, float]]:
        """Yield each batch with its share of the samples."""
        yield from ((batch, batch.size / self.samples) for batch in self.batches)

    def value(self, parameters: Tensors) -> float:
        """Return the distance."""
        with torch.no_grad():
            runs = ((self.network.run(parameters, batch.call), batch, share) for batch, share in self.shares())
            return sum(share * self.teacher.distance(out, batch).double().item() for out, batch, share in runs)

    def slope(self, parameters: Tensors) -> Tensors:
        """Return its derivative in each parameter."""
        total = zeros(parameters)
        for batch, share in self.shares():
            leaves = leaves_of(parameters)
            distance = share * self.teacher.distance(self.network.run(leaves, batch.call), batch)
            add(total, backward([distance], [torch.ones_like(distance)], list(leaves.values())))
        return total

    def product(self, parameters: Tensors, vector: Tensors) -> Tensors:
        """Return G v."""
        total = zeros(parameters)
        for batch, share in self.shares():
            leaves = leaves_of(parameters)
            out = self.network.run(leaves, batch.call)
            moved = self._moved(parameters, vector, batch)
            curved = self.teacher.curved(_apart(out), moved, batch)
            add(total, backward(float_outputs(out), [share * c for c in curved], list(leaves.values())))
        return total

    def _moved(self, parameters: Tensors, vector: Tensors, batch: Batch) -> tuple[Tensor, ...]:
        """Return J v."""

        def outputs(changed: Tensors) -> tuple[Tensor, ...]:
            return tuple(float_outputs(self.network.run(changed, batch.call)))

        try:
            moved: tuple[Tensor, ...] = jvp(outputs, (parameters,), (vector,))[1]
        except NotImplementedError:  # an operation that cannot be differentiated forwards
            moved = _moved_by_two_passes(outputs, parameters, vector)
        return moved


def _moved_by_two_passes(
    outputs: Callable[[Tensors], tuple[Tensor, ...]], parameters: Tensors, vector: Tensors
) -> tuple[Tensor, ...]:
    """Return J v as the derivative of uᵀJ v in u: two passes backwards.

    Raises:
        ModelError: An operation cannot be differentiated twice either.
    """
    leaves = leaves_of(parameters)
    out = outputs(leaves)
    u = [torch.zeros_like(o, requires_grad=True) for o in out]
    options: dict[str, Any] = {"allow_unused": True, "materialize_grads": True}
    try:
        slopes = torch.autograd.grad(out, list(leaves.values()), u, create_graph=True, **options)
        return torch.autograd.grad(slopes, u, list(vector.values()), **options)
    except (NotImplementedError, RuntimeError) as error:
        raise ModelError(
            "refine: an operation of the model can be differentiated neither forwards nor twice "
            f"({first_line(error)}); refine=0 fits without it"
        ) from error


def zeros(parameters: Tensors) -> Tensors:
    """Return a zero for each parameter."""
    return {name: torch.zeros_like(tensor) for name, tensor in parameters.items()}


def add(total: Tensors, pieces: list[Tensor]) -> None:
    """Add a piece to each tensor."""
    for tensor, piece in zip(total.values(), pieces, strict=True):
        tensor += piece


def leaves_of(parameters: Tensors) -> Tensors:
    """Return the parameters, to be differentiated in."""
    return {name: tensor.detach().requires_grad_() for name, tensor in parameters.items()}


def _apart(outputs: Any) -> Any:
    """Return outputs without what they were computed from, to be differentiated in."""

    def leaf(value: Any) -> Any:
        floating = isinstance(value, Tensor) and value.is_floating_point()
        return value.detach().requires_grad_() if floating else value

    return tree_map(leaf, outputs)
