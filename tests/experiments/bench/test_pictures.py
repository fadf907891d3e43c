"""Pictures of trainings and of times."""

from __future__ import annotations

import pytest
from matplotlib.figure import Figure

from secateur import SecateurError
from secateur_experiments.bench import pictures
from secateur_experiments.bench.optimisers import OPTIMISERS

CURVES = {
    name: {"step": [0, 10, 20], "loss": [1.0, 0.5 + i, 0.25], "accuracy": [0.1, 0.5, 0.9 - i / 10]}
    for i, name in enumerate(OPTIMISERS)
}


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are drawn."""
    kept = []

    def keep(**options):
        kept.append(Figure(**options))
        return kept[-1]

    monkeypatch.setattr(pictures, "Figure", keep)
    return kept


@pytest.fixture
def figure(drawn, tmp_path):
    pictures.training(CURVES, "a title", tmp_path / "picture.png", "squared error per sample")
    assert (tmp_path / "picture.png").read_bytes()[:4] == b"\x89PNG"
    assert [path.name for path in tmp_path.iterdir()] == ["picture.png"]
    return drawn[0]


def test_the_picture_shows_every_run(figure):
    assert [panel.get_title() for panel in figure.axes] == ["loss against steps", "accuracy against steps"]
    assert [panel.get_yscale() for panel in figure.axes] == ["log", "linear"]
    for panel, what in zip(figure.axes, ("loss", "accuracy"), strict=True):
        for line, (name, curve) in zip(panel.lines, CURVES.items(), strict=True):
            assert line.get_label() == name
            assert list(line.get_xdata()) == [0, 10, 20]
            assert list(line.get_ydata()) == curve[what]


def test_the_picture_is_labelled_and_no_two_lines_look_alike(figure):
    assert figure.get_suptitle() == "a title"
    assert [panel.get_ylabel() for panel in figure.axes] == ["squared error per sample", "test accuracy"]
    assert [panel.get_xlabel() for panel in figure.axes] == ["steps", "steps"]
    styles = [(line.get_color(), line.get_marker()) for line in figure.axes[0].lines]
    assert len({colour for colour, _ in styles}) == len({marker for _, marker in styles}) == len(OPTIMISERS)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(OPTIMISERS)


def test_times_are_drawn_beside_a_straight_line_through_the_first(drawn, tmp_path):
    pictures.growth({50: 0.5, 200: 1.0}, 0.5, tmp_path / "picture.png")
    (panel,) = drawn[0].axes
    assert (panel.get_xscale(), panel.get_yscale()) == ("log", "log")
    straight, measured = panel.lines
    assert (list(straight.get_xdata()), list(straight.get_ydata())) == ([50, 200], [0.5, 2.0])
    assert (list(measured.get_xdata()), list(measured.get_ydata())) == ([50, 200], [0.5, 1.0])
    assert measured.get_label() == "measured, slope 0.50"
    assert (tmp_path / "picture.png").read_bytes()[:4] == b"\x89PNG"


def test_a_picture_that_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(SecateurError, match=r"no-folder/a\.png: cannot be written"):
        pictures.training(CURVES, "a title", tmp_path / "no-folder" / "a.png")
