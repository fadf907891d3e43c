"""Networks that find or segment objects with attention."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from secateur_experiments.bench.suite.registry import Subject, images, subject


class Detr(nn.Module):
    """A convolutional backbone, `nn.Transformer` from positions to queries, one box and class for each."""

    def __init__(self, width: int = 32):
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 16, 3, 4, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 24, 3, 2, 1), nn.ReLU()
        )
        self.conv = nn.Conv2d(24, width, 1)
        self.transformer = nn.Transformer(width, 4, 1, 2, 48, dropout=0.0)
        self.query_pos = nn.Parameter(torch.rand(7, width))
        self.row_embed = nn.Parameter(torch.rand(20, width // 2))
        self.col_embed = nn.Parameter(torch.rand(20, width // 2))
        self.linear_class = nn.Linear(width, 6)
        self.linear_bbox = nn.Sequential(nn.Linear(width, 24), nn.ReLU(), nn.Linear(24, 4))

    def forward(self, x: Tensor) -> Any:
        h = self.conv(self.backbone(x))
        height, width = h.shape[-2:]
        columns = self.col_embed[:width].unsqueeze(0).repeat(height, 1, 1)
        rows = self.row_embed[:height].unsqueeze(1).repeat(1, width, 1)
        places = torch.cat([columns, rows], dim=-1).flatten(0, 1).unsqueeze(1)
        source = places + h.flatten(2).permute(2, 0, 1)
        target = self.query_pos.unsqueeze(1).repeat(1, source.shape[1], 1)
        h = self.transformer(source, target).transpose(0, 1)
        return {"logits": self.linear_class(h), "boxes": self.linear_bbox(h).sigmoid()}


@subject("DETR (nn.Transformer)")
def detr() -> Subject:
    """Return DETR as its authors' demonstration writes it."""
    return Subject(Detr(), images, (64, 48, (64, 96)), "image size")


class SamAttention(nn.Module):
    """Attention in windows, or over all, with decomposed relative positions."""

    def __init__(self, width: int, heads: int, side: int):
        super().__init__()
        self.num_heads, self.scale = heads, (width // heads) ** -0.5
        self.qkv, self.proj = nn.Linear(width, width * 3), nn.Linear(width, width)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * side - 1, width // heads))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * side - 1, width // heads))

    def forward(self, x: Tensor) -> Any:
        b, h, w, _ = x.shape
        qkv = self.qkv(x).reshape(b, h * w, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.reshape(3, b * self.num_heads, h * w, -1).unbind(0)
        attention = _with_places(q @ k.transpose(-2, -1) * self.scale, q, self.rel_pos_h, self.rel_pos_w, (h, w))
        x = (attention.softmax(dim=-1) @ v).view(b, self.num_heads, h, w, -1)
        return self.proj(x.permute(0, 2, 3, 1, 4).reshape(b, h, w, -1))


def _places(side: int, table: Tensor) -> Tensor:
    steps = torch.arange(side)
    return table[steps[:, None] - steps[None, :] + (len(table) - 1) // 2]


def _with_places(attention: Tensor, q: Tensor, rows: Tensor, columns: Tensor, size: tuple[int, int]) -> Tensor:
    h, w = size
    b, _, width = q.shape
    r = q.reshape(b, h, w, width)
    by_row = torch.einsum("bhwc,hkc->bhwk", r, _places(h, rows))
    by_column = torch.einsum("bhwc,wkc->bhwk", r, _places(w, columns))
    attention = attention.view(b, h, w, h, w) + by_row[:, :, :, :, None] + by_column[:, :, :, None, :]
    return attention.view(b, h * w, h * w)


class SamBlock(nn.Module):
    """Attention and an MLP; in windows of a side, or over all where it is 0."""

    def __init__(self, width: int, heads: int, window: int, side: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = SamAttention(width, heads, window or side)
        self.mlp = nn.Sequential(nn.Linear(width, width * 2), nn.GELU(), nn.Linear(width * 2, width))
        self.window_size = window

    def forward(self, x: Tensor) -> Any:
        shortcut = x
        b, h, w, c = x.shape
        x, n = self.norm1(x), self.window_size
        if n:
            x = x.view(b, h // n, n, w // n, n, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, n, n, c)
        x = self.attn(x)
        if n:
            x = x.view(b, h // n, w // n, n, n, -1).permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, -1)
        x = shortcut + x
        return x + self.mlp(self.norm2(x))


class LayerNorm2d(nn.Module):
    """Norm over the channels of maps."""

    def __init__(self, width: int):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Any:
        mean = x.mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt((x - mean).pow(2).mean(1, keepdim=True) + 1e-6)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class SamEncoder(nn.Module):
    """Patches, blocks in windows and over all, a neck of convolutions."""

    def __init__(self, width: int = 32, heads: int = 4, side: int = 8):
        super().__init__()
        self.patch_embed = nn.Conv2d(3, width, 8, 8)
        self.blocks = nn.ModuleList([SamBlock(width, heads, 4, side), SamBlock(width, heads, 0, side)])
        self.neck = nn.Sequential(
            nn.Conv2d(width, 24, 1, bias=False), LayerNorm2d(24), nn.Conv2d(24, 16, 3, padding=1), LayerNorm2d(16)
        )

    def forward(self, x: Tensor) -> Any:
        x = self.patch_embed(x).permute(0, 2, 3, 1)
        for block in self.blocks:
            x = block(x)
        return self.neck(x.permute(0, 3, 1, 2))


@subject("SAM encoder")
def sam() -> Subject:
    """Return the image encoder with relative positions; smaller images use the middle of their tables."""
    return Subject(SamEncoder(), images, (64, 32, (32, 64)), "image size")


class MaskHead(nn.Module):
    """Queries against the features of every place, as MaskFormer makes its masks."""

    def __init__(self, width: int = 24):
        super().__init__()
        self.pixels = nn.Sequential(
            nn.Conv2d(3, width, 3, 2, 1), nn.GroupNorm(4, width), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1)
        )
        self.queries = nn.Embedding(5, width)
        self.attend = nn.MultiheadAttention(width, 4, batch_first=True)
        self.norm = nn.LayerNorm(width)
        self.mask_embed = nn.Sequential(nn.Linear(width, 32), nn.ReLU(), nn.Linear(32, width))
        self.class_embed = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Any:
        pixels = self.pixels(x)
        memory = pixels.flatten(2).transpose(1, 2)
        queries = self.queries.weight.unsqueeze(0).expand(x.shape[0], -1, -1)
        queries = self.norm(queries + self.attend(queries, memory, memory, need_weights=False)[0])
        masks = torch.einsum("bqc,bchw->bqhw", self.mask_embed(queries), pixels)
        return self.class_embed(queries), masks


@subject("MaskFormer head")
def mask_former() -> Subject:
    """Return queries that attend to the places of an image and are multiplied with them."""
    return Subject(MaskHead(), images, (16, 24, (16, 32)), "image size")
