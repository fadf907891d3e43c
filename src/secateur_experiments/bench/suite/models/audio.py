"""Networks over sequences of sound and signals, most of them convolutional."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur_experiments.bench.suite.registry import Subject, sequences, subject


class TemporalBlock(nn.Module):
    """Conv-TasNet's block: wider, depthwise with gaps, back; one output added, one kept for the sum of skips."""

    def __init__(self, width: int, hidden: int, dilation: int):
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv1d(width, hidden, 1), nn.PReLU(), nn.GroupNorm(1, hidden, eps=1e-8),
            nn.Conv1d(hidden, hidden, 3, padding=dilation, dilation=dilation, groups=hidden), nn.PReLU(),
            nn.BatchNorm1d(hidden),
        )  # fmt: skip
        self.res_out, self.skip_out = nn.Conv1d(hidden, width, 1), nn.Conv1d(hidden, width, 1)

    def forward(self, x: Tensor) -> Any:
        y = self.conv(x)
        return x + self.res_out(y), self.skip_out(y)


class ConvTasNet(nn.Module):
    """A learnt filter bank, masks of two speakers, and back to sound."""

    def __init__(self, filters: int = 32, width: int = 16):
        super().__init__()
        self.encoder = nn.Conv1d(1, filters, 8, 4, bias=False)
        self.norm, self.bottleneck = nn.GroupNorm(1, filters, eps=1e-8), nn.Conv1d(filters, width, 1)
        self.blocks = nn.ModuleList(TemporalBlock(width, 24, 2**i) for i in range(3))
        self.masks = nn.Sequential(nn.PReLU(), nn.Conv1d(width, 2 * filters, 1), nn.Sigmoid())
        self.decoder = nn.ConvTranspose1d(filters, 1, 8, 4, bias=False)

    def forward(self, sound: Tensor) -> Any:
        features = self.encoder(sound)
        x = self.bottleneck(self.norm(features))
        skips = 0.0
        for block in self.blocks:
            x, skip = block(x)
            skips = skips + skip
        masks = self.masks(skips).view(sound.shape[0], 2, features.shape[1], -1)
        masked = (features.unsqueeze(1) * masks).view(sound.shape[0] * 2, features.shape[1], -1)
        return self.decoder(masked).view(sound.shape[0], 2, -1)


@subject("Conv-TasNet")
def conv_tasnet() -> Subject:
    """Return the separation of two speakers."""
    return Subject(ConvTasNet(), lambda samples, length: (torch.randn(samples, 1, length),), (64, 40, 104))


class Res2Block(nn.Module):
    """ECAPA's block: the channels in parts, each added to the one before; then scaled by what all time says."""

    def __init__(self, width: int, scale: int, dilation: int):
        super().__init__()
        self.scale, part = scale, width // scale
        self.tdnn1, self.tdnn2 = nn.Conv1d(width, width, 1), nn.Conv1d(width, width, 1)
        self.blocks = nn.ModuleList(
            nn.Conv1d(part, part, 3, padding=dilation, dilation=dilation) for _ in range(scale - 1)
        )
        self.norm1, self.norm2 = nn.BatchNorm1d(width), nn.BatchNorm1d(width)
        self.squeeze, self.excite = nn.Conv1d(width, 8, 1), nn.Conv1d(8, width, 1)

    def forward(self, x: Tensor) -> Any:
        parts = torch.chunk(self.norm1(F.relu(self.tdnn1(x))), self.scale, dim=1)
        y = [parts[0]]
        for i, block in enumerate(self.blocks, 1):
            y.append(F.relu(block(parts[i] if i == 1 else parts[i] + y[-1])))
        h = self.norm2(F.relu(self.tdnn2(torch.cat(y, dim=1))))
        share = torch.sigmoid(self.excite(F.relu(self.squeeze(h.mean(dim=2, keepdim=True)))))
        return x + h * share


class Ecapa(nn.Module):
    """Blocks joined by cat, statistics over time weighted by attention, an embedding."""

    def __init__(self, width: int = 24):
        super().__init__()
        self.first = nn.Conv1d(12, width, 5, padding=2)
        self.blocks = nn.ModuleList(Res2Block(width, 4, i + 2) for i in range(2))
        self.mfa = nn.Conv1d(2 * width, 32, 1)
        self.attention = nn.Sequential(nn.Conv1d(96, 16, 1), nn.ReLU(), nn.BatchNorm1d(16), nn.Tanh())
        self.attend = nn.Conv1d(16, 32, 1)
        self.asp_bn, self.fc = nn.BatchNorm1d(64), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Any:
        x = self.first(x.transpose(1, 2))
        maps = []
        for block in self.blocks:
            x = block(x)
            maps.append(x)
        x = F.relu(self.mfa(torch.cat(maps, dim=1)))
        mean, std = x.mean(2, keepdim=True), x.var(2, keepdim=True).clamp(min=1e-8).sqrt()
        around = torch.cat([x, mean.expand_as(x), std.expand_as(x)], dim=1)
        share = self.attend(self.attention(around)).softmax(dim=2)
        mean = (share * x).sum(2)
        std = ((share * (x - mean.unsqueeze(2)) ** 2).sum(2)).clamp(min=1e-8).sqrt()
        return self.fc(self.asp_bn(torch.cat([mean, std], dim=1)))


