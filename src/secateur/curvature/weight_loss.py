"""E as a function of the weights: its gradient, and its second derivative in every single one.

Exact (Optimal Brain Damage), or without the second derivative of the network, which is never negative.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import islice
from typing import Any

import torch
from torch import Tensor, fx, nn

from secateur.curvature.loss_factors import Factor, backward, exact_factors, sampled_factors
from secateur.curvature.per_sample import Uses, summed_squares
from secateur.curvature.sample_independence import SampleIndependence, find_sample_independence
from secateur.curvature.weight_hessian import second_derivatives
from secateur.curvature.weight_vjp import BatchVJP, SampleVJP, leaves_of, run_from, samples_of, values_of
from secateur.errors import DataError, ModelError, choose
from secateur.objective.data import CHUNK, Batch, batches
from secateur.objective.held_back import hold_back
from secateur.objective.loss_checks import batches_for_loss
from secateur.objective.losses import (
    LossFunction,
    count_predictions,
    differentiable,
    find_loss,
    loss_and_accuracy,
    require_loss,
)
from secateur.objective.memory import bytes_of, memory_cap
from secateur.structure.capture import Captured, check_finite
from secateur.structure.graph_run import compile_graph, outputs
from secateur.structure.inputs import sample_weight
from secateur.structure.rules.registry import name_of

Factors = Callable[[Any, Any], Iterator[Factor]]  # of the loss's curvature, from outputs and targets
ByParameter = dict[str, Tensor]  # by parameter, in its shape, float64
RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu")
PIECE = 2**25  # bytes of derivatives that are made at a time, at most: more are slow to be had from the system
VECTORS = 16  # that are pulled back at a time in this
FEWEST = 32  # samples at a time that are fast all the same


class WeightLoss:
    """E, the mean loss over the data, and its derivatives in the parameters that the captured graph uses.

    Args:
        model: In whatever mode; evaluated as in eval mode, left as it was.
        captured: Its graph.
        data: As `batches` takes it; None where no samples are needed.
        loss: A name or a function; None where no loss is needed.
        seed: For `fisher`.
        max_memory: Bytes that may be held beside model and data: an eighth each for the values of a batch, and for
            what is computed from them at a time; None for a quarter of what is free.
        name: What an error calls the data.

    Attributes:
        names: Of these parameters, those of floating-point numbers; tied ones under the first.

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
        max_memory: int | str | None = None, name: str = "data",
    ) -> None:  # fmt: skip
        if torch.is_inference_mode_enabled():
            raise ModelError("torch.inference_mode() takes derivatives away for good; use torch.no_grad() instead")
        check_finite(model)
        self.model, self.captured = model, captured
        self._loss = None if loss is None else find_loss(loss)
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
        """Those whose single weights may be pruned: of two dimensions or more, so no biases and no norms' vectors."""
        return [name for name, p in self._parameters().items() if p.ndim > 1]

    @property
    def loss(self) -> LossFunction:
        """The loss of one batch.

        Raises:
            DataError: No loss was given.
        """
        return require_loss(self._loss)

    def present(self) -> ByParameter:
        """The removable weights as they are now."""
        return {name: p.detach().double() for name, p in self._parameters().items() if p.ndim > 1}

    def flat(self) -> Tensor:
        """The same in one vector [P], a copy."""
        return torch.cat([u.flatten() for u in self.present().values()])

    def split(self, flat: Tensor) -> dict[str, Tensor]:
        """A vector [P] over the removable weights by parameter, in its shape."""
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
        """The batches, and each one's share of all samples."""
        yield from ((batch.size / self._n, batch) for batch in self._batches)

    def measure(self) -> tuple[float | None, float | None]:
        """E and the accuracy; None where there is no data or no loss, or there are no classes."""
        if self._loss is None or not self._batches:
            return None, None
        with torch.no_grad():
            return loss_and_accuracy(self.loss, ((share, out, batch.targets) for share, batch, out in self._outputs()))

    def predictions(self) -> int:
        """Return how many predictions the accuracy is taken over; 0 without classes."""
        with torch.no_grad():
            return count_predictions(self.loss, ((out, batch.targets) for _, batch, out in self._outputs()))

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

    def _on_batches(self, several: list[Batch]) -> WeightLoss:
        other = copy.copy(self)
        other._batches, other._n = several, sum(batch.size for batch in several)
        return other

    @property
    def samples(self) -> int:
        """How many samples there are."""
        return self._n

    def gradient(self) -> ByParameter:
        """∂E/∂w, by one backward pass."""
        total = self._zeros()
        with self._differentiating():
            for share, batch in self.shares():
                leaves = leaves_of(self.model, self.names)
                out = run_from(self.captured, self.model, batch.call, leaves)
                loss = differentiable(self.loss, out, batch.targets)
                found = backward([loss], [torch.ones_like(loss)], list(leaves.values()))
                for name, one in zip(leaves, found, strict=True):
                    total[name] += share * one.double()
        return total

    def ggn(self) -> ByParameter:
        """The Gauss-Newton matrix's diagonal, 1/N Σ_n J_nᵀ L_n J_n, L_n the Hessian of sample n's loss in its outputs.

        One backward pass for each output of a sample; where samples cannot be told apart, as many for each sample.

        Raises:
            DataError: The loss ties samples to each other, or outputs do not hold them along the first dimension.
        """
        return self._squares(self._exact)

    def fisher(self, draws: int = 1) -> ByParameter:
        """The same in expectation, 1/N Σ_n (∂ℓ_n/∂w)² with targets drawn from the model's own distribution.

        One backward pass for each draw; the error falls as 1/√draws.

        Raises:
            DataError: As `ggn`, or the loss is none with a name.
        """
        return self._squares(lambda out, targets: sampled_factors(self.loss, out, targets, self.generator, draws))

    def ggn_matrix(self, names: Sequence[str]) -> Tensor:
        """The Gauss-Newton matrix [P, P] over all elements of these parameters, one after the other; float64.

        Raises:
            ArgumentError: One of the names is none of `names`.
            DataError: As `ggn`.
        """
        parameters = self._parameters()
        size = sum(choose("parameter", name, parameters).numel() for name in names)
        total = sample_weight(self.model).new_zeros(size, size, dtype=torch.float64)
        parts = [[n for n in names if n in some] for some in (self._apart.uses.of, self._apart.slow)]
        with self._differentiating():
            for runs, weights in self._runs(self._exact) if size else ():
                both: list[tuple[BatchVJP | SampleVJP, list[str]]] = list(zip(runs, parts, strict=True))
                for weight in weights:
                    for rows in self._pieces(weight, sum(run.floats(some) for run, some in both)):
                        found = [g for run, some in both for g in run.gradients(some, rows)]
                        by_name = dict(zip(parts[0] + parts[1], found, strict=True))
                        g = torch.cat([by_name[name].double().flatten(2) for name in names], 2).flatten(0, 1)
                        total += (g * weight[rows].reshape(-1, 1)).T @ g / self._n
        return total

    def hessian(self) -> ByParameter:
        """∂²E/∂w², exact.

        One product with the Hessian for each neuron of a dense layer that sees each sample once, for all samples at a
        time; of anything else one for each weight.

        Raises:
            DataError: The loss has no derivative.
        """
        total = self._zeros()
        with self._differentiating():
            for share, batch in self.shares():
                values = values_of(self.captured, self.model, batch.call)
                for name, one in second_derivatives(
                    self._apart.uses, self.names, values, batch, self.loss, self.memory
                ):
                    total[name] += share * one
        return total

    def _at_once(self) -> int:
        """Samples of a dataset given whole whose values fit into memory, and what is pulled back into the caches."""
        graph = self.captured.graph
        outputs = bytes_of(n for n in graph.output_node().all_input_nodes) // sample_weight(self.model).element_size()
        pulled = bytes_of(Uses(self.captured, self.names, {}).entries) * max(1, min(outputs, VECTORS))
        fitting = self.memory // 8 // max(1, bytes_of(graph.nodes))
        return max(1, min(CHUNK, fitting, max(FEWEST, PIECE // max(1, pulled))))

    def _parameters(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.model.named_parameters() if name in self.names}

    def _zeros(self) -> ByParameter:
        return {name: torch.zeros_like(p, dtype=torch.float64) for name, p in self._parameters().items()}

    @contextlib.contextmanager
    def _differentiating(self) -> Iterator[None]:
        """With gradients, and without the kernels of recurrent layers that have none in eval mode or no second ones."""
        recurrent = any(name_of(node) in RECURRENT for node in self.captured.graph.nodes)
        mkldnn: Any = torch.backends.mkldnn
        enabled = mkldnn.set_flags(mkldnn.enabled and not recurrent)[0]
        cudnn = torch.backends.cudnn.flags(enabled=False) if recurrent else contextlib.nullcontext()
        try:
            with torch.enable_grad(), cudnn:
                yield
        finally:
            mkldnn.set_flags(enabled)

    def _exact(self, out: Any, targets: Any) -> Iterator[Factor]:
        return exact_factors(self.loss, out, targets)

    def _squares(self, factors: Factors) -> ByParameter:
        """Σ_v λ_v (J_nᵀ u_v)², mean over samples."""
        total, uses = self._zeros(), self._apart.uses
        dense = {name: use for name in uses.of if (use := uses.dense(name))}
        parts = [*((0, [name]) for name in uses.of if name not in dense), (1, self._apart.slow)]
        with self._differentiating():
            for runs, weights in self._runs(factors):
                sums: dict[fx.Node, Any] = dict.fromkeys((use.node for use in dense.values()), 0)
                for weight in weights:
                    for node in sums:
                        sums[node] = sums[node] + _weighted(runs[0].delta[node], weight)
                    for run, names in ((runs[which], names) for which, names in parts if names):
                        for rows in self._pieces(weight, run.floats(names)):
                            for name, g in zip(names, run.gradients(names, rows), strict=True):
                                total[name] += _squared(g, weight[rows]) / self._n
                for name, use in dense.items():
                    total[name] += summed_squares(use, runs[0].known, sums[use.node]) / self._n
        return total

    def _runs(self, factors: Factors) -> Iterator[tuple[tuple[BatchVJP, SampleVJP], Iterator[Tensor]]]:
        """For each batch its samples run in both ways, and the factors' weights [n, v], pulled back as asked for.

        Raises:
            DataError: The outputs do not hold the samples along the first dimension.
        """
        for batch in self._batches:
            together = BatchVJP(
                self._apart.uses, values_of(self.captured, self.model, batch.call), batch.size, self._apart.single
            )
            runs = together, self._run_alone(batch, together.outputs)
            yield runs, self._pull(runs, factors(together.outputs, batch.targets), batch.size)

    def _run_alone(self, batch: Batch, whole: Any) -> SampleVJP:
        leaves = leaves_of(self.model, self._apart.slow)
        rows = [slice(i, i + 1) for i in range(batch.size)] if self._apart.alone else [slice(None)]
        calls = [samples_of(batch.call, some) for some in rows if leaves]
        return SampleVJP(whole, [run_from(self.captured, self.model, call, leaves) for call in calls], leaves)

    def _pull(self, runs: tuple[BatchVJP, SampleVJP], factors: Iterator[Factor], n: int) -> Iterator[Tensor]:
        for some in iter(lambda: list(islice(factors, runs[0].vectors(min(PIECE, self.memory // 8)))), []):
            if any(len(vector) != n for factor in some for vector in factor.vectors):
                raise DataError(f"outputs of shape {tuple(some[0].vectors[0].shape)}: expected {n} samples first")
            for run in runs:
                run.pull(some)
            yield torch.stack([factor.weight for factor in some], 1).double()

    def _pieces(self, weight: Tensor, floats: int) -> Iterator[slice]:
        """So many samples at a time that their derivatives fit into memory, and into the caches."""
        size = sample_weight(self.model).element_size() * max(1, floats)
        at_once = max(1, min(PIECE, self.memory // 8) // size)
        yield from (slice(start, start + at_once) for start in range(0, len(weight), at_once))

    @cached_property
    def _apart(self) -> SampleIndependence:
        with self._differentiating():
            return find_sample_independence(
                self.captured, self.model, self.names, max(self._batches, key=lambda one: one.size).call
            )


def _weighted(delta: Tensor, weight: Tensor) -> Tensor:
    """Σ_v λ_v δ_v² [n, O] of δ [v, n, O] and λ [n, v], in single precision at least."""
    wide = delta.float() if delta.element_size() < 4 else delta
    return torch.einsum("nv,vno->no", weight.to(wide), wide.square())


def _squared(g: Tensor, weight: Tensor) -> Tensor:
    """Σ_nv λ_nv g_nv² of g [n, v, *shape] and λ [n, v], likewise."""
    wide = g.float() if g.element_size() < 4 else g
    return (weight.to(wide).flatten() @ wide.flatten(2).flatten(0, 1).square()).reshape(g.shape[2:])
