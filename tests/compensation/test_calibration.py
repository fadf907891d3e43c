"""Second moments of what layers take, batch after batch."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from cases import gated_units, in_batches
from secateur import find_units
from secateur.compensation import calibration as collecting
from secateur.compensation.calibration import BatchPlace, batch_places, collect_moments, counted_rows, observe
from secateur.compensation.compensator import Compensator
from secateur.compensation.linear_layers import Layer, find_layers
from secateur.least_squares.moments import Moments
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
    assert batch_places(made.gated.batches) == [BatchPlace(0, 7, 20), BatchPlace(7, 1, 20), BatchPlace(8, 12, 20)]
    found = observe(made.gated, made.ones, [made.layer], []).moments
    held = torch.arange(60) // 3 % 5 == 4
    made.assert_moments(found[made.layer], made.rows, held)
    assert int(held.sum()) == 12


@pytest.mark.parametrize("piece", [1, 4, 100])
@pytest.mark.parametrize("most", [1, 7, 20, 59, 60])
def test_of_too_many_rows_so_many_are_taken_evenly(most: int, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collecting, "ROWS", most)
    monkeypatch.setattr(collecting, "PIECE", piece)
    monkeypatch.setattr(collecting, "EACH", 0)
    made = Made()
    found = observe(made.gated, made.ones, [made.layer], []).moments[made.layer]
    taken = [n for n in range(60) if (n + 1) * most // 60 > n * most // 60]
    assert len(taken) == most
    made.assert_moments(found, made.rows[taken], torch.tensor(taken) // 3 % 5 == 4)
    monkeypatch.setattr(collecting, "EACH", 10)  # for each of 8 rows and 3 columns of the matrix
    made.assert_moments(
        observe(made.gated, made.ones, [made.layer], []).moments[made.layer], made.rows, torch.arange(60) // 3 % 5 == 4
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
    assert observe(made.gated, made.ones, layers, layers) == ({}, {})


# ---------------------------------------------------------------- positions that do not count


class Encoder(nn.Module):
    """Attention within a mask, a layer over all positions as one dimension, one for positions, one for samples."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.flat, self.down, self.last = nn.Linear(3, 6), nn.Linear(6, 5), nn.Linear(5, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        y = torch.tanh(self.up(x))
        y = torch.tanh(self.flat(y.reshape(-1, 6))).reshape(x.shape[0], -1, 5)
        y = torch.nn.functional.scaled_dot_product_attention(y, y, y, attention_mask[:, None].bool())
        y = torch.tanh(self.down(y)) * attention_mask[..., None]
        return self.last(y.sum(1) / attention_mask.sum(1, keepdim=True))


LENGTHS = [3, 1, 4, 2, 4, 3, 2, 1, 4, 4, 3]


def encoded(length: int, cuts: list[int]) -> GatedLoss:
    """Sentences of up to four positions, padded to some length."""
    torch.manual_seed(0)
    model, x = Encoder().double(), torch.randn(len(LENGTHS), 4, 3).double()
    padded = torch.full((len(x), length, 3), 7.0).double()
    padded[:, :4] = x
    mask = torch.arange(length) < torch.tensor(LENGTHS)[:, None]
    targets = torch.arange(len(x)) % 2
    ends = [0, *cuts, len(x)]
    batches = [
        ({"x": padded[a:b], "attention_mask": mask[a:b].long()}, targets[a:b]) for a, b in itertools.pairwise(ends)
    ]
    units = gated_units(model, batches[0][0])
    return GatedLoss(model, units, batches, "cross_entropy")


@pytest.mark.parametrize(("rows", "fewer"), [(20_000, 5_000), (9, 4)])
def test_padding_changes_no_moments_and_no_fit(rows: int, fewer: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collecting, "ROWS", rows)
    monkeypatch.setattr(collecting, "FEWER", fewer)
    monkeypatch.setattr(collecting, "EACH", 0)
    found, weights = [], []
    for length, cuts in ((4, [3, 4]), (8, [6])):
        gated = encoded(length, cuts)
        g, layers = ones(gated.model, gated.units), find_layers(gated.units)
        found.append({layer.weight: moments for layer, moments in observe(gated, g, layers, []).moments.items()})
        compensator = Compensator(gated)
        compensator.fit(g.index_fill(0, torch.tensor([0, 2, 7]), 0))
        weights.append(dict(compensator.weights))
    assert [*found[0]] == [*found[1]] == ["flat.weight", "down.weight", "last.weight"]
    for name, moments in found[0].items():
        counted = sum(LENGTHS) if name != "last.weight" else len(LENGTHS)
        assert sum(int(sums.xx[0, -1, -1]) for sums in moments.parts()) == min(rows, counted)
        for one, other in zip(with_means(moments), with_means(found[1][name]), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    assert weights[0].keys() == weights[1].keys() != set()
    for name, weight in weights[0].items():
        torch.testing.assert_close(weight, weights[1][name], rtol=1e-8, atol=1e-10)


def with_means(moments: Moments) -> list[Tensor]:
    """The moments of inputs a themselves, whatever was subtracted from them; both parts."""
    assert moments.origin is not None
    back = torch.eye(moments.inputs + 1).double()
    back[-1, :-1] = moments.origin[0]
    return [back.T @ sums.xx[0] @ back for sums in moments.parts()]


def test_rows_of_padding_are_left_out_and_held_out_rows_stay_by_sample() -> None:
    gated = encoded(6, [5])
    layers = {layer.weight: layer for layer in find_layers(gated.units)}
    first, second = batch_places(gated.batches)
    assert (first.before, first.positions, second.before, second.positions) == (0, 31, sum(LENGTHS[:5]), 31)
    value = torch.zeros(6, 6, 6).double()
    rows = counted_rows(layers["flat.weight"], value.flatten(0, 1), second)
    samples = [n for n, length in enumerate(LENGTHS) for _ in range(length) if n >= 5]
    assert rows.samples.tolist() == samples
    assert rows.numbers.tolist() == list(range(sum(LENGTHS[:5]), 31))
    assert rows.total == 31
    assert rows.places is not None
    assert rows.places.tolist() == [
        (n - 5) * 6 + i for n, length in enumerate(LENGTHS) if n >= 5 for i in range(length)
    ]
    whole = counted_rows(layers["last.weight"], torch.zeros(6, 3).double(), second)
    assert (whole.places, whole.total, whole.samples.tolist()) == (None, 11, [5, 6, 7, 8, 9, 10])
    others = counted_rows(layers["down.weight"], torch.zeros(6, 3, 5).double(), second)  # of other positions
    assert (others.places, others.total) == (None, 33)
