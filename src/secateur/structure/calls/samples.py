"""Which tensors among a model's inputs have the samples in their first dimension: tried out where it is not clear.

Two copies of each sample must give two copies of its outputs. A tensor that is not copied along, since all samples
have it in common (a mask [L, L], a timestep [1]), is shared. Where nothing can be copied so (the nodes and edges of
one graph), the inputs cannot be divided: they are one batch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from secateur.structure.capture import call_model, eval_outputs, evaluating
from secateur.structure.exporting.outputs import flatten_outputs
from secateur.structure.graph_run import difference, tolerance
from secateur.structure.inputs import Call, InputSpec, first_dimensions, map_inputs

COPIES = 2


def find_samples(model: nn.Module, call: Call) -> InputSpec:
    """Return the form of example inputs, with which tensors have the samples in their first dimension.

    Cost: none for one tensor; for several a forward pass of the example, and one of twice as many samples, mostly.

    Args:
        model: Left as it was.
        call: The inputs, as the model takes them.

    Raises:
        ArgumentError: One of them is neither a tensor nor a plain value.
        ModelError: The model does not run on these inputs.
    """
    spec, sizes = InputSpec.of(call), first_dimensions(call)
    if len(sizes) <= 1 or 0 in sizes.values():
        return spec
    outputs = _tensors(eval_outputs(model, call))
    for paths in _candidates(sizes):
        if _copies(outputs, _outputs(model, call, paths, _twice), tolerance(model)):
            return InputSpec.of(call, paths)
    if len(set(sizes.values())) == 1 and _in_any_order(model, call, outputs):  # samples that depend on each other
        return spec
    return InputSpec.of(call, ())


def _candidates(sizes: dict[str, int]) -> Iterator[list[str]]:
    """Yield tensors with the same first dimension: those of the commonest one first, all, then all but one of them."""
    for size, _ in Counter(sizes.values()).most_common():
        paths = [path for path in sizes if sizes[path] == size]
        yield paths
        if len(paths) > 1:
            yield from ([other for other in paths if other != path] for path in paths)


def _twice(tensor: Tensor) -> Tensor:
    return tensor.repeat_interleave(COPIES, 0)


def _turned(tensor: Tensor) -> Tensor:
    return tensor.flip(0)


def _outputs(model: nn.Module, call: Call, paths: Collection[str], change: Any) -> list[Tensor] | None:
    """Return the model's outputs for other values of these tensors; None where it does not take them."""
    changed = map_inputs(call, lambda path, leaf: change(leaf) if path in paths else leaf)
    try:
        with evaluating(model), torch.no_grad():
            return _tensors(call_model(model, changed))
    except Exception:  # noqa: BLE001 - whatever it is, it does not take them
        return None


def _tensors(outputs: Any) -> list[Tensor]:
    return [leaf for leaf in flatten_outputs(outputs)[0] if isinstance(leaf, Tensor)]


def _copies(outputs: list[Tensor], doubled: list[Tensor] | None, allowed: float) -> bool:
    """Return whether outputs are there twice, alternating in each dimension that grew, and at least one grew."""
    if doubled is None or [o.ndim for o in outputs] != [d.ndim for d in doubled]:
        return False
    grown = [(a, b) for a, b in zip(outputs, doubled, strict=True) if a.shape != b.shape]
    return bool(grown) and all(
        difference(a, b[tuple(_every_second(start, *pair) for pair in zip(a.shape, b.shape, strict=True))])[1]
        <= allowed
        for a, b in grown
        for start in range(COPIES)
    )


def _every_second(start: int, size: int, grown: int) -> slice:
    return slice(None) if size == grown else slice(start, None, COPIES)


def _in_any_order(model: nn.Module, call: Call, outputs: list[Tensor]) -> bool:
    """Return whether samples in the opposite order give the outputs in that order."""
    sizes = first_dimensions(call)
    turned = _outputs(model, call, sizes.keys(), _turned)
    if turned is None or [o.shape for o in outputs] != [t.shape for t in turned]:
        return False
    n = next(iter(sizes.values()))
    pairs = [(_turned(a) if a.shape[:1] == (n,) else a, b) for a, b in zip(outputs, turned, strict=True)]
    return all(difference(a, b)[1] <= tolerance(model) for a, b in pairs)
