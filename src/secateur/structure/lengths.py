"""Inputs of other sizes than the example's: which dimensions a model leaves free, and its graph for all of them.

Beside the number of samples these are the lengths of sequences and the sizes of images, mostly. Which they are is
tried out: the model must take the example one shorter there, torch.export must leave them free, and the graph must
give what the model gives at the other sizes.
"""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor, nn

from secateur.errors import SecateurError
from secateur.structure.calls.samples import find_samples
from secateur.structure.calls.tensor_spec import Free
from secateur.structure.capture import Captured, call_model, capture, check_finite, evaluating
from secateur.structure.graph_run import check_capture
from secateur.structure.inputs import Call, InputSpec, like_model, map_inputs

SHORTEST = 3  # sizes below are left as they are: one shorter, they would be broadcast

Place = tuple[str, int]  # path of a tensor, dimension


def capture_lengths(model: nn.Module, call: Call) -> Captured:
    """Return the graph of the model in eval mode, with each dimension of the inputs free that can be.

    Cost: an export; where it does not leave free what the model does, one more for each size that the example has; a
    forward pass of two samples for each of these.

    Args:
        model: Left as it was.
        call: Example inputs, the samples along each tensor's first dimension.

    Raises:
        DataError: The inputs hold no sample.
        ModelError: As for `capture`; or the graph does not compute what the model does.
    """
    check_finite(model)
    call = like_model(model, call)
    form = find_samples(model, call)
    groups = _free_groups(model, call, form)
    captured = _capture_free(model, call, form, groups) if groups else None
    if captured is None and len(groups) > 1:
        good = list[list[Place]]()
        for group in groups:
            more = _capture_free(model, call, form, [*good, group])
            captured, good = (captured, good) if more is None else (more, [*good, group])
    return captured or capture_fixed(model, call, form)


def _capture_free(model: nn.Module, call: Call, form: InputSpec, groups: list[list[Place]]) -> Captured | None:
    """Return the graph with these dimensions free; None where it cannot be had, or differs at other sizes."""
    free = {place for group in groups for place in group}

    def freed(path: str, dim: int, size: int | Free) -> int | Free:
        return Free(f"{path}, {dim}", size) if isinstance(size, int) and (path, dim) in free else size

    spec = form.with_sizes(freed)
    with contextlib.suppress(SecateurError, RuntimeError, IndexError):  # as the graph may end at other sizes
        captured = capture(model, call, spec)
        check_capture(model, captured, call)
        check_capture(model, captured, one_shorter(few(call, spec), captured.spec))
        return captured
    return None


def capture_fixed(model: nn.Module, call: Call, spec: InputSpec) -> Captured:
    """Return the graph of the model in eval mode for the example's sizes and any number of samples.

    Args:
        model: Left as it was.
        call: Example inputs.
        spec: Their form, no dimension free.

    Raises:
        DataError: The inputs hold no sample.
        ModelError: As for `capture`; or the graph does not compute what the model does.
    """
    captured = capture(model, call, spec)
    check_capture(model, captured, call)
    return captured


def few(call: Call, spec: InputSpec) -> Call:
    """Return the first two samples; all where their number is fixed."""
    return call if spec.fixed else spec.take(call, slice(2))


def one_shorter(call: Call, spec: InputSpec) -> Call:
    """Return the inputs without the last position of each free dimension (see `_resized`)."""
    return _resized(call, spec, {(path, dim) for path, tensor in spec.tensors.items() for dim in tensor.free})


def _resized(call: Call, spec: InputSpec, places: set[Place]) -> Call:
    """Return the inputs one shorter in these dimensions.

    Inputs that cannot be divided are one longer in first dimensions: others may point to any position there.
    """

    def resized(path: str, leaf: object) -> object:
        for dim in sorted(dim for name, dim in places if name == path):
            assert isinstance(leaf, Tensor)
            longer = dim == 0 and spec.undivided
            leaf = torch.cat([leaf, leaf[-1:]]) if longer else leaf.narrow(dim, 0, leaf.shape[dim] - 1)
        return leaf

    return map_inputs(call, resized)


def _free_groups(model: nn.Module, call: Call, spec: InputSpec) -> list[list[Place]]:
    """Return the dimensions where the model takes inputs shorter: equal sizes together, or each alone."""
    by_size = dict[object, list[Place]]()
    for path, tensor in spec.tensors.items():
        for dim, size in tensor.sizes.items():
            if isinstance(size, int) and size >= SHORTEST:
                apart = (dim, tensor.rows is None) if spec.undivided else None  # nodes and edges are not as many
                by_size.setdefault((size, apart), []).append((path, dim))
    groups: list[list[Place]] = []
    for places in by_size.values():
        alone = [[place] for place in places] if len(places) > 1 else []
        fits = _runs(model, call, spec, places)
        groups += [places] if fits else [trial for trial in alone if _runs(model, call, spec, trial)]
    return groups


def _runs(model: nn.Module, call: Call, spec: InputSpec, places: list[Place]) -> bool:
    """Return whether the model takes the inputs one shorter in these dimensions."""
    try:
        with evaluating(model), torch.no_grad():
            call_model(model, _resized(few(call, spec), spec, set(places)))
    except Exception:  # noqa: BLE001 - whatever it is, it does not take them
        return False
    return True
