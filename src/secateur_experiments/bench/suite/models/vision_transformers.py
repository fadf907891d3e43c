"""Attention over the places of an image: patches, windows, latent vectors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur_experiments.bench.suite.registry import Subject, images, subject


class Mlp(nn.Module):
    """Two dense layers with a GELU."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Any:
        return self.fc2(F.gelu(self.fc1(x)))


class EinsumAttention(nn.Module):
    """Attention whose weights are tensors of three dimensions, all by einsum."""

    def __init__(self, width: int, heads: int, depth: int):
        super().__init__()
        self.to_q, self.to_k, self.to_v = (nn.Parameter(torch.randn(width, heads, depth)) for _ in range(3))
        self.to_out = nn.Parameter(torch.randn(heads, depth, width))

    def forward(self, x: Tensor) -> Any:
        q, k, v = (torch.einsum("bnc,chd->bhnd", x, w) for w in (self.to_q, self.to_k, self.to_v))
        weights = (torch.einsum("bhnd,bhmd->bhnm", q, k) / 8**0.5).softmax(-1)
        return torch.einsum("bhnd,hdc->bnc", torch.einsum("bhnm,bhmd->bhnd", weights, v), self.to_out)


class EinsumViT(nn.Module):
    """A vision transformer; its positions are interpolated to the image's size."""

    def __init__(self, width: int = 32):
        super().__init__()
        self.patch = nn.Conv2d(3, width, 8, 8)
        self.positions = nn.Parameter(torch.randn(1, width, 4, 4))
        self.cls = nn.Parameter(torch.randn(1, 1, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(4))
        self.attentions = nn.ModuleList(EinsumAttention(width, 4, 8) for _ in range(2))
        self.mlps = nn.ModuleList(Mlp(width, 64) for _ in range(2))
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Any:
        x = self.patch(x)
        x = x + F.interpolate(self.positions, x.shape[-2:], mode="bilinear", align_corners=False)
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x.flatten(2).transpose(1, 2)], 1)
        for i, (attention, mlp) in enumerate(zip(self.attentions, self.mlps, strict=True)):
            x = x + attention(self.norms[2 * i](x))
            x = x + mlp(self.norms[2 * i + 1](x))
        return self.head(x[:, 0])


@subject("ViT by einsum")
def einsum_vit() -> Subject:
    """Return a ViT whose attention is einsum alone."""
    return Subject(EinsumViT(), images, (32, 48, (24, 40)), "image size")


class FusedAttention(nn.Module):
    """Attention from one qkv layer by the fused function, as DINOv2 and timm write it."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.num_heads = heads
        self.head_dim = width // heads
        self.qkv, self.proj = nn.Linear(width, width * 3), nn.Linear(width, width)
        self.q_norm, self.k_norm = nn.LayerNorm(self.head_dim), nn.LayerNorm(self.head_dim)

    def forward(self, x: Tensor) -> Any:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        x = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v)
        return self.proj(x.transpose(1, 2).reshape(b, n, c))


class Layer(nn.Module):
    """Fused attention and an MLP, each scaled by a parameter before it is added."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn, self.mlp = FusedAttention(width, heads), Mlp(width, 2 * width)
        self.ls1, self.ls2 = nn.Parameter(torch.ones(width)), nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Any:
        x = x + self.ls1 * self.attn(self.norm1(x))
        return x + self.ls2 * self.mlp(self.norm2(x))


class Dino(nn.Module):
    """A ViT with registers and scaled residuals."""

    def __init__(self, width: int = 32):
        super().__init__()
        self.patch = nn.Conv2d(3, width, 8, 8)
        self.registers = nn.Parameter(torch.randn(1, 3, width))
        self.blocks = nn.Sequential(Layer(width, 4), Layer(width, 4))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Any:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.registers.expand(x.shape[0], -1, -1), x], 1)
        x = self.norm(self.blocks(x))
        return {"cls": x[:, 0], "patches": x[:, 3:]}


@subject("DINOv2 ViT")
def dino() -> Subject:
    """Return a ViT with registers, norms of q and k, scaled residuals."""
    return Subject(Dino(), images, (32, 48, (24, 40)), "image size")


