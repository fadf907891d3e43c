"""The whole way in one call: the only file that knows all the stages."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, nn

from secateur.artifacts import safetensors
from secateur.artifacts.measure import Sizes, measure_units
from secateur.artifacts.safetensors import weights_to_bytes
from secateur.cutting.biases import with_biases, without_bias
from secateur.cutting.captured_forward import captured_parts
from secateur.cutting.compensated import fitted_plan
from secateur.cutting.cut import cut_units
from secateur.cutting.trial import holding
from secateur.errors import ArgumentError, BudgetError, choose
from secateur.planning import ranking as orders
from secateur.planning.budget import Budget
from secateur.planning.plan import Plan
from secateur.planning.weight_plan import WeightPlan
from secateur.reporting.progress import progress_bar
from secateur.saliency.compensation import Settings
from secateur.saliency.data import first_inputs
from secateur.saliency.gates import Gated
from secateur.saliency.registry import Criterion, Saliency, as_criterion
from secateur.shrink_weights import shrink_weights
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
        model: The smaller network; without single weights one of the same sizes, these zero and frozen.
        plan: What was removed; `secateur.cut(original, plan)` makes the same network again, with
            ``compensate=data, loss=loss`` where weights made up for it. Of weights their masks.
        curve: One row per step of the plan.
        before: Sizes, loss and accuracy of the original.
        after: The same of the smaller network; `after.bytes` is the written file's size.
        max_difference: The largest difference between its outputs and those of the gated original; where weights were
            trained, those of the original's graph with its weights and the masks.
        captured: The submodules of `model` whose own code cannot compute with the sizes left, and that compute by
            their part of the captured graph instead, as in eval mode; ("",) if that is the whole network.
    """

    model: nn.Module
    plan: Plan | WeightPlan
    curve: tuple[Row, ...]
    before: Sizes
    after: Sizes
    max_difference: float
    captured: tuple[str, ...] = ()

    def save(self, path: str | os.PathLike[str]) -> int:
        """Write the network and its plan as .safetensors, whole or not at all; returns the bytes.

        Raises:
            ArgumentError: The path ends in something else.
            ArtifactError: It cannot be written, or removed weights are no longer zero.
        """
        if isinstance(self.plan, Plan):
            return safetensors.save(self.model, self.plan, path)
        safetensors.check_path(path)
        return safetensors.save_bytes(weights_to_bytes(self.model, self.plan.masks, self.plan.inputs), path)

    def report(self, path: str | os.PathLike[str]) -> None:
        """Write what happened as one .html file that needs nothing else, whole or not at all.

        Args:
            path: Where to write it; ends in .html or .htm.

        Raises:
            ArgumentError: The path ends in something else.
            ArtifactError: It cannot be written.
        """
        from secateur.reporting.page import check_page, write  # matplotlib is slow to import, and only pages need it
        from secateur.reporting.result_page import result_page

        check_page(path)
        write(result_page(self.plan, self.before, self.after, self.max_difference, self._form()), path)

    def __str__(self) -> str:
        sizes = f"before  {self.before}\nafter   {self.after}"
        two = "cut and gated" if isinstance(self.plan, Plan) else "it and the graph with masked weights"
        return f"{self.plan}\n\n{sizes}\n{two} differ by {self.max_difference:.1e}\n{self._form()}"

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
    criterion: str | Saliency | None = None,
    ranking: str = "iterative",
    budget: Budget | None = None,
    threshold: str | None = None,
    validation: Any = None,
    seed: int = 0,
    progress: bool = True,
    shortlist: int | None = None,
    refresh: int | None = None,
    swaps: bool = False,
    max_memory: int | str | None = None,
    compensate: bool = False,
    ridge: float | None = None,
    weighting: str = "ggn",
    recalibrate: bool = False,
) -> Plan:
    """The order in which units go, with the loss, the accuracy and the sizes after each.

    ``single`` (003 Algorithm I) scores all units once and removes them from the lowest saliency up;
    ``iterative`` (Algorithm II) scores those that are left again after each removal. ``quadratic`` takes the loss as a
    parabola in all gates, E(1 − 1_S) − E(1) ≈ −1_Sᵀ∇ + ½ 1_SᵀH1_S with H from `interactions`, and removes the unit
    of least −∇_k + ½ H_kk; ∇ −= H[:, k] then tells the others. Of tied units the one that frees more bytes goes first,
    then the first in order. Cost: one scoring pass, or one per removal, or one matrix H.

    With `compensate` the weights left make up for each removal before the next is chosen: all are fitted to what the
    layers gave in the original, as `cut` does, and between two fits updated in closed form (Optimal Brain Surgeon).
    Losses and accuracies of the plan are those after compensation.

    Args:
        model: Evaluated as in eval mode, left as it was.
        data: A pair (inputs, targets) of tensors, or an iterable of such batches that can be read again; None
            for criteria that look at weights only.
        loss: ``loss(outputs, targets)``, the mean over the batch, or a name; None with ``data=None``.
        units: From `find_units`; None to find them with the first batch.
        criterion: As for `score`; None for ``oracle``, with `compensate` for ``obs``. A quadratic ranking takes
            ``ggn``, ``fisher`` or ``hessian``; None for ``ggn``, which extrapolates best, and with `refresh` for
            ``hessian``, which is exact nearby.
        ranking: "single", "iterative" or "quadratic".
        budget: Where to stop, what to protect; None to leave one unit in each set.
        threshold: "mean" or "median": estimates above it are replaced by it, and so tied.
        validation: Data on which loss and accuracy are measured; None for `data`.
        seed: For criteria that draw random numbers.
        progress: Show a bar on stderr.
        shortlist: With the iterative oracle, evaluate only so many units exactly at each step: those that ``taylor1``
            finds least; with ``obs`` and `compensate`, evaluate so many that it finds least, after compensation; None
            for all, and none.
        refresh: With the quadratic ranking, make ∇ and H again after so many removals, None for never; with
            `compensate`, fit all weights again after so many, None for a hundredth of the units that can go.
        swaps: With the quadratic ranking and a budget of size, exchange one removed unit for another as long as that
            lowers the predicted loss and the budget still holds; ``plan.swaps`` says by how much.
        max_memory: As for `score`.
        compensate: Whether the weights left make up for what goes; fitted on `data`.
        ridge: As for `cut`.
        weighting: As for `cut`.
        recalibrate: As for `cut`; also without `compensate`.

    Raises:
        ArgumentError: An unknown name, a memory that is none, an argument for another ranking or criterion.
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
    settings = _settings(compensate, ridge, weighting, recalibrate)
    found = _criterion(criterion, ranking, refresh, settings)  # before the capture: a typo costs none
    units = require_units(find_units(model, first_inputs(data)) if units is None else units)
    return _rank(
        model, data, loss, units, found, ranking, budget, threshold, validation, seed, progress, shortlist, refresh,
        swaps, max_memory, settings, (),
    )  # fmt: skip


def _rank(
    model: nn.Module, data: Any, loss: Any, units: Units, criterion: Criterion, ranking: str, budget: Budget | None,
    threshold: str | None, validation: Any, seed: int, progress: bool, shortlist: int | None, refresh: int | None,
    swaps: bool, max_memory: int | str | None, settings: Settings | None, biases: tuple[str, ...],
) -> Plan:  # fmt: skip
    size = partial(safetensors.file_size, model, units, biases=biases)
    with progress_bar(f"ranking by {criterion.name}", progress) as bar:
        plan = orders.rank(
            model, data, loss, units, size, criterion, ranking, budget, threshold, validation, seed, shortlist,
            refresh, swaps, max_memory, settings, on_step=bar,
        )  # fmt: skip
    return dataclasses.replace(plan, biases=biases)


def _criterion(
    criterion: str | Saliency | None, ranking: str, refresh: int | None, settings: Settings | None
) -> Criterion:
    choose("ranking", ranking, orders.RANKINGS)
    fitted = settings is not None and settings.weights
    return as_criterion(orders.own_criterion(ranking, refresh, fitted) if criterion is None else criterion)


def _settings(compensate: bool, ridge: float | None, weighting: str, recalibrate: bool) -> Settings | None:
    if not compensate and (ridge is not None or weighting != "ggn"):
        raise ArgumentError(f"{'weighting' if ridge is None else 'ridge'}: is for compensate=True")
    return Settings(ridge, weighting, recalibrate, bool(compensate)) if compensate or recalibrate else None


def shrink(
    model: nn.Module,
    data: Any,
    loss: Any,
    budget: Budget,
    example_inputs: Any = None,
    units: Units | None = None,
    criterion: str | Saliency | None = None,
    ranking: str = "iterative",
    threshold: str | None = None,
    validation: Any = None,
    seed: int = 0,
    progress: bool = True,
    shortlist: int | None = None,
    refresh: int | None = None,
    swaps: bool = False,
    granularity: str = "unit",
    retrain: Callable[[nn.Module], object] | None = None,
    rounds: int = 1,
    max_memory: int | str | None = None,
    compensate: bool = True,
    ridge: float | None = None,
    weighting: str = "ggn",
    recalibrate: bool = False,
    add_bias: bool = False,
) -> Result:
    """A smaller network within the budget, proven to compute what the gated original does.

    Finds the units, ranks them, takes the prefix of the order that the budget asks for, cuts, and verifies on
    the first batch or the example inputs. The weights left make up for what goes, in closed form, as `cut` says; with
    ``compensate=False`` no weight that stays is changed.

    With ``granularity="weight"`` single weights are removed instead, by Optimal Brain Damage's loop (note 004): score
    all that are left, set the least salient ones to zero and freeze them, `retrain`, repeat. A network of the same
    sizes, whose file is written without them: smaller from about 1 weight removed in 32 (in float32). The weights left
    fall by the same share in each round; with a budget of quality alone each round removes as much as it allows.
    `params` are those left, each parameter counts as a unit set, and biases and norms' vectors stay.

    Args:
        model: Never touched.
        data: As for `rank`.
        loss: As for `rank`.
        budget: What must hold at the end.
        example_inputs: As for `find_units`; None for the first batch's.
        units: From `find_units`; None to find them.
        criterion: As for `rank`.
        ranking: "single", "iterative" or "quadratic".
        threshold: "mean" or "median".
        validation: Data on which loss and accuracy are measured, of the curve and for the budget; None for
            `data`.
        seed: For criteria that draw random numbers.
        progress: Show a bar on stderr.
        shortlist: As for `rank`.
        refresh: As for `rank`.
        swaps: As for `rank`.
        granularity: "unit" or "weight".
        retrain: With weights, called with the network after each round; removed weights stay zero through it (make
            the optimiser inside).
        rounds: With weights, how often.
        max_memory: As for `score`.
        compensate: Whether the weights left make up for the units that go; fitted on `data`, where there is any.
        ridge: As for `cut`.
        weighting: As for `cut`.
        recalibrate: As for `cut`; also without `compensate`.
        add_bias: As for `cut`.

    Raises:
        ArgumentError: An unknown name, a budget of quality where it cannot be measured, an argument for another
            granularity or ranking.
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
    unused = {
        "unit": {"retrain": retrain is not None, "rounds": rounds != 1},
        "weight": {
            "ranking": ranking != "iterative", "threshold": threshold is not None, "shortlist": shortlist is not None,
            "refresh": refresh is not None, "swaps": swaps, "ridge": ridge is not None,
            "weighting": weighting != "ggn", "recalibrate": recalibrate, "add_bias": add_bias,
        },
    }  # fmt: skip
    for name, given in choose("granularity", granularity, unused).items():
        if given:
            raise ArgumentError(f"{name}: has no meaning with granularity={granularity!r}")
    example = first_inputs(data) if example_inputs is None else example_inputs
    units = find_units(model, example) if units is None else units
    if granularity == "weight":
        return _without_weights(
            model, data, loss, budget, example, units, "obd" if criterion is None else criterion, validation, seed,
            progress, retrain, rounds, max_memory,
        )  # fmt: skip
    require_units(units)
    compensate = compensate and data is not None
    settings = _settings(compensate, ridge, weighting, recalibrate)
    found = _criterion(criterion, ranking, refresh, settings)
    biases = without_bias(model, units) if add_bias else ()
    if biases:
        model = with_biases(model, biases)
        units = units_of(model, like_model(model, as_call(example)), units.include)
    order = _rank(
        model, data, loss, units, found, ranking, budget, threshold, validation, seed, progress, shortlist, refresh,
        swaps, max_memory, settings, biases,
    )  # fmt: skip
    plan, weights = order.at(budget), dict[str, Tensor]()
    if settings is not None:
        gated = Gated(model, units, data, loss, seed, max_memory)
        measured = gated if validation is None else Gated(model, units, validation, loss, max_memory=max_memory)
        plan, weights = fitted_plan(gated, measured, plan, budget, settings)
    with holding(model, weights):
        small, difference = cut_units(model, units, plan, like_model(model, as_call(example)))
        return _result(model, small, units, plan, difference, budget)


def _without_weights(
    model: nn.Module, data: Any, loss: Any, budget: Budget, example: Any, units: Units, criterion: str | Saliency,
    validation: Any, seed: int, progress: bool, retrain: Callable[[nn.Module], object] | None, rounds: int,
    max_memory: int | str | None,
) -> Result:  # fmt: skip
    found = as_criterion(criterion, "weight")
    with progress_bar(f"removing weights by {found.name}", progress) as bar:
        network, plan, difference = shrink_weights(
            model, data, loss, budget, like_model(model, as_call(example)), units, found, validation, seed, retrain,
            rounds, max_memory, on_round=bar,
        )  # fmt: skip
    end = plan.steps[-1] if plan.steps else plan.start
    before, after = (
        dataclasses.replace(
            measure_units(model, units), params=s.params, bytes=s.bytes, loss=s.loss, accuracy=s.accuracy
        )
        for s in (plan.start, end)
    )
    rows = tuple(Row(s.removed, s.loss, s.accuracy, s.params, s.bytes) for s in plan.steps)
    return Result(network, plan, rows, before, after, difference)


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
