"""Plans of single weights: which are removed, and what each round of removals cost and left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from secateur.planning.state import Basis, State, quality_cells, quality_columns, three_digits
from secateur.structure.inputs import InputSpec
from secateur.text import format_bytes, table


@dataclass(frozen=True)
class WeightStep(State):
    """Removals made at once, and what is left after them.

    Attributes:
        round: The number of the round, from 1.
        removed: The number of weights removed so far.
        predicted: The rise of the loss that the criterion predicts for this step; None if it predicts none.
        trained: Whether the network was trained after these removals, before loss and accuracy were measured.
    """

    round: int
    removed: int
    predicted: float | None
    trained: bool


@dataclass(frozen=True, eq=False)  # tensors are not equal or unequal as a whole
class WeightPlan:
    """The single weights that are removed: zero and frozen in a network of the same sizes.

    Attributes:
        masks: Parameter → which of its weights are kept, a bool tensor of its shape.
        start: The network before any removal.
        steps: The measurements on the way.
        inputs: The inputs that the model takes.
        criterion: The name of the criterion.
        rounds: The number of rounds.
        basis: The samples that losses and accuracies were measured on; None where they were not.
    """

    masks: Mapping[str, Tensor]
    start: State
    steps: tuple[WeightStep, ...]
    inputs: InputSpec
    criterion: str
    rounds: int
    basis: Basis | None = None

    @property
    def sizes(self) -> dict[str, int]:
        """Parameter → the number of its weights."""
        return {name: mask.numel() for name, mask in self.masks.items()}

    @property
    def kept(self) -> dict[str, tuple[int, ...]]:
        """Parameter → the flat indices of the weights that stay."""
        return {name: tuple(mask.flatten().nonzero()[:, 0].tolist()) for name, mask in self.masks.items()}

    @property
    def removed(self) -> int:
        """The number of weights removed."""
        return sum(int((~mask).sum()) for mask in self.masks.values())

    def __str__(self) -> str:
        total = sum(self.sizes.values())
        columns = ["removed", "share", "round", "predicted", *quality_columns(self.start), "params", "bytes"]
        rows = [(0, "0.0 %", "", "", *self._measured(self.start))]
        for step in self.steps:
            trained = f"{step.round}, trained" if step.trained else f"{step.round}"
            share = f"{100 * step.removed / total:.1f} %"
            rows.append((step.removed, share, trained, three_digits(step.predicted) or "", *self._measured(step)))
        title = f"{self.removed:,} of {total:,} weights removed, {self.criterion}"
        return table(columns, rows, title) + (f"\nloss and accuracy on {self.basis}" if self.basis else "")

    def _measured(self, state: State) -> tuple[str | int | None, ...]:
        return *quality_cells(state, self.start, self.basis), state.params, format_bytes(state.bytes)
