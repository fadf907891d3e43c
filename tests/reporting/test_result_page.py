"""The report on a shrunk network says what its plan says."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import torch

import secateur as sc
from cases import CASES
from secateur.artifacts.measure import Sizes
from secateur.errors import ArgumentError
from secateur.planning.plan import Plan
from secateur.planning.state import State, Step
from secateur.reporting.page import Page, Section, html, text_of
from secateur.reporting.result_page import result_page
from secateur.result import Result

BEFORE = Sizes(100, 900, 80, 700, 0.5, 0.75)
AFTER = Sizes(40, 500, 30, 300, 0.25, 0.5)


def shrunk(budget: sc.Budget | None = None, **options: Any) -> Result:
    case = CASES["two_hidden"]()
    given = {"data": (case.x, case.y), "loss": "cross_entropy", "progress": False} | options
    return sc.shrink(case.model, budget=budget or sc.Budget(remove_units=5), **given)


def page_of(result: Result) -> Page:
    return result_page(result.plan, result.before, result.after, result.max_difference, "a form")


def section(page: Page, name: str) -> Section:
    return next(one for one in page.sections if one.name == name)


def rows(page: Page, name: str) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in section(page, name).tables[0].rows]


def test_the_tables_have_the_plans_numbers():
    result = shrunk()
    page, plan = page_of(result), result.plan
    assert isinstance(plan, Plan)
    sizes = CASES["two_hidden"]().sets
    assert rows(page, "layers") == [
        (name, size, len(plan.kept[name]), round(100 * len(plan.kept[name]) / size, 1)) for name, size in sizes.items()
    ]
    start, *steps = rows(page, "steps")
    first = plan.states[0]
    assert start == (0, None, None, first.loss, first.accuracy, first.params, first.bytes)
    assert steps == [
        (n, f"{s.set}[{s.index}]", s.predicted, s.loss, s.accuracy, s.params, s.bytes)
        for n, s in enumerate(plan.steps, 1)
    ]
    assert len(steps) == 5


def test_the_summary_sets_before_beside_after():
    plan = shrunk().plan
    summary = dict(result_page(plan, BEFORE, AFTER, 1.5e-7, "a form").summary)
    assert summary == {
        "Units removed": "5 of 10 (50.0 %)",
        "Parameters": "100 → 40 (40.0 % left)",
        "Bytes on disk": "900 → 500 (55.6 % left)",
        "MACs for one sample": "80 → 30 (37.5 % left)",
        "Bytes in memory for one sample": "700 → 300 (42.9 % left)",
        "Loss": "0.5 → 0.25 (−0.25)",
        "Accuracy": "0.75 → 0.5 (−0.25), standard error 0.2",
        "Loss and accuracy on": "6 samples of the data, on which the weights were fitted",
        "Proven difference": "at most 1.5e-07 between its outputs and the gated original's",
        "Form": "a form",
    }


def test_the_settings_are_the_plans():
    page = page_of(shrunk(criterion="taylor1", ranking="single", compensate=False))
    assert page.title == "5 of 10 units removed"
    assert page.settings == {
        "Granularity": "unit", "Criterion": "taylor1", "Ranking": "single", "Compensated": "no",
    }  # fmt: skip
    assert page_of(shrunk()).settings["Compensated"].startswith("yes")
    swapped = page_of(shrunk(ranking="quadratic", swaps=True, compensate=False))
    assert "predicted rise of the loss" in swapped.settings["Swaps"]
    biased = replace(shrunk().plan, biases=("a", "b"))  # type: ignore[type-var]
    assert result_page(biased, BEFORE, AFTER, 0.0, "").settings["Layers given a bias"] == "a, b"


def test_pictures_show_the_trade_off_and_the_layers():
    result = shrunk()
    page, start, end = page_of(result), result.before, result.after
    assert [picture.alt for picture in section(page, "trade-off").pictures] == [
        f"Line chart of loss: {start.loss:.4g} with 0 removed, {end.loss:.4g} with 5.",
        f"Line chart of accuracy: {start.accuracy:.4g} with 0 removed, {end.accuracy:.4g} with 5.",
        f"Line chart of bytes: {start.bytes:,} with 0 removed, {end.bytes:,} with 5.",
    ]
    (bars,) = section(page, "layers").pictures
    assert bars.caption == "Units of each unit set, before and after"


def test_single_weights_are_reported_by_parameter_and_step():
    result = shrunk(sc.Budget(remove_fraction=0.5), granularity="weight", rounds=2, retrain=lambda _: None)
    page, plan = page_of(result), result.plan
    assert not isinstance(plan, Plan)
    kept = plan.kept
    assert rows(page, "parameters") == [
        (name, size, len(kept[name]), round(100 * len(kept[name]) / size, 1)) for name, size in plan.sizes.items()
    ]
    first, *steps = rows(page, "steps")
    assert first[:4] == (0, None, None, None)
    assert steps == [
        (s.removed, s.round, "yes" if s.trained else "no", s.predicted, s.loss, s.accuracy, s.params, s.bytes)
        for s in plan.steps
    ]
    assert steps[-1][0] == plan.removed
    assert page.settings == {"Granularity": "weight", "Criterion": "obd", "Rounds": "2"}
    assert page.title == f"{plan.removed} of {sum(plan.sizes.values())} weights removed"
    assert dict(page.summary)["MACs for one sample"].endswith(", as before")


def test_what_was_not_measured_is_said_and_not_drawn():
    case = CASES["two_hidden"]()
    units = sc.find_units(case.model, case.x)
    page = page_of(shrunk(data=None, loss=None, units=units, example_inputs=case.x, criterion="magnitude"))
    assert dict(page.summary)["Loss"] == dict(page.summary)["Accuracy"] == "not measured"
    assert [picture.caption for picture in section(page, "trade-off").pictures] == ["Bytes against units removed"]
    assert section(page, "trade-off").text[-1] == "What is not shown was not measured."
    assert "–" in html(page)


def test_losses_are_drawn_where_they_were_measured_and_blank_elsewhere():
    result = shrunk()
    plan = result.plan
    assert isinstance(plan, Plan)
    some = tuple(step if n in (2, 4) else replace(step, loss=None, accuracy=None) for n, step in enumerate(plan.steps))
    page = page_of(replace(result, plan=replace(plan, steps=some)))
    assert [row[3] for row in rows(page, "steps")] == [
        plan.states[0].loss,
        None,
        None,
        some[2].loss,
        None,
        some[4].loss,
    ]
    note = section(page, "steps").tables[0].note
    assert note is not None
    assert note.endswith("A dash for loss or accuracy: not measured.")
    loss, _, size = section(page, "trade-off").pictures
    assert loss.alt.startswith(f"Line chart of loss: {text_of(plan.states[0].loss)} with 0 removed, ")
    assert loss.alt.endswith(f"{text_of(some[4].loss)} with 5.")
    assert size.alt.endswith("with 5.")


def test_a_network_that_nothing_was_removed_from_has_a_page():
    page = page_of(shrunk(sc.Budget(remove_units=0)))
    assert page.title == "0 of 10 units removed"
    assert section(page, "trade-off") == Section("trade-off", "Trade-off", ["Nothing was removed."], [])
    assert len(rows(page, "steps")) == 1
    assert html(page)


def long_plan(sets: int, each: int) -> Plan:
    """From every set all units but one are gone; set n has each + n."""
    steps = tuple(
        Step(1.0 + n / 9, 0.5, 10**6 - n, 4 * 10**6 - n, 9 * 10**6 - n, f"set {n % sets}", n // sets, 1e-3)
        for n in range(sets * (each - 1))
    )
    kept = tuple((f"set {n}", tuple(range(1 + n))) for n in range(sets))
    return Plan(kept, State(1.0, 0.5, 10**6, 4 * 10**6, 9 * 10**6), steps)


def test_thousands_of_steps_and_sets_make_one_page_of_moderate_size():
    page = result_page(long_plan(1000, 6), BEFORE, AFTER, 0.0, "a form")
    text = html(page)
    assert len(rows(page, "steps")) == 5001
    assert len(rows(page, "layers")) == 1000
    assert text.count("<details>") == 2
    assert "<summary>What is left after each step: 5,001 rows</summary>" in text
    assert len(text.encode()) < 2e6


def test_of_many_sets_the_largest_are_drawn_in_the_order_of_the_network(monkeypatch: pytest.MonkeyPatch):
    drawn: list[Any] = []
    monkeypatch.setattr("secateur.reporting.result_page.svg", lambda figure: drawn.append(figure) or "<svg ></svg>")
    (bars,) = section(result_page(long_plan(50, 2), BEFORE, AFTER, 0.0, ""), "layers").pictures
    assert bars.caption == "Units of the 40 largest of 50 unit sets, before and after"
    panel = drawn[-1].axes[0]
    assert [label.get_text() for label in panel.get_yticklabels()] == [f"set {n}" for n in range(10, 50)]
    before, after = ([bar.get_width() for bar in bars] for bars in panel.containers)
    assert before == [n + 2 for n in range(10, 50)]
    assert after == [n + 1 for n in range(10, 50)]
    curve, dot = drawn[0].axes[0].lines
    assert list(curve.get_xdata()) == list(range(51))
    assert list(curve.get_ydata()) == [1.0, *(1 + n / 9 for n in range(50))]
    assert (list(dot.get_xdata()), list(dot.get_ydata())) == ([50], [1 + 49 / 9])


def test_names_are_escaped_and_never_read_as_mathematics():
    plan = Plan((("<b>$x^$", (0,)),), State(1.0, None, 9, 9, 9), (Step(2.0, None, 5, 5, 5, "<b>$x^$", 1, None),))
    text = html(result_page(plan, BEFORE, AFTER, 0.0, "<b>"))
    assert "<b>" not in text
    assert text.count("&lt;b&gt;$x^$") == 2  # the layer and the step


def test_the_report_is_written_whole_and_always_the_same(tmp_path):
    result = shrunk()
    for name in ("a.html", "b.html"):
        result.report(tmp_path / name)
    text = (tmp_path / "a.html").read_text()
    assert text == (tmp_path / "b.html").read_text()
    assert "the network is a Sequential, as it was" in text
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    with pytest.raises(ArgumentError, match=r"c\.pdf: pages are written as \.html or \.htm, not as '\.pdf'$"):
        result.report(tmp_path / "c.pdf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.html", "b.html"]


def test_a_report_changes_neither_the_network_nor_random_numbers(tmp_path):
    result = shrunk()
    before, state = result.model.state_dict(), torch.random.get_rng_state()
    result.report(tmp_path / "a.html")
    assert all(torch.equal(before[name], tensor) for name, tensor in result.model.state_dict().items())
    assert torch.equal(state, torch.random.get_rng_state())
