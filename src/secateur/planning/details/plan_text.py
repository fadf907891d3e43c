"""Plans as people read them: a table of the steps, and what is said below."""

from __future__ import annotations

from typing import TYPE_CHECKING

from secateur.planning.state import Step, quality_cells, quality_columns, three_digits
from secateur.text import format_bytes, table

if TYPE_CHECKING:
    from secateur.planning.plan import Plan


def plan_text(plan: Plan) -> str:
    """Return a plan as a table with a title, and what has to be said of it."""
    if plan.start is None:
        rows = [(name, len(kept), " ".join(map(str, kept))) for name, kept in plan.kept_indices]
        return table(["unit set", "kept", "indices"], rows, "plan written by hand")
    columns = ["removed", "last", "predicted", *quality_columns(plan.start), "params", "bytes"]
    below = [str(plan.swaps)] if plan.swaps else []
    below += [f"{plan.ranking}: {plan.reason}"] if plan.reason else []
    below += [plan.compared] if plan.compared else []
    below += [f"{name} stays as it is: {why}" for name, why in plan.unfitted]
    steps = table(columns, [_row(plan, n) for n in _shown(plan)], _title(plan) + _measured(plan))
    return "\n".join([steps, *below])


def _shown(plan: Plan) -> list[int]:
    """Return the points of the table: some twenty, evenly among those measured or on a curve, and the last."""
    last = len(plan.steps)
    known = [n for n, state in enumerate(plan.states) if state.loss is not None or plan.curves] or range(last + 1)
    every = max(1, -(-(len(known) - 1) // 20))
    return sorted({*known[::every], last})


def _title(plan: Plan) -> str:
    title = f"{len(plan.steps)} of {sum(plan.sizes.values())} units removed, {plan.criterion} / {plan.ranking}"
    title += f", {plan.in_rounds}" if plan.rounds else ""
    if plan.compensation is None:
        return title
    refined = " and refined" if plan.compensation.refine else ""
    return f"{title}, compensated{refined}" if plan.compensation.fit else f"{title}, BatchNorm recalibrated"


def _measured(plan: Plan) -> str:
    if plan.basis is not None:
        return f"; loss and accuracy on {plan.basis}"
    predicted = any(step.predicted is not None for step in plan.steps)
    return "; how the loss rises is predicted, not measured" if plan.curves and predicted else ""


def _row(plan: Plan, n: int) -> tuple[object, ...]:
    state = plan.states[n]
    last, predicted = (f"{state.set}[{state.index}]", state.predicted) if isinstance(state, Step) else ("", None)
    quality = quality_cells(state, plan.states[0], plan.basis)
    return n, last, three_digits(predicted), *quality, state.params, format_bytes(state.bytes)
