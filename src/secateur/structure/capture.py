"""From a module to a graph of ATen calls: the only file that knows how to capture a model.

`torch.export` in eval mode with a dynamic batch. The graph names its weights and does not hold them, so
that it can be run with others (see `run`).
"""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram, export
from torch.export.graph_signature import InputKind, OutputKind
from torch.nn.modules import transformer
from torch.utils._pytree import tree_map

from secateur.errors import DataError, ModelError
from secateur.structure.axis import BATCH
from secateur.structure.inputs import Call, InputSpec, batch_size, like_model, map_tensors, tensors

UNKNOWN = 999_983  # stands for a size that depends on values: another prime than the one for the batch


@dataclass(frozen=True)
class Captured:
    """A functional graph and what its placeholders stand for."""

    graph: fx.Graph
    weights: dict[str, str]  # placeholder -> name of the parameter or buffer in the model
    constants: dict[str, Tensor]  # placeholder -> a tensor that the model makes itself
    inputs: tuple[str, ...]  # placeholders of the flattened user inputs
    keywords: tuple[str, ...]  # the order of keyword inputs
    outputs: tuple[int, ...]  # which graph outputs are the model's
    in_spec: Any
    out_spec: Any
    spec: InputSpec


def sizes(value: Any, batch: int = BATCH) -> tuple[int, ...]:
    """Return a traced value's shape as plain numbers, `batch` samples in the batch."""
    return tuple(size if isinstance(size, int) else _number(size.node.expr, batch) for size in value.shape)


def _number(expression: Any, batch: int) -> int:
    """Return a size for so many samples; one that depends on values (u0, u1 ...) is a number like no other."""
    known = {symbol: UNKNOWN if symbol.name.startswith("u") else batch for symbol in expression.free_symbols}
    return int(expression.subs(known))


def module_of(node: fx.Node) -> str:
    """Return the path of the module whose code made this call; "" for the model itself."""
    stack: list[tuple[str, Any]] = list(node.meta.get("nn_module_stack", {}).values())
    return stack[-1][0] if stack else ""


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model in eval mode; afterwards every module is in its own mode and every tensor as it was.

    Modes are changed and changed back by the modules themselves, which may merge weights or drop caches then.
    """
    buffers = [
        (module._buffers, name, buffer) for module in model.modules() for name, buffer in module._buffers.items()
    ]
    before = [None if buffer is None else buffer.clone() for _, _, buffer in buffers]
    own = any((type(m).train, type(m).eval) != (nn.Module.train, nn.Module.eval) for m in model.modules())
    weights = [(parameter, parameter.detach().clone()) for parameter in model.parameters() if own]
    modes = [(module, module.training) for module in model.modules()]
    model.train()  # through both modes: some modules fill a cache in their first call after a change
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:  # the outer ones first: they take those within along
            if module.training != mode:
                module.train() if mode else module.eval()
        with torch.no_grad():
            for (owner, name, buffer), values in zip(buffers, before, strict=True):
                owner[name] = None if buffer is None or values is None else buffer.copy_(values)
            for parameter, value in weights:
                parameter.copy_(value)


def check_finite(model: nn.Module) -> None:
    """Refuse weights that no result can be made from.

    Raises:
        ModelError: A parameter or buffer holds NaN or infinite values, or has no size yet.
    """
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        usable = torch.isfinite if isinstance(tensor, nn.Parameter) else _is_number
        if nn.parameter.is_lazy(tensor):
            raise ModelError(f"{name} has no size yet: call the model once")
        if not tensor.is_floating_point():
            continue
        bad = int((~usable(tensor.float() if tensor.itemsize < 2 else tensor)).sum())
        if bad:
            raise ModelError(f"{name}: {bad} of {tensor.numel()} values are NaN or infinite")


def _is_number(tensor: Tensor) -> Tensor:
    return ~tensor.isnan()  # masks in buffers hold −∞


def capture(model: nn.Module, call: Call) -> Captured:
    """Return the graph of the model in eval mode, for any number of samples.

    Args:
        model: Left as it was.
        call: Example inputs, the samples along each tensor's first dimension.

    Raises:
        DataError: The inputs hold no sample.
        ModelError: The weights are not finite, the inputs do not fit, or the model cannot be exported.
    """
    check_finite(model)
    call = like_model(model, call)
    spec = InputSpec.of(call)
    if not batch_size(call):
        raise DataError("inputs: there are no samples in the example")
    eval_outputs(model, call)
    with evaluating(model):
        try:
            return _read(model, export_model(model, at_least_two(call)), spec)
        except ModelError as error:
            with contextlib.suppress(ModelError):  # its code may fix the batch
                fixed = replace(spec, fixed=batch_size(call))
                return _read(model, export_model(model, call, any_batch=False), fixed)
            raise error


def eval_outputs(model: nn.Module, call: Call) -> Any:
    """Return the model's outputs in eval mode.

    Raises:
        ModelError: It does not run on these inputs.
    """
    try:
        inspect.signature(model.forward).bind(*call[0], **call[1])
        with evaluating(model), torch.no_grad():
            return call_model(model, call)
    except Exception as error:
        shapes = ", ".join(str(tuple(t.shape)) for t in tensors(call))
        raise ModelError(
            f"{type(model).__name__} does not run on the inputs given, of shape {shapes}: {_line(error)}"
        ) from error


def call_model(model: nn.Module, call: Call) -> Any:
    """Return the model's outputs; a forward that works in place does so on copies of the inputs."""
    args, kwargs = map_tensors(call, Tensor.clone)
    return model(*args, **kwargs)


