"""The attention that `torch.nn` has, and recurrent networks with attention."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from secateur_experiments.bench.suite.registry import Subject, sequences, subject, tokens


class Classifier(nn.Module):
    """`nn.MultiheadAttention` between dense layers; its weights are an output."""

    def __init__(self, width: int = 24):
        super().__init__()
        self.input, self.attention = nn.Linear(8, width), nn.MultiheadAttention(width, 4, batch_first=True)
        self.norm, self.hidden, self.head = nn.LayerNorm(width), nn.Linear(width, 32), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Any:
        x = self.input(x)
        y, weights = self.attention(x, x, x)
        return self.head(self.hidden(self.norm(x + y)).relu().mean(1)), weights


@subject("nn.MultiheadAttention")
def multihead_attention() -> Subject:
    """Return a classifier that shows what it attends to."""
    return Subject(Classifier(), sequences(8), (12, 7, 20))


class Tagger(nn.Module):
    """`nn.TransformerEncoder` with a mask of padding."""

    def __init__(self, width: int = 32):
        super().__init__()
        layer = nn.TransformerEncoderLayer(width, 4, 48, dropout=0.1, batch_first=True, activation="gelu")
        self.embed = nn.Embedding(40, width)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, 6)

    def forward(self, ids: Tensor, padding: Tensor) -> Any:
        return self.head(self.encoder(self.embed(ids), src_key_padding_mask=padding))


def _padded(samples: int, length: int) -> dict[str, Any]:
    padding = torch.zeros(samples, length, dtype=torch.bool)
    padding[:, -2:] = True
    return {"ids": torch.randint(0, 40, (samples, length)), "padding": padding}


@subject("nn.TransformerEncoder")
def transformer_encoder() -> Subject:
    """Return a tagger with padding."""
    return Subject(Tagger(), _padded, (12, 7, 20))


class Translator(nn.Module):
    """`nn.Transformer` with its causal mask, sines for places."""

    def __init__(self, width: int = 32):
        super().__init__()
        self.width = width
        self.source, self.target = nn.Embedding(40, width), nn.Embedding(50, width)
        self.transformer = nn.Transformer(width, 4, 1, 1, 48, dropout=0.1, batch_first=True)
        self.generator = nn.Linear(width, 50)

    def forward(self, source: Tensor, target: Tensor) -> Any:
        mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1], device=target.device)
        x = self.source(source) * math.sqrt(self.width) + self._places(source)
        y = self.target(target) * math.sqrt(self.width) + self._places(target)
        return self.generator(self.transformer(x, y, tgt_mask=mask))

    def _places(self, ids: Tensor) -> Tensor:
        at = torch.arange(ids.shape[1], device=ids.device, dtype=self.source.weight.dtype)[:, None]
        rates = torch.exp(torch.arange(0, self.width, 2, device=ids.device) * (-math.log(10000.0) / self.width))
        return torch.cat([torch.sin(at * rates), torch.cos(at * rates)], dim=1)


def _pairs(samples: int, lengths: tuple[int, int]) -> dict[str, Any]:
    source, target = lengths
    return {"source": torch.randint(0, 40, (samples, source)), "target": torch.randint(0, 50, (samples, target))}


@subject("nn.Transformer")
def transformer() -> Subject:
    """Return a translator with a causal mask."""
    return Subject(Translator(), _pairs, ((10, 8), (6, 8), (10, 13)), "lengths")


class Seq2Seq(nn.Module):
    """An LSTM reads, an LSTM cell writes and attends to what was read, by a small network."""

    def __init__(self, width: int = 24):
        super().__init__()
        self.source, self.target = nn.Embedding(40, 16), nn.Embedding(50, 16)
        self.encoder = nn.LSTM(16, width, batch_first=True, bidirectional=True)
        self.bridge = nn.Linear(2 * width, 20)
        self.decoder = nn.LSTM(16, 20, batch_first=True)
        self.query, self.key, self.energy = nn.Linear(20, 18), nn.Linear(2 * width, 18), nn.Linear(18, 1)
        self.join, self.out = nn.Linear(20 + 2 * width, 28), nn.Linear(28, 50)

    def forward(self, source: Tensor, target: Tensor) -> Any:
        memory, (h, _) = self.encoder(self.source(source))
        first = torch.tanh(self.bridge(torch.cat([h[0], h[1]], dim=1))).unsqueeze(0)
        states, _ = self.decoder(self.target(target), (first, torch.zeros_like(first)))
        scores = self.energy(torch.tanh(self.query(states).unsqueeze(2) + self.key(memory).unsqueeze(1))).squeeze(3)
        context = torch.bmm(scores.softmax(-1), memory)
        return self.out(torch.tanh(self.join(torch.cat([states, context], dim=2))))


@subject("LSTM seq2seq with attention")
def seq2seq() -> Subject:
    """Return additive attention over an LSTM's states."""
    return Subject(Seq2Seq(), _pairs, ((10, 8), (6, 8), (10, 13)), "lengths")


class LSTMTagger(nn.Module):
    """An LSTM of two layers and both directions."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, 16)
        self.lstm = nn.LSTM(16, 20, 2, batch_first=True, bidirectional=True, dropout=0.1)
        self.head = nn.Linear(40, 6)

    def forward(self, ids: Tensor) -> Any:
        return self.head(self.lstm(self.embed(ids))[0])


@subject("BiLSTM tagger")
def lstm_tagger() -> Subject:
    """Return a tagger of two layers."""
    return Subject(LSTMTagger(), tokens(40), (10, 6, 15))


class TextCnn(nn.Module):
    """Convolutions of three widths over words, each with its maximum over time."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, 16)
        self.convs = nn.ModuleList(nn.Conv1d(16, 12, kernel) for kernel in (2, 3, 4))
        self.head = nn.Linear(36, 5)

    def forward(self, ids: Tensor) -> Any:
        x = self.embed(ids).transpose(1, 2)
        return self.head(torch.cat([conv(x).relu().max(dim=2).values for conv in self.convs], dim=1))


@subject("TextCNN")
def text_cnn() -> Subject:
    """Return convolutions over words."""
    return Subject(TextCnn(), tokens(40), (10, 6, 15))
