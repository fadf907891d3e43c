"""The order in which units go, from options, criterion, the weights fitted on the way and the file's size."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

from torch import nn

from secateur.arguments import checked_call, require_flag, require_instance
from secateur.artifacts.header import network_sizes
from secateur.compensation.compensator import Compensator
from secateur.cutting.added_biases import with_biases, without_bias
from secateur.errors import ArgumentError
from secateur.objective.mask import Mask, masked
from secateur.objective.quality.metric import Metric
from secateur.objective.question import Question
from secateur.options import Compensation, Ranking, compensation_of
from secateur.own_code.cached_values import cached_values
from secateur.own_code.find_units import units_of
from secateur.planning.budget import Budget
from secateur.planning.network_sizes import NetworkSizes, OtherFile
from secateur.planning.plan import Plan
from secateur.planning.ranking import rank_units
from secateur.planning.ranking_choice import choose_ranking
from secateur.process_state import one_at_a_time
from secateur.refinement.augment import augmented
from secateur.reporting.progress import showing
from secateur.saliency.criterion import Criterion, Saliency, as_criterion
from secateur.structure.units import Units


@checked_call
@one_at_a_time
def rank(
    model: nn.Module,
    data: Any,
    loss: Any,
    *,
    units: Units | None = None,
    criterion: str | Saliency | None = None,
    ranking: str | None = None,
    budget: Budget | None = None,
    threshold: str | None = None,
    validation: Any = None,
    seed: int = 0,
    progress: bool = True,
    shortlist: int | None = None,
    refresh: int | None = None,
    swaps: bool = False,
    max_memory: int | str | None = None,
    mask: Mask | None = None,
    compensate: bool | Compensation = False,
    ridge: float | None = None,
    weighting: str = "ggn",
    recalibrate: bool = False,
    metric: Metric | None = None,
) -> Plan:
    """Return the order in which units go, with the loss, the accuracy and the sizes after each.

    ``single`` (003 Algorithm I) scores all units once and removes them from the lowest saliency up;
    ``iterative`` (Algorithm II) scores those that are left again after each removal. ``quadratic`` takes the loss as a
    parabola in all gates, E(1 − 1_S) − E(1) ≈ −1_Sᵀ∇ + ½ 1_SᵀH1_S with H from `interactions`, and removes the unit
    of least −∇_k + ½ H_kk; ∇ −= H[:, k] then tells the others. Of tied units the one that frees more bytes goes first,
    then the first in order. Cost: one scoring pass, or one per removal, or one matrix H.

    ``layerwise`` is for networks of any size: each unit set has an order of its own, made in closed form from one pass
    over the data, with the rise of the loss along it, measured at six sizes. A budget is shared among the sets by the
    lower convex hulls of these curves. The plan keeps them: ``plan.at`` allots any other budget without data.

    With `compensate` the weights left make up for each removal before the next is chosen: all are fitted to what the
    layers gave in the original, as `cut` does, and between two fits updated in closed form (Optimal Brain Surgeon).
    Of units that no layer makes up for (a recurrent layer's) the rise is measured, at most 64 at a time, the least by
    ``taylor1``. Losses and accuracies of the plan are those after compensation.

    Losses are measured after every removal where all these passes together are cheap by their counted multiplications,
    else after some fifty of them, at the end, and where a budget of quality ends; elsewhere they are None.

    Args:
        model: The network; evaluated as in eval mode, left as it was.
        data: A pair (inputs, targets) of tensors, or an iterable of such batches that can be read again; None
            for criteria that look at weights only.
        loss: As for `score`: ``loss(outputs, targets)``, the mean over the batch, or a name; None with ``data=None``.
        units: The units that `find_units` returns; None to find them with the first batch.
        criterion: As for `score`; None for ``oracle``, with `compensate` for ``obs``. A quadratic ranking takes
            ``ggn``, ``fisher`` or ``hessian``; None for ``ggn``, which extrapolates best, and with `refresh` for
            ``hessian``, which is exact nearby.
        ranking: "single", "iterative", "quadratic" or "layerwise"; None for "iterative" where the work that it takes is
            counted as small, else "layerwise". The plan's `reason` says which and why.
        budget: The bounds at which to stop, and what to protect; None to leave one unit in each set.
        threshold: "mean" or "median": estimates above it are replaced by it, and so tied.
        validation: The data on which loss and accuracy are measured, of the curve and for the budget; None for `data`.
            Where weights are fitted and the budget bounds the quality, every fifth sample of it is then held back.
        seed: The seed of criteria that draw random numbers.
        progress: Show on stderr what is done, and how long it takes on.
        shortlist: The number of units that the iterative oracle evaluates exactly at each step, the least ones by
            ``taylor1``, None for all; or, by ``obs`` with `compensate`, the number evaluated after compensation, None
            for none.
        refresh: The number of removals after which a quadratic ranking makes ∇ and H again, None for never; or, with
            `compensate`, after which all weights are fitted again, None for a hundredth of the units that can go.
        swaps: Whether a quadratic ranking with a budget of size exchanges one removed unit for another as long as that
            lowers the predicted loss and the budget still holds; ``plan.swaps`` says by how much.
        max_memory: As for `score`.
        mask: Which positions count in the fit, and in the losses "output" and "distribution": the name of a keyword
            input [samples, positions], or a function of the inputs that returns True where they do; None for the
            keyword input ``attention_mask``, where there is one. Others, padding, are left out.
        compensate: Whether the weights left make up for what goes; fitted on `data`.
        ridge: As for `cut`.
        weighting: As for `cut`.
        recalibrate: As for `cut`; also without `compensate`.
        metric: A function ``metric(outputs, targets)`` that returns a number, the higher the better; where lower is
            better (perplexity), let it return the negative. It is measured wherever the loss is, by one call with the
            outputs and the targets of all samples there: of all batches in one, or, where these differ in more than
            their number of samples (lengths of texts), with two lists of the batches'.

    Raises:
        ArgumentError: A name is unknown, a memory is no size, or an argument is for another ranking or criterion.
        BudgetError: The budget is out of reach; the message says how far one can get.
        DataError: The data or the loss cannot be used.
        ModelError: The model cannot be captured, holds NaN, or has no removable units.

    >>> import torch
    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Linear(3, 4), nn.Sigmoid(), nn.Linear(4, 2))
    >>> plan = rank(model, (torch.randn(8, 3), torch.tensor([0, 1] * 4)), "cross_entropy")
    >>> len(plan.steps), plan.steps[-1].params, plan.at(Budget(remove_units=2)).steps == plan.steps[:2]
    (3, 8, True)
    """
    require_flag("progress", progress)
    compensation = compensation_of(compensate, ridge=ridge, weighting=weighting, recalibrate=recalibrate)
    if budget is not None:
        require_budget(budget)
        _require_counted(budget)
    order = Ranking(criterion, ranking, threshold, shortlist, refresh, swaps)
    resolve(order, compensation, budget)
    data, validation = masked(data, mask), validation if validation is None else masked(validation, mask)
    question = Question(
        model, data, loss, units, validation=validation, seed=seed, max_memory=max_memory
    ).measuring(metric)  # fmt: skip
    with showing(progress):
        return make_order(prepared(question, order, compensation, budget)).plan


class Ranked(NamedTuple):
    """A plan, the question that it answers, and what fitted the weights on the way."""

    plan: Plan
    question: Question
    compensator: Compensator | None


class Job(NamedTuple):
    """A ranking to be made, with all that was chosen for it.

    Attributes:
        question: The model, its units and the data, without samples that are held back.
        ranking: The settings, with a ranking and a criterion.
        criterion: Computes the saliencies.
        compensation: How weights are fitted; None to leave them as they are.
        budget: The bounds at which to stop; None for none.
        biases: The layers that got a bias.
        reason: Why this ranking was taken; None where it was asked for.
        file: The bytes of the file that the budget is of, where that is no .safetensors file.
    """

    question: Question
    ranking: Ranking
    criterion: Criterion
    compensation: Compensation | None
    budget: Budget | None
    biases: tuple[str, ...]
    reason: str | None
    file: OtherFile | None = None


def require_budget(budget: Any) -> None:
    """Refuse a budget that is none.

    Raises:
        ArgumentError: It is no `secateur.Budget`.
    """
    require_instance("budget", budget, Budget, "secateur.Budget(...)")


def require_measured(budget: Budget | None, question: Question) -> None:
    """Refuse a budget of a metric where there is none.

    Raises:
        ArgumentError: There is none.
    """
    if budget is not None and budget.max_metric_drop is not None and question.metric is None:
        raise ArgumentError("Budget: max_metric_drop needs metric=, a function of outputs and targets")


def _require_counted(budget: Budget) -> None:
    """Refuse a budget of what the networks themselves have to be made for.

    Raises:
        ArgumentError: It is one of time, or of a file of another runtime.
    """
    for name, counted in (("latency_ms", None), ("artifact", "safetensors")):
        if getattr(budget, name) != counted:
            raise ArgumentError(f"Budget: {name} is measured on the networks themselves; secateur.shrink does that")


def resolve(ranking: Ranking, compensation: Compensation | None, budget: Budget | None) -> tuple[Ranking, Criterion]:
    """Return the ranking with its criterion's name, and the criterion; nothing is captured for that."""
    criterion = None if ranking.criterion is None else as_criterion(ranking.criterion)
    named = dataclasses.replace(ranking, criterion=criterion and criterion.name)
    resolved = named.resolved(compensation is not None and compensation.fit, budget is not None and budget.least)
    return resolved, criterion or as_criterion(resolved.criterion)


