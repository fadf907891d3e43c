"""The whole way in one call: the only file that knows all the stages."""

from __future__ import annotations

import dataclasses
import os
from functools import partial
from typing import Any, NamedTuple

from torch import nn

from secateur.artifacts import safetensors
from secateur.artifacts.measure import Sizes, measure_units
from secateur.cutting.captured_forward import captured_parts
from secateur.cutting.cut import cut_units
from secateur.errors import ArgumentError, BudgetError, choose
from secateur.planning import ranking as orders
from secateur.planning.budget import Budget
from secateur.planning.plan import Plan
from secateur.reporting.progress import progress_bar
from secateur.saliency.criterion import criteria
from secateur.saliency.data import first_inputs
from secateur.structure.inputs import as_call, like_model
from secateur.structure.units import Units, find_units, require_units, units_of


class Row(NamedTuple):
    """One step of the trade-off; loss and accuracy None where not measured."""

    removed: int
    loss: float | None
    accuracy: float | None
    params: int
    bytes: int


@dataclasses.dataclass(frozen=True)
class Result:
    """A shrunk network, how it came about and what it costs.

    Attributes:
        model: The smaller network.
        plan: What was removed; `secateur.cut(original, plan)` makes the same network again.
        curve: One row per step of the plan.
        before: Sizes, loss and accuracy of the original.
        after: The same of the smaller network; `after.bytes` is the written file's size.
        max_difference: The largest difference between its outputs and those of the gated original.
        captured: The submodules of `model` whose own code cannot compute with the sizes left, and that compute by
            their part of the captured graph instead, as in eval mode; ("",) if that is the whole network.
    """

    model: nn.Module
    plan: Plan
    curve: tuple[Row, ...]
    before: Sizes
    after: Sizes
    max_difference: float
    captured: tuple[str, ...] = ()

    def save(self, path: str | os.PathLike[str]) -> int:
        """Write the network and its plan as .safetensors, whole or not at all; returns the bytes.

        Raises:
            ArgumentError: The path ends in something else.
            ArtifactError: It cannot be written.
        """
        return safetensors.save(self.model, self.plan, path)

    def __str__(self) -> str:
        sizes = f"before  {self.before}\nafter   {self.after}"
        return f"{self.plan}\n\n{sizes}\ncut and gated differ by {self.max_difference:.1e}\n{self._form()}"

    def _form(self) -> str:
        if not self.captured:
            return f"the network is a {type(self.model).__name__}, as it was"
        if self.captured == ("",):
            return "the network is its pruned graph: its own code cannot compute with the sizes left"
        names = ", ".join(self.captured[:3]) + (" ..." if len(self.captured) > 3 else "")
        return f"{len(self.captured)} of its modules compute by their pruned graph: {names}"


def rank(
    model: nn.Module,
    data: Any,
    loss: Any,
    units: Units | None = None,
    criterion: str = "oracle",
    ranking: str = "iterative",
    budget: Budget | None = None,
    threshold: str | None = None,
    validation: Any = None,
    seed: int = 0,
    progress: bool = True,
    shortlist: int | None = None,
    max_memory: int | str | None = None,
) -> Plan:
    """The order in which units go, with the loss, the accuracy and the sizes after each.

    ``single`` (003 Algorithm I) scores all units once and removes them from the lowest saliency up;
    ``iterative`` (Algorithm II) scores those that are left again after each removal. Of tied units the one that
    frees more bytes goes first, then the first in order. Cost: one scoring pass, or one per removal.

    Args:
        model: Evaluated as in eval mode, left as it was.
        data: A pair (inputs, targets) of tensors, or an iterable of such batches that can be read again; None
            for criteria that look at weights only.
        loss: ``loss(outputs, targets)``, the mean over the batch, or a name; None with ``data=None``.
        units: From `find_units`; None to find them with the first batch.
        criterion: As for `score`.
        ranking: "single" or "iterative".
        budget: Where to stop, what to protect; None to leave one unit in each set.
        threshold: "mean" or "median": estimates above it are replaced by it, and so tied.
        validation: Data on which loss and accuracy are measured; None for `data`.
        seed: For criteria that draw random numbers.
        progress: Show a bar on stderr.
        shortlist: With the iterative oracle, evaluate only so many units exactly at each step: those that ``taylor1``
            finds least; None for all.
        max_memory: As for `score`.

    Raises:
        ArgumentError: An unknown name, a shortlist for anything else than the iterative oracle, a memory that is none.
        BudgetError: The budget is out of reach; says how far one can get.
        DataError: Unusable data or loss.
        ModelError: The model cannot be captured, holds NaN, or has no removable units.

    >>> import torch
    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Linear(3, 4), nn.Sigmoid(), nn.Linear(4, 2))
    >>> plan = rank(model, (torch.randn(8, 3), torch.tensor([0, 1] * 4)), "cross_entropy")
    >>> len(plan.steps), plan.steps[-1].params, plan.at(Budget(remove_units=2)).steps == plan.steps[:2]
    (3, 8, True)
    """
    choose("criterion", criterion, criteria())
    choose("ranking", ranking, orders.RANKINGS)
    units = require_units(find_units(model, first_inputs(data)) if units is None else units)
    size = partial(safetensors.file_size, model, units)
    with progress_bar(f"ranking by {criterion}", progress) as bar:
        return orders.rank(
            model, data, loss, units, size, criterion, ranking, budget, threshold, validation, seed, shortlist,
            max_memory, on_step=bar,
        )  # fmt: skip


