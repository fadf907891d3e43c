"""Tables, pictures, progress bars."""

from __future__ import annotations

import pytest
from matplotlib.figure import Figure

from secateur import SecateurError
from secateur.reporting import plots
from secateur.reporting.progress import progress_bar
from secateur.reporting.tables import at_tenths

CURVES = {
    f"{c}/{r}": {"removed": [0, 1, 2, 3], "loss": [0.1, 0.2, 0.4, 0.8], "accuracy": [1.0, 0.9, 0.5, None]}
    for c in ("oracle", "taylor1", "mine")
    for r in ("single", "iterative")
}


def test_the_table_reads_each_curve_at_tenths_of_the_units():
    rows = at_tenths(CURVES, "accuracy", 4, "accuracy").splitlines()
    assert rows[1].split() == ["criterion/ranking", *" ".join(f"{t}0 %" for t in range(1, 10)).split()]
    assert rows[2].split() == ["oracle/single", *["0.900"] * 2, *["0.500"] * 3, *["–"] * 4]


@pytest.fixture
def figure(monkeypatch, tmp_path):
    kept = []
    monkeypatch.setattr(plots, "Figure", lambda **options: kept.append(Figure(**options)) or kept[0])
    plots.degradation(CURVES, 4, "a title", tmp_path / "picture.png", "squared error per sample")
    assert (tmp_path / "picture.png").read_bytes()[:4] == b"\x89PNG"
    assert [path.name for path in tmp_path.iterdir()] == ["picture.png"]
    return kept[0]


def test_the_picture_shows_every_curve_in_its_panel(figure):
    assert [panel.get_title() for panel in figure.axes] == ["single ranking"] * 2 + ["iterative ranking"] * 2
    for panel, what in zip(figure.axes, ("loss", "accuracy") * 2, strict=True):
        for line, name in zip(panel.lines, ("oracle", "taylor1", "mine"), strict=True):
            assert line.get_label() == name
            assert list(line.get_xdata()) == [0, 0.25, 0.5, 0.75]
            assert list(line.get_ydata())[:3] == CURVES[f"{name}/single"][what][:3]


def test_the_picture_is_labelled_and_no_two_lines_look_alike(figure):
    assert figure.get_suptitle() == "a title"
    assert {panel.get_ylabel() for panel in figure.axes} == {"squared error per sample", "accuracy"}
    assert [panel.get_xlabel() for panel in figure.axes[2:]] == ["share of hidden units removed"] * 2
    styles = [(line.get_color(), line.get_marker()) for line in figure.axes[0].lines]
    assert len({colour for colour, _ in styles}) == len({marker for _, marker in styles}) == 3
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["oracle", "taylor1", "mine"]


def test_no_style_is_used_twice():
    assert len({style[0] for style in plots.STYLES}) == len({style[2] for style in plots.STYLES}) == 9
    assert len(plots.ORDER) == 9


def test_a_picture_that_cannot_be_written_leaves_nothing(tmp_path):
    with pytest.raises(SecateurError, match=r"no-folder/a\.png: cannot be written \(No such file"):
        plots.degradation(CURVES, 4, "t", tmp_path / "no-folder" / "a.png")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("shown", [True, False])
def test_progress_is_silent_where_there_is_no_terminal(capfd, shown):
    with progress_bar("work", shown) as bar:
        bar(1, 2)
    assert capfd.readouterr() == ("", "")
