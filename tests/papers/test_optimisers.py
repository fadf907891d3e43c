"""The weight update of the note beside SGD and Adam."""

from __future__ import annotations

from dataclasses import asdict

import pytest
import torch
from matplotlib.figure import Figure

from rounding import assert_close_ulps
from secateur import SecateurError
from secateur.papers import optimisers
from secateur.papers.data import digits
from secateur.papers.optimisers import OPTIMISERS, Run, compare, summary
from secateur.papers.training import logistic_network
from secateur.reporting import optimisers as pictures
from secateur.saliency.losses import squared_error


@pytest.fixture(scope="module")
def runs():
    return compare(digits(), hidden=[4], steps=20, every=10, seeds=[0], progress=False)


def test_every_optimiser_starts_from_the_same_weights_and_is_measured_alike(runs):
    assert list(runs) == list(OPTIMISERS)
    network, (x, y) = logistic_network([64, 4, 10], 0), digits().train
    for name, run in runs.items():
        assert run.rate in OPTIMISERS[name][1]
        assert run.step == [0, 10, 20]
        assert_close_ulps(run.loss[0], squared_error(network(x), y).item(), dtype=torch.float32)
        assert len(run.loss) == len(run.accuracy) == 3
        assert run.seconds > 0


def test_all_have_as_many_learning_rates_to_choose_from():
    assert {len(rates) for _, rates in OPTIMISERS.values()} == {5}


def test_the_bounded_update_learns_and_the_second_order_one_uses_its_curvature(runs):
    first, second = runs["order 1, |x| ≤ 0.1"], runs["order 2, |x| ≤ 0.1"]
    assert max(first.loss[-1], second.loss[-1]) < 0.5 < first.loss[0]
    assert first.loss[-1] != second.loss[-1]


def only(monkeypatch, rates):
    monkeypatch.setattr(optimisers, "OPTIMISERS", {"SGD": (OPTIMISERS["SGD"][0], rates)})
    return lambda seeds: compare(digits(), [4], 20, 10, seeds, progress=False)["SGD"]


def test_the_learning_rate_is_that_of_the_least_training_loss_at_the_end(monkeypatch):
    tried = [only(monkeypatch, [rate])([0]) for rate in (0.01, 3, 100)]
    best = min(tried, key=lambda run: run.loss[-1])
    assert best.rate == 3
    assert only(monkeypatch, [0.01, 3, 100])([0]).loss == best.loss


def test_a_run_is_the_mean_over_its_seeds(monkeypatch):
    both, zero, one = (only(monkeypatch, [3])(seeds) for seeds in ([0, 1], [0], [1]))
    assert both.loss == pytest.approx([(a + b) / 2 for a, b in zip(zero.loss, one.loss, strict=True)])
    assert both.accuracy == pytest.approx([(a + b) / 2 for a, b in zip(zero.accuracy, one.accuracy, strict=True)])
    assert zero.loss[0] != one.loss[0]


def test_the_points_of_a_curve_have_to_fit_the_steps():
    with pytest.raises(SecateurError) as refused:
        compare(digits(), steps=25, every=10)
    assert str(refused.value) == "compare: every has to divide steps, got 10 and 25"


def test_the_table_shows_the_ends():
    run = Run(0.3, [0, 10], [1.0, 0.25], [0.1, 0.9], 0.02)
    title, heads, row = summary({"SGD": run}).splitlines()
    assert title == "after 10 steps, at the best of five learning rates"
    assert heads.split("  ")[0] == "optimiser"
    assert row.split() == ["SGD", "0.3", "0.2500", "0.900", "2.00"]


@pytest.fixture
def figure(monkeypatch, tmp_path, runs):
    kept = []
    monkeypatch.setattr(pictures, "Figure", lambda **options: kept.append(Figure(**options)) or kept[0])
    curves = {name: asdict(run) for name, run in runs.items()}
    pictures.training(curves, "a title", tmp_path / "picture.png", "squared error per sample")
    assert (tmp_path / "picture.png").read_bytes()[:4] == b"\x89PNG"
    assert [path.name for path in tmp_path.iterdir()] == ["picture.png"]
    return kept[0]


def test_the_picture_shows_every_run(figure, runs):
    assert [panel.get_title() for panel in figure.axes] == ["loss against steps", "accuracy against steps"]
    assert [panel.get_yscale() for panel in figure.axes] == ["log", "linear"]
    for panel, what in zip(figure.axes, ("loss", "accuracy"), strict=True):
        for line, (name, run) in zip(panel.lines, runs.items(), strict=True):
            assert line.get_label() == name
            assert list(line.get_xdata()) == [0, 10, 20]
            assert list(line.get_ydata()) == asdict(run)[what]


def test_the_picture_is_labelled_and_no_two_lines_look_alike(figure):
    assert figure.get_suptitle() == "a title"
    assert [panel.get_ylabel() for panel in figure.axes] == ["squared error per sample", "test accuracy"]
    assert [panel.get_xlabel() for panel in figure.axes] == ["steps", "steps"]
    styles = [(line.get_color(), line.get_marker()) for line in figure.axes[0].lines]
    assert len({colour for colour, _ in styles}) == len({marker for _, marker in styles}) == len(OPTIMISERS)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(OPTIMISERS)


def test_a_picture_that_cannot_be_written_is_refused(tmp_path):
    curves = {"SGD": {"step": [0], "loss": [1.0], "accuracy": [0.1]}}
    with pytest.raises(SecateurError, match=r"no-folder/a\.png: cannot be written"):
        pictures.training(curves, "a title", tmp_path / "no-folder" / "a.png")
