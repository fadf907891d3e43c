"""What holds while `torch.export` traces a model: names for its inputs, outputs it can return, quiet."""

from __future__ import annotations

import builtins
import contextlib
import inspect
import io
import logging
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import transformer
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils._pytree import tree_flatten, tree_unflatten

from secateur.arguments import describe
from secateur.errors import ModelError
from secateur.structure.calls.trees import unpack
from secateur.structure.exporting.outputs import OutputSpec, flatten_outputs
from secateur.structure.exporting.value_checks import Place, Truths
from secateur.structure.inputs import Call, input_leaves

MOST_OPERATIONS = 4  # in the term of a size
HOOKS = "_forward_pre_hooks", "_forward_hooks"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep PyTorch from warnings, log lines and graphs about its own work; what matters is in its exception."""
    level = logging.root.manager.disable
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(level)


def _takes_any(model: nn.Module) -> bool:
    kinds = {parameter.kind for parameter in inspect.signature(model.forward).parameters.values()}
    return bool(kinds & {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD})


def input_names(model: nn.Module, call: Call) -> list[str]:
    """Return what the exported program calls the leaves of the inputs: the positional ones, then those by keyword."""
    names = list(inspect.signature(model.forward).parameters)
    positional = [f"input_{i}" if _takes_any(model) else names[i] for i in range(len(call[0]))]
    named = {f"[{i}]": name for i, name in enumerate(positional)} | {f"[{name!r}]": name for name in call[1]}
    return [named.get(path) or f"entry_{i}" for i, path in enumerate(input_leaves(call))]


@dataclass
class Traced:
    """What a forward returned when it was traced, and the truth values of tensors that it went on with."""

    outputs: OutputSpec | None = None
    checks: Mapping[Place, bool] = field(default_factory=dict)


@contextlib.contextmanager
def traceable(model: nn.Module, call: Call, truths: Mapping[Place, bool]) -> Iterator[Traced]:
    """Let a model's forward take the leaves of its inputs, one by one and by name, and return a list of leaves.

    torch.export wants a name for each input, also of a forward of (*args, **kwargs), and knows only some containers.

    Args:
        model: In eval mode.
        call: Example inputs.
        truths: The truth values of tensors that its code is to go on with, by place.

    Yields:
        What is known of the forward after it has been traced.
    """
    _, spec = tree_flatten(call)
    own, traced = {name: vars(model).get(name) for name in ("forward", *HOOKS)}, Traced()

    def forward(*inputs: Any) -> list[Any]:
        args, kwargs = unpack(tree_unflatten(inputs, spec))
        with _attributes(model, own), Truths(truths) if truths else contextlib.nullcontext() as asked:
            # with its hooks, which take what a user hands in and see what it returns
            returned = nn.Module._call_impl(model, *args, **kwargs)  # type: ignore[no-untyped-call]
        leaves, form = flatten_outputs(returned)
        if not any(isinstance(leaf, Tensor) for leaf in leaves):
            raise ModelError(f"{type(model).__name__} returns no tensor, it returns {describe(returned)}")
        traced.outputs, traced.checks = form, asked.asked if asked else {}
        return leaves

    names = input_names(model, call)
    parameters = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
    forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    with _attributes(model, {"forward": forward, **{name: OrderedDict() for name in HOOKS}}):
        yield traced


@contextlib.contextmanager
def _attributes(model: nn.Module, values: Mapping[str, Any]) -> Iterator[None]:
    """Give a model other attributes for a while; None: that of its class."""
    own = vars(model)
    before = {name: own.get(name) for name in values}
    try:
        _set(own, values)
        yield
    finally:
        _set(own, before)


def _set(own: dict[str, Any], values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        own.pop(name, None)
        if value is not None:
            own[name] = value


@contextlib.contextmanager
def no_look_at_masks() -> Iterator[None]:
    """Keep `nn.Transformer` from looking whether a mask is causal, for speed: export cannot know the value."""
    before = transformer._detect_is_causal_mask

    def as_told(mask: Tensor | None, is_causal: bool | None = None, size: int | None = None) -> bool:  # noqa: ARG001
        return bool(is_causal)

    try:
        transformer._detect_is_causal_mask = as_told
        yield
    finally:
        transformer._detect_is_causal_mask = before


@contextlib.contextmanager
def free_lengths() -> Iterator[None]:
    """Let `len` of a tensor be its size, which may be free; by itself Python makes a number of it."""
    before = builtins.len

    def length(value: Any) -> Any:
        return value.shape[0] if isinstance(value, Tensor) and value.ndim else before(value)

    try:
        builtins.len = length
        yield
    finally:
        builtins.len = before


@contextlib.contextmanager
def only_simple_sizes() -> Iterator[None]:
    """Stop where sizes become long terms of the inputs' sizes: torch.export reasons on them for minutes."""

    def check(_: nn.Module, args: Any) -> None:
        sizes: list[Any] = [size for value in args if isinstance(value, Tensor) for size in value.shape]
        if any(isinstance(size, torch.SymInt) and size.node.expr.count_ops() > MOST_OPERATIONS for size in sizes):
            raise ModelError("sizes are no simple terms of the inputs' sizes")

    hook = register_module_forward_pre_hook(check)
    try:
        yield
    finally:
        hook.remove()
