"""Pictures."""

from __future__ import annotations

import pytest
import torch
from matplotlib.figure import Figure

from secateur import SecateurError
from secateur.reporting import plots


def test_no_style_is_used_twice():
    assert len({style[0] for style in plots.STYLES}) == len({style[2] for style in plots.STYLES}) == 10


def test_the_heat_map_shows_every_pair_and_where_sets_end(monkeypatch, tmp_path):
    related = torch.tensor([[1, 0.5, -1], [0.5, 1, 0], [-1, 0, 1]])
    kept = []
    monkeypatch.setattr(plots, "Figure", lambda **options: kept.append(Figure(**options)) or kept[0])
    plots.heat_map(related, {"fc1": 2, "fc2": 1}, "a title", tmp_path / "a.png")
    panel, bar = kept[0].axes
    assert torch.equal(torch.tensor(panel.images[0].get_array()), related)
    assert panel.images[0].get_clim() == (-1, 1)
    assert [line.get_ydata()[0] for line in panel.lines[::2]] == [1.5]
    assert [line.get_xdata()[0] for line in panel.lines[1::2]] == [1.5]
    assert list(panel.get_xticks()) == list(panel.get_yticks()) == [0.5, 2]
    assert [text.get_text() for text in panel.get_xticklabels()] == ["fc1", "fc2"]
    assert panel.get_title() == "a title"
    assert bar.get_ylabel().startswith("correlation in the loss")
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"


def test_a_picture_that_cannot_be_written_leaves_nothing(tmp_path):
    with pytest.raises(SecateurError, match=r"no-folder/a\.png: cannot be written \(No such file"):
        plots.heat_map(torch.eye(1), {"fc1": 1}, "a title", tmp_path / "no-folder" / "a.png")
    assert list(tmp_path.iterdir()) == []
