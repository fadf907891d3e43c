"""Networks that denoise: with skips by cat, time and text, and of attention alone."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur_experiments.bench.suite.models.vision_transformers import CrossAttention, FusedAttention, Mlp
from secateur_experiments.bench.suite.registry import Subject, subject


def timestep_embedding(t: Tensor, width: int) -> Tensor:
    """Return cosines and sines of the time at many frequencies."""
    frequencies = torch.exp(-math.log(10000) * torch.arange(width // 2, dtype=t.dtype, device=t.device) / (width // 2))
    angles = t[:, None] * frequencies[None]
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class ResBlock(nn.Module):
    """GroupNorm, SiLU and a convolution, twice; the time is added between them."""

    def __init__(self, inputs: int, outputs: int, time: int):
        super().__init__()
        self.in_layers = nn.Sequential(nn.GroupNorm(4, inputs), nn.SiLU(), nn.Conv2d(inputs, outputs, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(time, outputs))
        self.out_layers = nn.Sequential(nn.GroupNorm(4, outputs), nn.SiLU(), nn.Conv2d(outputs, outputs, 3, padding=1))
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Any:
        h = self.in_layers(x) + self.emb_layers(time)[:, :, None, None]
        return self.skip(x) + self.out_layers(h)


class SpatialTransformer(nn.Module):
    """Attention over places, attention to text, a gated MLP."""

    def __init__(self, width: int, context: int, heads: int = 4):
        super().__init__()
        self.norm = nn.GroupNorm(4, width)
        self.proj_in, self.proj_out = nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 1)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.attn1, self.attn2 = CrossAttention(width, width, heads), CrossAttention(width, context, heads)
        self.geglu, self.out = nn.Linear(width, 4 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor, context: Tensor) -> Any:
        _, _, height, width = x.shape
        y = self.proj_in(self.norm(x)).flatten(2).transpose(1, 2)
        own = self.norm1(y)
        y = y + self.attn1(own, own)
        y = y + self.attn2(self.norm2(y), context)
        values, gate = self.geglu(self.norm3(y)).chunk(2, dim=-1)
        y = y + self.out(values * F.gelu(gate))
        return x + self.proj_out(y.transpose(1, 2).unflatten(2, (height, width)))


class DiffusionUNet(nn.Module):
    """Stable Diffusion's network of two levels."""

    def __init__(self, width: int = 16, context: int = 12):
        super().__init__()
        time = 4 * width
        self.width = width
        self.time_embed = nn.Sequential(nn.Linear(width, time), nn.SiLU(), nn.Linear(time, time))
        self.conv_in = nn.Conv2d(4, width, 3, padding=1)
        self.down1, self.attn1 = ResBlock(width, width, time), SpatialTransformer(width, context)
        self.downsample = nn.Conv2d(width, width, 3, 2, 1)
        self.down2, self.attn2 = ResBlock(width, 2 * width, time), SpatialTransformer(2 * width, context)
        self.mid = ResBlock(2 * width, 2 * width, time)
        self.up2, self.up_attn2 = ResBlock(4 * width, 2 * width, time), SpatialTransformer(2 * width, context)
        self.upsample = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.up1 = ResBlock(3 * width, width, time)
        self.out = nn.Sequential(nn.GroupNorm(4, width), nn.SiLU(), nn.Conv2d(width, 4, 3, padding=1))

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> Any:
        time = self.time_embed(timestep_embedding(timestep, self.width))
        first = self.attn1(self.down1(self.conv_in(sample), time), encoder_hidden_states)
        second = self.attn2(self.down2(self.downsample(first), time), encoder_hidden_states)
        h = self.mid(second, time)
        h = self.up_attn2(self.up2(torch.cat([h, second], 1), time), encoder_hidden_states)
        h = self.upsample(F.interpolate(h, scale_factor=2.0, mode="nearest"))
        return self.out(self.up1(torch.cat([h, first], 1), time))


@subject("Diffusion U-Net")
def diffusion_unet() -> Subject:
    """Return a denoiser with time and cross attention to text."""

    def inputs(samples: int, size: tuple[int, int]) -> dict[str, Any]:
        side, words = size
        return {
            "sample": torch.randn(samples, 4, side, side),
            "timestep": 1000 * torch.rand(samples),
            "encoder_hidden_states": torch.randn(samples, words, 12),
        }

    return Subject(DiffusionUNet(), inputs, ((16, 7), (24, 7), (16, 11)), "image size and length")


class DiTBlock(nn.Module):
    """Attention and an MLP, shifted, scaled and gated by time and class."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attn, self.mlp = FusedAttention(width, heads), Mlp(width, 2 * width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, c: Tensor) -> Any:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(c).unsqueeze(1).chunk(6, dim=-1)
        x = x + gate1 * self.attn(self.norm1(x) * (1 + scale1) + shift1)
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)


class DiT(nn.Module):
    """A diffusion transformer over patches of two."""

    def __init__(self, width: int = 32):
        super().__init__()
        self.width = width
        self.x_embedder = nn.Conv2d(4, width, 2, 2)
        self.t_embedder = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.y_embedder = nn.Embedding(10, width)
        self.blocks = nn.ModuleList(DiTBlock(width, 4) for _ in range(2))
        self.linear = nn.Linear(width, 2 * 2 * 4)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Any:
        b, _, h, w = x.shape
        x = self.x_embedder(x).flatten(2).transpose(1, 2)
        c = self.t_embedder(timestep_embedding(t, self.width)) + self.y_embedder(y)
        for block in self.blocks:
            x = block(x, c)
        x = self.linear(x).reshape(b, h // 2, w // 2, 2, 2, 4)
        return torch.einsum("nhwpqc->nchpwq", x).reshape(b, 4, h, w)


@subject("DiT")
def dit() -> Subject:
    """Return a diffusion transformer with adaptive norms."""

    def inputs(samples: int, side: int) -> tuple[Any, ...]:
        return torch.randn(samples, 4, side, side), 1000 * torch.rand(samples), torch.randint(0, 10, (samples,))

    return Subject(DiT(), inputs, (8, 12, 4), "image size")
