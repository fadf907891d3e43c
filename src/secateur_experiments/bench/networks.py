"""The networks that are timed: the papers' are in `papers.training`, smaller ones in `papers.networks`."""

from __future__ import annotations

from torch import nn

from secateur.papers.networks import Block, VisionTransformer


def lenet() -> nn.Sequential:
    """A LeNet-5-like network for 28 × 28 grey images: 6 and 16 channels, 120 and 84 neurons."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
    )  # fmt: skip


def resnet18(classes: int = 10) -> nn.Sequential:
    """ResNet-18 with its 7 × 7 stem of stride 2 and its pooling."""
    stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    widths = [(64, 64, 1), (64, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1), (256, 512, 2)]
    blocks = [Block(*sizes) for sizes in [*widths, (512, 512, 1)]]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, classes))


class ViT(VisionTransformer):
    """ViT-tiny at 32 × 32: patches of 4 × 4, 192 wide, 12 layers, 3 heads, a class token."""

    def __init__(self) -> None:
        super().__init__((3, 32), 4, 192, 12, 3, 768)
