"""Plans: the order in which units go, with what each step costs and leaves; frozen, printable, JSON."""

from __future__ import annotations

import json
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, overload

from torch import nn

from secateur.arguments import describe, require_indices, require_instance, require_model
from secateur.errors import ArgumentError, PlanError
from secateur.options import Compensation, Ranking
from secateur.own_code.find_units import units_of_sets
from secateur.own_code.optimiser_state import Optimizer, StateTransfer
from secateur.own_code.slices import index_map, keep_mask_of
from secateur.planning.allotment import Curves, allotted_steps, end_of
from secateur.planning.budget import Budget
from secateur.planning.details.plan_text import plan_text
from secateur.planning.state import Basis, State, Step, Swaps, to_json
from secateur.structure.inputs import InputSpec, as_call
from secateur.structure.units import Units

FORMAT = 1


@dataclass(frozen=True)
class Plan:
    """A removal order; a budget picks a prefix of it (`at`), `secateur.cut` makes the network.

    Attributes:
        start: The network before any removal; None in a plan written by hand.
        steps: The removals in order.
        kept: Unit set → the original indices of the units that stay after all steps.
        inputs: The inputs that the model takes; None where unknown.
        made_by: The settings of the ranking; None in a plan written by hand.
        compensation: The settings by which `secateur.cut` fits the weights that stay, if it is given data; losses and
            accuracies are those after that fit. None where weights stay as they are.
        swaps: The exchanges of removed units for others; None without them.
        biases: The names of layers that get a bias, which makes up for removed units.
        basis: The samples that losses and accuracies were measured on; None where they were not.
        curves: The curves of all sets, from which a layerwise plan allots any budget again; None of other rankings.
        reason: Why this ranking was taken where none was asked for; plans are not compared by it.
        compared: How the order came out beside one by rise of the loss alone, where both were made; likewise.
        unfitted: Weights that cannot make up for removed units and stay as they are, each with the reason.
        rounds: The number of rounds, each ranked on the network that the one before left; 0 for one order.
        retrained: Whether the user's function trained the network after each round.
        artifact: The kind of file that the states' bytes are of.

    >>> plan = Plan.from_kept({"0": [0, 2], "2": [1]})
    >>> Plan.from_json(plan.to_json()) == plan
    True
    """

    kept_indices: tuple[tuple[str, tuple[int, ...]], ...]
    start: State | None = None
    steps: tuple[Step, ...] = ()
    inputs: InputSpec | None = None
    made_by: Ranking | None = None
    compensation: Compensation | None = None
    swaps: Swaps | None = None
    biases: tuple[str, ...] = ()
    basis: Basis | None = None
    curves: Curves | None = None
    reason: str | None = field(default=None, compare=False)
    compared: str | None = field(default=None, compare=False)
    unfitted: tuple[tuple[str, str], ...] = ()
    rounds: int = 0
    retrained: bool = False
    artifact: str = "safetensors"

    @property
    def criterion(self) -> str:
        """The name of the criterion."""
        return "by hand" if self.made_by is None else str(self.made_by.criterion)

    @property
    def ranking(self) -> str:
        """The name of the ranking."""
        return "by hand" if self.made_by is None else str(self.made_by.ranking)

    @property
    def compensated(self) -> bool:
        """Whether the weights that stay make up for those that go."""
        return self.compensation is not None and self.compensation.fit

    @property
    def in_rounds(self) -> str:
        """How often units were ranked again, in words."""
        rounds = "1 round" if self.rounds == 1 else f"{self.rounds} rounds"
        return f"{rounds}, trained after each" if self.retrained else rounds

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
        """The network after 0, 1, 2 ... steps."""
        return (*([self.start] if self.start else []), *self.steps)

    @classmethod
    def from_kept(cls, kept: Mapping[str, Iterable[int]], example_inputs: Any = None) -> Plan:
        """Return a plan written by hand.

        Args:
            kept: Unit set → the indices to keep; sets left out keep all.
            example_inputs: Inputs that the model takes, as for `find_units`; may be left out for a model with one
                input that starts with a dense layer.

        Raises:
            ArgumentError: This is no dict of unit sets' names, or the inputs are no such thing.
            PlanError: Indices are negative, repeated, or none is left.
        """
        if not isinstance(kept, Mapping):
            raise ArgumentError(f"kept: expected a dict of unit sets' names and the indices kept, got {describe(kept)}")
        pairs = tuple((name, require_indices(name, indices)) for name, indices in kept.items())
        return cls(pairs, inputs=None if example_inputs is None else InputSpec.of(as_call(example_inputs)))

    @overload
    def at(self, budget: Budget) -> Plan: ...

    @overload
    def at(self, budget: Sequence[Budget]) -> list[Plan]: ...

    def at(self, budget: Budget | Sequence[Budget]) -> Plan | list[Plan]:
        """Return the prefix of the plan that satisfies a budget; of a list of budgets the prefixes, in their order.

        Raises:
            BudgetError: No prefix does; the message says how far one can get.
            ArgumentError: The budget is no `Budget`, or bounds what was not measured, or the plan was made in rounds.
        """
        if isinstance(budget, list | tuple) and budget:
            return [self._at(each) for each in budget]
        return self._at(budget)

    def _at(self, budget: Any) -> Plan:
        require_instance("budget", budget, Budget, "secateur.Budget(...)")
        if self.start is None:
            raise ArgumentError("a plan written by hand has no order to take a prefix of")
        if self.rounds:
            raise ArgumentError("a plan made in rounds is for its own budget alone; shrink again for another one")
        if budget.latency_ms is not None:
            raise ArgumentError("Budget: latency_ms is measured on the networks themselves; secateur.shrink does that")
        if budget.bytes is not None and budget.artifact != self.artifact:
            raise ArgumentError(
                f"{budget}: the plan's bytes are of .{self.artifact} files; secateur.shrink makes one for others"
            )
        if self.basis is not None:
            if self.basis.fitted and budget.bounds_quality:
                raise ArgumentError(
                    f"{budget}: quality cannot be judged on the samples that weights were fitted on; make the plan "
                    "with rank(..., budget=budget), which holds every fifth sample back, or with validation="
                )
            budget.check_resolution(self.basis.predictions)
        if self.curves is not None:
            return self._allotted(self.curves, budget)
        return self.prefix(budget.position(self.states, self.sizes))

    def _allotted(self, curves: Curves, budget: Budget) -> Plan:
        """Return the plan that curves and a budget make; this one, with what was measured, if it has the same units.

        Raises:
            ArgumentError: The budget bounds a quality that was not measured there, or was and is not kept.
        """
        assert self.start is not None
        steps, sizes = allotted_steps(curves, budget), dict(curves.network.sets)
        end = end_of(steps, self.start, budget, sizes) if budget.least else len(self.steps)
        plan = replace(self, kept_indices=curves.whole, steps=(), basis=None).with_steps(steps[:end])
        measured = plan.kept == self.kept
        if not (measured and budget.good_enough(self.start, self.states[-1])) and budget.bounds_quality:
            raise ArgumentError(
                f"{budget}: along curves the loss is predicted, not measured; make the plan with "
                "rank(..., budget=budget)"
            )
        return self if measured else plan

    def longest(self, budget: Budget) -> Plan:
        """Return the whole order that a budget makes: of curves all that it permits, else the plan as it is."""
        if self.curves is None:
            return self
        return replace(self, kept_indices=self.curves.whole, steps=()).with_steps(allotted_steps(self.curves, budget))

    def with_steps(self, steps: tuple[Step, ...]) -> Plan:
        """Return the plan with further removals."""
        gone = {(step.set, step.index) for step in steps}
        kept = tuple((name, tuple(i for i in left if (name, i) not in gone)) for name, left in self.kept_indices)
        return replace(self, kept_indices=kept, steps=(*self.steps, *steps))

    def prefix(self, n: int) -> Plan:
        """Return the plan that ends after the first n steps."""
        staying: dict[str, list[int]] = {name: list(kept) for name, kept in self.kept_indices}
        for step in self.steps[n:]:
            staying[step.set].append(step.index)
        kept = tuple((name, tuple(sorted(indices))) for name, indices in staying.items())
        swaps = self.swaps if n == len(self.steps) else None
        return replace(self, kept_indices=kept, steps=self.steps[:n], swaps=swaps)

    def index_map(self, model: nn.Module) -> dict[str, list[list[int] | None]]:
        """Return from where every slice of the small network's weights comes; cost: one export.

        Args:
            model: The network that the plan was made for.

        Returns:
            Parameter or buffer → for each dimension the original's indices that stay, in their new order; None where
            all do. Those that stay whole are left out.

        Raises:
            PlanError: The plan does not fit the model.
        """
        return index_map(self._units(model), self.kept)

    def transfer(self, optimizer: Optimizer, model: nn.Module, small: nn.Module) -> Optimizer:
        """Return an optimiser for the cut network that goes on with the original's state: momenta of what stays.

        It is of the same class, with the same groups and settings; numbers kept for each weight (`momentum_buffer`,
        `exp_avg` ...) are sliced like the weight, counts of steps copied. Biases that the plan adds begin without
        state. A schedule has to be made again for it. Cost: one export.

        Args:
            optimizer: The optimiser of the original's parameters; left as it is.
            model: The original.
            small: The network that `secateur.cut` made of it by this plan.

        Raises:
            ArgumentError: The optimiser is not of the original's parameters, keeps other state (factored moments) or
                attributes that may be the original's (L-BFGS), or the small network does not fit the plan.
        """
        require_instance("optimizer", optimizer, Optimizer, "a torch.optim.Optimizer")
        model, small = require_model(model), require_model(small)
        units = self._units(model)
        return StateTransfer(model, small, units, keep_mask_of(units, self.kept), self.biases).optimizer(optimizer)

    def _units(self, model: nn.Module) -> Units:
        return units_of_sets(require_model(model), self.inputs or InputSpec.guess(model), self.kept.keys())

    def to_json(self) -> str:
        """Return the whole plan as JSON; `from_json` reads it."""
        return json.dumps(
            {
                "format": FORMAT,
                **self.options_to_json(),
                "swaps": self.swaps and asdict(self.swaps),
                "curves": self.curves and self.curves.to_json(),
                "reason": self.reason,
                "compared": self.compared,
                "unfitted": [list(pair) for pair in self.unfitted],
                "basis": self.basis and asdict(self.basis),
                "inputs": self.inputs and self.inputs.to_json(),
                "kept": self.kept,
                "artifact": self.artifact,
                "start": self.start and to_json(self.start),
                "steps": [to_json(step) for step in self.steps],
            }
        )

    def options_to_json(self) -> dict[str, Any]:
        """Return as plain data how the plan was made and how `cut` fits weights; the written file has this too."""
        options: dict[str, Any] = {
            "made_by": self.made_by and self.made_by.to_json(),
            "compensation": self.compensation and self.compensation.to_json(),
            "biases": self.biases,
            "rounds": self.rounds or None,
            "retrained": self.retrained or None,
        }
        return {name: value for name, value in options.items() if value not in (None, ())}

    @staticmethod
    def options_from_json(data: Mapping[str, Any]) -> dict[str, Any]:
        """Return keyword arguments of a plan from what `options_to_json` returns."""
        ranking, compensation = data.get("made_by"), data.get("compensation")
        return {
            "made_by": None if ranking is None else Ranking.from_json(ranking),
            "compensation": None if compensation is None else Compensation.from_json(compensation),
            "biases": tuple(map(str, data.get("biases", ()))),
            "rounds": int(data.get("rounds", 0)),
            "retrained": bool(data.get("retrained", False)),
        }

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read a plan from what `to_json` returns.

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
                swaps=data["swaps"] and Swaps(**data["swaps"]),
                curves=data.get("curves") and Curves.from_json(data["curves"]),
                reason=data.get("reason"),
                compared=data.get("compared"),
                unfitted=tuple((str(name), str(why)) for name, why in data.get("unfitted", ())),
                basis=data.get("basis") and Basis(**data["basis"]),
                artifact=str(data.get("artifact", "safetensors")),
                **cls.options_from_json(data),
            )
        except PlanError:
            raise
        except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
            raise PlanError(f"plan: not a plan's JSON ({type(error).__name__}: {error})") from error

    def __str__(self) -> str:
        return plan_text(self)
