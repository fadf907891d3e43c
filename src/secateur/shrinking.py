"""The whole way in one call: the only file that knows all the stages."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from secateur.arguments import checked_call, require_flag
from secateur.artifacts.measure import Sizes, measure_units
from secateur.cutting.captured_forward import captured_parts
from secateur.cutting.cut import cut_units
from secateur.cutting.final_fit import fitted_plan, measured_plan
from secateur.cutting.generation import proven_for
from secateur.errors import ArgumentError, BudgetError, choose
from secateur.estimating.estimate import estimate_of, long_job
from secateur.estimating.measured_costs import SAFETENSORS, at_budget, file_bytes, latency_ms, unhurried, with_file
from secateur.objective.mask import Mask, masked
from secateur.objective.quality.metric import Metric
from secateur.objective.question import Question
from secateur.objective.unlabelled import Augment, MoreInputs
from secateur.options import Compensation, Ranking, compensation_of
from secateur.ordering import Job, Ranked, make_order, prepared, require_budget, require_measured, resolve
from secateur.own_code.probe_weights import holding
from secateur.phases import phase
from secateur.planning.budget import Budget
from secateur.planning.plan import Plan
from secateur.planning.state import State
from secateur.process_state import one_at_a_time
from secateur.reporting.progress import progress_bar, showing
from secateur.result import Result, Row
from secateur.retraining.loop import shrink_in_rounds
from secateur.saliency.criterion import GRANULARITIES, Criterion, Saliency, as_criterion
from secateur.structure.units import Units
from secateur.weight_pruning import Loop, shrink_weights


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
    ranking: str | None = None,
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
    mask: Mask | None = None,
    compensate: bool | Compensation = True,
    ridge: float | None = None,
    weighting: str = "ggn",
    recalibrate: bool = False,
    add_bias: bool = False,
    refine: int | str = 0,
    unlabelled: Any = None,
    augment: Augment | None = None,
    metric: Metric | None = None,
) -> Result:
    """Return a smaller network within the budget, proven to compute what the gated original does.

    The units are found and ranked, the prefix of the order that the budget asks for is cut, and the result is verified
    on the first batch or the example inputs. The weights left make up for what goes, in closed form, as `cut` says;
    with ``compensate=False`` no weight that stays is changed.

    With `retrain` or `rounds` this is done in rounds: what is left is cut, proven, trained by `retrain`, and ranked
    again. What the budget counts (bytes, parameters, units, units of each set) falls by the same share in each round,
    to the budget in the last one; with a budget of quality alone each round removes as many as it allows, and one
    that training does not bring back within it is undone. The plan is in the original's numbers; sets of units that
    the code of a cut network ties together otherwise lose no more. Losses are measured on the same samples throughout.

    With ``granularity="weight"`` single weights are removed instead, by Optimal Brain Damage's loop (note 004): score
    all that are left, set the least salient ones to zero and freeze them, `retrain`, repeat. The network keeps its
    sizes, and its file is written without them: smaller from about 1 weight removed in 32 (in float32). The number of
    weights left falls by the same share in each round; with a budget of quality alone each round removes as many as it
    allows. `params` counts those left, each parameter counts as a unit set, and biases and norms' vectors stay.

    Args:
        model: The network; never touched.
        data: As for `rank`; with ``loss="output"`` or ``loss="distribution"`` inputs alone will do.
        loss: As for `score`.
        budget: The bounds that must hold at the end.
        example_inputs: As for `find_units`; None for the first batch's.
        units: The units that `find_units` returns; None to find them.
        criterion: As for `rank`.
        ranking: As for `rank`.
        threshold: "mean" or "median".
        validation: The data on which loss and accuracy are measured, of the curve and for the budget; None for `data`.
            Where weights are fitted and the budget bounds the quality, every fifth sample of it is then held back.
        seed: The seed of criteria that draw random numbers, and of `augment`.
        progress: Show on stderr what is done, and how long it takes on.
        shortlist: As for `rank`.
        refresh: As for `rank`.
        swaps: As for `rank`.
        granularity: "unit" or "weight".
        retrain: A function that is called with the network after each round, the last one too, and trains it in place
            (make the optimiser inside); of units it may return it, and must not change its structure. Removed single
            weights stay zero through it.
        rounds: The number of rounds.
        max_memory: As for `score`.
        mask: As for `rank`.
        compensate: Whether the weights left make up for the units that go; fitted on `data`, where there is any.
        ridge: As for `cut`.
        weighting: As for `cut`.
        recalibrate: As for `cut`; also without `compensate`.
        add_bias: As for `cut`.
        refine: As for `cut`.
        unlabelled: More inputs, without targets, in any form that `data` may have with ``loss="output"``: at the end
            the weights left are fitted and refined on them and `data`. Units go in an order made of `data` alone, where
            loss and accuracy are measured, too; and with a loss of your own and ``weighting="ggn"`` the fit before the
            refinement is made on `data` alone, since that curvature takes targets.
        augment: A function ``augment(inputs, generator)`` for the refinement, which takes each sample as it is and once
            as this function changes it (shifts, turns, blurs it); both are fitted to, or both are held out. It is
            called with the inputs of a batch on the model's device, a tensor, or a tuple or a dict as in `data`, and a
            `torch.Generator` of that device, seeded with `seed`, for all that it draws. It returns new inputs of the
            same form, shapes and dtypes.
        metric: As for `rank`.

    Raises:
        ArgumentError: A name is unknown, a budget of quality cannot be measured, or an argument is for another
            granularity or ranking.
        BudgetError: The budget cannot be met; the message says how far one can get.
        DataError: The data or the loss cannot be used.
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
    require_budget(budget)
    require_flag("progress", progress)
    fitting = {
        "ridge": ridge, "weighting": weighting, "recalibrate": recalibrate, "add_bias": add_bias, "refine": refine,
    }  # fmt: skip
    order: dict[str, Any] = {
        "ranking": ranking, "threshold": threshold, "shortlist": shortlist, "refresh": refresh, "swaps": swaps
    }  # fmt: skip
    loop = Loop(rounds, retrain)
    samples, validation = masked(data, mask), validation if validation is None else masked(validation, mask)
    question = (
        Question(
            model,
            samples,
            loss,
            units,
            example_inputs=example_inputs,
            validation=validation,
            seed=seed,
            max_memory=max_memory,
        )
        .with_more(MoreInputs(unlabelled if unlabelled is None else masked(unlabelled, mask), augment))
        .measuring(metric)
    )
    choose("granularity", granularity, GRANULARITIES)
    if granularity == "weight":
        _refuse_for_weights({**order, **fitting, **vars(question.more)}, compensate)
        _refuse_costs(budget, "with granularity='weight'", "ram", "kv_cache", "latency_ms", "artifact")
        weight_criterion = as_criterion("obd" if criterion is None else criterion, "weight")
        with showing(progress):
            return _without_weights(question, weight_criterion, loop, budget)
    compensation = _compensation(compensate, fitting, data)
    ranked_by = Ranking(criterion, **order)
    if loop.in_one_go:
        return shrink_to_each(question, ranked_by, compensation, [budget], progress)[0]
    _refuse_costs(budget, "with rounds or retrain", "latency_ms")
    resolve(ranked_by, compensation, budget)
    with showing(progress) as shown:
        job = with_file(prepared(question, ranked_by, compensation, budget))
        if progress and long_job(job):
            shown.say(f"each round {estimate_of(job).summary}")
        cut = shrink_in_rounds(job, loop, budget)
        return _result(question, job.question, cut.plan, (cut.network, cut.difference), cut.end, budget, None)


