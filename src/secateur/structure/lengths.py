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
from secateur.structure.capture import Captured, call_model, capture, check_finite, evaluating
from secateur.structure.graph_run import check_capture
from secateur.structure.inputs import Call, Free, InputSpec, TensorSpec, like_model, map_tensors

SHORTEST = 3  # sizes below are left as they are: one shorter, they would be broadcast

Place = tuple[int | str, int]  # position or keyword, dimension


def capture_lengths(model: nn.Module, call: Call) -> Captured:
    """Return the graph of the model in eval mode, with each dimension of the inputs free that can be.

    Cost: an export, and one more where the first does not leave free what the model does; a forward pass of two
    samples for each size that the example has.

    Args:
        model: Left as it was.
        call: Example inputs, the samples along each tensor's first dimension.

    Raises:
        DataError: The inputs hold no sample.
        ModelError: As for `capture`; or the graph does not compute what the model does.
    """
    check_finite(model)
    call = like_model(model, call)
    spec = _with_free_sizes(model, call)
    if spec.free:
        with contextlib.suppress(SecateurError, RuntimeError, IndexError):  # as the graph may end at other sizes
            captured = capture(model, call, spec)
            check_capture(model, captured, call)
            check_capture(model, captured, one_shorter(few(call), captured.spec))
            return captured
    return capture_fixed(model, call)


def capture_fixed(model: nn.Module, call: Call) -> Captured:
    """Return the graph of the model in eval mode for the example's sizes and any number of samples.

    Raises:
        DataError: The inputs hold no sample.
        ModelError: As for `capture`; or the graph does not compute what the model does.
    """
    captured = capture(model, call)
    check_capture(model, captured, call)
    return captured


def few(call: Call) -> Call:
    """Return the first two samples."""
    return map_tensors(call, lambda tensor: tensor[:2] if tensor.ndim else tensor)


def one_shorter(call: Call, spec: InputSpec) -> Call:
    """Return the inputs without the last position of each free dimension."""
    return _shortened(call, {(k, dim) for k, v in spec.entries.items() if isinstance(v, TensorSpec) for dim in v.free})


def _shortened(call: Call, places: set[Place]) -> Call:
    def shortened(key: int | str, value: object) -> object:
        for dim in sorted(dim for name, dim in places if name == key):
            assert isinstance(value, Tensor)
            value = value.narrow(dim, 0, value.shape[dim] - 1)
        return value

    return tuple(shortened(*item) for item in enumerate(call[0])), {k: shortened(k, v) for k, v in call[1].items()}


def _with_free_sizes(model: nn.Module, call: Call) -> InputSpec:
    """Return the form of the inputs, free where the model takes them shorter: equal sizes together, or each alone."""
    spec, by_size = InputSpec.of(call), dict[int, list[Place]]()
    for key, value in spec.entries.items():
        for dim, size in enumerate(getattr(value, "shape", None) or (), 1):
            if size >= SHORTEST:
                by_size.setdefault(size, []).append((key, dim))
    free: dict[Place, Free] = {}
    for size, places in by_size.items():
        alone = [[place] for place in places] if len(places) > 1 else []
        trials = [places] if _runs(model, call, places) else [trial for trial in alone if _runs(model, call, trial)]
        free |= {place: Free(str(place), size) for trial in trials for place in trial}
    return spec.with_sizes(lambda key, dim, size: free.get((key, dim), size))


def _runs(model: nn.Module, call: Call, places: list[Place]) -> bool:
    """Return whether the model takes the inputs one shorter in these dimensions."""
    try:
        with evaluating(model), torch.no_grad():
            call_model(model, _shortened(few(call), set(places)))
    except Exception:  # noqa: BLE001 - whatever it is, it does not take them
        return False
    return True
