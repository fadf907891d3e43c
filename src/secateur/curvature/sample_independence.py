"""Independence of samples: the parameters for which one backward pass tells every sample's derivatives, as tried."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from secateur.curvature.loss_factors import Factor, backward, float_outputs, only
from secateur.curvature.per_sample import Uses, layouts
from secateur.curvature.weight_vjp import BatchVJP, leaves_of, run_from, run_graph, values_of
from secateur.structure.capture import Captured
from secateur.structure.graph_run import tolerance
from secateur.structure.inputs import Call

FEW = 3  # samples that it is tried on
NOISE = 1e-2  # of the tolerance: what rounding leaves, relative to the largest derivative in any parameter
FAILURES = (RuntimeError, IndexError, TypeError, ValueError)  # what operations say when samples cannot be mapped


class SampleIndependence(NamedTuple):
    """The way in which each sample's derivatives are found.

    Attributes:
        uses: The uses of parameters for which one backward pass tells all of them.
        slow: The other parameters.
        alone: Whether each sample may be run without the others for these.
        single: The integers in the graph that depend on the number of samples, for one.
    """

    uses: Uses
    slow: list[str]
    alone: bool
    single: dict[fx.Node, Any]


def find_sample_independence(
    captured: Captured, model: nn.Module, names: Sequence[str], call: Call
) -> SampleIndependence:
    """Return for which parameters one pass is right: a sample's derivatives are those of its own pass, no other's.

    Args:
        captured: The model's graph.
        model: Its weights.
        names: Parameters.
        call: Inputs, of which a few samples are taken.
    """
    nothing = SampleIndependence(Uses(captured, [], {}), list(names), False, {})
    if captured.spec.fixed is not None:
        return nothing
    call = captured.spec.take(call, slice(FEW))
    n, leaves = captured.spec.count(call), leaves_of(model, names)
    out = _with_samples(run_from(captured, model, call, leaves), n)
    if not out:
        return nothing
    generator = torch.Generator().manual_seed(0)
    vectors = [torch.randn(o.shape, generator=generator, dtype=torch.float64).to(o) for o in out]
    expected = [backward(out, only(vectors, i), list(leaves.values())) for i in range(n)]
    uses = Uses(captured, names, layouts(captured))
    single = _single(captured, model, uses, call)
    right = _right(uses, values_of(captured, model, call), vectors, expected, single, tolerance(model))
    slow = [name for name in names if name not in right]
    alone = bool(slow) and all(_same_alone(captured, model, call, vectors, i, expected[i], leaves) for i in range(n))
    return SampleIndependence(Uses(captured, right, uses.layouts), slow, alone, single)


def _with_samples(returned: Any, n: int) -> list[Tensor]:
    return [o for o in float_outputs(returned) if o.shape[:1] == (n,)]


def _single(captured: Captured, model: nn.Module, uses: Uses, call: Call) -> dict[fx.Node, Any]:
    if not uses.counts:
        return {}
    known, _ = run_graph(captured, values_of(captured, model, captured.spec.take(call, slice(1))), uses.counts)
    return {node: known[node] for node in uses.counts}


def _right(
    uses: Uses, values: list[Any], vectors: list[Tensor], expected: list[list[Tensor]], single: Any, most: float
) -> list[str]:
    names, n = [name for name in uses.of if uses.apart(name)], len(expected)
    run = BatchVJP(Uses(uses.captured, names, uses.layouts), values, n, single)
    for i, wanted in enumerate(expected):
        run.pull([Factor(vectors[0].new_ones(n), _with_samples(run.outputs, n), only(vectors, i))])
        by_name, noise = dict(zip(uses.of, wanted, strict=True)), _noise(wanted)
        names = [name for name in names if _agrees(run, name, i, by_name[name], most, noise)]
    return names


def _noise(derivatives: list[Tensor]) -> float:
    return NOISE * max(map(_largest, derivatives), default=0)


def _largest(values: Tensor) -> float:
    return float(torch.linalg.vector_norm(values, torch.inf)) if values.numel() else 0.0


def _agrees(run: BatchVJP, name: str, i: int, wanted: Tensor, most: float, noise: float) -> bool:
    try:
        derivatives = run.gradients([name], slice(None))[0][:, 0]
    except FAILURES:
        return False
    others = torch.cat([derivatives[:i], derivatives[i + 1 :]])
    return not _largest(others) and _close(derivatives[i], wanted, most, noise)


def _close(a: Tensor, b: Tensor, most: float, noise: float) -> bool:
    """Return whether they differ by rounding alone: at most so much of the largest value, or of what is noise."""
    return _largest(a - b) <= most * max(_largest(b), noise)


def _same_alone(
    captured: Captured, model: nn.Module, call: Call, vectors: list[Tensor], i: int, wanted: list[Tensor], leaves: Any
) -> bool:
    row = slice(i, i + 1)
    try:
        out = _with_samples(run_from(captured, model, captured.spec.take(call, row), leaves), 1)
        derivatives = backward(out, [u[row] for u in vectors], list(leaves.values()))
    except FAILURES:
        return False
    return all(_close(a, b, tolerance(model), _noise(wanted)) for a, b in zip(derivatives, wanted, strict=True))
