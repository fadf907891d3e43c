"""The page on one shrunk network: what went, what is left, what each removal cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from secateur.artifacts.measure import Sizes
from secateur.options import Compensation, Ranking
from secateur.planning.plan import Plan
from secateur.planning.state import State, Step, quality_columns
from secateur.planning.weight_plan import WeightPlan, WeightStep
from secateur.process_state import one_at_a_time
from secateur.reporting.page import Cell, Page, Picture, Section, Table, environment, svg, text_of
from secateur.reporting.plots import STYLES, plain

BARS = 40  # in one picture
LABEL = 32  # characters of a name beside its bar

Widths = Mapping[str, tuple[int, int]]
Points = Sequence[tuple[int, State]]


@one_at_a_time  # Matplotlib's settings are the process's
def result_page(plan: Plan | WeightPlan, before: Sizes, after: Sizes, difference: float, form: str) -> Page:
    """Return the report on a result of `secateur.shrink`.

    Args:
        plan: The removals.
        before: The sizes of the original.
        after: The sizes of the network that is left.
        difference: The largest difference between the outputs of the network and those it was proven against.
        form: The kind of module that the network is, in words.
    """
    widths = _widths(plan)
    total, kept = (sum(pair[i] for pair in widths.values()) for i in (0, 1))
    removed = total - kept
    what = _what(plan)
    summary = [
        (f"{what.capitalize()} removed", f"{removed:,} of {total:,} ({100 * removed / total:.1f} %)"),
        ("Parameters", _change(before.params, after.params)),
        ("Bytes on disk", _change(before.bytes, after.bytes)),
        ("MACs for one sample", _change(before.macs, after.macs)),
        ("Bytes in memory for one sample", _change(before.ram, after.ram)),
        ("Loss", _move(before.loss, after.loss)),
        ("Accuracy", _accuracies(plan, before.accuracy, after.accuracy)),
        *([] if before.metric is None else [("Metric", _move(before.metric, after.metric))]),
        ("Loss and accuracy on", str(plan.basis) if plan.basis else "not measured"),
        ("Proven difference", f"at most {difference:.1e} between {_compared(plan)}"),
        ("Form", form),
    ]
    sections = (_trade_off(plan), _layers(plan, widths), _steps(plan))
    title = f"{removed:,} of {total:,} {what} removed"
    return Page(title, summary, _settings(plan), environment(), sections)


def _what(plan: Plan | WeightPlan) -> str:
    return "units" if isinstance(plan, Plan) else "weights"


def _compared(plan: Plan | WeightPlan) -> str:
    return (
        "its outputs and the gated original's"
        if isinstance(plan, Plan)
        else "its outputs and those of the graph with masked weights"
    )


def _change(before: int, after: int) -> str:
    """Return two counts and the share that is left.

    >>> _change(2000, 500), _change(3, 3)
    ('2,000 → 500 (25.0 % left)', '3, as before')
    """
    if before == after:
        return f"{after:,}, as before"
    return f"{before:,} → {after:,} ({100 * after / before:.1f} % left)"


def _move(before: float | None, after: float | None) -> str:
    """Return two measurements and their difference.

    >>> _move(0.5, 0.25), _move(None, None)
    ('0.5 → 0.25 (−0.25)', 'not measured')
    """
    if before is None or after is None:
        return "not measured"
    return f"{before:.4g} → {after:.4g} ({after - before:+.2g})".replace("(-", "(−")


def _accuracies(plan: Plan | WeightPlan, before: float | None, after: float | None) -> str:
    """Return two accuracies with the standard error of the second."""
    if after is None or plan.basis is None:
        return _move(before, after)
    return f"{_move(before, after)}, standard error {plan.basis.standard_error(after):.2g}"


def _settings(plan: Plan | WeightPlan) -> dict[str, str]:
    if isinstance(plan, WeightPlan):
        return {"Granularity": "weight", "Criterion": plan.criterion, "Rounds": str(plan.rounds)}
    settings = {
        "Granularity": "unit",
        "Criterion": plan.criterion,
        "Ranking": f"{plan.ranking}: {plan.reason}" if plan.reason else plan.ranking,
        **_changed(plan.made_by, "criterion", "ranking"),
        "Compensated": "yes, the weights left make up for the units that went" if plan.compensated else "no",
        **_changed(plan.compensation, "fit"),
    }
    if plan.rounds:
        settings["Rounds"] = plan.in_rounds
    if plan.biases:
        settings["Layers given a bias"] = ", ".join(plan.biases)
    if plan.unfitted:
        settings["Left as they are"] = "; ".join(f"{name}: {why}" for name, why in plan.unfitted)
    if plan.swaps:
        settings["Swaps"] = str(plan.swaps)
    return settings


def _changed(options: Ranking | Compensation | None, *shown: str) -> dict[str, str]:
    """Return the options that differ from the defaults and are not shown otherwise."""
    changed = {} if options is None else options.to_json()
    return {name.replace("_", " ").capitalize(): str(value) for name, value in changed.items() if name not in shown}


def _widths(plan: Plan | WeightPlan) -> Widths:
    """Return unit set → its units before and after, or parameter → its weights."""
    if isinstance(plan, WeightPlan):
        return {name: (mask.numel(), int(mask.sum())) for name, mask in plan.masks.items()}
    kept = plan.kept
    return {name: (size, len(kept[name])) for name, size in plan.sizes.items()}


def _points(plan: Plan | WeightPlan) -> Points:
    """Return the number of removals and the state after them, for each point that was measured."""
    start = [] if plan.start is None else [(0, plan.start)]
    if isinstance(plan, WeightPlan):
        return [*start, *((step.removed, step) for step in plan.steps)]
    return [*start, *enumerate(plan.steps, 1)]


def _quality(plan: Plan | WeightPlan) -> list[str]:
    """Return the names of what is measured beside the sizes."""
    return ["loss", "accuracy"] if plan.start is None else quality_columns(plan.start)


def _trade_off(plan: Plan | WeightPlan) -> Section:
    text = ["What is left after each removal. The dot is the network of this report."]
    points = _points(plan) if plan.steps else []
    curves = [_curve(points, name, _what(plan)) for name in (*_quality(plan), "bytes")]
    pictures = [picture for picture in curves if picture is not None]
    if not plan.steps:
        text = ["Nothing was removed."]
    elif len(pictures) < len(curves):
        text.append("What is not shown was not measured.")
    return Section("trade-off", "Trade-off", text, pictures)


def _curve(points: Points, name: str, what: str) -> Picture | None:
    """Draw one quantity against what is removed; None where it was not measured."""
    known = [(n, value) for n, state in points if (value := getattr(state, name)) is not None]
    if not known:
        return None
    figure = Figure(figsize=(5.2, 3.4), layout="constrained")
    panel = figure.subplots()
    panel.plot(*zip(*known, strict=True), "-", color=STYLES[1][0], linewidth=1.8)
    panel.plot(*known[-1], "o", color=STYLES[2][0], markersize=8, clip_on=False)
    panel.set(xlabel=f"{what} removed", ylabel=name, xlim=(0, None))
    if name == "bytes":
        panel.set_ylim(bottom=0)
        panel.yaxis.set_major_formatter(EngFormatter("B"))
    _count(panel.xaxis)
    plain(panel)
    (n, first), (m, last) = known[0], known[-1]
    ends = f"{text_of(first)} with {n:,} removed, {text_of(last)} with {m:,}"
    return Picture(svg(figure), f"Line chart of {name}: {ends}.", f"{name.capitalize()} against {what} removed")


def _layers(plan: Plan | WeightPlan, widths: Widths) -> Section:
    name, kind = ("layers", "unit set") if isinstance(plan, Plan) else ("parameters", "parameter")
    rows = [(label, size, kept, round(100 * kept / size, 1)) for label, (size, kept) in widths.items()]
    table = Table([kind, "before", "after", "% left"], rows, f"{_what(plan).capitalize()} of each {kind}")
    return Section(name, name.capitalize(), pictures=[_bars(widths, _what(plan), kind)], tables=[table])


def _bars(widths: Widths, what: str, kind: str) -> Picture:
    """Draw the largest unit sets or parameters before and after, in the order of the network."""
    largest = sorted(widths, key=lambda name: -widths[name][0])[:BARS]
    shown = [name for name in widths if name in largest]
    before, after = zip(*(widths[name] for name in shown), strict=True)
    figure = Figure(figsize=(5.6, 1.2 + 0.26 * len(shown)), layout="constrained")
    panel = figure.subplots()
    panel.barh(range(len(shown)), before, height=0.8, color="#d0d0d0", label="before")
    panel.barh(range(len(shown)), after, height=0.45, color=STYLES[1][0], label="after")
    panel.set_yticks(range(len(shown)), [_short(name) for name in shown], parse_math=False)
    panel.set(xlabel=what, ylim=(len(shown) - 0.5, -0.5))
    _count(panel.xaxis)
    panel.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper right", ncols=2, frameon=False)
    which = f"each {kind}" if len(shown) == len(widths) else f"the {BARS} largest of {len(widths):,} {kind}s"
    alt = f"Bar chart of the {what} of {which}, before and after; the table below has the numbers."
    return Picture(svg(figure), alt, f"{what.capitalize()} of {which}, before and after")


def _count(axis: Axis) -> None:
    """Label an axis with whole numbers."""
    axis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axis.set_major_formatter(EngFormatter())


def _short(name: str) -> str:
    """Return a name, of a long one its end.

    >>> _short("model.decoder.layers.11.self_attention.out_projection")
    '…11.self_attention.out_projection'
    """
    return name if len(name) <= LABEL else "…" + name[-LABEL:]


def _steps(plan: Plan | WeightPlan) -> Section:
    """Return the table of all steps: every removal, or every round of them."""
    only_steps = ["unit"] if isinstance(plan, Plan) else ["round", "trained"]
    columns = ["removed", *only_steps, "predicted", *_quality(plan), "parameters", "bytes"]
    rows = [
        (n, *_step_cells(state, len(only_steps)), *(getattr(state, name) for name in _quality(plan)), state.params,
         state.bytes)
        for n, state in _points(plan)
    ]  # fmt: skip
    note = (
        "Predicted: how much the criterion expects the loss to rise by that step; magnitude, activation and random "
        "expect nothing. A dash for loss or accuracy: not measured."
    )
    return Section("steps", "Steps", tables=[Table(columns, rows, "What is left after each step", note)])


def _step_cells(state: State, empty: int) -> tuple[Cell, ...]:
    """Return the cells that only steps have: the unit or the round, and the prediction."""
    if isinstance(state, Step):
        return (f"{state.set}[{state.index}]", state.predicted)
    if isinstance(state, WeightStep):
        return (state.round, "yes" if state.trained else "no", state.predicted)
    return (None,) * (empty + 1)
