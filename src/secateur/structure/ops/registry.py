"""All that is known of operations: what it consists of, how it is registered, and where it is found."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import fx, nn

from secateur.errors import ArgumentError, ModelError
from secateur.plugins import load_plugins, place_of_function
from secateur.structure.axis import SizesDifferError
from secateur.structure.keep_mask import KeepMask
from secateur.structure.ops.linear import Linear, Operands
from secateur.structure.ops.net import Axes, Net, NotCoveredError, rank_of

Infer = Callable[[Net, fx.Node, dict[str, Any]], Axes | list[Axes]]
Resize = Callable[[Net, fx.Node, dict[str, Any], KeepMask], dict[str, Any]]
Take = Callable[[Any, int], Any]  # a value's one position along a dimension
# Arguments of a call that makes one position along a dimension out of its inputs', None if it cannot.
Select = Callable[[fx.Node, int, Take], "list[Any] | None"]

# How derivatives pass backward through an operation, seen as a function of one input:
#   pointwise  each output from one input value (broadcasting aside)
#   move       linear with coefficients 0 and 1: views, permutations, concatenation, sums
#   pick       each output one of the input's values, by place or by size, or a constant
#   contract   linear, with the other tensors as coefficients
#   average    linear, each output with one coefficient for all values of a box
#   output     one of several outputs of the call before, of which only the first is differentiated
Derivative = Literal["pointwise", "move", "pick", "contract", "average", "output"]

GROUP = "secateur.rules"  # the entry points of other packages' rules
OWN = "aten::"  # the namespace of names that are given without one
POINTWISE = "aten::pointwise"  # stands for all operations that PyTorch tags so, and that have no rule of their own


class StoredStatistics(NamedTuple):
    """The arguments in which a norm has its operand and the stored mean and variance of each channel (dimension 1)."""

    operand: str
    mean: str
    variance: str


@dataclass(frozen=True)
class Op:
    """All that is known of an operation, beside what adapts its sizes.

    Attributes:
        infer: The axes of its outputs from those of its inputs.
        derivative: The way derivatives pass through; None for an operation that second-derivative back-propagation
            does not apply to.
        linear: The place of its matrix, if it is a layer.
        makes: The unit that a row of its weight makes: a channel, or a width where it is applied at each position of a
            sequence; None for a neuron in any case.
        select: The computation of one position of its output alone; None where all are needed.
        box: The number of last dimensions that an average's box has; None for all that it is taken over at once.
        has_single_terms: The test whether each result of a contraction holds each value of an operand in one term,
            where that is not told by its operands being different ones.
        statistics: The arguments in which it has the stored ones of BatchNorm.
        memory: "fresh" if its result never shares memory with an operand, "reusable" if it may also be written over
            the operand, by the operation of this name with ``_`` behind.
        adds: True if it adds two activations: a residual stream, if both are at positions of a sequence.
        fused: True if its fast kernels lack derivatives in eval mode, or second ones.
    """

    infer: Infer
    derivative: Derivative | None = None
    linear: Linear | None = None
    makes: Literal["channel", "width"] | None = None
    select: Select | None = None
    box: int | None = None
    has_single_terms: Callable[[Operands], bool] | None = None
    statistics: StoredStatistics | None = None
    memory: Literal["fresh", "reusable"] | None = None
    adds: bool = False
    fused: bool = False


class ModuleSizes(NamedTuple):
    """The sizes that a type of module keeps as attributes, and which of these is that of a bias it could have."""

    attributes: Callable[[Any, tuple[int, ...], int | None], dict[str, Any]]
    bias: str | None


_OPS: dict[str, Op] = {}  # by the operation's name with its namespace
_RESIZE: dict[str, Resize] = {}
_MODULES: dict[type[nn.Module], ModuleSizes] = {}

Registered = TypeVar("Registered")


def rule(*names: str, derivative: Derivative | None = None, **facts: Any) -> Callable[[Infer], Infer]:
    """Register the decorated function for operations of these names, in all overloads, and what else is known of them.

    It is called with the axes known so far, the call, and the call's arguments by name; it states which axes are
    equal, fixed or summed over, and returns the axes of the output, or of each of several. See docs/extending.md.

    Args:
        names: "mykernels::linear"; without a namespace it is "aten::".
        derivative: The way derivatives pass through, as `Op` says.
        facts: Other attributes of `Op`.

    Raises:
        ArgumentError: There is a rule for one of them.
    """

    def register(infer: Infer) -> Infer:
        for name in names:
            _put("rule", name, _OPS, Op(infer, derivative, **facts), lambda op: op.infer, infer)
        return infer

    return register


def resize(*names: str) -> Callable[[Resize], Resize]:
    """Register what the sizes among the arguments of these operations are when units are gone.

    The decorated function returns the arguments that change, by name; under ``"target"`` another operation.

    Raises:
        ArgumentError: One of the operations has such a function.
    """

    def register(function: Resize) -> Resize:
        for name in names:
            _put("resize", name, _RESIZE, function, lambda known: known, function)
        return function

    return register


Attributes = TypeVar("Attributes", bound=Callable[..., dict[str, Any]])


def module_sizes(*types: type[nn.Module], bias: str | None = None) -> Callable[[Attributes], Attributes]:
    """Register what modules of these types keep of their sizes: attributes by name.

    The decorated function is called with a module whose parameters are sliced, the shape of its `weight`, () without,
    and the number of groups that are left, None where the graph does not say.

    Args:
        types: Types of `torch.nn`; subclasses go as they do.
        bias: The attribute that is the size of the bias, where such a module may have none and could have one.
    """

    def register(attributes: Attributes) -> Attributes:
        _MODULES.update(dict.fromkeys(types, ModuleSizes(attributes, bias)))
        return attributes

    return register


def _put(
    what: str, name: str, table: dict[str, Registered], entry: Registered,
    function_of: Callable[[Registered], Callable[..., Any]], function: Callable[..., Any],
) -> None:  # fmt: skip
    """Enter something under an operation's full name.

    Raises:
        ArgumentError: There is something already.
    """
    key = name if "::" in name else OWN + name
    if key in table:
        first = place_of_function(function_of(table[key]))
        raise ArgumentError(f"{what}: {key} has one, {first}; {place_of_function(function)} cannot be another")
    table[key] = entry


def load_rules() -> None:
    """Load the rules of this package, and those of others."""
    import_module(__package__ or "")
    load_plugins(GROUP, lambda loaded: any(loaded in (op.infer, _RESIZE.get(key)) for key, op in _OPS.items()))


def key_of(node: fx.Node) -> str:
    """Return the operation's name with its namespace, without overload: "aten::linear", "operator::getitem"."""
    schema = getattr(node.target, "_schema", None)
    if schema:
        return str(schema.name)
    module = str(getattr(node.target, "__module__", "")).lstrip("_")
    return f"{module}::{getattr(node.target, '__name__', node.target)}"


