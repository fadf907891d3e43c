"""What compensation takes, measured on small networks."""

from __future__ import annotations

from dataclasses import replace

import torch

from experiments.studies import few
from secateur.compensation.unit_surgeon import UnitSurgeon
from secateur_experiments.bench import fitting

FEW = few(90, 40, 40)


def test_each_pass_is_set_beside_a_forward_pass_and_half_of_the_units_go(monkeypatch):
    removed, remove = [], UnitSurgeon.remove
    monkeypatch.setattr(UnitSurgeon, "remove", lambda self, g, k: (removed.append(k), remove(self, g, k)))
    costs = list(fitting.costs(FEW, wide=(6, 12, 50), runs=2))
    assert [cost.task for cost in costs] == [
        "64-100-10, 90 samples", "64-100-10, 40 samples", "6-12-6, 50 rows", "6 of its 12 units selected and removed",
    ]  # fmt: skip
    assert all(cost.forward > 0 for cost in costs)
    assert all(cost.ratio == cost.seconds / cost.forward for cost in costs)
    assert len(set(removed)) == 6


def test_the_convolutional_network_takes_rows_of_784_pixels():
    wide = replace(
        FEW, train=(torch.zeros(4, 784), FEW.train[1][:4]), calibration=(torch.zeros(2, 784), FEW.train[1][:2])
    )
    tasks = [cost.task for cost in fitting.costs(wide, wide=(2, 2, 2), runs=1)]
    assert tasks[2] == "conv, 2 samples"


def test_the_layer_is_the_same_each_time_and_leaves_the_global_generator_alone():
    before = torch.random.get_rng_state()
    (model, (x, y)), (_, (again, _)) = fitting.feed_forward(6, 12, 50), fitting.feed_forward(6, 12, 50)
    assert torch.equal(x, again)
    assert torch.equal(model(x), y)
    assert torch.equal(torch.random.get_rng_state(), before)
