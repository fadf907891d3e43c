"""Curves of unit sets, and budgets shared among them, against hulls and sharings that try all there are.

Also covers secateur.planning.allotment.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import secateur as sc
from cases import CASES
from secateur.artifacts.header import file_size, network_sizes
from secateur.errors import BudgetError
from secateur.planning.allotment import Curves, allotted_steps, end_of
from secateur.planning.curves import Curve, allot
from secateur.planning.network_sizes import NetworkSizes
from secateur.planning.plan import Plan
from secateur.planning.state import State

RISES = st.lists(st.integers(0, 6), min_size=1, max_size=7).map(
    lambda steps: (0.0, *itertools.accumulate(map(float, steps)))
)


def curve(rises: tuple[float, ...], name: str = "a") -> Curve:
    return Curve(name, tuple(reversed(range(len(rises) - 1))), rises)


def convex(steps: list[int], name: str) -> Curve:
    return curve((0.0, *itertools.accumulate(map(float, sorted(steps)))), name)


def alike(left: Mapping[str, int]) -> dict[str, float]:
    """Each unit gains the same."""
    return dict.fromkeys(left, 1.0)


# ---------------------------------------------------------------- one curve


@settings(deadline=None)
@given(RISES)
def test_corners_are_those_points_that_no_line_between_two_others_reaches(rises: tuple[float, ...]) -> None:
    last = len(rises) - 1
    inner = [
        n
        for n in range(1, last)
        if all(
            rises[n] * (b - a) < rises[a] * (b - n) + rises[b] * (n - a)
            for a in range(n)
            for b in range(n + 1, last + 1)
        )
    ]
    assert curve(rises).hull() == [0, *inner, last]


def test_a_curve_without_removals_has_one_corner_and_a_slope_is_the_rise_for_each_removal() -> None:
    assert curve((0.0,)).hull() == [0]
    assert curve((0.0, 1.0, 4.0)).slope(0, 2) == 2.0
    assert curve((0.0, 1.0, 4.0)).slope(1, 2) == 3.0


def test_the_beginning_of_a_curve_has_its_first_units_and_their_rises() -> None:
    assert Curve("a", (3, 1, 2), (0.0, 1.0, 2.0, 4.0)).first(2) == Curve("a", (3, 1), (0.0, 1.0, 2.0))


@settings(deadline=None)
@given(RISES, st.data())
def test_a_curve_goes_through_what_was_measured_and_never_falls(rises: tuple[float, ...], data: st.DataObject) -> None:
    places = data.draw(st.sets(st.integers(1, len(rises) - 1), min_size=1))
    steps = data.draw(st.lists(st.integers(1, 50), min_size=len(places), max_size=len(places)))
    measured = dict(zip(sorted(places), itertools.accumulate(float(step) for step in steps), strict=True))
    scaled = curve(rises).scaled(measured)
    assert (scaled.set, scaled.order, scaled.rises[0]) == ("a", curve(rises).order, 0.0)
    assert all(before <= after + 1e-9 for before, after in itertools.pairwise(scaled.rises))
    for place, rise in measured.items():
        least = 0.01 * max(rises)  # where less was measured than a hundredth of what was predicted
        assert scaled.rises[place] == pytest.approx(rise, abs=least + 1e-9)


def test_between_measurements_the_prediction_is_stretched_and_behind_the_last_as_much_as_before_it() -> None:
    predicted = curve((0.0, 1.0, 2.0, 4.0, 6.0, 7.0))
    assert predicted.scaled({2: 6.0, 4: 10.0}).rises == pytest.approx((0, 3, 6, 8, 10, 10 + 10 / 6))
    assert predicted.scaled({}) is predicted


def test_what_was_predicted_to_cost_nothing_costs_what_was_measured() -> None:
    assert curve((0.0, 0.0, 0.0, 0.0, 5.0)).scaled({2: 3.0}).rises == (0.0, 1.5, 3.0, 3.0, 8.0)


@pytest.mark.parametrize(("value", "end"), [(1.5, 2.02), (-9.0, 2.02), (math.nan, 2002.0), (math.inf, 2002.0)])
def test_a_loss_that_falls_hardly_raises_the_curve_and_one_that_is_no_number_does_far(value: float, end: float) -> None:
    assert curve((0.0, 1.0, 3.0)).scaled({1: 2.0, 2: value}).rises == pytest.approx((0.0, 2.0, end))


# ---------------------------------------------------------------- sharing


@settings(deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=4), min_size=1, max_size=3),
    st.lists(st.integers(1, 3), min_size=3, max_size=3),
)
def test_convex_curves_are_shared_as_well_as_any_sharing_that_gains_as_much(
    steps: list[list[int]], gains: list[int]
) -> None:
    curves = [convex(rises, str(n)) for n, rises in enumerate(steps)]
    gain = {curve.set: float(each) for curve, each in zip(curves, gains, strict=False)}
    sizes = {curve.set: len(curve.order) + 1 for curve in curves}
    removals = list(allot(curves, sizes, lambda _: gain))
    choices = [range(len(curve.order) + 1) for curve in curves]
    sharings = [
        (
            sum(gain[curve.set] * n for curve, n in zip(curves, counts, strict=True)),
            sum(curve.rises[n] for curve, n in zip(curves, counts, strict=True)),
        )
        for counts in itertools.product(*choices)
    ]
    gained, rise = 0.0, 0.0
    for (name, _, more), after in itertools.zip_longest(removals, removals[1:]):
        gained, rise = gained + gain[name], rise + more
        if after is None or after[2] / gain[after[0]] > more / gain[name]:  # a corner of the common hull
            assert rise <= min(loss for worth, loss in sharings if worth >= gained) + 1e-9


@settings(deadline=None)
@given(st.lists(RISES, min_size=1, max_size=4))
def test_all_units_go_once_in_the_order_of_their_set_with_the_rises_of_its_curve(
    rises: list[tuple[float, ...]],
) -> None:
    curves = [curve(values, str(n)) for n, values in enumerate(rises)]
    removals = list(allot(curves, {curve.set: 9 for curve in curves}, alike))
    for each in curves:
        mine = [(unit, rise) for name, unit, rise in removals if name == each.set]
        assert tuple(unit for unit, _ in mine) == each.order
        assert [rise for _, rise in mine] == [after - before for before, after in itertools.pairwise(each.rises)]
    assert len(removals) == sum(len(each.order) for each in curves)


def test_of_curves_that_rise_alike_the_first_goes_first_and_what_costs_nothing_before_both() -> None:
    curves = [convex([1, 1], "a"), convex([1, 1], "b"), convex([0, 0, 5], "c")]
    names = [name for name, _, _ in allot(curves, {"a": 3, "b": 3, "c": 4}, alike)]
    assert names == ["c", "c", "a", "a", "b", "b", "c"]


def test_what_gains_nothing_goes_last_the_cheapest_stretch_first() -> None:
    curves = [convex([0, 8], "idle"), convex([9], "dear"), convex([2, 3], "cheap"), convex([5], "slow")]
    gain = {"idle": 0.0, "dear": 1.0, "cheap": 1.0, "slow": 0.0}
    names = [name for name, _, _ in allot(curves, dict.fromkeys(gain, 3), lambda _: gain)]
    assert names == ["cheap", "cheap", "dear", "idle", "slow", "idle"]


def test_a_stretch_of_the_hull_goes_as_a_whole_and_gains_are_asked_for_anew_after_it() -> None:
    seen: list[dict[str, int]] = []

    def worth(left: Mapping[str, int]) -> dict[str, float]:
        seen.append(dict(left))
        return {"a": 1.0, "b": 1.0 if left["a"] > 2 else 100.0}

    removals = list(allot([curve((0.0, 9.0, 10.0, 30.0), "a"), convex([6, 7], "b")], {"a": 4, "b": 3}, worth))
    assert [name for name, _, _ in removals] == ["a", "a", "b", "b", "a"]
    assert seen == [{"a": 4, "b": 3}, {"a": 2, "b": 3}, {"a": 2, "b": 2}, {"a": 2, "b": 1}]


def test_no_curves_are_no_removals() -> None:
    assert list(allot([], {}, alike)) == []
    assert list(allot([curve((0.0,))], {"a": 1}, alike)) == []


# ---------------------------------------------------------------- steps and budgets


def network(name: str) -> tuple[sc.Units, NetworkSizes, Plan, torch.nn.Module]:
    case = CASES[name]()
    units = sc.find_units(case.model, case.x)
    plan = Plan(tuple((s.name, tuple(range(s.size))) for s in units), inputs=units.captured.spec)
    return units, network_sizes(case.model, units, plan), plan, case.model


def random_curves(sizes: NetworkSizes, seed: int) -> list[Curve]:
    generator = torch.Generator().manual_seed(seed)
    curves = []
    for name, size in sizes.sets:
        rises = torch.rand(size - 1, generator=generator, dtype=torch.float64).cumsum(0).tolist()
        curves.append(Curve(name, tuple(torch.randperm(size, generator=generator)[:-1].tolist()), (0.0, *rises)))
    return curves


@pytest.mark.parametrize("name", [name for name in CASES if name != "one_unit"])
def test_each_step_has_the_sizes_of_the_network_that_it_leaves_and_no_loss(name: str) -> None:
    units, sizes, plan, model = network(name)
    curves = random_curves(sizes, 1)
    steps = allotted_steps(Curves(tuple(curves), sizes), None)
    assert len(steps) == sum(size - 1 for _, size in sizes.sets)
    left = {unit_set.name: set(range(unit_set.size)) for unit_set in units}
    for step in steps:
        left[step.set].remove(step.index)
        counts = {set_name: len(indices) for set_name, indices in left.items()}
        kept = Plan(tuple((n, tuple(sorted(i))) for n, i in left.items()), inputs=plan.inputs)
        assert (step.loss, step.accuracy) == (None, None)
        assert (step.params, step.macs) == (units.params(counts), units.macs(counts))
        assert step.bytes == file_size(model, units, kept)
    for each in curves:
        assert sum(step.predicted or 0 for step in steps if step.set == each.set) == pytest.approx(each.rises[-1])


def test_of_two_sets_that_rise_alike_the_one_goes_first_that_frees_more_of_what_the_budget_is_over() -> None:
    case = CASES["branches"]()
    units = sc.find_units(case.model, case.x)
    sizes = network_sizes(case.model, units, Plan((), inputs=units.captured.spec))
    freed = sizes.freed({}, "params")
    assert freed["left"] != freed["right"]
    more = max(freed, key=freed.__getitem__)
    curves = [Curve(name, tuple(range(size - 1)), tuple(map(float, range(size)))) for name, size in sizes.sets]
    for budget in (sc.Budget(params=30), sc.Budget(bytes=10)):
        assert allotted_steps(Curves(tuple(curves), sizes), budget)[0].set == more
        assert allotted_steps(Curves(tuple(curves[::-1]), sizes), budget)[0].set == more
    for budget in (None, sc.Budget(remove_units=1), sc.Budget(params=10**6, bytes=10**9)):
        assert allotted_steps(Curves(tuple(curves[::-1]), sizes), budget)[0].set == curves[-1].set != more


@pytest.mark.parametrize(
    ("fields", "gone"),
    [
        ({"remove_units": 4}, {"0": 5, "2": 3}),
        ({"remove_units": 4, "min_units": 3}, {"0": 3, "2": 1}),
        ({"remove_units": 4, "protect": "2"}, {"0": 5}),
        ({"remove_fraction": 0.5, "scope": "set"}, {"0": 3, "2": 2}),
        ({"max_loss_increase": 0.5}, {"0": 5, "2": 3}),
    ],
)
def test_all_units_that_a_budget_lets_go_are_in_the_order(fields: dict[str, object], gone: dict[str, int]) -> None:
    _, sizes, _, _ = network("two_hidden")
    steps = allotted_steps(Curves(tuple(random_curves(sizes, 2)), sizes), sc.Budget(**fields))  # type: ignore[arg-type]
    assert Counter(step.set for step in steps) == gone


def test_an_order_ends_where_the_sizes_hold_and_says_how_far_one_gets_where_they_do_not() -> None:
    _, sizes, _, _ = network("two_hidden")
    steps, names = allotted_steps(Curves(tuple(random_curves(sizes, 3)), sizes), None), dict(sizes.sets)
    start = State(None, None, **sizes.after({}, 0)._asdict())
    for n, step in enumerate(steps, 1):
        assert end_of(steps, start, sc.Budget(params=step.params), names) == n
        assert end_of(steps, start, sc.Budget(remove_units=n), names) == n
        assert end_of(steps, start, sc.Budget(remove_units=n, max_loss_increase=0.0), names) == n
    with pytest.raises(BudgetError, match=r"^Budget\(params=3\) cannot be met: at most 8 of 10 units can be removed, "):
        end_of(steps, start, sc.Budget(params=3), names)
