"""Decoders written by hand."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur_experiments.bench.suite.registry import Subject, subject, tokens


class CausalSelfAttention(nn.Module):
    """NanoGPT's attention: q, k and v split by the width, heads by view."""

    def __init__(self, width: int, heads: int, block: int):
        super().__init__()
        self.c_attn, self.c_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.n_head, self.n_embd = heads, width
        self.register_buffer("bias", torch.tril(torch.ones(block, block, dtype=torch.bool)).view(1, 1, block, block))

    def forward(self, x: Tensor) -> Any:
        b, t, c = x.size()
        q, k, v = self.c_attn(x).split(self.n_embd, dim=2)
        k = k.view(b, t, self.n_head, c // self.n_head).transpose(1, 2)
        q = q.view(b, t, self.n_head, c // self.n_head).transpose(1, 2)
        v = v.view(b, t, self.n_head, c // self.n_head).transpose(1, 2)
        scores = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
        scores = scores.masked_fill(~self.get_buffer("bias")[:, :, :t, :t], float("-inf"))
        y = F.softmax(scores, dim=-1) @ v
        return self.c_proj(y.transpose(1, 2).contiguous().view(b, t, c))


class Block(nn.Module):
    """Attention and an MLP."""

    def __init__(self, attention: nn.Module, mlp: nn.Module, width: int, norm: type[nn.Module] = nn.LayerNorm):
        super().__init__()
        self.ln_1, self.ln_2, self.attn, self.mlp = norm(width), norm(width), attention, mlp

    def forward(self, x: Tensor) -> Any:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class NanoGpt(nn.Module):
    """A decoder whose embedding is its last layer."""

    def __init__(self, width: int = 32, block: int = 24):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(50, width), nn.Embedding(block, width)
        mlps = [nn.Sequential(nn.Linear(width, 64), nn.GELU(), nn.Linear(64, width)) for _ in range(2)]
        self.h = nn.ModuleList(Block(CausalSelfAttention(width, 4, block), mlp, width) for mlp in mlps)
        self.ln_f, self.lm_head = nn.LayerNorm(width), nn.Linear(width, 50, bias=False)
        self.wte.weight = self.lm_head.weight

    def forward(self, ids: Tensor) -> Any:
        places = torch.arange(0, ids.size(1), dtype=torch.long, device=ids.device)
        x = self.wte(ids) + self.wpe(places)
        for block in self.h:
            x = block(x)
        return self.lm_head(self.ln_f(x))


@subject("nanoGPT")
def nano_gpt() -> Subject:
    """Return the decoder with tied weights."""
    return Subject(NanoGpt(), tokens(50), (12, 7, 24))


class RMSNorm(nn.Module):
    """Division by the root of the mean square."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Any:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


class RotaryAttention(nn.Module):
    """Grouped queries, rotated by complex numbers as sines and cosines."""

    def __init__(self, width: int, heads: int, shared: int):
        super().__init__()
        self.n_heads, self.n_kv, self.head_dim = heads, shared, width // heads
        self.wq = nn.Linear(width, heads * self.head_dim, bias=False)
        self.wk = nn.Linear(width, shared * self.head_dim, bias=False)
        self.wv = nn.Linear(width, shared * self.head_dim, bias=False)
        self.wo = nn.Linear(heads * self.head_dim, width, bias=False)

    def forward(self, x: Tensor) -> Any:
        b, t, _ = x.shape
        q = _rotated(self.wq(x).view(b, t, self.n_heads, self.head_dim))
        k = _rotated(self.wk(x).view(b, t, self.n_kv, self.head_dim))
        v = self.wv(x).view(b, t, self.n_kv, self.head_dim)
        repeats = self.n_heads // self.n_kv
        k, v = k.repeat_interleave(repeats, dim=2), v.repeat_interleave(repeats, dim=2)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.wo(y.transpose(1, 2).reshape(b, t, self.n_heads * self.head_dim))


def _rotated(x: Tensor) -> Tensor:
    t, width = x.shape[1], x.shape[3]
    rates = 1.0 / (10000 ** (torch.arange(0, width, 2, dtype=x.dtype, device=x.device) / width))
    angles = torch.arange(t, dtype=x.dtype, device=x.device)[:, None] * rates
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(3)


class Expert(nn.Module):
    """A gated MLP."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.w1, self.w3 = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
        self.w2 = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Any:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Mixture(nn.Module):
    """The two best of the experts for each token; all are computed, most are weighted with zero."""

    def __init__(self, width: int, hidden: int, experts: int):
        super().__init__()
        self.gate = nn.Linear(width, experts, bias=False)
        self.experts = nn.ModuleList(Expert(width, hidden) for _ in range(experts))

    def forward(self, x: Tensor) -> Any:
        scores = self.gate(x).softmax(-1)
        best, chosen = scores.topk(2, dim=-1)
        shares = torch.zeros_like(scores).scatter(-1, chosen, best / best.sum(-1, keepdim=True))
        return sum(shares[..., i : i + 1] * expert(x) for i, expert in enumerate(self.experts))


class Mixtral(nn.Module):
    """A decoder with grouped queries and mixtures of experts."""

    def __init__(self, width: int = 32):
        super().__init__()
        self.embed = nn.Embedding(50, width)
        self.layers = nn.ModuleList(
            Block(RotaryAttention(width, 4, 2), Mixture(width, 40, 4), width, RMSNorm) for _ in range(2)
        )
        self.norm, self.output = RMSNorm(width), nn.Linear(width, 50, bias=False)

    def forward(self, ids: Tensor) -> Any:
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return self.output(self.norm(x))


@subject("Mixtral by hand")
def mixtral() -> Subject:
    """Return a decoder with experts."""
    return Subject(Mixtral(), tokens(50), (12, 7, 24))


class TimeMix(nn.Module):
    """A linear recurrence over tokens as a product with decaying weights, gated, as RetNet has it."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.g, self.o = (nn.Linear(width, width, bias=False) for _ in range(5))
        self.norm = nn.GroupNorm(heads, width)

    def forward(self, x: Tensor) -> Any:
        b, t, _ = x.shape
        q, k, v = (layer(x).view(b, t, self.heads, -1).transpose(1, 2) for layer in (self.q, self.k, self.v))
        steps = torch.arange(t, dtype=x.dtype, device=x.device)
        apart = steps[:, None] - steps[None, :]
        decay = torch.where(apart >= 0, 0.9 ** apart.clamp(min=0), torch.zeros_like(apart))
        y = ((q @ k.transpose(-2, -1)) * decay) @ v
        y = self.norm(y.transpose(1, 2).reshape(b * t, -1)).view(b, t, -1)
        return self.o(F.silu(self.g(x)) * y)


class RetNet(nn.Module):
    """A decoder of decaying recurrences."""

    def __init__(self, width: int = 32):
        super().__init__()
        self.embed = nn.Embedding(50, width)
        self.layers = nn.Sequential(*(Block(TimeMix(width, 4), Expert(width, 48), width) for _ in range(2)))
        self.output = nn.Linear(width, 50, bias=False)

    def forward(self, ids: Tensor) -> Any:
        return self.output(self.layers(self.embed(ids)))


@subject("RetNet")
def retnet() -> Subject:
    """Return retention in its parallel form."""
    return Subject(RetNet(), tokens(50), (12, 7, 24))
