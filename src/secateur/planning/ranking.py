"""From saliencies to an order of removals: single (003, Algorithm I), iterative (Algorithm II), quadratic."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import ArgumentError, choose
from secateur.planning.budget import Budget
from secateur.planning.order import FileSize, OnStep, Order
from secateur.planning.plan import Plan
from secateur.planning.quadratic import rank_quadratic
from secateur.saliency.compensation import Compensation, Settings
from secateur.saliency.criterion import THRESHOLDS, apply_threshold, find_criterion, saliency_of
from secateur.saliency.gates import Gated
from secateur.saliency.interactions import CURVATURES
from secateur.saliency.obs import UnitSurgeon
from secateur.saliency.oracle import rises
from secateur.saliency.registry import Criterion, Saliency, as_criterion, criteria
from secateur.structure.units import Units

RANKINGS = {"single": "single", "iterative": "iterative", "quadratic": "quadratic"}


def own_criterion(ranking: str, refresh: int | None, compensate: bool) -> str:
    """The criterion that a ranking takes if none is given: what a removal costs once it is made up for, or not.

    A parabola that has to last is that of Gauss and Newton, which has no direction downwards; one that is made again
    after a few removals may be exact.
    """
    if choose("ranking", ranking, RANKINGS) != "quadratic":
        return "obs" if compensate else "oracle"
    return "ggn" if refresh is None else "hessian"


def criteria_for(ranking: str) -> list[str]:
    """The criteria that a ranking takes."""
    return list(CURVATURES if ranking == "quadratic" else criteria())


CHEAP = "taylor1"  # makes the shortlist: one backward pass


def rank(
    model: nn.Module,
    data: Any,
    loss: Any,
    units: Units,
    file_size: FileSize,
    criterion: str | Saliency | Criterion | None = None,
    ranking: str = "iterative",
    budget: Budget | None = None,
    threshold: str | None = None,
    validation: Any = None,
    seed: int = 0,
    shortlist: int | None = None,
    refresh: int | None = None,
    swaps: bool = False,
    max_memory: int | str | None = None,
    settings: Settings | None = None,
    on_step: OnStep = lambda *_: None,
) -> Plan:
    """The order of removals; `secateur.rank` is this with the size of the written file filled in.

    Args:
        model: Evaluated as in eval mode, left as it was.
        data: As for `secateur.score`.
        loss: As for `secateur.score`.
        units: The model's units.
        file_size: Bytes of the written file, by the units kept.
        criterion: A criterion, its name or its function; None for the ranking's own.
        ranking: "single", "iterative" or "quadratic".
        budget: Where to stop; None to go on until one unit is left in each set.
        threshold: "mean" or "median".
        validation: Data on which loss and accuracy are measured; None for `data`.
        seed: For criteria that draw random numbers.
        shortlist: As for `secateur.rank`.
        refresh: As for `secateur.rank`.
        swaps: As for `secateur.rank`.
        max_memory: As for `secateur.score`.
        settings: How weights make up for each removal; None to leave them as they are.
        on_step: Called after each step.

    Returns:
        The plan, as long as the budget needs it, or with a budget of quality alone as long as it can be.

    Raises:
        ArgumentError: An unknown name, or a budget that is none.
    """
    compensate = settings is not None
    chosen = as_criterion(own_criterion(ranking, refresh, compensate) if criterion is None else criterion)
    if threshold is not None:
        choose("threshold", threshold, THRESHOLDS)
    if budget is not None and not isinstance(budget, Budget):
        raise ArgumentError(f"budget: expected secateur.Budget(...), got {budget!r}")
    if shortlist is not None:
        _check_shortlist(shortlist, chosen.name, ranking, threshold, compensate)
    _check_refresh(refresh, ranking, compensate)
    _check_quadratic(ranking, chosen.name, threshold, swaps, budget)
    gated = Gated(model, units, data, loss, seed, max_memory)
    found = find_criterion(chosen, gated)
    measured = gated if validation is None else Gated(model, units, validation, loss, max_memory=max_memory)
    surgeon = None if settings is None else UnitSurgeon(Compensation(gated, settings), found.name == "obs")
    order = Order(measured, file_size, budget, surgeon, None if ranking == "quadratic" else refresh)
    gated = gated if surgeon is None else surgeon.gated
    exchanged = None
    if ranking == "quadratic":
        order, exchanged = rank_quadratic(gated, order, found.name, refresh, swaps, on_step)
    else:
        _rank_by_saliency(gated, order, found, ranking == "iterative", threshold, shortlist, on_step)
    kept = tuple(order.kept().items())
    return Plan(
        kept, order.start, tuple(order.steps), units.captured.spec, found.name, ranking, exchanged, compensate
    )  # fmt: skip


def _rank_by_saliency(
    gated: Gated,
    order: Order,
    found: Criterion,
    again: bool,
    threshold: str | None,
    shortlist: int | None,
    on_step: OnStep,
) -> None:
    """Remove the least salient unit as long as needed; those that are left are scored again each time, or never."""
    saliency: Tensor | None = None
    while (candidates := order.candidates()) and not order.enough():
        if saliency is None or again:
            saliency = _scores(found, gated, order, candidates, threshold, shortlist)
        best = order.least(saliency, candidates)
        predicted = saliency[best].item()  # infinite where the criterion could judge none that is left
        order.remove(best, predicted if found.in_loss_units and math.isfinite(predicted) else None)
        on_step(len(order.steps), order.longest)


def _check_count(name: str, what: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ArgumentError(f"{name}: expected a number of {what} above 0, got {value!r}")


def _check_refresh(refresh: int | None, ranking: str, compensate: bool) -> None:
    if refresh is None:
        return
    if ranking != "quadratic" and not compensate:
        raise ArgumentError(f"refresh: is for ranking='quadratic' or compensate=True, not {ranking!r} without it")
    _check_count("refresh", "removals", refresh)


def _check_quadratic(ranking: str, criterion: str, threshold: str | None, swaps: bool, budget: Budget | None) -> None:
    if ranking != "quadratic":
        if swaps:
            raise ArgumentError(f"swaps: is for ranking='quadratic', not {ranking!r}")
        return
    if criterion not in CURVATURES:
        known = ", ".join(CURVATURES)
        raise ArgumentError(f"ranking='quadratic' takes a criterion with interactions: {known}; got {criterion!r}")
    if threshold is not None:
        raise ArgumentError("threshold: is for ranking='single' or 'iterative', where units are estimated apart")
    if swaps and not (budget and budget.least):
        raise ArgumentError("swaps: improve what a budget of size removes; give bytes, params, remove_fraction ...")


def _check_shortlist(shortlist: int, criterion: str, ranking: str, threshold: str | None, compensate: bool) -> None:
    _check_count("shortlist", "units", shortlist)
    exact = criterion == "oracle" or (criterion == "obs" and compensate)
    if not exact or ranking != "iterative" or threshold is not None:
        raise ArgumentError(
            "shortlist: is for ranking='iterative' without threshold, with criterion='oracle', or with 'obs' and "
            "compensate=True"
        )


def _scores(
    found: Criterion, gated: Gated, order: Order, candidates: list[int], threshold: str | None, shortlist: int | None
) -> Tensor:
    """The saliencies of the candidates; infinite for those that are not on the shortlist."""
    g, surgeon = order.g, order.surgeon if found.name == "obs" else None
    short = shortlist is not None and shortlist < len(candidates)
    if surgeon is not None:
        values = surgeon.saliency(g)
    else:
        values = saliency_of(find_criterion(CHEAP, gated) if short else found, gated, g)
    if short:
        best = torch.tensor(candidates, device=g.device)[values[candidates].argsort(stable=True)[:shortlist]]
        return (rises(gated, g, best) if surgeon is None else surgeon.exact(g, best)).cpu()
    values[candidates] = apply_threshold(values[candidates], threshold)
    return values.cpu()
