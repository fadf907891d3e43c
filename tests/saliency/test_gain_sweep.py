"""E along the gain of a unit, against the whole model with that gain."""

from __future__ import annotations

import pytest
import torch

from cases import CASES
from secateur import find_units, reference
from secateur.errors import ArgumentError
from secateur.objective.losses import cross_entropy
from secateur.saliency.gain_sweep import gain_sweep


@pytest.mark.parametrize("name", ["two_hidden", "branches", "flattened_units", "tied"])
def test_a_sweep_is_the_loss_of_the_model_with_that_gain(name: str) -> None:
    case = CASES[name]()
    units = find_units(case.model, case.x)
    chosen = [(s.name, k) for s in units for k in {0, s.size - 1}]
    gains = torch.tensor([0.0, 0.3, 1.0, 4.0, 10.0]).double()
    got = gain_sweep(case.model, (case.x, case.y), "cross_entropy", units, chosen, gains)
    assert got.shape == (len(chosen), 5)
    assert got[:, 2].tolist() == pytest.approx([got[0, 2].item()] * len(chosen), rel=1e-12)
    if name == "tied":
        return  # gates of the reference are on the modules that make units
    for (unit_set, k), row in zip(chosen, got, strict=True):
        for gain, loss in zip(gains.tolist(), row.tolist(), strict=True):
            g = torch.ones(units.total).double()
            g[units.places.index((unit_set, k))] = gain
            with torch.no_grad():
                wanted = reference.gated_loss(case.model, units, (case.x,), case.y, cross_entropy, g).item()
            assert loss == pytest.approx(wanted, rel=1e-11)


def test_a_unit_that_is_not_there_is_refused() -> None:
    case = CASES["one_hidden"]()
    units = find_units(case.model, case.x)
    with pytest.raises(ArgumentError, match=r"^chosen: '0' has units 0 to 6, got 7$"):
        gain_sweep(case.model, (case.x, case.y), "cross_entropy", units, [("0", 7)], [1.0])
    with pytest.raises(ArgumentError, match="nope"):
        gain_sweep(case.model, (case.x, case.y), "cross_entropy", units, [("nope", 0)], [1.0])
