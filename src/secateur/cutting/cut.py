"""The cut: from a plan to the smaller network."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor, nn

from secateur.arguments import checked_call, require_instance, require_model
from secateur.cutting.added_biases import with_biases, without_bias
from secateur.cutting.captured_forward import replace_forward
from secateur.cutting.final_fit import fitted_weights
from secateur.cutting.live_modules import settle_modules
from secateur.cutting.slices import gates
from secateur.cutting.verify import Truth, exact_truths, truth
from secateur.errors import ArgumentError, PlanError, VerificationError
from secateur.objective.mask import Mask, masked
from secateur.objective.question import Question
from secateur.objective.unlabelled import Augment, MoreInputs
from secateur.options import Compensation
from secateur.own_code.differentiable import is_differentiable
from secateur.own_code.find_units import all_units, units_of_sets
from secateur.own_code.module_attributes import update_attributes, update_own_sizes
from secateur.own_code.module_calls import whole_call
from secateur.own_code.probe_weights import holding
from secateur.own_code.slices import keep_mask_of, sliced_copy
from secateur.planning.plan import Plan
from secateur.process_state import as_exported, one_at_a_time
from secateur.structure.inputs import Call, InputSpec
from secateur.structure.lengths import few, one_shorter
from secateur.structure.rewrites.writes import has_writes
from secateur.structure.sliced_graph import slice_graph
from secateur.structure.units import Units, require_units


@checked_call
@one_at_a_time
def cut(
    model: nn.Module,
    plan: Plan,
    compensate: Any = None,
    loss: Any = None,
    *,
    ridge: float | None = None,
    weighting: str | None = None,
    recalibrate: bool | None = None,
    add_bias: bool | None = None,
    refine: int | str | None = None,
    unlabelled: Any = None,
    augment: Augment | None = None,
    seed: int = 0,
    max_memory: int | str | None = None,
    mask: Mask | None = None,
) -> nn.Module:
    """Return a new network without the units that the plan removes, proven to compute what the gated one does.

    Every parameter and buffer slice that goes with a removed unit is gone; where a removed unit was consumed
    its value was 0. The new network is run beside the gated original on random inputs before it is returned.
    Cost: one `torch.export`, one copy of what is left, a few forward passes; where modules need other numbers than
    those of their weights, one more export and some passes through each.

    With data to compensate on, the layers that summed removed units up first get the weights and biases with which
    they best give what they gave before, W ← (ÃᵀÃ/N + λI)⁻¹ (ÃᵀZ/N + λW), in order of execution: Ã is what the network
    without the units, fitted so far, delivers, Z what the layer gave in the original. No gradient step, and of labels
    nothing but the curvature of a loss in the last layer. Cost: two forward passes of the data, the products of the
    layers' inputs, and a factorisation for each layer. Layers before all removed units keep their weights bit by bit.
    Where the plan or `refine` says so, a few training steps on all weights follow (see `secateur.Compensation`).

    Args:
        model: The network; never touched.
        plan: The plan of `secateur.rank`, `Plan.from_kept` or `Plan.from_json`.
        compensate: The data to fit the weights left on, as for `secateur.score`, its targets None where there is no
            loss; None to leave all weights as they are.
        loss: As for `secateur.score`: samples then count by its curvature in a last layer of few outputs, as they do in
            `secateur.shrink`.
        ridge: As for `secateur.Compensation`, like the next four; None for the plan's setting, or the default.
        weighting: As for `secateur.Compensation`.
        recalibrate: As for `secateur.Compensation`.
        add_bias: As for `secateur.Compensation`.
        refine: As for `secateur.Compensation`.
        unlabelled: As for `shrink`.
        augment: As for `shrink`.
        seed: The seed of the random numbers for `augment`.
        max_memory: As for `secateur.score`.
        mask: As for `secateur.rank`.

    Raises:
        ArgumentError: A setting of the compensation is not possible, or is given without data.
        DataError: The data are unusable.
        ModelError: The model cannot be captured or copied.
        PlanError: The plan names unit sets or units that the model does not have.
        VerificationError: The result would not compute what the gated original does.

    >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> cut(model, Plan.from_kept({"0": [1, 3]}))
    Sequential(
      (0): Linear(in_features=3, out_features=2, bias=True)
      (1): ReLU()
      (2): Linear(in_features=2, out_features=2, bias=True)
    )
    """
    model = require_model(model)
    require_instance("plan", plan, Plan, "a secateur.Plan")
    changed = {
        "ridge": ridge, "weighting": weighting, "recalibrate": recalibrate, "add_bias": add_bias, "refine": refine,
    }  # fmt: skip
    settings = _settings(plan, compensate, {name: value for name, value in changed.items() if value is not None})
    if compensate is None and loss is not None:
        raise ArgumentError("loss: is for compensate=data")
    more = MoreInputs(unlabelled if unlabelled is None else masked(unlabelled, mask), augment)
    more.check_use(settings)
    question = Question(model, masked(compensate, mask), loss, seed=seed, max_memory=max_memory).with_more(more)
    spec = plan.inputs or InputSpec.guess(model)
    if settings is not None and settings.add_bias and not plan.biases:
        plan = dataclasses.replace(plan, biases=without_bias(model, all_units(model, spec)))
    model = with_biases(model, plan.biases)
    units = require_units(units_of_sets(model, spec, plan.kept))
    _check_sizes(units, plan)
    weights = {}
    if settings is not None:
        weights = _fitted_weights(question.for_model(model, units), plan, settings)
    with holding(model, weights):
        return cut_units(model, units, plan, units.captured.spec.sample(model))[0]


def _check_sizes(units: Units, plan: Plan) -> None:
    """Refuse a model whose unit sets have other sizes than when the plan was made.

    Raises:
        PlanError: They have.
    """
    for unit_set in units:
        planned = plan.sizes.get(unit_set.name, unit_set.size)
        if plan.start is not None and planned != unit_set.size:
            raise PlanError(
                f"the plan was made for {planned} units of {unit_set.name!r}, the model has {unit_set.size}"
            )


def _fitted_weights(question: Question, plan: Plan, settings: Compensation) -> dict[str, Tensor]:
    """Return the weights that make up for what the plan removes."""
    if plan.basis is not None and plan.basis.where == "held back":
        question = question.holding_back()  # as when the plan was made: no weight is fitted on what judged it
    return fitted_weights(question, gates(question.model, question.units, plan.kept), settings)


def _settings(plan: Plan, data: Any, changed: dict[str, Any]) -> Compensation | None:
    """Return how weights are fitted: as the plan says, but for the changed settings; None without data to fit on.

    Raises:
        ArgumentError: Settings are given without data, or instead of data.
    """
    if isinstance(data, bool | Compensation):
        raise ArgumentError(
            "compensate: in cut it is the data to fit on, (inputs, targets) or batches, and how to fit is in the plan; "
            f"got {data!r}"
        )
    if data is None:
        if changed:
            raise ArgumentError("ridge, weighting, recalibrate, add_bias and refine: are for compensate=data")
        return None
    return dataclasses.replace(plan.compensation or Compensation(), **changed)


def cut_units(model: nn.Module, units: Units, plan: Plan, call: Call) -> tuple[nn.Module, float]:
    """Return the cut network of known units, and its largest difference from the gated original on these inputs.

    Sliced weights and the sizes of `torch.nn` modules are enough for most networks; else the attributes of other
    modules are searched for; else the pruned graph itself is the network.
    """
    keep_mask = keep_mask_of(units, plan.kept)
    small = sliced_copy(model, units, keep_mask)
    sliced = slice_graph(units.captured, units.net, keep_mask)
    probes = [few(call, units.captured.spec)]
    probes += [one_shorter(probes[0], units.captured.spec)] if units.captured.spec.free else []
    expected, exact = truth(model, units, plan.kept, call), exact_truths(model, units, plan.kept, probes)
    update_attributes(small, units.net, units.axes, keep_mask)
    with as_exported():
        traced = _proven(small, *exact)  # with masks, for example, that are left out at other times
    if not traced or not _proven(small, expected, *exact) or not _trainable(small, units, call):
        settle_modules(model, small, units, sliced, probes[0])
        if not _proven(small, expected, *exact) or not _trainable(small, units, call):
            replace_forward(small, units.captured, sliced, whole_call(units.captured))
    update_own_sizes(model, small, lambda: _proven(small, expected, *exact) and _trainable(small, units, call))
    for other in exact:
        other.check(small)
    return small, expected.check(small)


def _trainable(small: nn.Module, units: Units, call: Call) -> bool:
    """Return whether a network can be differentiated; its code may write over values that derivatives need."""
    return not has_writes(units.captured.graph) or is_differentiable(small, call)


def _proven(small: nn.Module, *truths: Truth) -> bool:
    """Return whether a network computes what it should."""
    try:
        return all(expected.check(small) >= 0 for expected in truths)
    except VerificationError:
        return False
