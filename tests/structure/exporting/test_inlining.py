"""Blocks that switch autocast or gradients: what is in the graph computes what the block does."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import secateur as sc
from secateur.structure.capture import call_model, capture
from secateur.structure.graph_run import run
from secateur.structure.inputs import as_call

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1] * 3)


class Blocks(nn.Module):
    """Three layers, the second in a block."""

    def __init__(self, block: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2)
        self.norm, self.block = nn.LayerNorm(8), block

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.block(self, self.first(x).relu()).float().relu())


def low(model: nn.Module, h: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return model.second(h)


def in_place(model: nn.Module, h: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return F.relu_(model.second(h)).mul_(2)


def kept_high(model: nn.Module, h: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        h = model.norm(model.second(h).softmax(-1) * h)
        k = h[:, None]
        return F.scaled_dot_product_attention(k, k, k)[:, 0]


def off_within(model: nn.Module, h: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        h = h @ model.second.weight
        with torch.autocast("cpu", enabled=False):
            h = model.second(h.float())
        return h @ model.second.weight


def without_gradients(model: nn.Module, h: Tensor) -> Tensor:
    with torch.no_grad():
        return model.second(h)


BLOCKS = [low, in_place, kept_high, off_within, without_gradients]


def blocks(block: Callable[[nn.Module, Tensor], Tensor]) -> Blocks:
    torch.manual_seed(0)
    return Blocks(block).eval()


@pytest.mark.parametrize("block", BLOCKS)
def test_the_graph_computes_bit_by_bit_what_the_block_does(block: Callable[[nn.Module, Tensor], Tensor]) -> None:
    model = blocks(block)
    captured = capture(model, as_call(X))
    with torch.no_grad():
        for x in (X, torch.cat([X, -X])):
            assert torch.equal(run(captured, model, as_call(x)), call_model(model, as_call(x)))


@pytest.mark.parametrize("block", [low, in_place])
def test_units_within_autocast_are_cut(block: Callable[[nn.Module, Tensor], Tensor]) -> None:
    model = blocks(block)
    result = sc.shrink(model, (X, Y), "cross_entropy", sc.Budget(remove_fraction=0.5), progress=False)
    assert result.model.first.out_features + result.model.second.out_features == 8
    assert result.captured == ()
    assert result.max_difference < 0.05