def at_least_two(call: Call) -> Call:
    """Return a call with at least two samples: torch.export takes a batch size of 1 for a constant."""
    return twice(call) if batch_size(call) < 2 else call


def twice(call: Call) -> Call:
    """Return all samples, and all of them again."""
    return map_tensors(call, lambda tensor: torch.cat([tensor, tensor]) if tensor.ndim else tensor)


def _line(error: Exception) -> str:
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


@contextlib.contextmanager
def _named_inputs(model: nn.Module, call: Call) -> Iterator[None]:
    """Let a forward of (*args, **kwargs) say what it is called with: torch.export wants a name for each input."""
    kinds = {parameter.kind for parameter in inspect.signature(model.forward).parameters.values()}
    if not kinds & {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}:
        yield
        return
    own, before = model.forward, vars(model).get("forward")

    def forward(*args: Any, **kwargs: Any) -> Any:
        return own(*args, **kwargs)

    names = [*(f"input_{i}" for i in range(len(call[0]))), *call[1]]
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


def export_model(model: nn.Module, call: Call, any_batch: bool = True, **options: Any) -> ExportedProgram:
    """Return the exported program, functional, in which blocks that only switch something off are inlined.

    Raises:
        ModelError: torch.export does not take the model.
    """
    batch = Dim("batch", min=2) if any_batch else None
    try:
        with _quiet(), _named_inputs(model, call), _no_look_at_masks():
            named = inspect.signature(model.forward).bind(*call[0], **call[1]).arguments
            shapes = tree_map(lambda v: {0: batch} if batch and isinstance(v, Tensor) and v.ndim else None, dict(named))
            copies = map_tensors(call, Tensor.clone)
            program = export(model, *copies, dynamic_shapes=shapes, strict=False, **options)
            program = program if _make_functional(program.graph) else program.run_decompositions({})
            _inline(program.graph_module)
            return program
    except Exception as error:
        raise ModelError(
            f"{type(model).__name__} cannot be exported by torch.export ({type(error).__name__}: {_line(error)}). "
            "Its forward must not branch on the values of tensors or loop over the batch."
        ) from error


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


def _read(model: nn.Module, program: ExportedProgram, spec: InputSpec) -> Captured:
    first = {tensor: name for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    every = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    weights, constants, inputs = {}, {}, []
    for entry in program.graph_signature.input_specs:
        if entry.kind in (InputKind.PARAMETER, InputKind.BUFFER):
            weights[entry.arg.name] = first[every[str(entry.target)]]  # of tied ones, the first name
        elif entry.kind == InputKind.CONSTANT_TENSOR:
            constants[entry.arg.name] = program.constants[str(entry.target)]
        elif entry.kind == InputKind.USER_INPUT:
            inputs.append(entry.arg.name)
        else:
            raise ModelError(f"{entry.arg.name}: an input of kind {entry.kind.name} cannot be captured")
    for node in program.graph.nodes:
        if node.op == "get_attr":
            raise ModelError(f"{node.name}: a graph within the graph (torch.cond and the like) cannot be cut")
    for node in list(program.graph.nodes):  # checks of shapes and types, which would stop a run in another type
        if is_check(node):
            program.graph.erase_node(node)
    returned = enumerate(program.graph_signature.output_specs)
    return Captured(
        program.graph,
        weights,
        constants,
        tuple(inputs),
        tuple(program.call_spec.in_spec.child(1).context or ()),
        tuple(i for i, output in returned if output.kind == OutputKind.USER_OUTPUT),
        program.call_spec.in_spec,
        program.call_spec.out_spec,
        spec,
    )
