"""Detectors of one stage: blocks that chunk, extend a list and cat; heads with distributions over distances."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur_experiments.bench.suite.registry import Subject, images, subject

SIZES = (64, 96, (32, 96))


class Conv(nn.Module):
    """Convolution, BatchNorm, SiLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1, act: bool = True):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        self.act = nn.SiLU() if act else nn.Identity()

    def forward(self, x: Tensor) -> Any:
        return self.act(self.bn(self.conv(x)))


class Bottleneck(nn.Module):
    """Two convolutions with a shortcut."""

    def __init__(self, width: int, shortcut: bool = True):
        super().__init__()
        self.cv1, self.cv2, self.add = Conv(width, width, 3), Conv(width, width, 3), shortcut

    def forward(self, x: Tensor) -> Any:
        return x + self.cv2(self.cv1(x)) if self.add else self.cv2(self.cv1(x))


class C3k(nn.Module):
    """Two paths, one through bottlenecks, joined by cat."""

    def __init__(self, width: int):
        super().__init__()
        self.cv1, self.cv2, self.cv3 = Conv(width, width // 2), Conv(width, width // 2), Conv(width, width)
        self.m = nn.Sequential(*(Bottleneck(width // 2) for _ in range(2)))

    def forward(self, x: Tensor) -> Any:
        return self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), 1))


class C2f(nn.Module):
    """One half of the channels goes through blocks one after the other; all are kept for the cat."""

    def __init__(self, inputs: int, outputs: int, block: type[nn.Module] = Bottleneck, count: int = 1):
        super().__init__()
        self.c = outputs // 2
        self.cv1 = Conv(inputs, 2 * self.c)
        self.cv2 = Conv((2 + count) * self.c, outputs)
        self.m = nn.ModuleList(block(self.c) for _ in range(count))

    def forward(self, x: Tensor) -> Any:
        y = list(self.cv1(x).chunk(2, 1))
        y.extend(m(y[-1]) for m in self.m)
        return self.cv2(torch.cat(y, 1))


class SPPF(nn.Module):
    """One pool applied three times, all joined by cat."""

    def __init__(self, width: int):
        super().__init__()
        self.cv1, self.cv2, self.m = Conv(width, width // 2), Conv(width * 2, width), nn.MaxPool2d(5, 1, 2)

    def forward(self, x: Tensor) -> Any:
        y = [self.cv1(x)]
        y.extend(self.m(y[-1]) for _ in range(3))
        return self.cv2(torch.cat(y, 1))


class Attention(nn.Module):
    """Attention over positions, a depthwise convolution of the values for their places."""

    def __init__(self, width: int, heads: int = 2):
        super().__init__()
        self.num_heads, self.head_dim = heads, width // heads
        self.key_dim = self.head_dim // 2
        self.scale = self.key_dim**-0.5
        self.qkv = Conv(width, width + 2 * self.key_dim * heads, act=False)
        self.proj = Conv(width, width, act=False)
        self.pe = Conv(width, width, 3, groups=width, act=False)

    def forward(self, x: Tensor) -> Any:
        b, c, h, w = x.shape
        n = h * w
        qkv = self.qkv(x).view(b, self.num_heads, self.key_dim * 2 + self.head_dim, n)
        q, k, v = qkv.split([self.key_dim, self.key_dim, self.head_dim], dim=2)
        attention = ((q.transpose(-2, -1) @ k) * self.scale).softmax(dim=-1)
        y = (v @ attention.transpose(-2, -1)).view(b, c, h, w) + self.pe(v.reshape(b, c, h, w))
        return self.proj(y)


class PSABlock(nn.Module):
    """Attention and two convolutions, each with a shortcut."""

    def __init__(self, width: int):
        super().__init__()
        self.attn = Attention(width)
        self.ffn = nn.Sequential(Conv(width, width * 2), Conv(width * 2, width, act=False))

    def forward(self, x: Tensor) -> Any:
        x = x + self.attn(x)
        return x + self.ffn(x)


class C2PSA(nn.Module):
    """One half of the channels goes through attention."""

    def __init__(self, width: int):
        super().__init__()
        self.c = width // 2
        self.cv1, self.cv2 = Conv(width, 2 * self.c), Conv(2 * self.c, width)
        self.m = nn.Sequential(PSABlock(self.c))

    def forward(self, x: Tensor) -> Any:
        a, b = self.cv1(x).split((self.c, self.c), dim=1)
        return self.cv2(torch.cat((a, self.m(b)), 1))


class RepNCSPELAN4(nn.Module):
    """YOLOv9's block: two halves, two stages, all four joined by cat."""

    def __init__(self, inputs: int, outputs: int, width: int):
        super().__init__()
        self.cv1 = Conv(inputs, width)
        self.cv2 = nn.Sequential(C3k(width // 2), Conv(width // 2, width // 2, 3))
        self.cv3 = nn.Sequential(C3k(width // 2), Conv(width // 2, width // 2, 3))
        self.cv4 = Conv(2 * width, outputs)

    def forward(self, x: Tensor) -> Any:
        y = list(self.cv1(x).chunk(2, 1))
        y.extend(m(y[-1]) for m in (self.cv2, self.cv3))
        return self.cv4(torch.cat(y, 1))


class ADown(nn.Module):
    """YOLOv9's step to half the size, one half of the channels by pooling."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.cv1, self.cv2 = Conv(inputs // 2, outputs // 2, 3, 2), Conv(inputs // 2, outputs // 2)

    def forward(self, x: Tensor) -> Any:
        x = F.avg_pool2d(x, 2, 1, 0, False, True)
        a, b = x.chunk(2, 1)
        return torch.cat((self.cv1(a), self.cv2(F.max_pool2d(b, 3, 2, 1))), 1)


class DFL(nn.Module):
    """A distance as the mean of a distribution over bins."""

    def __init__(self, bins: int):
        super().__init__()
        self.conv = nn.Conv2d(bins, 1, 1, bias=False)
        self.c1 = bins

    def forward(self, x: Tensor) -> Any:
        b, _, a = x.shape
        return self.conv(x.view(b, 4, self.c1, a).transpose(2, 1).softmax(1)).view(b, 4, a)


class Detect(nn.Module):
    """Boxes and classes of two levels; the anchors follow from the maps' sizes."""

    def __init__(self, widths: tuple[int, ...], depthwise: bool = False, classes: int = 5, bins: int = 8):
        super().__init__()
        self.nc, self.reg_max, self.no = classes, bins, classes + 4 * bins
        self.cv2 = nn.ModuleList(nn.Sequential(Conv(w, 16, 3), nn.Conv2d(16, 4 * bins, 1)) for w in widths)
        self.cv3 = nn.ModuleList(
            nn.Sequential(Conv(w, w, 3, groups=w if depthwise else 1), Conv(w, 16), nn.Conv2d(16, classes, 1))
            for w in widths
        )
        self.dfl = DFL(bins)

    def forward(self, maps: list[Tensor]) -> Any:
        levels = [torch.cat((box(x), cls(x)), 1) for x, box, cls in zip(maps, self.cv2, self.cv3, strict=True)]
        flat = torch.cat([level.view(level.shape[0], self.no, -1) for level in levels], 2)
        box, cls = torch.split(flat, [self.reg_max * 4, self.nc], 1)
        left_top, right_bottom = self.dfl(box).chunk(2, 1)
        anchors = torch.cat([_centres(level) for level in levels], 1)
        corners = (anchors - left_top, anchors + right_bottom)
        return torch.cat(((corners[0] + corners[1]) / 2, corners[1] - corners[0], cls.sigmoid()), 1), levels


def _centres(level: Tensor) -> Tensor:
    h, w = level.shape[2:]
    y = torch.arange(h, device=level.device, dtype=level.dtype) + 0.5
    x = torch.arange(w, device=level.device, dtype=level.dtype) + 0.5
    grid = torch.meshgrid(y, x, indexing="ij")
    return torch.stack((grid[1], grid[0])).view(2, -1)


class Detector(nn.Module):
    """A backbone of two levels, a path back up, a head."""

    def __init__(self, first: nn.Module, second: nn.Module, neck: nn.Module, head: nn.Module):
        super().__init__()
        self.first, self.second, self.neck, self.head = first, second, neck, head
        self.up = nn.Upsample(scale_factor=2, mode="nearest")

    def forward(self, x: Tensor) -> Any:
        fine = self.first(x)
        coarse = self.second(fine)
        return self.head([self.neck(torch.cat((self.up(coarse), fine), 1)), coarse])


@subject("YOLOv8")
def yolov8() -> Subject:
    """Return C2f, SPPF and the head with distributions."""
    first = nn.Sequential(Conv(3, 16, 3, 2), Conv(16, 16, 3, 2), C2f(16, 32))
    second = nn.Sequential(Conv(32, 48, 3, 2), C2f(48, 48, count=2), SPPF(48))
    return Subject(Detector(first, second, C2f(80, 32), Detect((32, 48))), images, SIZES, "image size")


@subject("YOLO11")
def yolo11() -> Subject:
    """Return C3k2 and attention over one half of the channels, a depthwise head."""
    first = nn.Sequential(Conv(3, 16, 3, 2), Conv(16, 16, 3, 2), C2f(16, 32, C3k))
    second = nn.Sequential(Conv(32, 48, 3, 2), C2f(48, 48, C3k), SPPF(48), C2PSA(48))
    return Subject(Detector(first, second, C2f(80, 32, C3k), Detect((32, 48), True)), images, SIZES, "image size")


@subject("YOLOv9 (GELAN)")
def yolov9() -> Subject:
    """Return GELAN blocks and steps to half the size that pool one half of the channels."""
    first = nn.Sequential(Conv(3, 16, 3, 2), Conv(16, 16, 3, 2), RepNCSPELAN4(16, 32, 16))
    second = nn.Sequential(ADown(32, 48), RepNCSPELAN4(48, 48, 32), SPPF(48))
    return Subject(Detector(first, second, C2f(80, 32), Detect((32, 48))), images, SIZES, "image size")
