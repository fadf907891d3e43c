"""Units that the model's own code can follow: what its code ties together is removed together, and the rest stays.

Each module's code is tried once with another number of units left of each set. Where it fails, the sets that make it
fail are found by trying each alone; sizes that it takes for equal are then kept equal, and where that is not enough
the sets are fixed, with the line of code that fails.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from secateur.own_code.attribute_search import runs_of
from secateur.own_code.module_calls import ModuleCall
from secateur.own_code.trial import Outcome, OwnCode
from secateur.structure.axis import Axis, count, expand, find, fix, leaves, unify
from secateur.structure.capture import evaluating
from secateur.structure.graph_run import tolerance
from secateur.structure.inputs import Call
from secateur.structure.keep_mask import KeepMask
from secateur.structure.units import Units

FEWER = 5  # different numbers of units less, for sets beside each other


class Run(NamedTuple):
    """An axis whose positions all belong to units that may be removed.

    Attributes:
        axis: The axis.
        sets: The sets that the units belong to.
    """

    axis: Axis
    sets: tuple[Axis, ...]


Tie = tuple[Run, ...]  # of one size, of which the same positions stay


@dataclass
class Limits:
    """What the code demands.

    Attributes:
        ties: Axes of which equally many positions stay.
        fixed: Axes that must stay whole, each with the reason.
    """

    ties: list[Tie] = field(default_factory=list)
    fixed: dict[Axis, str] = field(default_factory=dict)


def followed(model: nn.Module, units: Units, call: Call) -> Units:
    """Return the units that the model's own code can follow.

    Cost: a forward pass of the model and of its graph for these inputs, and some trials of each kind of module.

    Args:
        model: The original.
        units: All its units; what its code ties together is one axis afterwards.
        call: Inputs.
    """
    limits = _limits(model, units, call) if units.sets else Limits()
    if not limits.ties and not limits.fixed:
        return units
    for first, *others in limits.ties:
        for other in others:
            unify(other.axis, first.axis)
    for axis, reason in limits.fixed.items():
        fix(axis, reason)
    return units.again(model)


def _limits(model: nn.Module, units: Units, call: Call) -> Limits:
    limits, kinds = Limits(), dict[object, list[Limit] | None]()
    with evaluating(model), torch.no_grad():
        allowed = tolerance(model)
        code = OwnCode.of(model, units, call, allowed)
        for module_call in list(code.calls):
            module = _Module(code, module_call, units, limits)
            if module.sets:
                if module.kind not in kinds:
                    kinds[module.kind] = module.find()
                found = kinds[module.kind]
                if found is not None:
                    module.take(found)
                elif module_call.name:
                    code.drop(module_call)
    return limits


class Limit(NamedTuple):
    """A limit in terms of a module: the places of its axes there, and the line of code where they must stay whole."""

    places: tuple[int, ...]
    line: str | None = None


class _Module:
    """A module, and the sets that its own code sees."""

    def __init__(self, code: OwnCode, call: ModuleCall, units: Units, limits: Limits) -> None:
        self.code, self.call, self.limits = code, call, limits
        net, nodes = units.net, code.nodes(call)
        seen = [n for node in nodes for n in (node, *node.all_input_nodes) if n in net.known]
        seen += [node for seam in (call, *code.inner(call)) for node in seam.nodes if node in net.known]
        axes = {find(axis): None for node in seen for part in net.outputs_of(node) for axis in part}
        free = {s.axis for s in units if s.size > 1}
        self.runs = list({tuple(leaves(run.axis)): run for axis in axes for run in _runs(axis, free)}.values())
        self.sets = list(dict.fromkeys(leaf for run in self.runs for leaf in run.sets))
        forms = tuple(str(node.target) for node in nodes), tuple(map(repr, axes))
        self.kind = (type(code.model.get_submodule(call.name)), *forms)

    def find(self) -> list[Limit] | None:
        """Return what the code demands beyond the limits so far; None where it cannot be tried alone."""
        code = self.code.precise(self.call)
        if code is None:
            return None
        self.code = code
        free = [leaf for leaf in self.sets if leaf not in self.limits.fixed]
        failing, ties, fixed = self._culprits(free), list[Tie](), dict[Axis, str]()
        for tie in self._candidates(failing) if failing else ():
            members = [leaf for run in tie for leaf in run.sets]
            if all(leaf in failing for leaf in members) and self._tried(members, [*ties, tie]).changes is not None:
                ties.append(tie)
                failing = {leaf: line for leaf, line in failing.items() if leaf not in members}
        following = list[Axis]()
        for leaf in sorted(free, key=lambda leaf: leaf in failing) if ties or failing else ():
            outcome = self._tried([*following, leaf], ties)
            if outcome.changes is None:
                fixed[leaf] = outcome.line
            else:
                following.append(leaf)
        limits = [Limit(tuple(map(self.runs.index, tie))) for tie in ties]
        axes = [run.axis for run in self.runs]
        return limits + [Limit((axes.index(leaf),), line) for leaf, line in fixed.items()]

    def take(self, limits: Sequence[Limit]) -> None:
        """Add limits that were found here, or for a module of the same kind."""
        for places, line in limits:
            runs = tuple(self.runs[place] for place in places)
            if line is None:
                self.limits.ties.append(runs)
            else:
                self.limits.fixed.setdefault(runs[0].axis, _reason(line, self.call.name))

    def _candidates(self, failing: Mapping[Axis, str]) -> Iterator[Tie]:
        """Yield groups of axes of one size that the code may take for equal, the largest sizes first."""
        by_size: dict[int, list[Run]] = {}
        for run in self.runs:
            if all(leaf in failing for leaf in run.sets):
                by_size.setdefault(run.axis.size, []).append(run)
        for size in sorted(by_size, reverse=True):
            runs = sorted(by_size[size], key=lambda run: -len(leaves(run.axis)))  # what has the most parts leads
            group = list[Run]()
            for run in runs:
                if not any(leaf in other.sets for other in group for leaf in run.sets):
                    group.append(run)
            if len(group) > 1:
                yield tuple(group)

    def _culprits(self, sets: list[Axis]) -> dict[Axis, str]:
        """Return the sets by which the code fails, alone or together, each with the line."""
        outcome = self._tried(sets, []) if sets else Outcome([])
        if outcome.changes is not None:
            return {}
        if len(sets) == 1:
            return {sets[0]: outcome.line}
        half = len(sets) // 2
        return self._culprits(sets[:half]) | self._culprits(sets[half:]) or dict.fromkeys(sets, outcome.line)

    def _tried(self, sets: Sequence[Axis], ties: Sequence[Tie]) -> Outcome:
        """Return whether the code follows when each of these sets has lost another number of units.

        Three ways of losing them are tried: one alone may fit by chance, and a single unit that is left fits anywhere.
        """
        outcome = Outcome([])
        for left in _ways(sets):
            if outcome.changes is not None:
                outcome = self._follows(left, ties)
        return outcome

    def _follows(self, left: Mapping[Axis, int], ties: Sequence[Tie]) -> Outcome:
        masks = {leaf: torch.arange(leaf.size) < n for leaf, n in left.items()}
        for first, *others in (*self.limits.ties, *ties):
            if any(leaf in masks for run in (first, *others) for leaf in run.sets):
                for leaf in first.sets:
                    masks.setdefault(leaf, torch.arange(leaf.size) < max(1, leaf.size - 1))
                positions = KeepMask(masks).mask(first.axis)
                for run in others:
                    masks |= {leaf: _units_at(run.axis, leaf, positions) for leaf in run.sets}
        kept = {leaf: mask for leaf, mask in masks.items() if leaf not in self.limits.fixed}
        return self.code.follows(self.call, KeepMask(kept))


def _ways(sets: Sequence[Axis]) -> Iterator[dict[Axis, int]]:
    """Yield numbers of units that are left of each set: other numbers less; then one less, but more than one."""
    for least, ordered in ((1, sets), (2, sets[::-1])):
        yield {leaf: leaf.size - min(leaf.size - 1, least + i % FEWER) for i, leaf in enumerate(ordered)}
    if any(leaf.size < FEWER + 3 for leaf in sets):
        yield {leaf: leaf.size - (leaf.size > 2) for leaf in sets}


def _units_at(axis: Axis, leaf: Axis, positions: Tensor) -> Tensor:
    """Return the units of a leaf at positions of an axis that are left."""
    numbers = expand(axis, {leaf: torch.arange(2, leaf.size + 2)}, torch.ones(1, dtype=torch.int64)) - 2
    mask = torch.zeros(leaf.size, dtype=torch.bool)
    return mask.index_fill(0, numbers[positions & (numbers >= 0)], True)


def _runs(axis: Axis, free: set[Axis]) -> list[Run]:
    """Return an axis, its parts, and runs of them whose positions all belong to free units."""
    runs = []
    for run in runs_of(axis):
        sets = tuple(dict.fromkeys(leaf for leaf in leaves(run) if leaf in free))
        if sets and count(run, dict.fromkeys(sets, 0)) == 0:
            runs.append(Run(run, sets))
    return runs


def _reason(line: str, name: str) -> str:
    where = f"in {name!r}" if name else "in the model's own forward"
    why = f"`{line}` {where}" if line else f"it computes something else {where}"
    return f"the model's own code cannot follow: {why}; include='all' removes it through a captured part"
