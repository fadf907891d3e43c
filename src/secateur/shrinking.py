"""The whole way in one call: the only file that knows all the stages."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn

from secateur.arguments import checked_call, require_instance
from secateur.artifacts import safetensors
from secateur.artifacts.measure import measure_units
from secateur.compensation.compensator import Compensator
from secateur.cutting.added_biases import with_biases, without_bias
from secateur.cutting.captured_forward import captured_parts
from secateur.cutting.cut import cut_units
from secateur.cutting.final_fit import fitted_plan
from secateur.cutting.probe_weights import holding
from secateur.errors import ArgumentError, BudgetError, choose
from secateur.objective.question import Question
from secateur.options import Compensation, Ranking, compensation_of
from secateur.planning.budget import Budget
from secateur.planning.plan import Plan
from secateur.planning.ranking import rank as rank_units
from secateur.reporting.progress import progress_bar
from secateur.result import Result, Row
from secateur.saliency.criterion import GRANULARITIES, Criterion, Saliency, as_criterion
from secateur.structure.process_state import one_at_a_time
from secateur.structure.units import Units, units_of
from secateur.weight_pruning import Loop, shrink_weights


@checked_call
@one_at_a_time
def rank(
    model: nn.Module,
    data: Any,
    loss: Any,
    *,
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
    compensate: bool | Compensation = False,
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
    compensation = compensation_of(compensate, ridge=ridge, weighting=weighting, recalibrate=recalibrate)
    if budget is not None:
        _require_budget(budget)
    options = _options(Ranking(criterion, ranking, threshold, shortlist, refresh, swaps), compensation, budget)
    question = Question(model, data, loss, units, validation=validation, seed=seed, max_memory=max_memory)
    return _ranked(question, *options, compensation, budget, progress).plan


class Ranked(NamedTuple):
    """A plan, the question that it answers, and what fitted the weights on the way."""

    plan: Plan
    question: Question
    compensator: Compensator | None


def _require_budget(budget: Any) -> None:
    require_instance("budget", budget, Budget, "secateur.Budget(...)")


def _options(ranking: Ranking, compensation: Compensation | None, budget: Budget | None) -> tuple[Ranking, Criterion]:
    """Return the ranking with its criterion's name, and the criterion; nothing is captured for that."""
    given = None if ranking.criterion is None else as_criterion(ranking.criterion)
    named = dataclasses.replace(ranking, criterion=given and given.name)
    resolved = named.resolved(compensation is not None and compensation.fit, budget is not None and budget.least)
    return resolved, given or as_criterion(resolved.criterion)


def _ranked(
    question: Question, ranking: Ranking, criterion: Criterion, compensation: Compensation | None,
    budget: Budget | None, progress: bool,
) -> Ranked:  # fmt: skip
    """Make the order; where weights are fitted and a budget bounds the quality, samples that none was fitted on judge.

    Raises:
        BudgetError: The budget is out of reach.
    """
    question, biases = _with_biases(question, compensation)
    quality = budget is not None and budget.bounds_quality
    if compensation is not None and quality and question.validation is None and question.gated.has_loss:
        question = question.holding_back()
    compensator = None if compensation is None else Compensator(question.gated, compensation)
    header = Plan((), inputs=question.units.captured.spec, made_by=ranking, compensation=compensation, biases=biases)

    def size(kept: dict[str, tuple[int, ...]]) -> int:
        plan = dataclasses.replace(header, kept_indices=tuple(kept.items()))
        return safetensors.file_size(question.model, question.units, plan)

    with progress_bar(f"ranking by {ranking.criterion}", progress) as bar:
        plan = rank_units(question, ranking, criterion, compensator, budget, size, bar)
    return Ranked(dataclasses.replace(plan, biases=biases), question, compensator)


def _with_biases(question: Question, compensation: Compensation | None) -> tuple[Question, tuple[str, ...]]:
    """Ask the question of a copy whose layers have the biases that compensation asks for; and which layers get one."""
    if compensation is None or not compensation.add_bias:
        return question, ()
    biases = without_bias(question.model, question.units)
    if not biases:
        return question, ()
    model = with_biases(question.model, biases)
    return question.for_model(model, units_of(model, question.call, question.units.include)), biases


