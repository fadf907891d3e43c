"""From a module to a graph of ATen calls: what is kept of an exported program.

`torch.export` in eval mode with a dynamic batch, and other free dimensions where they are asked for. The graph names
its weights and does not hold them, so that it can be run with others (see `run`).
"""

from __future__ import annotations

import contextlib
import inspect
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind

from secateur.errors import DataError, InputsError, ModelError
from secateur.structure.axis import BATCH
from secateur.structure.calls.tensor_spec import Free
from secateur.structure.export import Exported, FixedSizeError, export_model, first_line, is_check
from secateur.structure.exporting.noise import SteadyNoise, draws, random_states
from secateur.structure.exporting.outputs import OutputSpec
from secateur.structure.exporting.tracing import input_names
from secateur.structure.inputs import Call, InputSpec, call_on_copies, like_model, tensors

UNKNOWN = 999_983  # stands for a size that depends on values: another prime than the one for the batch


@dataclass(frozen=True)
class Captured:
    """A functional graph and what its placeholders stand for."""

    graph: fx.Graph
    weights: dict[str, str]  # placeholder -> name of the parameter or buffer in the model
    constants: dict[str, Tensor]  # placeholder -> a tensor that the model makes itself
    inputs: tuple[str, ...]  # placeholders of the flattened user inputs
    outputs: tuple[int, ...]  # which graph outputs are the model's
    out_spec: OutputSpec
    spec: InputSpec
    guards: tuple[str, ...] = ()  # what its code takes for granted of the sizes of free dimensions, by their names
    checks: tuple[str, ...] = ()  # the lines of its code that check values
    noisy: bool = False  # whether it draws noise

    def match(self, call: Call, where: str = "") -> Call:
        """Return the call if the graph computes for it what the model does.

        Raises:
            DataError: It has not the form of the example, or sizes for which the model's code takes another way.
        """
        sizes: dict[str, tuple[int, str]] = {}
        call = self.spec.match(call, where, sizes)
        known = {name: size for name, (size, _) in sizes.items()}
        broken = broken_guard(self.guards, known | {"samples": self.spec.count(call, where)})
        if broken is not None:
            got = ", ".join(f"{name} = {size}, {place}" for name, (size, place) in sizes.items())
            raise DataError(f"{where}inputs: the model was captured for sizes with {broken}, got {got}")
        return call


def broken_guard(guards: Iterable[str], sizes: Mapping[str, int]) -> str | None:
    """Return which guard does not hold for these sizes, by the names of free dimensions; None if all known do."""
    known = {**sizes, "samples": max(2, sizes.get("samples", 2))}  # as many as it was captured with, at least
    return next((guard for guard in guards if not _holds(guard, known)), None)


def _holds(guard: str, sizes: Mapping[str, int]) -> bool:
    try:
        return bool(eval(guard, {"math": math, "torch": torch}, sizes))  # PyTorch's own words
    except NameError:  # of sizes that are not known here
        return True
    except ArithmeticError:
        return False


def sizes(value: Any, batch: int = BATCH) -> tuple[int, ...]:
    """Return a traced value's shape as plain numbers: `batch` samples in the batch, all else as in the example."""
    return tuple(size if isinstance(size, int) else _number(size.node, batch) for size in value.shape)


def _number(node: Any, batch: int) -> int:
    """Return a size for so many samples; one that depends on values (u0, u1 ...) is a number like no other."""
    free = _free_sizes(node)
    others = {s: UNKNOWN if s.name.startswith("u") else batch for s in node.expr.free_symbols}
    return int(node.expr.subs(others | {symbol: size.size for symbol, size in free.items()}))


def _free_sizes(node: Any) -> dict[Any, Free]:
    """Return the symbols that stand for free dimensions other than that of the samples."""
    known: dict[Any, Free] = getattr(node.shape_env, "free_sizes", {})
    return known


def counts_samples(size: Any) -> bool:
    """Return whether a traced size depends on the number of samples."""
    return isinstance(size, torch.SymInt) and not size.node.expr.free_symbols <= _free_sizes(size.node).keys()


def is_free(size: Any) -> bool:
    """Return whether a traced size depends on that of a free dimension other than that of the samples."""
    return isinstance(size, torch.SymInt) and bool(size.node.expr.free_symbols & _free_sizes(size.node).keys())


def name_of_size(size: Any) -> str:
    """Return "samples", or the name of the free dimension that a traced size is that of; "any" for others."""
    symbol = size.node.expr
    unnamed = not symbol.is_Symbol or symbol.name.startswith("u")
    return "any" if unnamed else _free_sizes(size.node)[symbol].name if is_free(size) else "samples"


def times(size: Any, of: Any) -> int | None:
    """Return how many times another traced size a size is, at all sizes of the inputs; None where it is no multiple."""
    ratio = size.node.expr / of.node.expr if isinstance(size, torch.SymInt) else None
    return int(ratio) if ratio is not None and ratio.is_Integer else None


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
        model.train()  # and they forget what they made of other weights meanwhile
        model.eval()
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