def name_of(node: fx.Node) -> str:
    """Return the operation's name without overload, and without the namespaces "aten" and "operator"."""
    return key_of(node).removeprefix(OWN).removeprefix("operator::")


def find_op(node: fx.Node) -> Op | None:
    """Return what is known of a call's operation: by name, else as of all pointwise operations; None of other nodes."""
    named = _OPS.get(key_of(node))
    if named is None and torch.Tag.pointwise in getattr(node.target, "tags", ()):
        return _OPS[POINTWISE]
    return named


def linear_of(node: fx.Node) -> Linear | None:
    """Return where a call has its matrix; None where it is no layer."""
    op = find_op(node)
    return None if op is None else op.linear


def find_resize(node: fx.Node) -> Resize | None:
    """Return what adapts the sizes among the arguments of a call; None where there are none."""
    return _RESIZE.get(key_of(node))


def find_module_sizes(module: nn.Module) -> ModuleSizes | None:
    """Return what a module keeps of its sizes; None for modules of other types."""
    return next((_MODULES[base] for base in type(module).__mro__ if base in _MODULES), None)


def first_operand(without: Callable[[fx.Node], int]) -> Select:
    """Return how to select where the first operand alone has positions: all its dimensions but so many last ones."""

    def select(x: fx.Node, dim: int, take: Take) -> list[Any] | None:
        return [take(x.args[0], dim), *x.args[1:]] if dim < rank_of(x) - without(x) else None

    return select


@contextlib.contextmanager
def blamed(function: Callable[..., Any], node: fx.Node) -> Iterator[None]:
    """Show what goes wrong in a rule as its fault, unless it says that it does not cover a form.

    Raises:
        ModelError: Something does.
        NotCoveredError: It says so, or axes that it states to be the same differ in size.
    """
    try:
        yield
    except SizesDifferError as error:
        raise NotCoveredError("axes of different sizes as one") from error
    except Exception as error:
        if isinstance(error, NotCoveredError):
            raise
        raise ModelError(
            f"the rule for {name_of(node)} failed at {node.name} ({type(error).__name__}: {error}); "
            f"it is {place_of_function(function)}"
        ) from error


def set_argument(node: fx.Node, name: str, value: Any) -> None:
    """Give a call another argument, at its position in the schema where the call has one there."""
    position = [argument.name for argument in node.target._schema.arguments].index(name)  # type: ignore[union-attr]
    if position < len(node.args):
        node.update_arg(position, value)
    else:
        node.update_kwarg(name, value)


def arguments(node: fx.Node) -> dict[str, Any]:
    """Return the call's arguments by their names in the schema, defaults filled in."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return {str(i): argument for i, argument in enumerate(node.args)}
    stated = dict(zip((a.name for a in schema.arguments), node.args, strict=False)) | dict(node.kwargs)
    return {a.name: stated.get(a.name, a.default_value if a.has_default_value() else None) for a in schema.arguments}
