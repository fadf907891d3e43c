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
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram, export
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils._pytree import tree_map

from secateur.errors import DataError, ModelError
from secateur.structure.inputs import Call, InputSpec, batch_size, like_model, map_tensors, tensors

BATCH = 1_000_003  # stands for the batch size in the axes: a prime, so that it equals no real size or factor


@dataclass(frozen=True)
class Captured:
    """A functional graph and what its placeholders stand for."""

    graph: fx.Graph
    weights: dict[str, str]  # placeholder -> name of the parameter or buffer in the model
    constants: dict[str, Tensor]  # placeholder -> a tensor that the model makes itself
    inputs: tuple[str, ...]  # placeholders of the flattened user inputs
    keywords: tuple[str, ...]  # the order of keyword inputs
    outputs: tuple[int, ...]  # which graph outputs are the model's
    out_spec: Any
    spec: InputSpec


def sizes(value: Any, batch: int = BATCH) -> tuple[int, ...]:
    """A traced value's shape as plain numbers, `batch` samples in the batch."""
    return tuple(
        size if isinstance(size, int) else int(size.node.expr.subs(dict.fromkeys(size.node.expr.free_symbols, batch)))
        for size in value.shape
    )


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in eval mode; afterwards every module is in its own mode and every buffer as it was."""
    buffers = [
        (module._buffers, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    modes = [(module, module.training) for module in model.modules()]
    model.train()  # through both modes: some modules fill a cache in their first call after a change
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        with torch.no_grad():
            for owner, name, buffer, before in buffers:
                owner[name] = buffer.copy_(before)


def check_finite(model: nn.Module) -> None:
    """Refuse weights that no result can be made from.

    Raises:
        ModelError: A parameter or buffer holds NaN or infinite values.
    """
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if not tensor.is_floating_point():
            continue
        bad = int((~tensor.float().isfinite()).sum()) if tensor.itemsize < 2 else int((~tensor.isfinite()).sum())
        if bad:
            raise ModelError(f"{name}: {bad} of {tensor.numel()} values are NaN or infinite")


def capture(model: nn.Module, call: Call) -> Captured:
    """The graph of the model in eval mode, for any number of samples.

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
    if batch_size(call) < 2:  # torch.export takes a size of 1 for a constant
        call = map_tensors(call, lambda t: torch.cat([t, t]) if t.ndim else t)
    try:
        inspect.signature(model.forward).bind(*call[0], **call[1])
        with evaluating(model), torch.no_grad():
            model(*call[0], **call[1])
    except Exception as error:
        shapes = ", ".join(str(tuple(t.shape)) for t in tensors(call))
        raise ModelError(
            f"{type(model).__name__} does not run on the inputs given, of shape {shapes}: {_line(error)}"
        ) from error
    with evaluating(model):
        return _read(model, _export(model, call), spec)


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).split("\n")[0]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No warnings, log lines and graphs of PyTorch's about its own work; what matters is in its exception."""
    level = logging.root.manager.disable
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(level)


def _export(model: nn.Module, call: Call) -> ExportedProgram:
    batch = Dim("batch", min=2)
    named = inspect.signature(model.forward).bind(*call[0], **call[1]).arguments
    shapes = tree_map(lambda v: {0: batch} if isinstance(v, Tensor) and v.ndim else None, dict(named))
    try:
        with _quiet():
            program = export(model, *call, dynamic_shapes=shapes, strict=False)
            return program if _make_functional(program.graph) else program.run_decompositions({})
    except Exception as error:
        raise ModelError(
            f"{type(model).__name__} cannot be exported by torch.export ({type(error).__name__}: {_line(error)}). "
            "Its forward must not branch on the values of tensors, loop over the batch or fix its size."
        ) from error


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


def _is_view(node: fx.Node) -> bool:
    return bool(getattr(node.target, "is_view", True))


def _read(model: nn.Module, program: ExportedProgram, spec: InputSpec) -> Captured:
    first = {tensor: name for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    every = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    weights, constants, inputs = {}, {}, []
    for given in program.graph_signature.input_specs:
        if given.kind in (InputKind.PARAMETER, InputKind.BUFFER):
            weights[given.arg.name] = first[every[str(given.target)]]  # of tied ones, the first name
        elif given.kind == InputKind.CONSTANT_TENSOR:
            constants[given.arg.name] = program.constants[str(given.target)]
        elif given.kind == InputKind.USER_INPUT:
            inputs.append(given.arg.name)
        else:
            raise ModelError(f"{given.arg.name}: an input of kind {given.kind.name} cannot be captured")
    for node in list(program.graph.nodes):  # checks of shapes and types, which would stop a run in another type
        if not node.users and getattr(node.target, "_schema", None) and not node.target._schema.returns:
            program.graph.erase_node(node)
    returned = enumerate(program.graph_signature.output_specs)
    return Captured(
        program.graph,
        weights,
        constants,
        tuple(inputs),
        tuple(program.call_spec.in_spec.child(1).context or ()),
        tuple(i for i, output in returned if output.kind == OutputKind.USER_OUTPUT),
        program.call_spec.out_spec,
        spec,
    )
