"""The removal order with what each step costs and leaves: frozen, printable, JSON."""

from __future__ import annotations

import json
import operator
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from secateur.arguments import describe, require_instance
from secateur.errors import ArgumentError, PlanError
from secateur.structure.inputs import InputSpec, as_call
from secateur.text import format_bytes, table

if TYPE_CHECKING:
    from secateur.planning.budget import Budget

FORMAT = 1


@dataclass(frozen=True)
class State:
    """What is left at one point of the order; loss and accuracy None where not measured."""

    loss: float | None
    accuracy: float | None
    params: int
    bytes: int
    macs: int


@dataclass(frozen=True)
class Step(State):
    """One removal: the unit, in the numbering of the original model, the predicted rise of the loss, what is left."""

    set: str
    index: int
    predicted: float | None


@dataclass(frozen=True)
class Swaps:
    """What exchanging removed units did to the rise of the loss that a quadratic ranking predicts.

    Attributes:
        number: Of exchanges.
        before: The predicted rise without them.
        after: With them; never more.
    """

    number: int
    before: float
    after: float

    def __str__(self) -> str:
        if not self.number:
            return f"no swap lowers the predicted rise of the loss, {self.before:.4g}"
        swaps = "1 swap" if self.number == 1 else f"{self.number} swaps"
        return f"{swaps} lowered the predicted rise of the loss from {self.before:.4g} to {self.after:.4g}"


