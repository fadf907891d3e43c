"""The demonstration's table and its picture."""

from __future__ import annotations

import pytest
from matplotlib.figure import Figure

from secateur import SecateurError
from secateur.reporting.plots import STYLES
from secateur.saliency.criterion import criteria
from secateur_experiments import demo_report
from secateur_experiments.curves import Curve
from secateur_experiments.demo_report import ORDER, at_tenths, degradation

CURVES = {
    f"{criterion}/{ranking}": Curve([0, 1, 2], [1.0, 0.9, 0.5 - i / 10], 4, loss=[0.1, 0.2 + i, 0.4])
    for i, criterion in enumerate(("mine", "oracle", "taylor1"))
    for ranking in ("single", "iterative")
}


def test_the_table_reads_each_curve_at_tenths_of_the_units():
    title, heads, _, row, *_ = at_tenths(CURVES, "accuracy", "a title").splitlines()
    assert title == "a title"
    assert heads.split() == ["criterion/ranking", *" ".join(f"{t}0 %" for t in range(1, 10)).split()]
    assert row.split() == ["mine/iterative", *["0.900"] * 2, *["0.500"] * 3, *["–"] * 4]
    assert at_tenths(CURVES, "loss", "a title").splitlines()[4].split()[1:6] == [*["1.200"] * 2, *["0.400"] * 3]


def drawn(monkeypatch, draw):
    """The figure that is drawn."""
    kept = []
    monkeypatch.setattr(demo_report, "Figure", lambda **options: kept.append(Figure(**options)) or kept[0])
    draw()
    return kept[0]


@pytest.fixture
def figure(monkeypatch, tmp_path):
    path = tmp_path / "picture.png"
    picture = drawn(monkeypatch, lambda: degradation(CURVES, "a title", path, "squared error per sample"))
    assert path.read_bytes()[:4] == b"\x89PNG"
    assert [path.name for path in tmp_path.iterdir()] == ["picture.png"]
    return picture


def test_the_picture_shows_every_curve_in_its_panel(figure):
    assert [panel.get_title() for panel in figure.axes] == ["single ranking"] * 2 + ["iterative ranking"] * 2
    for panel, what in zip(figure.axes, ("loss", "accuracy") * 2, strict=True):
        for line, name in zip(panel.lines, ("oracle", "taylor1", "mine"), strict=True):
            assert line.get_label() == name
            assert list(line.get_xdata()) == [0, 0.25, 0.5]
            assert list(line.get_ydata()) == list(getattr(CURVES[f"{name}/single"], what))


def test_the_picture_is_labelled_and_no_two_lines_look_alike(figure):
    assert figure.get_suptitle() == "a title"
    assert {panel.get_ylabel() for panel in figure.axes} == {"squared error per sample", "accuracy"}
    assert [panel.get_xlabel() for panel in figure.axes[2:]] == ["share of hidden units removed"] * 2
    styles = [(line.get_color(), line.get_marker()) for line in figure.axes[0].lines]
    assert len({colour for colour, _ in styles}) == len({marker for _, marker in styles}) == 3
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["oracle", "taylor1", "mine"]


def test_every_criterion_has_its_place_and_its_style():
    assert sorted(ORDER) == list(criteria())
    assert len(STYLES) == len(ORDER)


def test_a_criterion_looks_the_same_in_every_panel(monkeypatch, tmp_path):
    names = [*(f"{name}/single" for name in criteria()), "fisher/quadratic", "hessian/quadratic", "ggn/quadratic"]
    curves = {name: Curve([0, 1], [1.0, 0.5], 2, loss=[0.1, 0.2]) for name in names}
    figure = drawn(monkeypatch, lambda: degradation(curves, "t", tmp_path / "a.png"))
    looks = [
        {line.get_label(): (line.get_color(), line.get_linestyle(), line.get_marker()) for line in panel.lines}
        for panel in figure.axes
    ]
    assert [len(panel) for panel in looks] == [10, 10, 3, 3]
    assert len(set(looks[0].values())) == 10
    assert all(looks[0][name] == look for panel in looks for name, look in panel.items())


def test_a_picture_that_cannot_be_written_leaves_nothing(tmp_path):
    with pytest.raises(SecateurError, match=r"no-folder/a\.png: cannot be written \(No such file"):
        degradation(CURVES, "t", tmp_path / "no-folder" / "a.png")
    assert list(tmp_path.iterdir()) == []
