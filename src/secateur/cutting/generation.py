"""The proof that a cut network generates as it computes: whatever it keeps of earlier tokens, the next are the same."""

from __future__ import annotations

import contextlib
import copy
import inspect
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from secateur.structure.capture import evaluating
from secateur.structure.export import first_line
from secateur.structure.graph_run import difference, tolerance
from secateur.structure.inputs import Call
from secateur.structure.units import Units

TOKENS = 3
CACHES: dict[str, dict[str, Any]] = {
    "no cache": {"use_cache": False},
    "dynamic cache": {"use_cache": True},
    "static cache": {"use_cache": True, "cache_implementation": "static"},
}


def proven_for(original: nn.Module, small: nn.Module, units: Units, call: Call) -> str:
    """Return what a cut network is proven for, in words: numbers of samples, sizes of inputs, generation.

    Args:
        original: The network before.
        small: The cut network, which `cut_units` has proven.
        units: The original's units.
        call: The inputs of the proof.
    """
    spec, n = units.captured.spec, units.captured.spec.count(call)
    samples = f"{n} samples" if spec.fixed else f"{n} and {min(n, 2)} samples"
    sizes = ", ".join(f"{size - 1} in place of {size}" for size in spec.free.values())
    return "; ".join(
        filter(None, (f"proven for {samples}{', ' if sizes else ''}{sizes}", generation(original, small, call)))
    )


def generation(original: nn.Module, small: nn.Module, call: Call) -> str:
    """Return how a cut network generates; "" for one that has no `generate`, as transformers' networks have.

    Three tokens are taken one after the other with each kind of cache. Without one they are what the network computes,
    which is proven; with the others, scores of the same size must be the same up to rounding.

    Args:
        original: The network before.
        small: The cut network; left as it was.
        call: Inputs to go on from.
    """
    if not _generates(small):
        return ""
    inputs = _prompt(small, call)
    outcomes = {name: _scores(small, inputs, options) for name, options in CACHES.items()}
    expected, good, bad = outcomes["no cache"], list[str](), list[str]()
    for name, scores in outcomes.items():
        if isinstance(scores, Tensor) and isinstance(expected, Tensor) and _same(expected, scores, small):
            good.append(name)
        elif isinstance(_scores(original, inputs, CACHES[name]), Tensor):  # else it never did
            bad.append(f"{name} ({scores if isinstance(scores, str) else 'other tokens'})")
    proven = f"generate is proven with {' and '.join(filter(None, (', '.join(good[:-1]), good[-1])))}" if good else ""
    return "; ".join(filter(None, (proven, f"generate fails with {', '.join(bad)}" if bad else "")))


def _generates(network: nn.Module) -> bool:
    can: Any = getattr(network, "can_generate", None)
    return callable(can) and bool(can()) and callable(getattr(network, "generate", None))


def _prompt(network: nn.Module, call: Call) -> dict[str, Tensor]:
    """Return the inputs that `generate` goes on from: the main one and its mask."""
    names = list(inspect.signature(network.forward).parameters)
    values = dict(zip(names, call[0], strict=False)) | call[1]
    wanted = (getattr(network, "main_input_name", "input_ids"), "attention_mask")
    return {name: values[name] for name in wanted if isinstance(values.get(name), Tensor)}


def _scores(network: nn.Module, inputs: dict[str, Tensor], options: dict[str, Any]) -> Tensor | str:
    """Return the scores of the next tokens [N, tokens, vocabulary], or what stands in the way."""
    network = copy.copy(network)  # which may keep a cache
    settings = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS, "do_sample": False, "num_beams": 1, **options}
    try:
        with evaluating(network), torch.no_grad(), _silent():
            generated: Any = network.generate(  # type: ignore[operator]
                **inputs, **settings, return_dict_in_generate=True, output_logits=True
            )
            return torch.stack(generated.logits, 1)
    except Exception as error:  # noqa: BLE001 - whatever it is, it does not generate so
        return first_line(error)


def _same(expected: Tensor, scores: Tensor, network: nn.Module) -> bool:
    return expected.shape == scores.shape and difference(expected, scores)[1] <= tolerance(network)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    level = logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(level)
