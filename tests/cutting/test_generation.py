"""The proof of generation, on a decoder with a cache of its own and the interface of transformers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.cutting.generation import CACHES, TOKENS, generation


class Decoder(nn.Module):
    """Sums what came before; a cache holds the sum."""

    main_input_name = "input_ids"

    def __init__(self, wrong: str = "", refused: str = "") -> None:
        super().__init__()
        self.embed, self.up, self.down = nn.Embedding(11, 6), nn.Linear(6, 9), nn.Linear(9, 11)
        self.wrong, self.refused = wrong, refused

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        h = self.embed(input_ids)
        h = h if attention_mask is None else h * attention_mask[..., None]
        return self.down(torch.tanh(self.up(h.cumsum(1))))

    def can_generate(self) -> bool:
        return True

    def generate(self, input_ids: Tensor, **settings: Any) -> SimpleNamespace:
        kind = next(
            name
            for name, options in CACHES.items()
            if options.items() <= settings.items()
            and ("cache_implementation" in options) == ("cache_implementation" in settings)
        )
        assert (settings["max_new_tokens"], settings["min_new_tokens"], settings["do_sample"]) == (
            TOKENS,
            TOKENS,
            False,
        )
        assert not self.training
        self.seen = kind
        logits = []
        for _ in range(TOKENS):
            scores = self.forward(input_ids)[:, -1]
            logits.append(scores + 1 if kind == self.wrong and self.up.out_features < 9 else scores)
            if kind == self.refused and self.up.out_features < 9:
                raise RuntimeError("no room for the cache")
            input_ids = torch.cat([input_ids, scores.argmax(-1, keepdim=True)], 1)
        return SimpleNamespace(logits=tuple(logits))


X = {"input_ids": torch.randint(0, 11, (3, 5), generator=torch.Generator().manual_seed(0))}


def outcome(**faults: str) -> str:
    torch.manual_seed(0)
    model = Decoder(**faults).double()
    small = sc.cut(model, sc.Plan.from_kept({"up": [0, 2, 3, 7]}, X))
    said = generation(model, small, ((), X))
    assert small.training
    assert "seen" not in vars(small)
    return said


def test_what_generates_alike_with_every_cache_is_said_so() -> None:
    assert outcome() == "generate is proven with no cache, dynamic cache and static cache"


def test_other_scores_and_refusals_are_named() -> None:
    assert outcome(wrong="static cache", refused="dynamic cache") == (
        "generate is proven with no cache; "
        "generate fails with dynamic cache (no room for the cache), static cache (other tokens)"
    )


def test_a_network_without_generate_is_not_asked() -> None:
    model = nn.Linear(3, 2)
    assert generation(model, model, ((torch.zeros(1, 3),), {})) == ""


def test_what_the_original_never_did_is_no_fault_of_the_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Decoder, **settings: Any) -> None:
        raise RuntimeError("generate needs a tokenizer")

    monkeypatch.setattr(Decoder, "generate", refuse)
    assert outcome() == ""


def test_a_result_says_what_it_is_proven_for() -> None:
    torch.manual_seed(0)
    model = Decoder().double()
    data = ([(X, torch.zeros(3, 5, 11, dtype=torch.float64))], "squared_error", sc.Budget(remove_fraction=0.4))
    result = sc.shrink(model, *data, criterion="magnitude", compensate=False, progress=False)
    assert result.proven == (
        "proven for 3 and 2 samples, 4 in place of 5; generate is proven with no cache, dynamic cache and static cache"
    )
    assert str(result).endswith(f"the network is a Decoder, as it was; {result.proven}")