class WindowAttention(nn.Module):
    """Attention in windows with a table of relative positions."""

    def __init__(self, width: int, heads: int, window: int):
        super().__init__()
        self.num_heads, self.window, self.scale = heads, window, (width // heads) ** -0.5
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.relative_position_bias_table = nn.Parameter(torch.randn((2 * window - 1) ** 2, heads))
        steps = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
        apart = (steps[:, :, None] - steps[:, None, :] + window - 1).permute(1, 2, 0)
        self.register_buffer("relative_position_index", apart[..., 0] * (2 * window - 1) + apart[..., 1])

    def forward(self, x: Tensor) -> Any:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, c // self.num_heads).permute(2, 0, 3, 1, 4)
        index = self.get_buffer("relative_position_index")
        bias = self.relative_position_bias_table[index.view(-1)].view(n, n, -1).permute(2, 0, 1)
        attention = (q * self.scale @ k.transpose(-2, -1) + bias.unsqueeze(0)).softmax(-1)
        return self.proj((attention @ v).transpose(1, 2).reshape(b, n, c))


class SwinBlock(nn.Module):
    """Attention in windows, rolled by half a window or not, and an MLP."""

    def __init__(self, width: int, heads: int, window: int, shift: int):
        super().__init__()
        self.window, self.shift = window, shift
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn, self.mlp = WindowAttention(width, heads, window), Mlp(width, 2 * width)

    def forward(self, x: Tensor) -> Any:
        b, h, w, c = x.shape
        n = self.window
        y = torch.roll(self.norm1(x), (-self.shift, -self.shift), (1, 2))
        y = y.view(b, h // n, n, w // n, n, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, n * n, c)
        y = self.attn(y).view(b, h // n, w // n, n, n, c).permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, c)
        x = x + torch.roll(y, (self.shift, self.shift), (1, 2))
        return x + self.mlp(self.norm2(x))


class Swin(nn.Module):
    """Two stages with patch merging between them."""

    def __init__(self, width: int = 24):
        super().__init__()
        self.patch = nn.Conv2d(3, width, 4, 4)
        self.first = nn.Sequential(SwinBlock(width, 2, 4, 0), SwinBlock(width, 2, 4, 2))
        self.merge_norm = nn.LayerNorm(4 * width)
        self.merge = nn.Linear(4 * width, 2 * width, bias=False)
        self.second = SwinBlock(2 * width, 4, 4, 0)
        self.norm, self.head = nn.LayerNorm(2 * width), nn.Linear(2 * width, 5)

    def forward(self, x: Tensor) -> Any:
        x = self.first(self.patch(x).permute(0, 2, 3, 1))
        parts = (x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2])
        x = self.second(self.merge(self.merge_norm(torch.cat(parts, -1))))
        return self.head(self.norm(x).mean((1, 2)))


@subject("Swin")
def swin() -> Subject:
    """Return attention in rolled windows with relative positions."""
    return Subject(Swin(), images, (32, 64, (32, 64)), "image size")


class MobileViT(nn.Module):
    """Convolutions, then attention over the patches' equal places by unfolding and folding."""

    def __init__(self, width: int = 24):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.SiLU())
        self.local = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.SiLU(), nn.Conv2d(16, width, 1, bias=False))
        self.transformer = nn.Sequential(Layer(width, 4))
        self.norm = nn.LayerNorm(width)
        self.project = nn.Sequential(nn.Conv2d(width, 16, 1), nn.BatchNorm2d(16), nn.SiLU())
        self.fuse = nn.Sequential(nn.Conv2d(32, 24, 3, padding=1), nn.SiLU())
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Any:
        stem = self.stem(x)
        y = self.local(stem)
        b, c, h, w = y.shape
        y = y.reshape(b * c * (h // 2), 2, w // 2, 2).transpose(1, 2).reshape(b, c, h * w // 4, 4)
        y = self.norm(self.transformer(y.transpose(1, 3).reshape(b * 4, h * w // 4, c)))
        y = y.reshape(b, 4, h * w // 4, c).transpose(1, 3).reshape(b * c * (h // 2), w // 2, 2, 2)
        y = self.project(y.transpose(1, 2).reshape(b, c, h, w))
        return self.head(self.fuse(torch.cat((stem, y), 1)).mean((2, 3)))


@subject("MobileViT")
def mobile_vit() -> Subject:
    """Return convolutions and attention over unfolded patches."""
    return Subject(MobileViT(), images, (32, 48, (16, 32)), "image size")


class CrossAttention(nn.Module):
    """Attention of one sequence to another of other width."""

    def __init__(self, width: int, context: int, heads: int):
        super().__init__()
        self.heads = heads
        self.to_q, self.to_kv = nn.Linear(width, width, bias=False), nn.Linear(context, 2 * width, bias=False)
        self.to_out = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor) -> Any:
        q, (k, v) = self.to_q(x), self.to_kv(context).chunk(2, dim=-1)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        return self.to_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Perceiver(nn.Module):
    """Latent vectors that attend to a long input, then to each other."""

    def __init__(self, width: int = 32):
        super().__init__()
        self.latents = nn.Parameter(torch.randn(6, width))
        self.input = nn.Linear(12, 20)
        self.norm, self.context_norm = nn.LayerNorm(width), nn.LayerNorm(20)
        self.cross = CrossAttention(width, 20, 4)
        self.blocks = nn.Sequential(Layer(width, 4))
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Any:
        latents = self.latents.unsqueeze(0).expand(x.shape[0], -1, -1)
        latents = latents + self.cross(self.norm(latents), self.context_norm(self.input(x)))
        return self.head(self.blocks(latents).mean(1))


@subject("Perceiver")
def perceiver() -> Subject:
    """Return cross attention from learnt latent vectors."""
    return Subject(Perceiver(), lambda samples, length: (torch.randn(samples, length, 12),), (20, 7, 33))
