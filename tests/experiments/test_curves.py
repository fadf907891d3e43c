"""Curves by hand."""

from __future__ import annotations

import math

import pytest

from experiments.studies import study
from secateur.planning.plan import Plan
from secateur.planning.state import State, Step
from secateur_experiments.curves import Curve, best, curve_of, middle, rows, units_of, within
from secateur_experiments.study import Way


@pytest.mark.parametrize(
    ("accuracies", "one", "five"),
    [
        ([0.90, 0.895, 0.89, 0.88, 0.95], 2, 4),  # exactly a point is allowed, and what comes after a drop is not
        ([0.90, 0.80, 0.90, 0.90, 0.90], 0, 0),
        ([0.90, 0.90, 0.90, 0.91, 0.89], 4, 4),
        ([0.90, 0.89, 0.85, 0.90], 1, 3),
        ([0.90], 0, 0),
    ],
)
def test_the_units_within_some_points_end_before_the_first_that_is_not(accuracies, one, five):
    curve = Curve([0, 1, 2, 3, 4][: len(accuracies)], accuracies, 10)
    assert (curve.within(), curve.within(0.05)) == (one, five)


def test_the_units_within_a_point_are_counted_where_only_some_numbers_were_measured():
    assert Curve([0, 5, 10, 20], [0.9, 0.9, 0.9, 0.5], 100).within() == 10


def test_values_are_read_off_and_nothing_is_known_beyond_the_end():
    curve = Curve([0, 2, 4, 6], [0.9, 0.8, 0.7, 0.6], 10, loss=[0.1, 0.2, 0.3, 0.4])
    assert [curve.at(n) for n in (0, 2, 3, 4, 6, 7)] == [0.9, 0.8, 0.7, 0.7, 0.6, -math.inf]
    assert [curve.at(n, "loss") for n in (1, 6)] == [0.2, 0.4]
    assert units_of(30, 10) == 3  # 0.3 · 10 is a little more than 3


def test_the_curve_of_a_plan_has_its_states():
    made = study()
    plan = made.plan(made.logistic((3, 4)), 1, Way("taylor2", "single"))
    curve = curve_of(plan)
    assert (list(curve.removed), curve.total) == ([0, 1, 2, 3, 4, 5], 7)
    assert list(curve.accuracy) == [state.accuracy for state in plan.states]
    assert list(curve.loss) == [state.loss for state in plan.states]
    assert len(set(curve.loss)) == 6


def test_the_curve_of_a_plan_has_the_points_that_were_measured():
    steps = tuple(Step(loss, loss and 0.5, 1, 1, 1, "a", n, None) for n, loss in enumerate([None, 0.25, None, 0.75]))
    curve = curve_of(Plan((("a", (4, 5)),), State(0.125, 1.0, 1, 1, 1), steps))
    assert (list(curve.removed), curve.total) == ([0, 2, 4], 6)
    assert (list(curve.loss), list(curve.accuracy)) == ([0.125, 0.25, 0.75], [1.0, 0.5, 0.5])


def test_rows_are_medians_and_a_curve_given_up_counts_as_the_lowest():
    curves = [
        Curve([0, 3, 5], [0.90, 0.89, 0.5], 10, 1.0),
        Curve([0, 3, 5], [0.92, 0.90, 0.8], 10, 3.0),
        Curve([0, 3], [0.94, 0.94], 10, 2.0),
    ]
    (row,) = rows({"net": {"way": curves}})
    assert (row.network, row.way, row.start, row.seconds) == ("net", "way", 0.92, 2.0)
    assert row.accuracy == (0.90, 0.90, 0.90, 0.5, 0.5, None, None, None, None)
    assert row.within_1pt == within(curves) == 30
    assert middle(curves) == [(0, 0.92), (30, 0.90), (50, 0.5)]
    (row,) = rows({"net": {"trained from scratch": [Curve([0], [0.9], 10)]}})
    assert (row.seconds, row.accuracy) == (None, (None,) * 9)


def test_the_best_way_removes_most_within_a_point():
    ways = {name: [Curve([0, removed], [0.9, 0.9], 100)] for name, removed in (("a", 10), ("b", 20), ("c", 80))}
    assert best(ways, ["a", "b", "other"]) == "b"
    assert best(ways, ["other"]) is None
