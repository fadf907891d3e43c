"""Second moments of what layers take, batch after batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cases import in_batches
from secateur import find_units
from secateur.compensation import calibration as collecting
from secateur.compensation.calibration import BatchPlace, batch_places, collect_moments, original_moments
from secateur.compensation.linear_layers import Layer, find_layers
from secateur.compensation.ridge import Moments
from secateur.objective.gated_loss import GatedLoss, ones


class Made:
    """A layer behind a convolution that has three rows for each sample, in batches of 7, 1 and 12."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Conv1d(2, 4, 2), nn.Tanh(), nn.Conv1d(4, 3, 2)).double()
        self.x, t = torch.randn(20, 2, 5).double(), torch.randn(20, 3, 3).double()
        self.units = find_units(self.model, self.x)
        self.gated = GatedLoss(self.model, self.units, in_batches(self.x, t, [7, 8]), "squared_error")
        self.ones, (self.layer,) = ones(self.model, self.units), find_layers(self.units)
        with torch.no_grad():
            self.value = torch.tanh(self.model[0](self.x))
        self.rows = self.layer.rows(self.value)  # [60, 8]

    def assert_moments(self, found: Moments, rows: Tensor, held: Tensor) -> None:
        for sums, part in zip(found.parts(), (rows[~held], rows[held]), strict=True):
            assert sums.xx[0, -1, -1] == len(part)
            assert found.origin is not None
            x = part - found.origin[0]
            torch.testing.assert_close(sums.xx[0, :-1, :-1], x.T @ x, rtol=1e-10, atol=1e-10)


def test_all_rows_of_all_batches_are_taken_and_every_fifth_sample_is_held_out() -> None:
    made = Made()
    assert batch_places(made.gated) == [BatchPlace(0, 7, 20), BatchPlace(7, 1, 20), BatchPlace(8, 12, 20)]
    found = original_moments(made.gated, made.ones, [made.layer], [])
    held = torch.arange(60) // 3 % 5 == 4
    made.assert_moments(found[made.layer], made.rows, held)
    assert int(held.sum()) == 12


@pytest.mark.parametrize("most", [1, 7, 20, 59, 60])
def test_of_too_many_rows_so_many_are_taken_evenly(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collecting, "ROWS", most)
    monkeypatch.setattr(collecting, "EACH", 0)
    made = Made()
    found = original_moments(made.gated, made.ones, [made.layer], [])[made.layer]
    taken = [n for n in range(60) if (n + 1) * most // 60 > n * most // 60]
    assert len(taken) == most
    made.assert_moments(found, made.rows[taken], torch.tensor(taken) // 3 % 5 == 4)
    monkeypatch.setattr(collecting, "EACH", 10)  # for each of 8 rows and 3 columns of the matrix
    made.assert_moments(
        original_moments(made.gated, made.ones, [made.layer], [])[made.layer], made.rows, torch.arange(60) // 3 % 5 == 4
    )


def test_targets_and_what_they_count_are_those_of_the_rows_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collecting, "FEWER", 20)
    monkeypatch.setattr(collecting, "EACH", 0)
    made = Made()
    z, weight = torch.randn(60, 3).double(), torch.rand(60, 3).double()
    found, expected = Moments(8, 3, made.ones.device), Moments(8, 3, made.ones.device)
    collect_moments(found, made.layer, made.value, BatchPlace(0, 20, 20), z, weight)
    some = torch.tensor([n for n in range(60) if (n + 1) * 20 // 60 > n * 20 // 60])
    expected.add(made.rows[some], z[some], some // 3 % 5 == 4, weight[some])
    for one, other in zip(found.parts(), expected.parts(), strict=True):
        assert all(torch.equal(*pair) for pair in zip(one, other, strict=True))


def test_nothing_is_computed_for_no_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Made()
    layers: list[Layer] = []
    monkeypatch.setattr(collecting, "trace_layers", lambda *_: pytest.fail("traced"))
    assert original_moments(made.gated, made.ones, layers, layers) == {}
