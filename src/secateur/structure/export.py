"""The export of a model by `torch.export`, made functional, in eval mode and with free dimensions."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram, export
from torch.nn.modules import transformer
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from secateur.errors import ModelError
from secateur.structure.calls.tensor_spec import TensorSpec
from secateur.structure.calls.trees import unpack
from secateur.structure.inputs import Call, InputSpec, input_leaves, map_tensors

MOST_OPERATIONS = 4  # in the term of a size


def first_line(error: Exception) -> str:
    """Return what an error says first; its type where it says nothing."""
    return (str(error).strip() or type(error).__name__).split("\n")[0]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
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
    paths = input_leaves(call)
    return [named.get(path) or f"entry_{i}" for i, path in enumerate(paths)]


@contextlib.contextmanager
def _flat_inputs(model: nn.Module, call: Call) -> Iterator[None]:
    """Let forward take the leaves of its inputs, one by one and by name, as torch.export wants them."""
    own, before, (_, form) = model.forward, vars(model).get("forward"), tree_flatten(call)

    def forward(*leaves: Any) -> Any:
        args, kwargs = unpack(tree_unflatten(leaves, form))
        return own(*args, **kwargs)

    names = input_names(model, call)
    parameters = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
    forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    try:
        vars(model)["forward"] = forward
        yield
    finally:
        del vars(model)["forward"]
        if before is not None:
            vars(model)["forward"] = before


@contextlib.contextmanager
def _no_look_at_masks() -> Iterator[None]:
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
def _only_simple_sizes() -> Iterator[None]:
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


def export_model(model: nn.Module, call: Call, spec: InputSpec, **options: Any) -> ExportedProgram:
    """Return the exported program, functional, in which blocks that only switch something off are inlined.

    Args:
        model: In eval mode.
        call: Example inputs.
        spec: Their form: which dimensions are to be free.
        options: Further arguments of `torch.export.export`.

    Raises:
        ModelError: torch.export does not take the model.
    """
    batch = None if spec.fixed else Dim("batch", min=2)
    try:
        simple = _only_simple_sizes() if spec.free else contextlib.nullcontext()
        with _quiet(), _flat_inputs(model, call), _no_look_at_masks(), simple:
            named = inspect.signature(model.forward).parameters
            shapes = {name: _dynamic(value, batch) for name, value in zip(named, spec.leaves.values(), strict=True)}
            copies = tuple(tree_leaves(map_tensors(call, Tensor.clone)))
            program = export(model, copies, dynamic_shapes=shapes, strict=False, **options)
            program = program if _make_functional(program.graph) else program.run_decompositions({})
            _inline(program.graph_module)
            return program
    except Exception as error:
        raise ModelError(
            f"{type(model).__name__} cannot be exported by torch.export ({type(error).__name__}: {first_line(error)}). "
            "Its forward must not branch on the values of tensors or loop over the batch."
        ) from error


def _dynamic(value: Any, batch: Dim | None) -> dict[int, Any] | None:
    """Return the dimensions of an input that are to be free; those that the code fixes are then fixed."""
    if not isinstance(value, TensorSpec) or value.shape is None:
        return None
    return ({0: batch} if value.per_sample else {}) | dict.fromkeys(value.free, Dim.AUTO)


def is_check(node: fx.Node) -> bool:
    """Return whether a call only checks something."""
    return not node.users and bool(getattr(node.target, "_schema", None)) and not node.target._schema.returns  # type: ignore[union-attr]


def _make_functional(graph: fx.Graph) -> bool:
    """Write in-place calls out of place where nothing else sees their operand; False where one does."""
    for node in list(graph.nodes):
        schema = getattr(node.target, "_schema", None)
        if schema is None or not schema.is_mutable:
            continue
        packet = getattr(torch.ops.aten, schema.name.removeprefix("aten::").removesuffix("_"), None)
        overload = getattr(packet, node.target._overloadname, None)
        operand = node.args[0]
        seen_elsewhere = operand.op == "placeholder" or len(operand.users) > 1 or _is_view(operand)
        if overload is None or overload._schema.is_mutable or seen_elsewhere:
            return False
        node.target = overload
    return True


def _inline(module: fx.GraphModule) -> None:
    """Make blocks that only switch autocast or gradients off part of the graph."""
    graph = module.graph
    for node in list(graph.nodes):
        name = getattr(node.target, "__name__", str(node.target))
        off: Any = {"wrap_with_set_grad_enabled": 0, "wrap_with_autocast": 2}.get(name)
        if node.op != "call_function" or off is None or node.args[off] is not False:
            continue
        rest: list[Any] = list(node.args[off + (1 if off == 0 else 2) :])
        body, *operands = rest
        inner: Any = module.get_submodule(str(body.target)).graph
        copies = dict(zip(inner.find_nodes(op="placeholder"), operands, strict=True))
        with graph.inserting_before(node):
            results: Any = graph.graph_copy(inner, copies)
        for user in list(node.users):
            user.replace_all_uses_with(results[user.args[1]])
            graph.erase_node(user)
        graph.erase_node(node)
        if not body.users:
            graph.erase_node(body)


def _is_view(node: fx.Node) -> bool:
    return bool(getattr(node.target, "is_view", True))
