"""All networks of the experiments: the papers' logistic ones, and some with channels, heads and residual streams."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def logistic_network(widths: Sequence[int], seed: int = 0) -> nn.Sequential:
    """Return dense layers with logistic sigmoids, the outputs too; Xavier normal weights, biases 0.

    >>> [tuple(p.shape) for p in logistic_network([64, 100, 10]).parameters()]
    [(100, 64), (100,), (10, 100), (10,)]
    """
    generator = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layer = nn.Linear(inputs, outputs, device="meta").to_empty(device="cpu")  # draws nothing
        nn.init.xavier_normal_(layer.weight, generator=generator)
        nn.init.zeros_(layer.bias)
        layers += [layer, nn.Sigmoid()]
    return nn.Sequential(*layers)


def convolutional_network(seed: int = 0) -> nn.Sequential:
    """Return a network of 20 and 50 channels of 5 × 5, each pooled, and 200 neurons; ReLU.

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
    """Return one for rows of 64 pixels: 8 and 16 channels of 3 × 3, each pooled, and 32 neurons; ReLU.

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
    """Return a stem of 24 channels, strided and pooled to 7 × 7, and three blocks of 24-48-24 channels there.

    >>> sum(p.numel() for p in residual_network().parameters())
    63538
    """
    with seeded(seed):
        stem = [nn.Conv2d(1, 24, 5, 2, 2, bias=False), nn.BatchNorm2d(24), nn.ReLU(), nn.MaxPool2d(2)]
        blocks = [Block(24, 24, inner=48) for _ in range(3)]
        last = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 10)]
        return nn.Sequential(nn.Unflatten(1, (1, 28, 28)), *stem, *blocks, *last)


def vision_transformer(seed: int = 0) -> nn.Sequential:
    """Return a transformer of 16 patches and a class token, 64 wide, 3 layers of 8 heads and 192 feed-forward units.

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
        """Convolve twice, and add."""
        h = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(h)) + self.shortcut(x))


class Attention(nn.Module):
    """Self-attention with one fused projection."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.each, self.scale = heads, width // heads, (width // heads) ** -0.5
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, T, D] to [N, T, D]."""
        n, tokens, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, tokens, 3, self.heads, self.each).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v, scale=self.scale).transpose(1, 2).reshape(n, tokens, -1)
        out: Tensor = self.proj(mixed)
        return out


class Layer(nn.Module):
    """Attention and a feed-forward network, each behind a norm and added."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.norm1, self.attention, self.norm2 = nn.LayerNorm(width), Attention(width, heads), nn.LayerNorm(width)
        self.forth, self.back = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, T, D] to [N, T, D]."""
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
        """Map images [N, C, H, W] to logits."""
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), tokens], 1) + self.positions
        logits: Tensor = self.last(self.norm(self.layers(x))[:, 0])
        return logits


def lenet() -> nn.Sequential:
    """Return a LeNet-5-like network for 28 × 28 grey images: 6 and 16 channels, 120 and 84 neurons."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
    )  # fmt: skip


def resnet18(classes: int = 10) -> nn.Sequential:
    """Return ResNet-18 with its 7 × 7 stem of stride 2 and its pooling."""
    stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    widths = [(64, 64, 1), (64, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1), (256, 512, 2)]
    blocks = [Block(*sizes) for sizes in [*widths, (512, 512, 1)]]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, classes))


class ViT(VisionTransformer):
    """ViT-tiny at 32 × 32: patches of 4 × 4, 192 wide, 12 layers, 3 heads, a class token."""

    def __init__(self) -> None:
        super().__init__((3, 32), 4, 192, 12, 3, 768)