def prepared(question: Question, ranking: Ranking, compensation: Compensation | None, budget: Budget | None) -> Job:
    """Return what a ranking takes, with what is chosen for it.

    Where weights are fitted and a budget bounds the quality, it is measured on samples that no weight is fitted on.
    Inputs beside the data are refused here, before any unit is ranked.
    """
    question.more.check_use(compensation)
    require_measured(budget, question)
    question, biases = _with_biases(question, compensation)
    quality, reason = budget is not None and budget.bounds_quality, None
    if compensation is not None and quality and question.validation is None and question.gated.has_loss:
        question = question.holding_back()
    _check_more(question)
    if ranking.ranking is None:
        ranking, reason = choose_ranking(question, ranking, compensation is not None and compensation.fit, budget)
    return Job(question, *resolve(ranking, compensation, budget), compensation, budget, biases, reason)


def make_order(job: Job) -> Ranked:
    """Make the order of removals.

    Raises:
        BudgetError: The budget is out of reach.
    """
    question, ranking, compensation, biases = job.question, job.ranking, job.compensation, job.biases
    compensator = None if compensation is None else Compensator(question.gated, compensation)
    header = Plan((), inputs=question.units.captured.spec, made_by=ranking, compensation=compensation, biases=biases)
    plan = rank_units(
        question, ranking, job.criterion, compensator, job.budget, sizes_of(job, header), bool(job.reason)
    )
    unfitted = tuple(compensator.unfitted.items()) if compensator else ()
    artifact = "safetensors" if job.budget is None else job.budget.artifact
    made = dataclasses.replace(plan, biases=biases, reason=job.reason, unfitted=unfitted, artifact=artifact)
    return Ranked(made, question, compensator)