def shrink(
    model: nn.Module,
    data: Any,
    loss: Any,
    budget: Budget,
    example_inputs: Any = None,
    units: Units | None = None,
    criterion: str = "oracle",
    ranking: str = "iterative",
    threshold: str | None = None,
    validation: Any = None,
    seed: int = 0,
    progress: bool = True,
    shortlist: int | None = None,
    max_memory: int | str | None = None,
) -> Result:
    """A smaller network within the budget, proven to compute what the original does without the units removed.

    Finds the units, ranks them, takes the prefix of the order that the budget asks for, cuts, and verifies on
    the first batch or the example inputs. No weight that stays is changed.

    Args:
        model: Never touched.
        data: As for `rank`.
        loss: As for `rank`.
        budget: What must hold at the end.
        example_inputs: As for `find_units`; None for the first batch's.
        units: From `find_units`; None to find them.
        criterion: As for `score`.
        ranking: "single" or "iterative".
        threshold: "mean" or "median".
        validation: Data on which loss and accuracy are measured, of the curve and for the budget; None for
            `data`.
        seed: For criteria that draw random numbers.
        progress: Show a bar on stderr.
        shortlist: As for `rank`.
        max_memory: As for `score`.

    Raises:
        ArgumentError: An unknown name, or a budget of quality where it cannot be measured.
        BudgetError: The budget cannot be met; says how far one can get.
        DataError: Unusable data or loss.
        ModelError: The model cannot be captured, holds NaN, or has no removable units.
        VerificationError: The result would not compute what the gated original does.

    >>> import torch
    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Linear(3, 8), nn.Sigmoid(), nn.Linear(8, 2))
    >>> data = torch.randn(16, 3), torch.tensor([0, 1] * 8)
    >>> result = shrink(model, data, "cross_entropy", Budget(remove_fraction=0.5), progress=False)
    >>> result.before.params, result.after.params, result.max_difference < 1e-6
    (50, 26, True)
    """
    if budget is None:
        raise ArgumentError("budget: expected secateur.Budget(...), got None")
    example = first_inputs(data) if example_inputs is None else example_inputs
    units = require_units(find_units(model, example) if units is None else units)
    order = rank(
        model,
        data,
        loss,
        units,
        criterion,
        ranking,
        budget,
        threshold,
        validation,
        seed,
        progress,
        shortlist,
        max_memory,
    )
    plan = order.at(budget)
    small, difference = cut_units(model, units, plan, like_model(model, as_call(example)))
    return _result(model, small, units, plan, difference, budget)


def _result(model: nn.Module, small: nn.Module, units: Units, plan: Plan, difference: float, budget: Budget) -> Result:
    written = len(safetensors.to_bytes(small, plan))
    if isinstance(budget.bytes, int) and written > budget.bytes:
        raise BudgetError(f"{budget} does not hold: the file has {written:,} bytes, {plan.states[-1].bytes:,} expected")
    start, end = plan.states[0], plan.states[-1]
    after = measure_units(small, units_of(small, units.captured.spec.sample(small)))
    return Result(
        small,
        plan,
        tuple(Row(n, s.loss, s.accuracy, s.params, s.bytes) for n, s in enumerate(plan.steps, 1)),
        dataclasses.replace(measure_units(model, units), loss=start.loss, accuracy=start.accuracy),
        dataclasses.replace(after, bytes=written, loss=end.loss, accuracy=end.accuracy),
        difference,
        captured_parts(small),
    )
