"""The original network as a teacher: how far outputs are from its own, and the curvature of that."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from secateur.curvature.loss_factors import float_outputs, sampled_factors
from secateur.objective.data import Batch
from secateur.objective.gated_loss import GatedLoss
from secateur.objective.kept_outputs import distribution, keep, output
from secateur.objective.losses import LossFunction, cross_entropy, differentiable
from secateur.structure.graph_run import run


class Teacher:
    """The distance to the original's outputs: no labels are used.

    The Kullback-Leibler divergence of the classes' distribution where the loss is one of classes, and
    ½ Σ_i (o_i − ô_i)² for any other loss or none.

    Args:
        gated: The original, its loss if it has one.
    """

    def __init__(self, gated: GatedLoss) -> None:
        self._captured, self._model = gated.units.captured, gated.model
        of_classes = gated.has_loss and gated.loss_function in (cross_entropy, distribution)
        self.loss: LossFunction = distribution if of_classes else output
        self._generator = torch.Generator().manual_seed(0)

    def targets(self, batch: Batch) -> Any:
        """Return what the distance of a batch is taken to."""
        with torch.no_grad():
            return keep(self.loss, run(self._captured, self._model, batch.call), batch.mask)

    def distance(self, outputs: Any, batch: Batch) -> Tensor:
        """Return the mean distance over a batch's samples."""
        return differentiable(self.loss, outputs, self.targets(batch))

    def curved(self, outputs: Any, vectors: Sequence[Tensor], batch: Batch) -> list[Tensor]:
        """Return H v for vectors in the form of the outputs' tensors: H is the Hessian of the distance there.

        It is the same whatever the teacher gives, and so taken at distance zero.
        """
        tensors = float_outputs(outputs)
        loss = differentiable(self.loss, outputs, self._own(outputs, batch))
        slopes = torch.autograd.grad(loss, tensors, create_graph=True, allow_unused=True, materialize_grads=True)
        wanted = [(slope, v) for slope, v in zip(slopes, vectors, strict=True) if slope.requires_grad]
        ends, starts = zip(*wanted, strict=True)
        return list(torch.autograd.grad(ends, tensors, starts, allow_unused=True, materialize_grads=True))

    def drawn(self, outputs: Any, batch: Batch) -> tuple[list[Tensor], list[Tensor]]:
        """Return the outputs' tensors, and vectors u for them with E[u uᵀ] = N H for each sample's own outputs."""
        factors = sampled_factors(self.loss, outputs, self._own(outputs, batch), self._generator, 1)
        return next(factors)[1:]

    def _own(self, outputs: Any, batch: Batch) -> Any:
        with torch.no_grad():
            return keep(self.loss, outputs, batch.mask)