@checked_call
@one_at_a_time
def shrink(
    model: nn.Module,
    data: Any,
    loss: Any,
    budget: Budget,
    *,
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
    compensate: bool | Compensation = True,
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
    _require_budget(budget)
    fitting = {"ridge": ridge, "weighting": weighting, "recalibrate": recalibrate, "add_bias": add_bias}
    order: dict[str, Any] = {
        "ranking": ranking, "threshold": threshold, "shortlist": shortlist, "refresh": refresh, "swaps": swaps
    }  # fmt: skip
    loop = Loop(rounds, retrain)
    question = Question(
        model, data, loss, units, example_inputs=example_inputs, validation=validation, seed=seed, max_memory=max_memory
    )
    choose("granularity", granularity, GRANULARITIES)
    if granularity == "weight":
        _refuse_for_weights({**order, **fitting}, compensate)
        chosen = as_criterion("obd" if criterion is None else criterion, "weight")
        return _without_weights(question, chosen, loop, budget, progress)
    loop.refuse_for_units()
    compensation = _compensation(compensate, fitting, data)
    options = _options(Ranking(criterion, **order), compensation, budget)
    ranked = _ranked(question, *options, compensation, budget, progress)
    return _shrunk(question, ranked, budget)


def _compensation(compensate: Any, fitting: dict[str, Any], data: Any) -> Compensation | None:
    """Return how weights are fitted; None without data, where nothing says that they must be.

    Raises:
        ArgumentError: Settings are given and no data.
    """
    compensation = compensation_of(compensate, **fitting)
    if data is not None or compensation is None:
        return compensation
    if compensate is True and compensation == Compensation():
        return None
    raise ArgumentError(f"compensate: {compensation} needs data to fit on, got None")


def _refuse_for_weights(options: dict[str, Any], compensate: Any) -> None:
    """Refuse what has no meaning where single weights are removed.

    Raises:
        ArgumentError: An option for units is given.
    """
    defaults = {**vars(Ranking()), **vars(Compensation())}
    changed = [name for name, value in options.items() if value != defaults[name]]
    if isinstance(compensate, Compensation):
        changed.append("compensate")
    if changed:
        raise ArgumentError(f"{changed[0]}: has no meaning with granularity='weight'")


def _shrunk(question: Question, ranked: Ranked, budget: Budget) -> Result:
    """Cut what the plan says, with the weights fitted at its end, and prove it.

    Raises:
        BudgetError: The file is larger than the budget allows.
    """
    plan, asked, weights = ranked.plan.at(budget), ranked.question, dict[str, Tensor]()
    if ranked.compensator is not None:
        plan, weights = fitted_plan(asked, ranked.compensator, plan, budget)
    with holding(asked.model, weights):
        small, difference = cut_units(asked.model, asked.units, plan, asked.call)
        after = measure_units(asked.model, asked.units, plan)
    written = len(safetensors.to_bytes(small, plan))
    if isinstance(budget.bytes, int) and written > budget.bytes:
        raise BudgetError(f"{budget} does not hold: the file has {written:,} bytes, {plan.states[-1].bytes:,} expected")
    start, end = plan.states[0], plan.states[-1]
    return Result(
        small,
        plan,
        tuple(Row(n, s.loss, s.accuracy, s.params, s.bytes) for n, s in enumerate(plan.steps, 1)),
        dataclasses.replace(
            measure_units(question.model, question.units), bytes=start.bytes, loss=start.loss, accuracy=start.accuracy
        ),
        dataclasses.replace(after, bytes=written, loss=end.loss, accuracy=end.accuracy),
        difference,
        captured_parts(small),
    )


def _without_weights(question: Question, criterion: Criterion, loop: Loop, budget: Budget, progress: bool) -> Result:
    with progress_bar(f"removing weights by {criterion.name}", progress) as bar:
        network, plan, difference = shrink_weights(question, criterion, loop, budget, on_round=bar)
    end = plan.steps[-1] if plan.steps else plan.start
    before, after = (
        dataclasses.replace(
            measure_units(question.model, question.all_units), params=s.params, bytes=s.bytes, loss=s.loss,
            accuracy=s.accuracy,
        )
        for s in (plan.start, end)
    )  # fmt: skip
    rows = tuple(Row(s.removed, s.loss, s.accuracy, s.params, s.bytes) for s in plan.steps)
    return Result(network, plan, rows, before, after, difference)
