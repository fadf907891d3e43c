"""Sentences and tokens, and how good a network of language is."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from secateur_experiments.bench.scale import language


def test_embeddings_leave_padding_out():
    def model(input_ids, attention_mask):
        return SimpleNamespace(last_hidden_state=torch.stack([input_ids, torch.ones_like(input_ids)], 2).float())

    inputs = {"input_ids": torch.tensor([[3, 1, 9]]), "attention_mask": torch.tensor([[1, 1, 0]])}
    torch.testing.assert_close(language.embeddings(model, [(inputs, None)]), torch.tensor([[2.0, 1.0]]) / math.sqrt(5))


def test_agreement_counts_nearest_neighbours():
    expected = nn.functional.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]]))
    swapped = expected[[0, 2, 1, 3]]
    assert language.agreement(expected, expected)["neighbours"] == 1
    assert language.agreement(swapped, expected)["neighbours"] == 0
    assert language.agreement(swapped, expected)["cosine"] == pytest.approx(
        (2 + 2 * float(expected[1] @ expected[2])) / 4
    )


def test_perplexity_is_that_of_tokens_after_the_first():
    logits = torch.tensor([[[0.0, 1.0], [2.0, 0.0], [5.0, 5.0]]])  # what comes after the last is nobody's target
    tokens = torch.tensor([[0, 1, 0]])
    expected = (math.log(1 + math.exp(-1)) + math.log(1 + math.exp(-2))) / 2

    def model(input_ids):
        assert torch.equal(input_ids, tokens)
        return SimpleNamespace(logits=logits)

    (batch,) = language.decoder_batches(tokens)
    assert language.perplexity(model, [batch]) == pytest.approx(math.exp(expected))


def test_beginnings_are_those_of_texts_that_are_long_enough(monkeypatch):
    monkeypatch.setattr(language, "LENGTH", 2)
    letters = lambda text: SimpleNamespace(input_ids=[ord(letter) for letter in text])  # noqa: E731
    rows = language.beginnings(letters, ["a", "bcd", "ef", "", "ghi"], 2)
    assert rows.tolist() == [[98, 99], [101, 102]]
