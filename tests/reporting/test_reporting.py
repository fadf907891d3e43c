"""Tables, pictures, progress bars."""

from __future__ import annotations

import pytest
import torch
from matplotlib.figure import Figure

from secateur import SecateurError
from secateur.reporting import plots
from secateur.reporting.progress import progress_bar
from secateur.reporting.tables import at_tenths, pairs, saliencies, spread
from secateur.saliency.registry import criteria

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
    assert len({style[0] for style in plots.STYLES}) == len({style[2] for style in plots.STYLES}) == 10
    assert sorted(plots.ORDER) == list(criteria())


def test_a_picture_that_cannot_be_written_leaves_nothing(tmp_path):
    with pytest.raises(SecateurError, match=r"no-folder/a\.png: cannot be written \(No such file"):
        plots.degradation(CURVES, 4, "t", tmp_path / "no-folder" / "a.png")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("shown", [True, False])
def test_progress_is_silent_where_there_is_no_terminal(capfd, shown):
    with progress_bar("work", shown) as bar:
        bar(1, 2)
    assert capfd.readouterr() == ("", "")


def drawn(monkeypatch, draw):
    """The figure that is drawn."""
    kept = []
    monkeypatch.setattr(plots, "Figure", lambda **options: kept.append(Figure(**options)) or kept[0])
    draw()
    return kept[0]


def test_a_criterion_looks_the_same_in_every_panel(monkeypatch, tmp_path):
    names = [*(f"{name}/single" for name in criteria()), "fisher/quadratic", "hessian/quadratic", "ggn/quadratic"]
    curves = {name: {"removed": [0, 1], "loss": [0.1, 0.2], "accuracy": [1.0, 0.5]} for name in names}
    figure = drawn(monkeypatch, lambda: plots.degradation(curves, 2, "t", tmp_path / "a.png"))
    looks = [
        {line.get_label(): (line.get_color(), line.get_linestyle(), line.get_marker()) for line in panel.lines}
        for panel in figure.axes
    ]
    assert [len(panel) for panel in looks] == [10, 10, 3, 3]
    assert len(set(looks[0].values())) == 10
    assert all(looks[0][name] == look for panel in looks for name, look in panel.items())


def test_the_heat_map_shows_every_pair_and_where_sets_end(monkeypatch, tmp_path):
    related = torch.tensor([[1, 0.5, -1], [0.5, 1, 0], [-1, 0, 1]])
    figure = drawn(monkeypatch, lambda: plots.heat_map(related, {"fc1": 2, "fc2": 1}, "a title", tmp_path / "a.png"))
    panel, bar = figure.axes
    assert torch.equal(torch.tensor(panel.images[0].get_array()), related)
    assert panel.images[0].get_clim() == (-1, 1)
    assert [line.get_ydata()[0] for line in panel.lines[::2]] == [1.5]
    assert [line.get_xdata()[0] for line in panel.lines[1::2]] == [1.5]
    assert list(panel.get_xticks()) == list(panel.get_yticks()) == [0.5, 2]
    assert [text.get_text() for text in panel.get_xticklabels()] == ["fc1", "fc2"]
    assert panel.get_title() == "a title"
    assert bar.get_ylabel().startswith("correlation in the loss")
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.svg", r"a\.svg: pictures are written as \.png, not as '\.svg'$"),
        ("a", r"a: pictures are written as \.png, not as 'no extension'$"),
        ("no/a.png", r"no/a\.png: cannot be written \(No such file or directory\)$"),
        ("folder.png", r"folder\.png: cannot be written, it is a folder$"),
    ],
)
def test_a_picture_is_refused_before_it_is_drawn(tmp_path, name, text):
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(SecateurError, match=text):
        plots.check_picture(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.png"]


def test_a_picture_that_can_be_written_is_not_there_yet(tmp_path):
    plots.check_picture(tmp_path / "a.PNG")
    assert list(tmp_path.iterdir()) == []


def test_the_lowest_saliency_comes_first_and_ties_in_the_order_of_the_sets():
    scores = {"b": torch.tensor([2.0, -1.0, 0.5]), "a": torch.tensor([0.5, 3e-9])}
    rows = [line.split() for line in saliencies("oracle", scores, None).splitlines()]
    assert rows == [
        ["oracle", "unit", "set", "unit"],
        ["-1", "b", "1"], ["3e-09", "a", "1"], ["0.5", "b", "2"], ["0.5", "a", "0"], ["2", "b", "0"],
    ]  # fmt: skip


def test_ties_are_not_broken_by_the_standard_error():
    same = {"0": torch.tensor([1.0, 1.0])}
    rows = saliencies("fisher", same, {"0": torch.tensor([0.9, 0.1])}).splitlines()
    assert [line.split() for line in rows[1:]] == [["1", "0.9", "0", "0"], ["1", "0.1", "0", "1"]]


def test_the_spread_is_of_all_values_in_any_order_and_of_none():
    assert spread(torch.tensor([[9.0, 1.0], [5.0, 2.0], [3.0, 1234.5]])) == [6, "1", "2", "3", "9", "1.23e+03"]
    assert spread(torch.tensor([7.0])) == [1, "7", "7", "7", "7", "7"]
    assert spread(torch.zeros(0, 3)) == [0, *"–––––"]


def test_pairs_are_listed_by_the_size_of_their_correlation():
    matrix = torch.tensor([[4.0, 1.0, -6.0], [1.0, 4.0, 2.0], [-6.0, 2.0, 4.0]])
    places = [("fc", 0), ("fc", 1), ("conv", 0)]
    rows = [line.split() for line in pairs(matrix, matrix / 8, places, 2).splitlines()]
    assert rows[1:] == [["-0.750", "-6", "fc[0]", "conv[0]"], ["+0.250", "+2", "fc[1]", "conv[0]"]]
    assert len(pairs(matrix, matrix / 8, places, 99).splitlines()) == 4
    assert len(pairs(matrix[:1, :1], matrix[:1, :1], places, 9).splitlines()) == 1
