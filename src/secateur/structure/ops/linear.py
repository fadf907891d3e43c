"""Operations that sum units up with a matrix of weights: where that is, and what follows from being linear."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

Operands = Mapping[str, Any]  # a call's arguments by their names in its schema

# A view [rows ..., inputs, kernel ...] of the operand, what the matrix is multiplied with, and how many of its
# dimensions are rows; from the operand, the kernel's shape and the call's arguments.
Rows = Callable[[Tensor, Sequence[int], Operands], tuple[Tensor, int]]
# The results [C N, ...] for C candidates, from the positions [C, p] of their units and each one's γ − g_k.
Update = Callable[[Tensor, Tensor], Tensor]
# An update, from the operand without gates, the weight, the call's arguments and its results Z [N, ...].
LowRank = Callable[[Tensor, Tensor, Operands, Tensor], Update]
# Derivatives [n, v, *w.shape] in an argument w for n samples and v vectors, from the operand [n, *of one sample],
# δ [n, v, *of one sample], w and the call's arguments, those that hold samples as the operand.
Derivatives = Callable[[Tensor, Tensor, Tensor, Operands], Tensor]


def has_no_factors(operands: Operands) -> bool:
    """Return whether neither the product nor the bias is scaled, as addmm may."""
    return bool(operands.get("alpha", 1) == operands.get("beta", 1) == 1)


class PerSample(NamedTuple):
    """Each sample's derivative in an argument, and for which numbers of its dimensions and arguments that is right."""

    derivatives: Derivatives
    dims: tuple[int, ...]
    applies: Callable[[Operands], bool] = has_no_factors


@dataclass(frozen=True, eq=False)
class Linear:
    """z = A w + b, A the rows of an operand and w a matrix [D, O] of weights.

    Attributes:
        operand: The name of the argument that holds units.
        weight: The name of the argument with the weight: [O, inputs, kernel ...], or [inputs, O].
        bias: The name of the argument with the bias; None where the operation has none.
        rows: The rows of A.
        update: The results for candidates, from those at hand, where the weight is [O, inputs, kernel ...]; None where
            it is called again for each.
        per_sample: Each sample's derivative by argument; those left out have the operation's own pullback.
        inputs_first: True if the weight is [inputs, O].
        channels_first: True if outputs lie along dimension 1, not along the last.
        is_dense: True if an input [N, inputs] is A itself.
    """

    operand: str
    weight: str
    bias: str | None
    rows: Rows
    update: LowRank | None = None
    per_sample: Mapping[str, PerSample] = field(default_factory=dict)
    inputs_first: bool = False
    channels_first: bool = False
    is_dense: bool = False

    def is_one_matrix(self, operands: Operands) -> bool:
        """Return whether one matrix multiplies all inputs: no groups of them, and no factors."""
        return operands.get("groups", 1) == 1 and has_no_factors(operands)