@one_at_a_time
def shrink_to_each(
    question: Question,
    ranking: Ranking,
    compensation: Compensation | None,
    budgets: Sequence[Budget],
    progress: bool = True,
) -> list[Result]:
    """Return a smaller network for each budget, all from one order: units are scored once, for the tightest one.

    Each network is cut, fitted and proven by itself; its quality is measured.

    Args:
        question: The model, its units and the data.
        ranking: The settings of the order.
        compensation: How weights are fitted; None to leave them as they are.
        budgets: One budget, or several that differ in `bytes` alone.
        progress: Whether to show on stderr what is done.

    Raises:
        SecateurError: As for `shrink`; the first budget that cannot be met ends it.
    """
    resolve(ranking, compensation, tightest(budgets))
    with showing(progress) as shown:
        job = unhurried(with_file(prepared(question, ranking, compensation, tightest(budgets))))
        if progress and long_job(job):
            shown.say(estimate_of(job).summary)
        ranked = make_order(job)
        return [_shrunk(question, job, ranked, budget) for budget in budgets]


def tightest(budgets: Sequence[Budget]) -> Budget:
    """Return the budget of the smallest file."""
    return min(budgets, key=lambda budget: int(budget.bytes or 0))


def _compensation(compensate: Any, fitting: dict[str, Any], data: Any) -> Compensation | None:
    """Return how weights are fitted; None without data, unless settings ask for it.

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
    """Refuse options that have no meaning where single weights are removed.

    Raises:
        ArgumentError: An option for units is given.
    """
    defaults = {**vars(Ranking()), **vars(Compensation()), **vars(MoreInputs())}
    changed = [name for name, value in options.items() if value != defaults[name]]
    compensation_of(compensate)  # refuses what is neither a bool nor settings
    if isinstance(compensate, Compensation):
        changed.append("compensate")
    if changed:
        raise ArgumentError(f"{changed[0]}: has no meaning with granularity='weight'")


def _refuse_costs(budget: Budget, why: str, *names: str) -> None:
    """Refuse bounds that are not counted.

    Raises:
        ArgumentError: There is one of these names.
    """
    for name in names:
        if getattr(budget, name) not in (None, SAFETENSORS):
            raise ArgumentError(f"Budget: {name} has no meaning {why}")


def _shrunk(question: Question, job: Job, ranked: Ranked, budget: Budget) -> Result:
    """Cut what the plan says, with the weights fitted at its end, and prove it."""
    plan, latency = at_budget(job, ranked, budget)
    with_bias, weights = ranked.question, dict[str, Tensor]()
    if ranked.compensator is None:
        plan = measured_plan(with_bias, plan)
    else:
        order = ranked.plan if budget.least else ranked.plan.longest(budget)
        plan, weights = fitted_plan(with_bias, ranked.compensator, order, plan, budget)
    with holding(with_bias.model, weights), phase("cutting and proving"):
        proven = cut_units(with_bias.model, with_bias.units, plan, with_bias.call)
    return _result(question, with_bias, plan, proven, plan.states[-1], budget, latency)


def _result(
    question: Question, with_bias: Question, plan: Plan, proven: tuple[nn.Module, float], end: State, budget: Budget,
    latency: float | None,
) -> Result:  # fmt: skip
    """Return what shrinking gives.

    Args:
        question: The original's.
        with_bias: The same with the biases that the plan adds.
        plan: The removals.
        proven: The network that is left, and its largest difference from the gated original.
        end: The network's quality, and the size expected of its file.
        budget: The bounds.
        latency: The milliseconds that the small network takes for one sample; None where nobody asked.

    Raises:
        BudgetError: The file is larger than the budget allows.
    """
    small, difference = proven
    sizes = proven_for(with_bias.model, small, with_bias.units, with_bias.call)
    after, start = measure_units(with_bias.model, with_bias.units, plan), plan.states[0]
    written = file_bytes(with_bias, plan, small, budget.artifact)
    if isinstance(budget.bytes, int) and written > budget.bytes:
        raise BudgetError(f"{budget} does not hold: the file has {written:,} bytes, {end.bytes:,} expected")
    whole = None if latency is None else latency_ms(question.model, question)
    before = _sizes(measure_units(question.model, question.units), start, start.bytes, whole)
    after = _sizes(after, end, written, latency)
    rows = tuple(_row(n, step) for n, step in enumerate(plan.steps, 1))
    return Result(small, plan, rows, before, after, difference, captured_parts(small), sizes)


def _sizes(sizes: Sizes, state: State, written: int, latency: float | None = None) -> Sizes:
    """Return sizes with a state's quality and cache, the bytes of the written file, and the time measured."""
    quality: dict[str, Any] = {"loss": state.loss, "accuracy": state.accuracy, "metric": state.metric}
    return dataclasses.replace(
        sizes, bytes=written, kv_cache=state.kv_cache or None, latency_ms=latency, **quality
    )  # fmt: skip


def _row(removed: int, state: State) -> Row:
    return Row(removed, state.loss, state.accuracy, state.params, state.bytes, state.metric)


def _without_weights(question: Question, criterion: Criterion, loop: Loop, budget: Budget) -> Result:
    """Remove single weights until the budget is met, and prove it."""
    require_measured(budget, question)
    with progress_bar(f"removing weights by {criterion.name}") as bar:
        network, plan, difference = shrink_weights(question, criterion, loop, budget, on_round=bar)
    end = plan.steps[-1] if plan.steps else plan.start
    whole = measure_units(question.model, question.all_units)
    before, after = (
        dataclasses.replace(_sizes(whole, state, state.bytes), params=state.params) for state in (plan.start, end)
    )
    rows = tuple(_row(step.removed, step) for step in plan.steps)
    return Result(network, plan, rows, before, after, difference)