def capture(model: nn.Module, call: Call, spec: InputSpec | None = None) -> Captured:
    """Return the graph of the model in eval mode, for any number of samples.

    Args:
        model: Left as it was.
        call: Example inputs, the samples along each tensor's first dimension.
        spec: Their form, with dimensions that are to be free; None: all but that of the samples are fixed.

    Raises:
        DataError: The inputs hold no sample.
        ModelError: The weights are not finite, the inputs do not fit, or the model cannot be exported, not with these
            dimensions free.
    """
    check_finite(model)
    call = like_model(model, call)
    spec = spec or InputSpec.of(call)
    if not spec.count(call):
        raise DataError("inputs: there are no samples in the example")
    eval_outputs(model, call)
    with evaluating(model):
        try:
            return _read(model, export_model(model, at_least_two(call, spec), spec), spec)
        except ModelError as error:
            if spec.free or spec.fixed:
                raise
            return _capture_fixed(model, call, spec, error)


def _capture_fixed(model: nn.Module, call: Call, spec: InputSpec, error: ModelError) -> Captured:
    """Return the graph for this number of samples alone, which the code may fix.

    Raises:
        ModelError: There is none either.
    """
    fixed = replace(spec, fixed=spec.count(call))
    try:
        return _read(model, export_model(model, call, fixed), fixed)
    except ModelError:
        if isinstance(error, FixedSizeError):
            raise  # the true reason is another
    raise error


def eval_outputs(model: nn.Module, call: Call) -> Any:
    """Return the model's outputs in eval mode.

    Raises:
        InputsError: It does not run on these inputs.
    """
    try:
        inspect.signature(model.forward).bind(*call[0], **call[1])
        with evaluating(model), torch.no_grad():
            return call_model(model, call)
    except Exception as error:
        shapes = ", ".join(str(tuple(t.shape)) for t in tensors(call))
        raise InputsError(
            f"{type(model).__name__} does not run on the inputs given, of shape {shapes}: {first_line(error)}"
        ) from error


def call_model(model: nn.Module, call: Call) -> Any:
    """Return the model's outputs, with steady noise; a forward that works in place does so on copies of the inputs."""
    before = random_states()
    returned = call_on_copies(model, call)
    if random_states() == before:  # no noise was drawn
        return returned
    with SteadyNoise():  # type: ignore[no-untyped-call]
        return call_on_copies(model, call)


def at_least_two(call: Call, spec: InputSpec) -> Call:
    """Return a call with at least two samples: torch.export takes a batch size of 1 for a constant."""
    return twice(call, spec) if spec.count(call) < 2 else call


def twice(call: Call, spec: InputSpec) -> Call:
    """Return all samples, and all of them again; as they are where their number is fixed."""
    return call if spec.fixed else spec.map_samples(call, lambda tensor: torch.cat([tensor, tensor]))


def _read(model: nn.Module, exported: Exported, spec: InputSpec) -> Captured:
    program = exported.program
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
    spec = _with_names(spec, dict(zip(spec.leaves, inputs, strict=True)), program.graph)
    return Captured(
        program.graph,
        weights,
        constants,
        tuple(inputs),
        tuple(i for i, output in returned if output.kind == OutputKind.USER_OUTPUT),
        exported.outputs,
        spec,
        _guards(program, spec, input_names(model, (spec.args, dict(spec.kwargs)))) if spec.free else (),
        tuple(dict.fromkeys(map(str, exported.checks))),
        any(map(draws, program.graph.nodes)),
    )


def _with_names(spec: InputSpec, inputs: dict[str, str], graph: fx.Graph) -> InputSpec:
    """Return the form in which tied free dimensions have one name; the example's sizes are kept with the symbols.

    Raises:
        ModelError: The code fixes one.
    """
    values = {node.name: node.meta["val"] for node in graph.find_nodes(op="placeholder")}
    named: dict[Any, Free] = {}

    def name(path: str, dim: int, size: int | Free) -> int | Free:
        if not isinstance(size, Free):
            return size
        traced = values[inputs[path]].shape[dim]
        if isinstance(traced, int) or not traced.node.expr.is_Symbol:
            raise ModelError(f"dimension {dim} of inputs{path} is no free size")
        free = named.setdefault(traced.node.expr, Free(f"n{len(named) + 1}", size.size))
        traced.node.shape_env.free_sizes = named
        return free

    return spec.with_sizes(name)


def _guards(program: ExportedProgram, spec: InputSpec, names: list[str]) -> tuple[str, ...]:
    """Return the guards on sizes of free dimensions, in their names.

    Raises:
        ModelError: There are guards on something else.
    """
    sizes: dict[tuple[str, int], str] = {}
    for name, value in zip(names, spec.leaves.values(), strict=True):
        sizes |= {(name, 0): "samples"} if getattr(value, "per_sample", False) else {}
        sizes |= {(name, dim): free.name for dim, free in getattr(value, "free", {}).items()}
    place = re.compile(r"L\['(\w+)'\]\.size\(\)\[(\d+)\]")
    guards = [place.sub(lambda m: sizes.get((m[1], int(m[2])), m[0]), code) for code in program._guards_code]
    if any("L[" in guard for guard in guards):
        raise ModelError("sizes of inputs that are fixed are compared with others")
    return tuple(dict.fromkeys(g for g in guards if re.search(r"\bn\d+\b", g) and not re.fullmatch(r"(\w+) == \1", g)))
