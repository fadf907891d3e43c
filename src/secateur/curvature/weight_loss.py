"""E as a function of the weights: its gradient, and its second derivative in every single one.

Exact (Optimal Brain Damage), or without the second derivative of the network, which is never negative.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from secateur.curvature.factor_pullback import BYTES_AT_ONCE, FactorPullback, Factors
from secateur.curvature.loss_factors import Factor, backward, exact_factors, sampled_factors
from secateur.curvature.per_sample import Uses
from secateur.curvature.sample_independence import SampleIndependence, find_sample_independence
from secateur.curvature.weight_hessian import hessian_diagonal
from secateur.curvature.weight_vjp import leaves_of, run_from, values_of
from secateur.errors import ModelError, choose
from secateur.objective.data import CHUNK, Batch, batches
from secateur.objective.held_back import hold_back
from secateur.objective.loss_checks import batches_for_loss
from secateur.objective.losses import (
    LossFunction,
    differentiable,
    find_loss,
    require_loss,
)
from secateur.objective.memory import bytes_of, memory_cap
from secateur.objective.quality.metric import Metric, Run
from secateur.objective.quality.quality import Quality, quality_of
from secateur.structure.capture import Captured, check_finite
from secateur.structure.graph_run import compile_graph, outputs
from secateur.structure.inputs import sample_weight
from secateur.structure.ops.registry import find_op

ByParameter = dict[str, Tensor]  # by parameter, in its shape, float64
VECTORS = 16  # that are pulled back at a time in this
FEWEST = 32  # samples at a time that are fast all the same


class WeightLoss:
    """The mean loss E over the data, and its derivatives in the parameters that the captured graph uses.

    Args:
        model: The network, in whatever mode; evaluated as in eval mode, left as it was.
        captured: Its graph.
        data: As `batches` takes it; None where no samples are needed.
        loss: A name or a function; None where no loss is needed.
        seed: The seed of `fisher`.
        max_memory: Bytes that may be held beside model and data: an eighth each for the values of a batch, and for
            what is computed from them at a time; None for a quarter of what is free.
        name: What an error calls the data.
        metric: A function of all outputs and targets that `measure` calls; None for none.

    Attributes:
        names: The parameters of floating-point numbers; tied ones under the first.

    Raises:
        ArgumentError: `max_memory` is no size, or there is no loss of this name.
        DataError: The data is unusable, or the loss.
        ModelError: The model's weights are not finite, or inference mode is on.

    >>> from secateur.structure.capture import capture
    >>> model, x = nn.Linear(1, 1, bias=False).double(), torch.tensor([[1.0], [3.0]])
    >>> weights = WeightLoss(model, capture(model, ((x,), {})), (x, torch.zeros(2, 1)), "squared_error")
    >>> weights.hessian(), weights.ggn()
    ({'weight': tensor([[5.]], dtype=torch.float64)}, {'weight': tensor([[5.]], dtype=torch.float64)})
    """

    def __init__(
        self, model: nn.Module, captured: Captured, data: Any, loss: Any, seed: int = 0,
        max_memory: int | str | None = None, name: str = "data", metric: Metric | None = None,
    ) -> None:  # fmt: skip
        if torch.is_inference_mode_enabled():
            raise ModelError("torch.inference_mode() takes derivatives away for good; use torch.no_grad() instead")
        check_finite(model)
        self.model, self.captured = model, captured
        self._loss = None if loss is None else find_loss(loss)
        self._metric = metric
        self.memory = memory_cap(max_memory, sample_weight(model).device)
        self.generator = torch.Generator().manual_seed(seed)
        used = {captured.weights.get(p.name) for p in captured.graph.find_nodes(op="placeholder") if p.users}
        self.names = [name for name, p in model.named_parameters() if name in used and p.is_floating_point()]
        at_once = CHUNK if captured.spec.fixed else self._at_once()
        self._batches: list[Batch] = []
        if data is not None:
            self._batches = batches_for_loss(self._loss, captured, model, batches(model, data, at_once, captured, name))
        self._n = sum(batch.size for batch in self._batches)

    @property
    def removable(self) -> list[str]:
        """The parameters whose single weights may be pruned: of two dimensions or more, so no biases."""
        return [name for name, p in self._parameters().items() if p.ndim > 1]

    @property
    def loss(self) -> LossFunction:
        """The loss of one batch.

        Raises:
            DataError: No loss was given.
        """
        return require_loss(self._loss)

    def present(self) -> ByParameter:
        """Return the removable weights as they are now."""
        return {name: p.detach().double() for name, p in self._parameters().items() if p.ndim > 1}

    def flat(self) -> Tensor:
        """Return a copy of the removable weights in one vector [P]."""
        return torch.cat([u.flatten() for u in self.present().values()])

    def split(self, flat: Tensor) -> dict[str, Tensor]:
        """Return a vector [P] over the removable weights by parameter, in its shape."""
        shapes = {name: p.shape for name, p in self._parameters().items() if p.ndim > 1}
        pieces = torch.split(flat, [shape.numel() for shape in shapes.values()])
        return {name: piece.reshape(shape) for (name, shape), piece in zip(shapes.items(), pieces, strict=True)}

    def put(self, flat: Tensor) -> None:
        """Change the model's removable weights to these [P]."""
        parameters = self._parameters()
        with torch.no_grad():
            for name, u in self.split(flat).items():
                parameters[name].copy_(u)

    def shares(self) -> Iterator[tuple[float, Batch]]:
        """Yield the batches, each after its share of all samples."""
        yield from ((batch.size / self._n, batch) for batch in self._batches)

    def measure(self) -> Quality:
        """Return E, the accuracy and the metric; None where there is no data or no loss, or there are no classes."""
        if self._loss is None or not self._batches:
            return Quality()
        with torch.no_grad():
            runs = (Run(batch.size, share, out, batch.targets) for share, batch, out in self._outputs())
            return quality_of(self.loss, self._metric, runs)

    def _outputs(self) -> Iterator[tuple[float, Batch, Any]]:
        run = compile_graph(self.captured.graph)
        for share, batch in self.shares():
            yield share, batch, outputs(self.captured, run(*values_of(self.captured, self.model, batch.call)))

    def held_back(self) -> tuple[WeightLoss, WeightLoss]:
        """Return E on the data without every fifth sample, and on these, as functions of the same weights.

        Raises:
            DataError: There are too few samples.
        """
        fitted, held = hold_back(self._batches, self.captured.spec.fixed is not None)
        return self._on_batches(fitted), self._on_batches(held)

    def _on_batches(self, chosen: list[Batch]) -> WeightLoss:
        weights = copy.copy(self)
        weights._batches, weights._n = chosen, sum(batch.size for batch in chosen)
        return weights

    @property
    def samples(self) -> int:
        """The number of samples."""
        return self._n

    def gradient(self) -> ByParameter:
        """Return ∂E/∂w, by one backward pass."""
        total = self._zeros()
        with self._differentiating():
            for share, batch in self.shares():
                leaves = leaves_of(self.model, self.names)
                out = run_from(self.captured, self.model, batch.call, leaves)
                loss = differentiable(self.loss, out, batch.targets)
                gradients = backward([loss], [torch.ones_like(loss)], list(leaves.values()))
                for name, gradient in zip(leaves, gradients, strict=True):
                    total[name] += share * gradient.double()
        return total

    def ggn(self) -> ByParameter:
        """Return the diagonal of 1/N Σ_n J_nᵀ L_n J_n (Gauss-Newton), L_n the Hessian of sample n's loss in outputs.

        One backward pass for each output of a sample; where samples cannot be told apart, as many for each sample.

        Raises:
            DataError: The loss ties samples to each other, or outputs do not hold them along the first dimension.
        """
        return self._squares(self._exact)

    def fisher(self, draws: int = 1) -> ByParameter:
        """Return an estimate of `ggn`, 1/N Σ_n (∂ℓ_n/∂w)² with targets drawn from the model's own distribution.

        One backward pass for each draw; the error falls as 1/√draws.

        Raises:
            DataError: As `ggn`, or the loss is none with a name.
        """
        return self._squares(lambda out, targets: sampled_factors(self.loss, out, targets, self.generator, draws))

    def ggn_matrix(self, names: Sequence[str]) -> Tensor:
        """Return the Gauss-Newton matrix [P, P] over all elements of these parameters, one after the other; float64.

        Raises:
            ArgumentError: One of the names is none of `names`.
            DataError: As `ggn`.
        """
        parameters = self._parameters()
        size = sum(choose("parameter", name, parameters).numel() for name in names)
        total = sample_weight(self.model).new_zeros(size, size, dtype=torch.float64)
        if size:
            pullback = self._pullback
            with self._differentiating():
                pullback.add_products(self._exact, names, total)
        return total

    def hessian(self) -> ByParameter:
        """Return ∂²E/∂w², exact.

        One product with the Hessian for each neuron of a dense layer that sees each sample once, for all samples at a
        time; of anything else one for each weight.

        Raises:
            DataError: The loss has no derivative.
        """
        total = self._zeros()
        with self._differentiating():
            for share, batch in self.shares():
                values = values_of(self.captured, self.model, batch.call)
                for name, second in hessian_diagonal(
                    self._independence.uses, self.names, values, batch, self.loss, self.memory
                ):
                    total[name] += share * second
        return total

    def _at_once(self) -> int:
        """Return how many samples to run at a time: their values fit into memory, what is pulled back into caches."""
        graph = self.captured.graph
        outputs = bytes_of(n for n in graph.output_node().all_input_nodes) // sample_weight(self.model).element_size()
        pulled = bytes_of(Uses(self.captured, self.names, {}).entries) * max(1, min(outputs, VECTORS))
        fitting = self.memory // 8 // max(1, bytes_of(graph.nodes))
        return max(1, min(CHUNK, fitting, max(FEWEST, BYTES_AT_ONCE // max(1, pulled))))

    def _parameters(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.model.named_parameters() if name in self.names}

    def _zeros(self) -> ByParameter:
        return {name: torch.zeros_like(p, dtype=torch.float64) for name, p in self._parameters().items()}

    @contextlib.contextmanager
    def _differentiating(self) -> Iterator[None]:
        """Run a block with gradients, without fused kernels that have none in eval mode or no second ones."""
        fused = any(op.fused for op in map(find_op, self.captured.graph.nodes) if op)
        mkldnn: Any = torch.backends.mkldnn
        enabled = mkldnn.set_flags(mkldnn.enabled and not fused)[0]
        cudnn = torch.backends.cudnn.flags(enabled=False) if fused else contextlib.nullcontext()
        try:
            with torch.enable_grad(), cudnn:
                yield
        finally:
            mkldnn.set_flags(enabled)

    def _exact(self, out: Any, targets: Any) -> Iterator[Factor]:
        return exact_factors(self.loss, out, targets)

    def _squares(self, factors: Factors) -> ByParameter:
        """Return Σ_v λ_v (J_nᵀ u_v)², mean over samples."""
        total, pullback = self._zeros(), self._pullback
        with self._differentiating():
            pullback.add_squares(factors, total)
        return total

    @property
    def _pullback(self) -> FactorPullback:
        return FactorPullback(self.captured, self.model, self._independence, self._batches, self.memory)

    @cached_property
    def _independence(self) -> SampleIndependence:
        with self._differentiating():
            return find_sample_independence(
                self.captured, self.model, self.names, max(self._batches, key=lambda batch: batch.size).call
            )
