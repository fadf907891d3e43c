"""Figures 2, 3, 7, 8 and 12, thresholds, deeper networks, on few digits.

Also covers secateur_experiments.papers.variants.
"""

from __future__ import annotations

from statistics import median

import pytest

from experiments.studies import done, study
from secateur_experiments.curves import Curve
from secateur_experiments.papers import degradation, figures, variants
from secateur_experiments.papers.degradation import ITERATIVE, OURS, SCRATCH, SHARES, SINGLE
from secateur_experiments.study import Way

HIDDEN = (8,)


@pytest.mark.parametrize("ranking", ["single", "iterative"])
def test_a_figure_of_degradation(ranking):
    made = study()
    finding = done(degradation.figure_of("2", HIDDEN, ranking), made)
    subject = made.logistic(HIDDEN)
    assert finding.title == f"Figure 2: degradation, 64-8-10, {degradation.NAMES[ranking]}"
    assert list(finding.numbers) == [
        "oracle",
        "taylor1",
        "taylor2",
        "hessian",
        "quadratic",
        "obs, compensated",
        SCRATCH,
    ]
    curves = [made.curve(subject, seed, Way("taylor1", ranking)) for seed in made.seeds]
    row = finding.numbers["taylor1"]
    assert row["within_1pt"] == median(curve.within() / 8 for curve in curves)
    assert row["accuracy"][4] == median(curve.accuracy[4] for curve in curves)
    assert row["error"][4] == median(curve.loss[4] for curve in curves)
    assert row["error"][8] == median(curve.loss[7] for curve in curves)  # one unit is left
    scratch = finding.numbers[SCRATCH]
    assert scratch["shares"] == [share / 100 for share in SHARES] == [0.6, 0.8, 0.9]
    assert scratch["accuracy"][0] == median(made.scratch(subject, seed, 60)[1] for seed in made.seeds)
    accuracy, error = finding.tables
    cells = {line[0]: line[1:] for line in accuracy.rows}
    assert cells["taylor1"][4] == round(row["accuracy"][4], 4)
    assert cells["taylor1"][-2] == round(100 * row["within_1pt"])
    assert cells[SCRATCH][4:7] == [None, round(scratch["accuracy"][0], 4), None]
    assert {line[0]: line[1:] for line in error.rows}["oracle"][0] == round(finding.numbers["oracle"]["error"][0], 4)


def test_the_ways_are_the_papers_algorithms_and_ours():
    assert degradation.ways("single") == {**SINGLE, **OURS}
    assert degradation.ways("iterative") == {**ITERATIVE, **OURS}
    assert {way.ranking for way in SINGLE.values()} == {"single"}
    assert {way.ranking for way in ITERATIVE.values()} == {"iterative"}


def test_at_tenths_the_nearest_number_of_units_counts_or_as_many_as_can_be():
    curve = Curve([0, 1, 2], [0.9, 0.8, 0.7], 4, loss=[0.1, 0.2, 0.3])
    assert degradation.at_tenths([curve], "accuracy") == [0.9, 0.8, 0.8, *[0.7] * 6]
    assert degradation.at_tenths([curve], "loss") == [0.1, 0.2, 0.2, *[0.3] * 6]


def test_bands_hold_the_median_the_least_and_the_largest():
    (band,) = figures.bands([[[1.0, 2.0, 3.0], [3.0, 4.0], [2.0, 9.0]]], 4)
    assert band.shares == [0, 0.25]
    assert (band.middle, band.low, band.high) == ([2, 4], [1, 2], [3, 9])


def test_lines_and_points_are_drawn_and_named():
    curve = Curve([0, 1, 2], [0.9, 0.8, 0.7], 4, loss=[0.1, 0.2, 0.3])
    made = study()
    point = figures.Band([0.5], [0.2], [0.1], [0.3])
    figure = degradation.drawn(made.logistic(HIDDEN), "title", {"oracle": [curve]}, {SCRATCH: [point, point]})
    error, accuracy = figure.axes
    assert error.get_ylabel() == "squared error per test sample"
    assert accuracy.lines[0].get_ydata().tolist() == [0.9, 0.8, 0.7]
    assert [line.get_label() for line in error.lines][:2] == ["oracle", SCRATCH]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["oracle", SCRATCH]


def test_toy_sets(monkeypatch):
    monkeypatch.setattr(variants, "TWO", (4, 3))
    monkeypatch.setattr(variants, "TOY_EPOCHS", 2)
    finding = done((variants.toy_jobs, variants.toy_figure), study())
    assert list(finding.numbers) == ["diamond", "random shape"]
    assert [list(both) for both in finding.numbers.values()] == [["single", "iterative"]] * 2
    assert len(finding.tables) == 4
    panels = finding.drawings[0].figure.axes
    assert [panel.get_title() for panel in panels[:3]] == [
        "diamond: test points", "diamond: single ranking", "diamond: iterative ranking",
    ]  # fmt: skip


def test_thresholds(monkeypatch):
    monkeypatch.setattr(variants, "ONE", (6,))
    monkeypatch.setattr(variants, "TWO", (4, 3))
    finding = done((variants.threshold_jobs, variants.thresholds), study())
    assert list(finding.numbers) == ["64-6-10", "64-4-3-10"]
    assert len(finding.numbers["64-6-10"]) == 6
    assert "taylor2, single, median threshold" in finding.numbers["64-6-10"]
    assert [table.caption.split(":")[0] for table in finding.tables] == ["64-6-10", "64-4-3-10"] * 2


def test_deeper_networks(monkeypatch):
    monkeypatch.setattr(variants, "FOUR", (3, 3, 2, 2))
    made = study()
    finding = done((variants.deeper_jobs, variants.deeper), made)
    assert list(finding.numbers) == ["64-3-3-2-2-10", "conv 8-16-32"]
    assert all(list(rows) == list(variants.DEEPER) for rows in finding.numbers.values())
