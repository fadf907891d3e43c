"""Networks with channels, heads and feed-forward widths; three of them small, for rows of 784 pixels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def convolutional_network(seed: int = 0) -> nn.Sequential:
    """20 and 50 channels of 5 × 5, each pooled, 200 neurons; ReLU.

    >>> sum(p.numel() for p in convolutional_network().parameters())
    187780
    """
    with seeded(seed):
        return nn.Sequential(
            nn.Unflatten(1, (1, 28, 28)),
            nn.Conv2d(1, 20, 5), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(20, 50, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
            nn.Linear(800, 200), nn.ReLU(), nn.Linear(200, 10),
        )  # fmt: skip


def small_convolutional_network(seed: int = 0) -> nn.Sequential:
    """For rows of 64 pixels: 8 and 16 channels of 3 × 3, each pooled, 32 neurons; ReLU.

    >>> sum(p.numel() for p in small_convolutional_network().parameters())
    3658
    """
    with seeded(seed):
        return nn.Sequential(
            nn.Unflatten(1, (1, 8, 8)),
            nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
            nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10),
        )  # fmt: skip


def residual_network(seed: int = 0) -> nn.Sequential:
    """A stem of 24 channels, strided and pooled to 7 × 7, and three blocks of 24-48-24 channels there.

    >>> sum(p.numel() for p in residual_network().parameters())
    63538
    """
    with seeded(seed):
        stem = [nn.Conv2d(1, 24, 5, 2, 2, bias=False), nn.BatchNorm2d(24), nn.ReLU(), nn.MaxPool2d(2)]
        blocks = [Block(24, 24, inner=48) for _ in range(3)]
        last = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 10)]
        return nn.Sequential(nn.Unflatten(1, (1, 28, 28)), *stem, *blocks, *last)


def vision_transformer(seed: int = 0) -> nn.Sequential:
    """16 patches of 7 × 7 and a class token, 64 wide, 3 layers of 8 heads and 192 feed-forward units.

    >>> sum(p.numel() for p in vision_transformer().parameters())
    130314
    """
    with seeded(seed):
        return nn.Sequential(nn.Unflatten(1, (1, 28, 28)), VisionTransformer((1, 28), 7, 64, 3, 8, 192))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from a generator of this seed inside, and leave the global one as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


class Block(nn.Module):
    """Two 3 × 3 convolutions around which the input is added.

    Args:
        inputs: Channels.
        channels: Of the output.
        stride: Of the first convolution.
        inner: Channels between the two; None for those of the output.
    """

    def __init__(self, inputs: int, channels: int, stride: int = 1, inner: int | None = None) -> None:
        super().__init__()
        inner = channels if inner is None else inner
        self.conv1 = nn.Conv2d(inputs, inner, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        shortcut = [nn.Conv2d(inputs, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)]
        self.shortcut = nn.Sequential(*shortcut if stride > 1 else [])

    def forward(self, x: Tensor) -> Tensor:
        """Twice convolved, and added."""
        h = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(h)) + self.shortcut(x))


class Attention(nn.Module):
    """Self-attention with one fused projection."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[N, T, D] to the same."""
        n, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(n, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, tokens, width)
        out: Tensor = self.proj(mixed)
        return out


class Layer(nn.Module):
    """Attention and a feed-forward network, each behind a norm and added."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.norm1, self.attention, self.norm2 = nn.LayerNorm(width), Attention(width, heads), nn.LayerNorm(width)
        self.forth, self.back = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        """[N, T, D] to the same."""
        x = x + self.attention(self.norm1(x))
        out: Tensor = x + self.back(F.gelu(self.forth(self.norm2(x))))
        return out


class VisionTransformer(nn.Module):
    """A transformer of square patches and a class token, normed before each part.

    Args:
        image: Channels and side.
        patch: Side of a patch.
        width: Of the residual stream.
        layers: Their number.
        heads: Of each layer.
        inner: Feed-forward units of each layer.
        classes: Outputs.
    """

    def __init__(
        self, image: tuple[int, int], patch: int, width: int, layers: int, heads: int, inner: int, classes: int = 10
    ) -> None:
        super().__init__()
        channels, side = image
        self.patches = nn.Conv2d(channels, width, patch, patch)
        self.token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.positions = nn.Parameter(torch.randn(1, (side // patch) ** 2 + 1, width) * 0.02)
        self.layers = nn.Sequential(*(Layer(width, heads, inner) for _ in range(layers)))
        self.norm, self.last = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, C, H, W] to logits."""
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), tokens], 1) + self.positions
        logits: Tensor = self.last(self.norm(self.layers(x))[:, 0])
        return logits