@dataclass(frozen=True)
class Plan:
    """A removal order; a budget picks a prefix of it (`at`), `secateur.cut` makes the network.

    Attributes:
        start: The network before any removal; None in a plan written by hand.
        steps: The removals in order.
        kept: Unit set → the original indices of the units that stay after all steps.
        inputs: What the model takes; None where unknown.
        criterion: How saliency was computed.
        ranking: How the order was made.
        swaps: What exchanges made of it; None without them.
        compensated: Whether losses and accuracies are those after compensation, which `secateur.cut` makes if it is
            given data.
        biases: Layers that get a bias, for what it makes up for.

    >>> plan = Plan.from_kept({"0": [0, 2], "2": [1]})
    >>> Plan.from_json(plan.to_json()) == plan
    True
    """

    kept_indices: tuple[tuple[str, tuple[int, ...]], ...]
    start: State | None = None
    steps: tuple[Step, ...] = ()
    inputs: InputSpec | None = None
    criterion: str = "by hand"
    ranking: str = "by hand"
    swaps: Swaps | None = None
    compensated: bool = False
    biases: tuple[str, ...] = ()

    @property
    def kept(self) -> dict[str, tuple[int, ...]]:
        """Unit set → the original indices of the units that stay."""
        return dict(self.kept_indices)

    @property
    def sizes(self) -> dict[str, int]:
        """Unit set → its units before the first step."""
        sizes = {name: len(kept) for name, kept in self.kept_indices}
        for step in self.steps:
            sizes[step.set] += 1
        return sizes

    @property
    def states(self) -> tuple[State, ...]:
        """What is left after 0, 1, 2 ... steps."""
        return (*([self.start] if self.start else []), *self.steps)

    @classmethod
    def from_kept(cls, kept: Mapping[str, Iterable[int]], example_inputs: Any = None) -> Plan:
        """A plan written by hand.

        Args:
            kept: Unit set → the indices to keep; sets left out keep all.
            example_inputs: What the model takes, as for `find_units`; may be left out for a model with one
                input that starts with a dense layer.

        Raises:
            ArgumentError: This is no dict of unit sets' names, or the inputs are no such thing.
            PlanError: Indices are negative, repeated, or none is left.
        """
        if not isinstance(kept, Mapping):
            raise ArgumentError(f"kept: expected a dict of unit sets' names and the indices kept, got {describe(kept)}")
        pairs = tuple((name, _indices(name, indices)) for name, indices in kept.items())
        return cls(pairs, inputs=None if example_inputs is None else InputSpec.of(as_call(example_inputs)))

    def at(self, budget: Budget) -> Plan:
        """The prefix that satisfies a budget.

        Raises:
            BudgetError: No prefix does; says how far one can get.
            ArgumentError: The budget is none, or asks for what the plan does not know.
        """
        from secateur.planning.budget import Budget  # which takes prefixes of plans

        require_instance("budget", budget, Budget, "secateur.Budget(...)")
        if self.start is None:
            raise ArgumentError("a plan written by hand has no order to take a prefix of")
        return budget.take(self)

    def prefix(self, n: int) -> Plan:
        """The first n steps."""
        back: dict[str, list[int]] = {name: list(kept) for name, kept in self.kept_indices}
        for step in self.steps[n:]:
            back[step.set].append(step.index)
        kept = tuple((name, tuple(sorted(indices))) for name, indices in back.items())
        swaps = self.swaps if n == len(self.steps) else None
        return replace(self, kept_indices=kept, steps=self.steps[:n], swaps=swaps)

    def to_json(self) -> str:
        """All of it as JSON; `from_json` reads it."""
        return json.dumps(
            {
                "format": FORMAT,
                "criterion": self.criterion,
                "ranking": self.ranking,
                "swaps": self.swaps and asdict(self.swaps),
                "compensated": self.compensated,
                "biases": self.biases,
                "inputs": self.inputs and self.inputs.to_json(),
                "kept": self.kept,
                "start": self.start and asdict(self.start),
                "steps": [asdict(step) for step in self.steps],
            }
        )

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The reverse of `to_json`.

        Raises:
            PlanError: The text is no plan, or one of another format.
        """
        try:
            data = json.loads(text)
            if data["format"] != FORMAT:
                raise PlanError(f"plan: format {data['format']!r}, this version reads {FORMAT}")
            return cls(
                tuple((name, tuple(map(operator.index, kept))) for name, kept in data["kept"].items()),
                data["start"] and State(**data["start"]),
                tuple(Step(**step) for step in data["steps"]),
                data["inputs"] and InputSpec.from_json(data["inputs"]),
                data["criterion"],
                data["ranking"],
                data["swaps"] and Swaps(**data["swaps"]),
                bool(data.get("compensated", False)),
                tuple(map(str, data.get("biases", ()))),
            )
        except PlanError:
            raise
        except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
            raise PlanError(f"plan: not a plan's JSON ({type(error).__name__}: {error})") from error

    def __str__(self) -> str:
        if self.start is None:
            rows = [(name, len(kept), " ".join(map(str, kept))) for name, kept in self.kept_indices]
            return table(["unit set", "kept", "indices"], rows, "plan written by hand")
        every = max(1, -(-len(self.steps) // 20))
        shown = [n for n in range(len(self.steps) + 1) if n % every == 0 or n == len(self.steps)]
        columns = ["removed", "last", "predicted", "loss", "accuracy", "params", "bytes"]
        title = f"{len(self.steps)} of {sum(self.sizes.values())} units removed, {self.criterion} / {self.ranking}"
        title += ", compensated" if self.compensated else ""
        return table(columns, [self._row(n) for n in shown], title) + (f"\n{self.swaps}" if self.swaps else "")

    def _row(self, n: int) -> tuple[object, ...]:
        here = self.states[n]
        last, predicted = (f"{here.set}[{here.index}]", here.predicted) if isinstance(here, Step) else ("", None)
        accuracy = None if here.accuracy is None else f"{here.accuracy:.4f}"
        return (n, last, number(predicted), number(here.loss), accuracy, here.params, format_bytes(here.bytes))


def _indices(name: str, indices: Iterable[int]) -> tuple[int, ...]:
    """Return the indices that stay of one unit set, in order.

    Raises:
        ArgumentError: The unit set is not given by its name.
        PlanError: They are negative or repeated, none is left, or they are no whole numbers.
    """
    require_instance("kept", name, str, "names of unit sets, each a str")
    expected = f"kept[{name!r}]: expected one or more different indices from 0, got "
    try:
        several = list(indices)
        chosen = tuple(sorted(map(operator.index, several)))
    except TypeError:
        raise PlanError(f"{expected}{indices!r}") from None
    if any(isinstance(one, bool) or getattr(one, "dtype", None) == torch.bool for one in several):
        raise PlanError(f"{expected}a mask of True and False")
    if not chosen or chosen[0] < 0 or len(set(chosen)) < len(chosen):
        raise PlanError(f"{expected}{list(chosen)}")
    return chosen


def number(value: float | None) -> str | None:
    """Three digits of it, as in the tables."""
    return None if value is None else f"{value:.3g}"
