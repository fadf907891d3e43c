"""Convolutional networks for images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur_experiments.bench.suite.registry import Subject, images, subject


def _double(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True),
    )  # fmt: skip


class UNet(nn.Module):
    """Two levels, skips padded to fit and joined by cat."""

    def __init__(self) -> None:
        super().__init__()
        self.inc, self.down1, self.down2 = _double(3, 16), _double(16, 24), _double(24, 32)
        self.up1, self.conv1 = nn.ConvTranspose2d(32, 24, 2, 2), _double(48, 24)
        self.up2, self.conv2 = nn.ConvTranspose2d(24, 16, 2, 2), _double(32, 16)
        self.outc = nn.Conv2d(16, 3, 1)

    def forward(self, x: Tensor) -> Any:
        a = self.inc(x)
        b = self.down1(F.max_pool2d(a, 2))
        c = self.down2(F.max_pool2d(b, 2))
        b = self.conv1(torch.cat([b, _fitted(self.up1(c), b)], 1))
        return self.outc(self.conv2(torch.cat([a, _fitted(self.up2(b), a)], 1)))


def _fitted(x: Tensor, like: Tensor) -> Tensor:
    rows, columns = like.shape[2] - x.shape[2], like.shape[3] - x.shape[3]
    return F.pad(x, [columns // 2, columns - columns // 2, rows // 2, rows - rows // 2])


@subject("U-Net")
def unet() -> Subject:
    """Return the segmentation network."""
    return Subject(UNet(), images, (32, 48, (16, 40)), "image size")


class PartialConv(nn.Module):
    """A convolution of the first quarter of the channels, written in place."""

    def __init__(self, width: int):
        super().__init__()
        self.dim_conv = width // 4
        self.partial_conv3 = nn.Conv2d(self.dim_conv, self.dim_conv, 3, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Any:
        x = x.clone()
        x[:, : self.dim_conv, :, :] = self.partial_conv3(x[:, : self.dim_conv, :, :])
        return x


class FasterBlock(nn.Module):
    """A partial convolution, then an MLP of 1 × 1 convolutions."""

    def __init__(self, width: int):
        super().__init__()
        self.spatial_mixing = PartialConv(width)
        self.mlp = nn.Sequential(
            nn.Conv2d(width, 2 * width, 1, bias=False), nn.BatchNorm2d(2 * width), nn.ReLU(),
            nn.Conv2d(2 * width, width, 1, bias=False),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Any:
        return x + self.mlp(self.spatial_mixing(x))


@subject("FasterNet")
def faster_net() -> Subject:
    """Return partial convolutions written into their input."""
    model = nn.Sequential(
        nn.Conv2d(3, 16, 4, 4, bias=False), nn.BatchNorm2d(16), FasterBlock(16), FasterBlock(16),
        nn.Conv2d(16, 32, 2, 2, bias=False), nn.BatchNorm2d(32), FasterBlock(32),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5),
    )  # fmt: skip
    return Subject(model, images, (32, 48, (32, 64)), "image size")


class ConvNeXtBlock(nn.Module):
    """A depthwise convolution, a norm over channels last, an MLP with global response norm."""

    def __init__(self, width: int):
        super().__init__()
        self.dwconv = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width)
        self.pwconv1, self.pwconv2 = nn.Linear(width, 3 * width), nn.Linear(3 * width, width)
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Any:
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        y = self.gamma * self.pwconv2(F.gelu(self.pwconv1(y)))
        return x + y.permute(0, 3, 1, 2)


@subject("ConvNeXt")
def convnext() -> Subject:
    """Return depthwise convolutions with layer scale."""
    model = nn.Sequential(
        nn.Conv2d(3, 16, 4, 4), ConvNeXtBlock(16), nn.Conv2d(16, 24, 2, 2), ConvNeXtBlock(24),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 5),
    )  # fmt: skip
    return Subject(model, images, (32, 48, (32, 64)), "image size")


@subject("Autoencoder")
def autoencoder() -> Subject:
    """Return convolutions down to a few channels and transposed ones back."""
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1), nn.LeakyReLU(0.1), nn.Conv2d(16, 24, 3, 2, 1), nn.BatchNorm2d(24), nn.ELU(),
        nn.Conv2d(24, 8, 3, padding=1),
        nn.ConvTranspose2d(8, 24, 4, 2, 1), nn.PReLU(24), nn.ConvTranspose2d(24, 16, 4, 2, 1), nn.ReLU(),
        nn.Conv2d(16, 3, 3, padding=1), nn.Sigmoid(),
    )  # fmt: skip
    return Subject(model, images, (32, 48, (16, 40)), "image size")


class ModulatedConv(nn.Module):
    """StyleGAN2's convolution: weights scaled by a style and normalised for each sample, samples as groups."""

    def __init__(self, inputs: int, outputs: int, style: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, 3, 3))
        self.affine = nn.Linear(style, inputs)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor, w: Tensor) -> Any:
        b, _, height, width = x.shape
        weight = self.weight.unsqueeze(0) * self.affine(w).reshape(b, 1, -1, 1, 1)
        weight = weight * (weight.square().sum(dim=(2, 3, 4), keepdim=True) + 1e-8).rsqrt()
        x = F.conv2d(x.reshape(1, -1, height, width), weight.flatten(0, 1), padding=1, groups=b)
        return F.leaky_relu(x.reshape(b, -1, height, width) + self.bias.reshape(1, -1, 1, 1), 0.2)


