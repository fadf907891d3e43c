"""The factors of the loss's curvature, pulled back to the parameters: each sample's J_nᵀ u_nv, batch after batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, fx, nn

from secateur.curvature.loss_factors import Factor
from secateur.curvature.per_sample import Use, summed_squares
from secateur.curvature.sample_independence import SampleIndependence
from secateur.curvature.weight_vjp import BatchVJP, SampleVJP, leaves_of, run_from, values_of
from secateur.errors import DataError
from secateur.objective.data import Batch
from secateur.structure.capture import Captured
from secateur.structure.inputs import sample_weight

Factors = Callable[[Any, Any], Iterator[Factor]]  # of the loss's curvature, from outputs and targets
Runs = tuple[BatchVJP, SampleVJP]  # of one batch: all samples in one backward pass, and each in its own
BYTES_AT_ONCE = 2**25  # bytes of derivatives that are made at a time, at most: more are slow to be had from the system


class FactorPullback:
    """Sums over the squares and products of J_nᵀ u_nv, J_n the derivative of sample n's outputs in the parameters.

    Args:
        captured: The model's graph.
        model: The network, differentiated as it is.
        independence: The way in which each sample's derivatives are found.
        batches: The samples.
        memory: Bytes that may be used.
    """

    def __init__(
        self, captured: Captured, model: nn.Module, independence: SampleIndependence, batches: list[Batch], memory: int
    ) -> None:
        self._captured, self._model, self._independence = captured, model, independence
        self._batches, self._n = batches, sum(batch.size for batch in batches)
        self._piece = min(BYTES_AT_ONCE, memory // 8)

    def add_squares(self, factors: Factors, total: Mapping[str, Tensor]) -> None:
        """Add Σ_v λ_nv (J_nᵀ u_nv)², mean over samples, to a sum for each parameter."""
        uses = self._independence.uses
        dense = {name: use for name in uses.of if (use := uses.dense(name))}
        for runs, weights in self._runs(factors):
            sums: dict[fx.Node, Any] = dict.fromkeys((use.node for use in dense.values()), 0)
            for weight in weights:
                for node in sums:
                    sums[node] = sums[node] + _weighted(runs[0].delta[node], weight)
                self._add_elements(runs, dense, weight, total)
            for name, use in dense.items():
                total[name].add_(summed_squares(use, runs[0].known, sums[use.node]) / self._n)

    def _add_elements(self, runs: Runs, dense: Mapping[str, Use], weight: Tensor, total: Mapping[str, Tensor]) -> None:
        """Add the squares in all parameters but those of dense layers, which need none of each sample's derivatives."""
        together, alone = runs
        parts: list[tuple[BatchVJP | SampleVJP, list[str]]] = [
            *((together, [name]) for name in self._independence.uses.of if name not in dense),
            (alone, self._independence.slow),
        ]
        for run, names in ((run, names) for run, names in parts if names):
            for rows in self._pieces(weight, run.floats(names)):
                for name, g in zip(names, run.gradients(names, rows), strict=True):
                    total[name].add_(_squared(g, weight[rows]) / self._n)

    def add_products(self, factors: Factors, names: Sequence[str], total: Tensor) -> None:
        """Add Σ_v λ_nv J_nᵀ u_nv u_nvᵀ J_n, mean over samples, to a matrix over the elements of these parameters."""
        parts = [[n for n in names if n in group] for group in (self._independence.uses.of, self._independence.slow)]
        for runs, weights in self._runs(factors):
            pairs: list[tuple[BatchVJP | SampleVJP, list[str]]] = list(zip(runs, parts, strict=True))
            for weight in weights:
                for rows in self._pieces(weight, sum(run.floats(part) for run, part in pairs)):
                    gradients = [g for run, part in pairs for g in run.gradients(part, rows)]
                    by_name = dict(zip(parts[0] + parts[1], gradients, strict=True))
                    g = torch.cat([by_name[name].double().flatten(2) for name in names], 2).flatten(0, 1)
                    total += (g * weight[rows].reshape(-1, 1)).T @ g / self._n

    def _runs(self, factors: Factors) -> Iterator[tuple[Runs, Iterator[Tensor]]]:
        """Yield for each batch its samples run in both ways, and the factors' weights [n, v], pulled back as asked for.

        Raises:
            DataError: The outputs do not hold the samples along the first dimension.
        """
        for batch in self._batches:
            values = values_of(self._captured, self._model, batch.call)
            together = BatchVJP(self._independence.uses, values, batch.size, self._independence.single)
            runs = together, self._run_alone(batch, together.outputs)
            yield runs, self._pull(runs, factors(together.outputs, batch.targets), batch.size)

    def _run_alone(self, batch: Batch, whole: Any) -> SampleVJP:
        leaves = leaves_of(self._model, self._independence.slow)
        rows = [slice(i, i + 1) for i in range(batch.size)] if self._independence.alone else [slice(None)]
        calls = [self._captured.spec.take(batch.call, samples) for samples in rows if leaves]
        return SampleVJP(whole, [run_from(self._captured, self._model, call, leaves) for call in calls], leaves)

    def _pull(self, runs: Runs, factors: Iterator[Factor], n: int) -> Iterator[Tensor]:
        for pulled in iter(lambda: list(islice(factors, runs[0].vectors(self._piece))), []):
            if any(len(vector) != n for factor in pulled for vector in factor.vectors):
                raise DataError(f"outputs of shape {tuple(pulled[0].vectors[0].shape)}: expected {n} samples first")
            for run in runs:
                run.pull(pulled)
            yield torch.stack([factor.weight for factor in pulled], 1).double()

    def _pieces(self, weight: Tensor, floats: int) -> Iterator[slice]:
        """Yield so many samples at a time that their derivatives fit into memory, and into the caches."""
        size = sample_weight(self._model).element_size() * max(1, floats)
        at_once = max(1, self._piece // size)
        yield from (slice(start, start + at_once) for start in range(0, len(weight), at_once))


def _weighted(delta: Tensor, weight: Tensor) -> Tensor:
    """Return Σ_v λ_v δ_v² [n, O] of δ [v, n, O] and λ [n, v], in single precision at least."""
    wide = delta.float() if delta.element_size() < 4 else delta
    return torch.einsum("nv,vno->no", weight.to(wide), wide.square())


def _squared(g: Tensor, weight: Tensor) -> Tensor:
    """Return Σ_nv λ_nv g_nv² of g [n, v, *shape] and λ [n, v], in single precision at least."""
    wide = g.float() if g.element_size() < 4 else g
    return (weight.to(wide).flatten() @ wide.flatten(2).flatten(0, 1).square()).reshape(g.shape[2:])
