"""What decoders keep of earlier tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.errors import ArgumentError, BudgetError


class Attention(nn.Module):
    """Attention of two heads, whose keys and values may be kept."""

    def __init__(self, width: int = 8, head: int = 4, heads: int = 2) -> None:
        super().__init__()
        self.head = head
        self.q, self.k, self.v = (nn.Linear(width, heads * head) for _ in range(3))
        self.o = nn.Linear(heads * head, width)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        n, length, _ = x.shape
        q, k, v = (layer(x).view(n, length, -1, self.head).transpose(1, 2) for layer in (self.q, self.k, self.v))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o(mixed.transpose(1, 2).reshape(n, length, -1)), (k, v)


class Cache:
    """An object that holds keys and values, as decoders' caches do."""

    def __init__(self, layers: list[tuple[Tensor, Tensor]]) -> None:
        self.layers = layers


class Decoder(nn.Module):
    """Two layers of attention that return logits, and a cache when asked."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.layers = nn.Embedding(11, 8), nn.ModuleList(Attention() for _ in range(2))
        self.head = nn.Linear(8, 11)

    def forward(self, ids: Tensor, use_cache: bool = False) -> Any:
        x, kept = self.embed(ids), []
        for layer in self.layers:
            out, pair = layer(x)
            x = x + out
            kept.append(pair)
        return {"logits": self.head(x), "cache": Cache(kept)} if use_cache else {"logits": self.head(x)}


DATA = torch.randint(0, 11, (8, 5), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def decoder() -> Decoder:
    torch.manual_seed(0)
    return Decoder().eval()


def test_the_bytes_kept_of_each_token_follow_the_heads_that_are_left(decoder: Decoder) -> None:
    units = sc.find_units(decoder, DATA)
    heads = [unit_set.name for unit_set in units if unit_set.kind == "head"]
    assert len(heads) == 2
    others = tuple(unit_set.name for unit_set in units if unit_set.name not in heads)
    budget = sc.Budget(kv_cache=100, protect=others)
    result = sc.shrink(decoder, DATA, "distribution", budget, progress=False)
    assert result.before.kv_cache == 2 * 2 * 2 * 4 * 4  # layers, keys and values, heads, width, bytes
    assert result.after.kv_cache == 96
    assert [len(result.plan.kept[name]) for name in heads] in ([1, 2], [2, 1])
    kept = result.model(DATA, use_cache=True)["cache"].layers
    assert sum(tensor[0, :, 0].nbytes for pair in kept for tensor in pair) == 96
    assert "96 B kept of each token" in str(result.after)
    with pytest.raises(BudgetError, match=r"cannot be met: at most 2 of .*, 64 bytes kept of each token$"):
        sc.shrink(decoder, DATA, "distribution", sc.Budget(kv_cache=60, protect=others), progress=False)


def test_what_keeps_nothing_is_refused(decoder: Decoder) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(ArgumentError, match=r"^Budget: kv_cache: Sequential keeps nothing of earlier tokens$"):
        sc.shrink(model, torch.randn(5, 3), "output", sc.Budget(kv_cache=1), progress=False)

    class Hidden(Decoder):
        def forward(self, ids: Tensor, use_cache: bool = False) -> Any:
            out = super().forward(ids, use_cache)
            return {**out, "more": [torch.randn(2, 5)]} if use_cache else out

    torch.manual_seed(0)
    with pytest.raises(ArgumentError, match=r"Hidden keeps 5 tensors, its captured graph computes 4 of them$"):
        sc.shrink(Hidden().eval(), DATA, "distribution", sc.Budget(kv_cache=100), progress=False)
