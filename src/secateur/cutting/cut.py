"""From a plan to the smaller network."""

from __future__ import annotations

from torch import nn

from secateur.cutting.attributes import update_attributes
from secateur.cutting.slices import gates, sliced_copy
from secateur.cutting.verify import verify
from secateur.errors import PlanError
from secateur.planning.plan import Plan
from secateur.structure.inputs import Call, InputSpec
from secateur.structure.units import Units, require_units, units_of


def cut(model: nn.Module, plan: Plan) -> nn.Module:
    """A new network without the units that the plan removes, proven to compute what the gated one does.

    Every parameter and buffer slice that goes with a removed unit is gone; where a removed unit was consumed
    its value was 0. The new network is run beside the gated original on random inputs before it is returned.
    Cost: one `torch.export`, one copy of what is left, two forward passes of 8 samples.

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
    inputs = (plan.inputs or InputSpec.guess(model)).sample(model)
    units = require_units(units_of(model, inputs))
    for unit_set in units:
        planned = plan.sizes.get(unit_set.name, unit_set.size)
        if plan.start is not None and planned != unit_set.size:
            raise PlanError(
                f"the plan was made for {planned} units of {unit_set.name!r}, the model has {unit_set.size}"
            )
    return cut_units(model, units, plan, inputs)[0]


def cut_units(model: nn.Module, units: Units, plan: Plan, call: Call) -> tuple[nn.Module, float]:
    """The same with the units known: the new network, and its largest difference on these inputs."""
    g = gates(model, units, plan.kept)
    small = sliced_copy(model, units, plan.kept)
    update_attributes(small)
    return small, verify(model, small, units, g, call)
