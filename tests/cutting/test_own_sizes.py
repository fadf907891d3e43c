"""Numbers that modules of the user's keep of their sizes, after a cut (secateur.own_code.module_attributes)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import secateur as sc


class Block(nn.Module):
    """Numbers that are never used, one that is no size, one that is used as a factor."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 8), nn.Linear(8, 5)
        self.num_features, self.embed_dim, self.in_channels, self.out_dim = 8, 8, 3, 5
        self.num_layers, self.width, self.hidden_dims = 8, 8, [8]

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(x))) * self.width


class Blocks(nn.Module):
    """Two blocks with inner layers of one size."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.middle, self.b, self.hidden_size = Block(), nn.Linear(5, 3), Block(), 8

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.middle(self.a(x))))


def cut_blocks(kept: dict[str, list[int]]) -> nn.Module:
    torch.manual_seed(0)
    return sc.cut(Blocks(), sc.Plan.from_kept(kept, torch.randn(4, 3)))


def test_unused_numbers_of_own_modules_follow_the_sizes_of_their_parameters() -> None:
    small = cut_blocks({"a.first": [0, 2, 5], "a.last": [1, 3], "b.first": [1]})
    assert (small.a.num_features, small.a.embed_dim, small.a.in_channels, small.a.out_dim) == (3, 3, 3, 2)
    assert (small.b.num_features, small.b.embed_dim, small.b.in_channels, small.b.out_dim) == (1, 1, 3, 5)


def test_numbers_that_are_used_or_no_sizes_or_ambiguous_stay() -> None:
    small = cut_blocks({"a.first": [0, 2, 5], "b.first": [1]})
    assert (small.a.width, small.a.num_layers, small.a.hidden_dims) == (8, 8, [8])
    assert small.hidden_size == 8  # 3 in one block, 1 in the other
    assert cut_blocks({"a.first": [0, 2, 5], "b.first": [1, 2, 3]}).hidden_size == 3
    assert cut_blocks({"a.first": [0, 2, 5]}).hidden_size == 8  # and 8 in the other
