"""From a plan to the smaller network."""

from __future__ import annotations

import contextlib

from torch import nn

from secateur.cutting.attributes import update_attributes
from secateur.cutting.captured_forward import replace_forward
from secateur.cutting.repair import repair
from secateur.cutting.slices import sliced_copy, survivors
from secateur.cutting.verify import Truth, exact_truth, has_lower_literals, trial_truth, truth
from secateur.errors import ModelError, PlanError, VerificationError
from secateur.planning.plan import Plan
from secateur.structure.calls import whole_call
from secateur.structure.inputs import Call, InputSpec, map_tensors
from secateur.structure.sliced import slice_graph
from secateur.structure.units import Units, require_units, units_of


def cut(model: nn.Module, plan: Plan) -> nn.Module:
    """A new network without the units that the plan removes, proven to compute what the gated one does.

    Every parameter and buffer slice that goes with a removed unit is gone; where a removed unit was consumed
    its value was 0. The new network is run beside the gated original on random inputs before it is returned.
    Cost: one `torch.export`, one copy of what is left, a few forward passes; where modules need other numbers than
    those of their weights, one more export and some passes through each.

    Args:
        model: Never touched.
        plan: From `secateur.rank`, `Plan.from_kept` or `Plan.from_json`.

    Raises:
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
    units = require_units(_units(model, plan.inputs or InputSpec.guess(model)))
    for unit_set in units:
        planned = plan.sizes.get(unit_set.name, unit_set.size)
        if plan.start is not None and planned != unit_set.size:
            raise PlanError(
                f"the plan was made for {planned} units of {unit_set.name!r}, the model has {unit_set.size}"
            )
    return cut_units(model, units, plan, units.captured.spec.sample(model))[0]


def _units(model: nn.Module, spec: InputSpec) -> Units:
    """All of them; where the code fixes the number of samples, for as many as the example had."""
    if spec.samples is None:
        return units_of(model, spec.sample(model), "all")
    with contextlib.suppress(ModelError):
        units = units_of(model, spec.sample(model), "all")
        if units.captured.spec.fixed is None:
            return units
    return units_of(model, spec.sample(model, spec.samples), "all")


def cut_units(model: nn.Module, units: Units, plan: Plan, call: Call) -> tuple[nn.Module, float]:
    """The same with the units known: the new network, and its largest difference on these inputs.

    Sliced weights and the sizes of `torch.nn` modules are enough for most; else the numbers of other modules are
    repaired; else the pruned graph itself is the network.
    """
    left = survivors(units, plan.kept)
    small = sliced_copy(model, units, left)
    sliced = slice_graph(units.captured, units.net, left)
    few = call if units.captured.spec.fixed else map_tensors(call, lambda tensor: tensor[:2] if tensor.ndim else tensor)
    expected, exact = truth(model, units, plan.kept, call), exact_truth(model, units, plan.kept, few)
    update_attributes(small, units.net, left)
    if not _proven(small, expected, exact):
        lower = has_lower_literals(units.captured)  # then its parts want inputs of their own dtype
        trial = trial_truth(model, units, plan.kept, few, double=False) if lower else exact
        repair(model, small, units.captured, sliced, trial)
        if not _proven(small, expected, exact):
            replace_forward(small, units.captured, sliced, whole_call(units.captured))
    exact.check(small)
    return small, expected.check(small)


def _proven(small: nn.Module, *truths: Truth) -> bool:
    """Whether a network computes what it should."""
    try:
        return all(one.check(small) >= 0 for one in truths)
    except VerificationError:
        return False
