"""Figures 1, 4-6 and 9-11, on few digits."""

from __future__ import annotations

import pytest
import torch

from experiments.studies import done, study
from secateur.cutting.slices import gates
from secateur_experiments.papers import surfaces
from secateur_experiments.study import Way


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(surfaces, "EVERY", 3)
    monkeypatch.setattr(surfaces, "SAMPLES", 40)
    monkeypatch.setattr(surfaces, "ONE", (9,))


@pytest.mark.parametrize("hidden", [(9,), (5, 4)])
def test_a_surface_is_the_loss_at_each_gain_of_the_unit_that_goes_next(hidden):
    made = study()
    surface = surfaces.surface(made, made.logistic(hidden), "taylor1")
    subject = made.logistic(hidden)
    plan, gated = made.plan(subject, 0, Way("taylor1")), made.gated(subject, 0, 40)
    units = made.units(subject, 0)
    assert list(surface.losses) == [0, 3, 6][: len(surface.losses)]
    for n, losses in surface.losses.items():
        step = plan.steps[n]
        assert surface.units[n] == f"{step.set}[{step.index}]"
        assert len(losses) == 10_001
        for gain in (0, 1, 2.5, 10):
            g = gates(made.network(subject, 0), units, plan.prefix(n).kept)
            g[units.places.index((step.set, step.index))] = gain
            assert losses[round(1000 * gain)] == pytest.approx(gated.loss(g), rel=1e-5)


def test_a_figure_of_surfaces():
    made = study()
    finding = done(surfaces.figure_of("4", (9,), "oracle"), made)
    surface = surfaces.surface(made, made.logistic((9,)), "oracle")
    log, real = finding.drawings[0].figure.axes
    assert (log.get_yscale(), real.get_yscale()) == ("log", "linear")
    assert [line.get_label() for line in log.lines] == [*map(str, surface.losses), "α = 1: as learned"]
    assert finding.numbers["0"]["at 4"] == surface.losses[0][4000]
    slope = torch.tensor(surface.losses[0])[999:1002]
    assert finding.numbers["0"]["slope"] == pytest.approx(((slope[2] - slope[0]) / 0.002).item(), rel=1e-3, abs=1e-4)
    assert finding.tables[0].rows[0][:3] == [0, surface.units[0], surface.losses[0][0]]


def test_one_units_expansions_touch_its_true_error():
    made = study()
    finding = done((surfaces.intuition_jobs, surfaces.intuition), made)
    (panel,) = finding.drawings[0].figure.axes
    true, first, second = (line.get_ydata() for line in panel.lines[:6:2])
    middle = len(true) // 2
    assert first[middle] == second[middle] == pytest.approx(true[middle], rel=1e-6)
    assert true[0] - true[middle] == pytest.approx(finding.numbers["oracle"], rel=1e-3)
    assert first[0] - first[middle] == pytest.approx(finding.numbers["taylor1"], rel=1e-3)
    assert second[0] - second[middle] == pytest.approx(finding.numbers["hessian"], rel=1e-3)
    near = slice(middle - 10, middle + 11)
    assert abs(second[near] - true[near]).max() <= abs(first[near] - true[near]).max()