class StyleGan(nn.Module):
    """A mapping network, a constant, two modulated convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.mapping = nn.Sequential(nn.Linear(12, 24), nn.LeakyReLU(0.2), nn.Linear(24, 16), nn.LeakyReLU(0.2))
        self.const = nn.Parameter(torch.randn(16, 4, 4))
        self.conv1, self.conv2 = ModulatedConv(16, 24, 16), ModulatedConv(24, 16, 16)
        self.to_rgb = nn.Conv2d(16, 3, 1)

    def forward(self, z: Tensor) -> Any:
        w = self.mapping(z)
        x = self.conv1(self.const.unsqueeze(0).expand(z.shape[0], -1, -1, -1), w)
        return self.to_rgb(self.conv2(F.interpolate(x, scale_factor=2.0, mode="nearest"), w))


@subject("StyleGAN2")
def style_gan() -> Subject:
    """Return convolutions whose weights depend on the sample."""
    return Subject(StyleGan(), lambda samples, _: (torch.randn(samples, 12),))


class SuperResolution(nn.Module):
    """Dense residual blocks, then PixelShuffle, as ESRGAN."""

    def __init__(self, width: int = 16, growth: int = 8):
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.dense = nn.ModuleList(nn.Conv2d(width + i * growth, growth, 3, padding=1) for i in range(3))
        self.join = nn.Conv2d(width + 3 * growth, width, 3, padding=1)
        self.up = nn.Sequential(nn.Conv2d(width, 4 * width, 3, padding=1), nn.PixelShuffle(2), nn.PReLU())
        self.last = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Any:
        first = self.first(x)
        maps = [first]
        for conv in self.dense:
            maps.append(F.leaky_relu(conv(torch.cat(maps, 1)), 0.2))
        joined = first + 0.2 * self.join(torch.cat(maps, 1))
        return self.last(self.up(joined)) + F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


@subject("ESRGAN")
def esrgan() -> Subject:
    """Return dense blocks and PixelShuffle."""
    return Subject(SuperResolution(), images, (16, 24, (12, 20)), "image size")


class SqueezeExcite(nn.Module):
    """Channels scaled by what all of the image says."""

    def __init__(self, width: int, squeezed: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(width, squeezed, 1), nn.Conv2d(squeezed, width, 1)

    def forward(self, x: Tensor) -> Any:
        return x * self.fc2(F.relu(self.fc1(x.mean((2, 3), keepdim=True)))).sigmoid()


class InvertedResidual(nn.Module):
    """MobileNetV3's block."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv2d(width, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.Hardswish(),
            nn.Conv2d(hidden, hidden, 5, padding=2, groups=hidden, bias=False), nn.BatchNorm2d(hidden), nn.Hardswish(),
            SqueezeExcite(hidden, 8), nn.Conv2d(hidden, width, 1, bias=False), nn.BatchNorm2d(width),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Any:
        return x + self.block(x)


class PoseNet(nn.Module):
    """Inverted residuals, heat maps, and where their mean lies, by a softmax over places."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), InvertedResidual(16, 48), InvertedResidual(16, 48))
        self.heat = nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Any:
        heat = self.heat(self.body(x))
        h, w = heat.shape[-2:]
        share = heat.flatten(2).softmax(-1).unflatten(-1, (h, w))
        rows = torch.linspace(0, 1, h, dtype=x.dtype, device=x.device)
        columns = torch.linspace(0, 1, w, dtype=x.dtype, device=x.device)
        return torch.stack([(share.sum(3) * rows).sum(-1), (share.sum(2) * columns).sum(-1)], -1)


@subject("MobileNetV3 pose")
def pose() -> Subject:
    """Return inverted residuals with squeeze and excitation, and a soft argmax."""
    return Subject(PoseNet(), images, (32, 48, (16, 40)), "image size")