def _check_more(question: Question) -> None:
    """Refuse inputs beside the data that do not fit the model, and a function that makes such.

    Raises:
        DataError: There are such.
    """
    more = question.more
    if more.unlabelled is None and more.augment is None:
        return
    batches = question.calibration.batches
    if more.augment is not None:
        augmented(question.gated, batches[:1], more.augment)


def sizes_of(job: Job, header: Plan) -> NetworkSizes:
    """Return the sizes of a job's network for any units kept, those that its budget bounds among them.

    Args:
        job: The job, its `file` known where its budget is of a file of another kind.
        header: Says what is written of the plan.
    """
    question, budget = job.question, job.budget
    cached = {}
    if budget is not None and budget.kv_cache is not None:
        cached = cached_values(question.model, question.units, question.call)
    return dataclasses.replace(network_sizes(question.model, question.units, header, cached), file=job.file)


def _with_biases(question: Question, compensation: Compensation | None) -> tuple[Question, tuple[str, ...]]:
    """Return the question of a copy with the biases that compensation asks for, and the layers that got one."""
    if compensation is None or not compensation.add_bias:
        return question, ()
    biases = without_bias(question.model, question.units)
    if not biases:
        return question, ()
    model = with_biases(question.model, biases)
    return question.for_model(model, units_of(model, question.call, question.units.include)), biases