@subject("ECAPA-TDNN")
def ecapa() -> Subject:
    """Return the speaker embedding."""
    return Subject(Ecapa(), sequences(12), (20, 13, 33))


class CausalBlock(nn.Module):
    """Convolutions over the past alone, the end cut off, with a shortcut."""

    def __init__(self, inputs: int, outputs: int, dilation: int):
        super().__init__()
        self.past = 2 * dilation
        self.conv1 = nn.Conv1d(inputs, outputs, 3, padding=self.past, dilation=dilation)
        self.conv2 = nn.Conv1d(outputs, outputs, 3, padding=self.past, dilation=dilation)
        self.shortcut = nn.Conv1d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Any:
        y = F.relu(self.conv1(x)[:, :, : -self.past])
        y = F.relu(self.conv2(y)[:, :, : -self.past])
        return F.relu(y + self.shortcut(x))


@subject("TCN")
def tcn() -> Subject:
    """Return causal convolutions with growing gaps."""
    model = nn.Sequential(CausalBlock(6, 16, 1), CausalBlock(16, 24, 2), CausalBlock(24, 16, 4), nn.Conv1d(16, 3, 1))
    return Subject(model, lambda samples, length: (torch.randn(samples, 6, length),), (20, 9, 40))


class WaveNet(nn.Module):
    """Gated convolutions with gaps; the skips are added up."""

    def __init__(self, width: int = 16):
        super().__init__()
        self.first = nn.Conv1d(1, width, 1)
        self.filters = nn.ModuleList(nn.Conv1d(width, 2 * width, 2, dilation=2**i) for i in range(3))
        self.residual = nn.ModuleList(nn.Conv1d(width, width, 1) for _ in range(3))
        self.skips = nn.ModuleList(nn.Conv1d(width, 20, 1) for _ in range(3))
        self.last = nn.Sequential(nn.ReLU(), nn.Conv1d(20, 20, 1), nn.ReLU(), nn.Conv1d(20, 8, 1))

    def forward(self, sound: Tensor) -> Any:
        x = self.first(sound)
        total = 0.0
        for i, (conv, residual, skip) in enumerate(zip(self.filters, self.residual, self.skips, strict=True)):
            filtered, gate = conv(F.pad(x, (2**i, 0))).chunk(2, 1)
            h = torch.tanh(filtered) * torch.sigmoid(gate)
            total, x = total + skip(h), x + residual(h)
        return self.last(total)


@subject("WaveNet")
def wavenet() -> Subject:
    """Return gated causal convolutions."""
    return Subject(WaveNet(), lambda samples, length: (torch.randn(samples, 1, length),), (24, 9, 40))


class SpeechCommands(nn.Module):
    """Convolutions over frequency and time, a GRU of both directions, the mean of all steps."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(1, 8, 3, (2, 1), 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3, (2, 1), 1), nn.ReLU()
        )
        self.gru = nn.GRU(12 * 4, 20, 2, batch_first=True, bidirectional=True)
        self.head = nn.Sequential(nn.Linear(40, 24), nn.ReLU(), nn.Linear(24, 6))

    def forward(self, spectrum: Tensor) -> Any:
        x = self.conv(spectrum.transpose(1, 2).unsqueeze(1))
        x = x.permute(0, 3, 1, 2).flatten(2)
        return self.head(self.gru(x)[0].mean(1))


@subject("GRU speech command")
def speech_commands() -> Subject:
    """Return convolutions and a GRU of both directions."""
    return Subject(SpeechCommands(), sequences(16), (20, 9, 31))


class Conformer(nn.Module):
    """Half an MLP, attention, a gated depthwise convolution, half an MLP."""

    def __init__(self, width: int = 24, heads: int = 4):
        super().__init__()
        self.input = nn.Linear(10, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(5))
        self.ff1 = nn.Sequential(nn.Linear(width, 48), nn.SiLU(), nn.Linear(48, width))
        self.ff2 = nn.Sequential(nn.Linear(width, 48), nn.SiLU(), nn.Linear(48, width))
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.pointwise1 = nn.Conv1d(width, 2 * width, 1)
        self.depthwise = nn.Conv1d(width, width, 5, padding=2, groups=width)
        self.batch_norm, self.pointwise2 = nn.BatchNorm1d(width), nn.Conv1d(width, width, 1)
        self.head = nn.Linear(width, 9)

    def forward(self, x: Tensor) -> Any:
        x = self.input(x)
        x = x + 0.5 * self.ff1(self.norms[0](x))
        y = self.norms[1](x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        y = F.glu(self.pointwise1(self.norms[2](x).transpose(1, 2)), dim=1)
        x = x + self.pointwise2(F.silu(self.batch_norm(self.depthwise(y)))).transpose(1, 2)
        x = x + 0.5 * self.ff2(self.norms[3](x))
        return self.head(self.norms[4](x)).log_softmax(-1)


@subject("Conformer")
def conformer() -> Subject:
    """Return one block of the speech recogniser."""
    return Subject(Conformer(), sequences(10), (20, 9, 31))
