"""The papers' figures, drawn from numbers."""

from __future__ import annotations

import numpy as np

from secateur_experiments.papers import figures


def labels(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_predictions_are_drawn_beside_the_line_where_they_agree():
    figure = figures.calibration("title", {"a": ([0.1, -0.5], [0.2, 0.4]), "b": ([1.0], [2.0])}, "loss")
    first, second = figure.axes
    assert [panel.get_title() for panel in (first, second)] == ["a", "b"]
    assert first.lines[0].get_xydata().tolist() == [[-2, -2], [2, 2]]
    assert first.lines[1].get_xydata().tolist() == [[0.1, 0.2], [-0.5, 0.4]]
    assert first.get_ylabel() == "measured rise, loss"
    assert [text.get_text() for text in first.get_xticklabels()] == ["-2e+00", "0", "2e+00"]


def test_predictions_of_nothing_are_drawn_too():
    assert len(figures.calibration("title", {"a": ([0.0], [0.0])}, "loss").axes) == 1


def test_lines_over_shares_have_one_legend():
    lines = {"one": ([0, 0.5], [1.0, 0.5]), "other": ([0, 0.5], [0.9, 0.8])}
    figure = figures.lines_over_shares("title", {"rank": lines, "regret": lines})
    assert labels(figure) == ["one", "other"]
    assert [panel.get_ylabel() for panel in figure.axes] == ["rank", "regret"]
    assert figure.axes[1].lines[1].get_xydata().tolist() == [[0, 0.9], [0.5, 0.8]]


def test_heat_maps_are_from_minus_one_to_one_with_lines_between_sets():
    figure = figures.heat_maps("title", {"net": ([[1, 0.5], [0.5, 1]], [1, 1]), "more": ([[1.0]], [1])}, "label")
    first, second, bar = figure.axes
    assert np.array_equal(first.images[0].get_array(), [[1, 0.5], [0.5, 1]])
    assert first.images[0].get_clim() == second.images[0].get_clim() == (-1, 1)
    assert [len(panel.lines) for panel in (first, second)] == [2, 0]
    assert bar.get_ylabel() == "label"


def test_points_with_their_spread_stand_beside_lines():
    band = figures.Band([0.2, 0.4], [1.0, 2.0], [0.5, 1.0], [2.0, 3.0])
    figure = figures.degradation("title", {"taylor2": [band, band]}, "loss", {"trained from scratch": [band, band]})
    assert labels(figure) == ["taylor2", "trained from scratch"]
    line, points = figure.axes[0].lines[:2]
    assert (line.get_color(), points.get_color()) == (figures.STYLES[2][0], figures.STYLES[6][0])
    assert (line.get_linestyle(), points.get_linestyle()) == ("-", "None")
    assert figure.axes[0].get_ylabel() == "loss"
    assert figure.get_suptitle() == "title"
