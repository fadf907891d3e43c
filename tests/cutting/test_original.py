"""Cut networks beside their originals."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import secateur as sc
from secateur.cutting.original import in_original, same_sets
from secateur.planning.plan import Plan
from secateur.structure.inputs import named_tensors


class Branches(nn.Module):
    """Two layers whose units are sets of their own, or one where the code adds them up."""

    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        self.left, self.right, self.wide = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(3, 5)
        self.out, self.other, self.last = nn.Linear(4, 2), nn.Linear(4, 2), nn.Linear(5, 2)
        self.tied = tied

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.left(x), self.right(x)
        left = left + right if self.tied else left
        return self.out(torch.tanh(left)) + self.other(torch.tanh(right)) + self.last(torch.tanh(self.wide(x)))


X = torch.randn(4, 3)


def test_sets_are_the_same_where_the_same_weights_go_with_them() -> None:
    model, kept = Branches(), {"left": (0, 2, 3), "wide": (1, 4)}
    units, small = sc.find_units(model, X), sc.cut(model, Plan.from_kept(kept, X))
    assert same_sets(units, kept, sc.find_units(small, X)) == {"left": "left", "right": "right", "wide": "wide"}


def test_sets_that_are_tied_together_meanwhile_are_left_out() -> None:
    units, tied = sc.find_units(Branches(), X), sc.find_units(Branches(tied=True), X)
    assert len(tied) == 2
    assert same_sets(units, {}, tied) == {"wide": "wide"}
    assert same_sets(tied, {}, units) == {"wide": "wide"}


def test_positions_of_one_unit_are_told_from_anothers() -> None:
    before = nn.Sequential(nn.Conv1d(1, 4, 3, padding=1), nn.Flatten(), nn.Linear(12, 2))
    other = nn.Sequential(nn.Conv1d(1, 4, 3, padding=1), Swapped(), nn.Linear(12, 2))
    x = torch.randn(4, 1, 3)
    assert same_sets(sc.find_units(before, x), {}, sc.find_units(before, x)) == {"0": "0"}
    assert same_sets(sc.find_units(before, x), {}, sc.find_units(other, x)) == {}


class Swapped(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2).flatten(1)


def test_trained_weights_go_to_the_places_of_what_is_kept() -> None:
    model = nn.Sequential(nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4), nn.Flatten(), nn.Linear(8, 2)).eval()
    x, kept = torch.randn(4, 2, 4), {"0": (1, 3)}
    units, small = sc.find_units(model, x), sc.cut(model, Plan.from_kept(kept, x))
    before = {name: tensor.clone() for name, tensor in named_tensors(model).items()}
    with torch.no_grad():
        for tensor in named_tensors(small).values():
            tensor.copy_(torch.arange(tensor.numel()).reshape(tensor.shape))
    whole = in_original(model, units, kept, named_tensors(small))
    assert torch.equal(whole["0.weight"][[1, 3]], small[0].weight)
    assert torch.equal(whole["0.weight"][[0, 2]], before["0.weight"][[0, 2]])
    assert whole["1.running_mean"][[1, 3]].tolist() == [0, 1]
    assert torch.equal(whole["3.weight"][:, [2, 3, 6, 7]], small[3].weight)
    assert torch.equal(whole["3.weight"][:, [0, 1, 4, 5]], before["3.weight"][:, [0, 1, 4, 5]])
    assert whole["3.bias"].tolist() == [0, 1]
    assert all(torch.equal(tensor, before[name]) for name, tensor in named_tensors(model).items())
