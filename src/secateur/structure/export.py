"""The export of a model by `torch.export`, made functional, in eval mode and with free dimensions."""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import DataDependentOutputException
from torch.export import Dim, ExportedProgram, export
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.utils._pytree import tree_leaves

from secateur.errors import ModelError
from secateur.structure.calls.tensor_spec import TensorSpec
from secateur.structure.exporting import value_checks
from secateur.structure.exporting.inlining import inline_blocks
from secateur.structure.exporting.outputs import OutputSpec
from secateur.structure.exporting.tracing import free_lengths, no_look_at_masks, only_simple_sizes, quiet, traceable
from secateur.structure.exporting.value_checks import Place, find_truths, first_choice
from secateur.structure.inputs import Call, InputSpec, map_tensors
from secateur.structure.rewrites.writes import rewrite_writes


class Exported(NamedTuple):
    """An exported program, functional, and what is not in it.

    Attributes:
        program: The program, which returns tensors and plain values.
        outputs: The form of what the model returns.
        checks: The truth values of tensors that the model's code went on with, by place.
    """

    program: ExportedProgram
    outputs: OutputSpec
    checks: Mapping[Place, bool]


class FixedSizeError(ModelError):
    """A model whose code is for one size alone."""


class ValuesError(ModelError):
    """A model whose code asks for the values of tensors."""


BRANCHES = (GuardOnDataDependentSymNode, DataDependentOutputException)


def first_line(error: Exception) -> str:
    """Return what an error says first; its type where it says nothing."""
    return (str(error).strip() or type(error).__name__).split("\n")[0]


def export_model(model: nn.Module, call: Call, spec: InputSpec, **options: Any) -> Exported:
    """Return the exported program, functional, in which blocks that switch autocast or gradients are inlined.

    Args:
        model: In eval mode.
        call: Example inputs.
        spec: Their form: which dimensions are to be free.
        options: Further arguments of `torch.export.export`.

    Raises:
        FixedSizeError: Its code is for one size of what is to be free.
        ModelError: torch.export does not take the model.
        ValuesError: Its code asks for the values of tensors.
    """
    try:
        return _export(model, call, spec, {}, options)
    except FixedSizeError as error:
        with contextlib.suppress(ModelError), free_lengths():
            return _export(model, call, spec, {}, options)
        raise error
    except ValuesError as error:
        truths = find_truths(model, call)
        if not truths:
            raise error
    exported = _export(model, call, spec, truths, options)
    choice = first_choice(model, call, exported.checks)
    if choice is not None:
        raise ModelError(
            f"{type(model).__name__} chooses by the values of tensors what it computes, at {choice}; "
            "torch.where chooses without a branch"
        )
    return exported


def _part_of(model: nn.Module) -> str:
    """Return what can be done where the whole cannot be exported: its largest part may be cut alone."""
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    if len(sizes) < 2:
        return ""
    part = max(sizes, key=lambda name: sizes[name])
    return f"; a part that needs none can be cut alone and put back: model.{part} = secateur.cut(model.{part}, plan)"


@contextlib.contextmanager
def _true_reasons(model: nn.Module) -> Iterator[None]:
    """Let whatever torch.export raises be an error that says why.

    Raises:
        FixedSizeError: The code is for one size.
        ModelError: It raised something else.
        ValuesError: The code asks for values.
    """
    name = type(model).__name__
    try:
        yield
    except ModelError:
        raise
    except BRANCHES as error:
        lines = re.findall(r'File "([^"]*)", line (\d+), in .*\n +(.*)', str(error))
        own = [line for line in lines if line[0] != value_checks.__file__]
        where = "".join(f", at {line!r} ({Path(file).name}:{number})" for file, number, line in own[-1:])
        raise ValuesError(
            f"{name} needs the values of tensors to go on{where}: {first_line(error)}{_part_of(model)}"
        ) from error
    except Exception as error:
        if "specialized it to be a constant" in str(error):
            raise FixedSizeError(f"{name} has code for one size of the inputs alone, such as a loop over it") from error
        raise ModelError(
            f"{name} cannot be exported by torch.export ({type(error).__name__}: {first_line(error)})"
        ) from error


def _export(
    model: nn.Module, call: Call, spec: InputSpec, truths: Mapping[Place, bool], options: dict[str, Any]
) -> Exported:
    batch = None if spec.fixed else Dim("batch", min=2)
    simple = only_simple_sizes() if spec.free else contextlib.nullcontext()
    with _true_reasons(model), quiet(), traceable(model, call, truths) as traced, no_look_at_masks(), simple:
        named = inspect.signature(model.forward).parameters
        shapes = {name: _dynamic(value, batch) for name, value in zip(named, spec.leaves.values(), strict=True)}
        copies = tuple(tree_leaves(map_tensors(call, Tensor.clone)))
        program = export(model, copies, dynamic_shapes=shapes, strict=False, **options)
        inline_blocks(program.graph_module)
        program = program if _make_functional(program.graph) else program.run_decompositions({})
        rewrite_writes(program.graph)
        form = traced.outputs or OutputSpec(program.call_spec.out_spec, {})  # the calls of a GraphModule are run alone
        return Exported(program, form, traced.checks)


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


def _is_view(node: fx.Node) -> bool:
    return bool(getattr(node.target, "is_view", True))
