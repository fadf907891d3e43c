"""What compensation takes, measured on small networks."""

from __future__ import annotations

from dataclasses import replace

import torch

from secateur.bench import fitting
from secateur.papers.data import digits
from secateur.saliency.obs import UnitSurgeon

WHOLE = digits()
FEW = replace(WHOLE, train=tuple(t[:90] for t in WHOLE.train), calibration=tuple(t[:40] for t in WHOLE.calibration))


def test_each_pass_is_set_beside_a_forward_pass_and_half_of_the_units_go(monkeypatch):
    removed, remove = [], UnitSurgeon.remove
    monkeypatch.setattr(UnitSurgeon, "remove", lambda self, g, k: (removed.append(k), remove(self, g, k)))
    found = list(fitting.costs(FEW, wide=(6, 12, 50), runs=2))
    assert [one.task for one in found] == [
        "64-100-10, 90 samples", "64-100-10, 40 samples", "6-12-6, 50 rows", "6 of its 12 units selected and removed",
    ]  # fmt: skip
    assert all(one.forward > 0 for one in found)
    assert all(one.ratio == one.seconds / one.forward for one in found)
    assert len(set(removed)) == 6


def test_the_convolutional_network_takes_rows_of_784_pixels():
    wide = replace(
        FEW, train=(torch.zeros(4, 784), FEW.train[1][:4]), calibration=(torch.zeros(2, 784), FEW.train[1][:2])
    )
    tasks = [one.task for one in fitting.costs(wide, wide=(2, 2, 2), runs=1)]
    assert tasks[2] == "conv, 2 samples"


def test_the_layer_is_the_same_each_time_and_leaves_the_global_generator_alone():
    before = torch.random.get_rng_state()
    (model, (x, y)), (_, (again, _)) = fitting.feed_forward(6, 12, 50), fitting.feed_forward(6, 12, 50)
    assert torch.equal(x, again)
    assert torch.equal(model(x), y)
    assert torch.equal(torch.random.get_rng_state(), before)
