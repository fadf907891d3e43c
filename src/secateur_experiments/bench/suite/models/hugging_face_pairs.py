"""Encoders with decoders of transformers, tiny."""

from __future__ import annotations

from typing import Any

import torch

from secateur_experiments.bench.suite.models.hugging_face_encoders import VOCABULARY, of_transformers
from secateur_experiments.bench.suite.registry import Subject, subject

PAIR: dict[str, Any] = {
    "d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48,
}  # fmt: skip


def _ids(samples: int, length: int) -> torch.Tensor:
    return torch.randint(3, 60, (samples, length))


def _pairs(samples: int, lengths: tuple[int, int]) -> dict[str, Any]:
    return {"input_ids": _ids(samples, lengths[0]), "decoder_input_ids": _ids(samples, lengths[1])}


def _prompt() -> dict[str, Any]:
    return {"input_ids": _ids(2, 9)}


LENGTHS = ((10, 6), (7, 6), (10, 9))


@subject("T5")
def t5() -> Subject:
    """Return T5 with gated GELU and relative positions."""
    options = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0}
    model = of_transformers(
        "T5ForConditionalGeneration", "T5Config", feed_forward_proj="gated-gelu", **VOCABULARY, **options
    )
    return Subject(model, _pairs, LENGTHS, "lengths", _prompt)


@subject("BART")
def bart() -> Subject:
    """Return BART."""
    model = of_transformers(
        "BartForConditionalGeneration", "BartConfig", max_position_embeddings=40, decoder_start_token_id=2,
        forced_eos_token_id=None, **VOCABULARY, **PAIR,
    )  # fmt: skip
    return Subject(model, _pairs, LENGTHS, "lengths", _prompt)


@subject("Whisper")
def whisper() -> Subject:
    """Return Whisper, whose spectrograms have one length."""
    model = of_transformers(
        "WhisperForConditionalGeneration", "WhisperConfig", num_mel_bins=16, max_source_positions=16,
        max_target_positions=24, decoder_start_token_id=1, suppress_tokens=None, begin_suppress_tokens=None,
        **VOCABULARY, **PAIR,
    )  # fmt: skip

    def inputs(samples: int, length: int) -> dict[str, Any]:
        return {"input_features": torch.randn(samples, 16, 32), "decoder_input_ids": _ids(samples, length)}

    return Subject(model, inputs, (6, 4, 9), prompt=lambda: {"input_features": torch.randn(2, 16, 32)})


@subject("DETR (transformers)")
def detr() -> Subject:
    """Return DETR of transformers, with timm's ResNet where that is there, else its own."""
    backbone = {
        "model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic",
        "out_features": ["stage2"],
    }  # fmt: skip
    options = PAIR | {"encoder_layers": 1, "decoder_layers": 1}
    model = of_transformers(
        "DetrForObjectDetection", "DetrConfig", use_timm_backbone=False, use_pretrained_backbone=False, backbone=None,
        backbone_config=backbone, num_queries=6, num_labels=4, **options,
    )  # fmt: skip

    def inputs(samples: int, size: int | tuple[int, int]) -> dict[str, Any]:
        sides = size if isinstance(size, tuple) else (size, size)
        return {"pixel_values": torch.randn(samples, 3, *sides)}

    return Subject(model, inputs, (64, 48, (64, 96)), "image size")
