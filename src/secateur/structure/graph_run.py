"""Run a captured graph with any weights of the same sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from secateur.errors import ModelError
from secateur.process_state import own_forwards
from secateur.structure.capture import Captured, call_model, evaluating
from secateur.structure.exporting.noise import steady
from secateur.structure.exporting.outputs import flatten_outputs
from secateur.structure.inputs import Call, sample_weight

# Largest difference, relative to the largest value, that rounding alone explains.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}

LOWER = {torch.float32: 3e-6, torch.bfloat16: 5e-2, torch.float16: 1e-2}  # where a part of the graph computes in it


def compile_graph(graph: fx.Graph) -> Callable[..., Any]:
    """Return the graph as a plain Python function of its placeholders; noise that it draws is always the same."""
    forward: Callable[..., Any] = fx.GraphModule(nn.Module(), steady(graph)).forward
    return forward


def run_once(graph: fx.Graph, values: Sequence[Any]) -> Any:
    """Return what a graph returns for its placeholders' values, call by call: for one run it need not be compiled."""
    env = dict(zip(graph.find_nodes(op="placeholder"), values, strict=True))
    for node in graph.nodes:
        if node.op == "call_function":
            args, kwargs = fx.map_arg((node.args, node.kwargs), env.__getitem__)
            env[node] = node.target(*args, **kwargs)
    return fx.map_arg(graph.output_node().args[0], env.__getitem__)


def weights_of(captured: Captured, model: nn.Module) -> dict[str, Tensor]:
    """Return the model's weights as they are now, by placeholder."""
    named = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    return {placeholder: named[name] for placeholder, name in captured.weights.items()}


def bind(captured: Captured, model: nn.Module, call: Call) -> list[Any]:
    """Return a value for each placeholder, in order: the model's weights, its constants, the inputs."""
    return fill(captured, weights_of(captured, model), call)


def fill(captured: Captured, weights: Mapping[str, Tensor], call: Call) -> list[Any]:
    """Return a value for each placeholder, in order, from weights by placeholder."""
    values = {**weights, **captured.constants} | dict(zip(captured.inputs, flatten(captured, call), strict=True))
    return [values[node.name] for node in captured.graph.nodes if node.op == "placeholder"]


def flatten(captured: Captured, call: Call) -> list[Any]:
    """Return the inputs in the graph's order.

    Raises:
        DataError: There are others than those the graph was captured with.
    """
    return captured.spec.in_order(captured.match(call))


def outputs(captured: Captured, returned: Sequence[Any]) -> Any:
    """Return what the model would have returned, in its own structure."""
    return captured.out_spec.unflatten(returned[i] for i in captured.outputs)


def in_double(value: Any) -> Any:
    """Return a floating-point tensor in float64, anything else as it is."""
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def run(captured: Captured, model: nn.Module, call: Call) -> Any:
    """Return the outputs of the captured graph with the model's weights."""
    return outputs(captured, compile_graph(captured.graph)(*bind(captured, model, call)))


def difference(expected: Any, got: Any) -> tuple[float, float]:
    """Return the largest absolute difference of the outputs, and the largest relative to the largest value.

    What is NaN, infinite or of another shape differs infinitely, and so do other numbers of outputs.
    """
    absolute = relative = 0.0
    leaves = [[leaf for leaf in flatten_outputs(value)[0] if leaf is not None] for value in (expected, got)]
    if [isinstance(a, Tensor) for a in leaves[0]] != [isinstance(b, Tensor) for b in leaves[1]]:
        return float("inf"), float("inf")
    for a, b in zip(*leaves, strict=True):
        if not isinstance(a, Tensor) or not (a.numel() or b.numel()):
            continue
        if a.shape != b.shape or a.is_complex() != b.is_complex():
            return float("inf"), float("inf")
        a, b = (torch.view_as_real(tensor) if tensor.is_complex() else tensor for tensor in (a, b))
        a, b = a.double(), b.double()
        same = a == b  # equal infinities, too
        if not bool((same | (a.isfinite() & b.isfinite())).all()):
            return float("inf"), float("inf")
        gap = torch.where(same, 0, a - b).abs().max().item()
        scale = max(a.nan_to_num(posinf=0, neginf=0).abs().max().item(), 1e-30)
        absolute, relative = max(absolute, gap), max(relative, gap / scale)
    return absolute, relative


def tolerance(model: nn.Module) -> float:
    """Return what rounding may make of the outputs of this model, relative to the largest."""
    return TOLERANCE.get(sample_weight(model).dtype, 1e-4)


def tolerance_of(captured: Captured, dtype: torch.dtype) -> float:
    """Return what rounding may make of the outputs of a graph whose weights and inputs are of this dtype."""
    lower = [LOWER[own] for own in own_dtypes(captured)]
    return max([TOLERANCE.get(dtype, 1e-4), *lower])


def own_dtypes(captured: Captured) -> set[torch.dtype]:
    """Return the dtypes below float64 in which the code computes whatever those of weights and inputs are.

    It names them, or computes with nothing but tensors that it makes itself.
    """
    made = {node for node in captured.graph.find_nodes(op="placeholder") if node.name in captured.constants}
    dtypes: set[torch.dtype] = set()
    for node in captured.graph.nodes:
        if node.op == "call_function":
            dtypes |= {leaf for leaf in tree_leaves((node.args, node.kwargs)) if leaf in LOWER}
            floats = [operand for operand in node.all_input_nodes if _is_float(operand)]
            if floats and made.issuperset(floats) and _is_float(node):
                made.add(node)
                dtypes |= set() if _moves(node) else {node.meta["val"].dtype} & LOWER.keys()
    return dtypes


def _is_float(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_floating_point()


def _moves(node: fx.Node) -> bool:
    """Return whether a call changes no number."""
    copies = (torch.ops.aten.clone, torch.ops.aten.lift_fresh_copy, torch.ops.aten.detach_)
    return bool(getattr(node.target, "is_view", False)) or getattr(node.target, "overloadpacket", None) in copies


def check_capture(model: nn.Module, captured: Captured, call: Call) -> None:
    """Check that the graph computes what the model does.

    Raises:
        ModelError: It does not: forward is random in eval mode, or keeps state between calls.
    """
    with evaluating(model), torch.no_grad(), own_forwards():
        got = run(captured, model, call)
        relative = max(difference(call_model(model, call), got)[1] for _ in range(2))  # twice: it may keep count
    if not relative <= tolerance_of(captured, sample_weight(model).dtype):
        raise ModelError(
            f"{type(model).__name__}: the captured graph differs from the model by {relative:.1e} of the largest "
            "output; forward must give the same outputs for the same inputs in eval mode (dropout left on, cached "
            "tensors?)"
        )
