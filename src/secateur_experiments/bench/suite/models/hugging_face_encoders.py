"""Encoders of transformers, as its classes make them from a configuration."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from secateur_experiments.bench.suite.registry import Subject, subject

VOCABULARY: dict[str, Any] = {"vocab_size": 60, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
ENCODER: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "num_labels": 5,
    "max_position_embeddings": 40,
}  # fmt: skip


def of_transformers(network: str, configuration: str, **options: Any) -> Any:
    """Return a network of that class of transformers with a configuration of the other."""
    library: Any = importlib.import_module("transformers")
    return getattr(library, network)(getattr(library, configuration)(**options))


def text(samples: int, length: int) -> dict[str, Tensor]:
    """Return tokens, and a mask: of ones for odd lengths, which libraries drop, else without one sample's end."""
    mask = torch.ones(samples, length, dtype=torch.long)
    mask[0, length - 2 + 2 * (length % 2) :] = 0
    return {"input_ids": torch.randint(3, 60, (samples, length)), "attention_mask": mask}


def pixels(samples: int, size: int | tuple[int, int]) -> dict[str, Tensor]:
    """Return random images as transformers names them."""
    sides = size if isinstance(size, tuple) else (size, size)
    return {"pixel_values": torch.randn(samples, 3, *sides)}


LENGTHS = (12, 7, 20)


def _text_model(name: str, network: str, configuration: str, **options: Any) -> Callable[[], Subject]:
    def build() -> Subject:
        return Subject(of_transformers(network, configuration, **VOCABULARY, **options), text, LENGTHS)

    return subject(name)(build)


_text_model("BERT", "BertForSequenceClassification", "BertConfig", **ENCODER)
_text_model(
    "DistilBERT", "DistilBertForSequenceClassification", "DistilBertConfig", dim=32, n_layers=2, n_heads=4,
    hidden_dim=48, max_position_embeddings=40, num_labels=5,
)  # fmt: skip
_text_model("RoBERTa", "RobertaForMaskedLM", "RobertaConfig", **ENCODER)
_text_model(
    "DeBERTa-v2", "DebertaV2ForSequenceClassification", "DebertaV2Config", relative_attention=True,
    pos_att_type=["c2p", "p2c"], max_relative_positions=16, **ENCODER,
)  # fmt: skip
_text_model(
    "ModernBERT", "ModernBertForSequenceClassification", "ModernBertConfig", global_attn_every_n_layers=2,
    local_attention=8, cls_token_id=1, sep_token_id=2, **ENCODER,
)  # fmt: skip
_text_model("ALBERT", "AlbertForSequenceClassification", "AlbertConfig", embedding_size=16, **ENCODER)


@subject("CLIP text encoder")
def clip_text() -> Subject:
    """Return the text side of CLIP."""
    options = {**VOCABULARY, **ENCODER, "projection_dim": 16}
    return Subject(of_transformers("CLIPTextModelWithProjection", "CLIPTextConfig", **options), text, LENGTHS)


VISION: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip


@subject("CLIP vision encoder")
def clip_vision() -> Subject:
    """Return the image side of CLIP, whose positions fix the image's size."""
    model = of_transformers("CLIPVisionModelWithProjection", "CLIPVisionConfig", projection_dim=16, **VISION)
    return Subject(model, pixels, (32,))


@subject("SigLIP vision encoder")
def siglip() -> Subject:
    """Return an image encoder whose pooling is `nn.MultiheadAttention`."""
    return Subject(of_transformers("SiglipVisionModel", "SiglipVisionConfig", **VISION), pixels, (32,))


@subject("SegFormer")
def segformer() -> Subject:
    """Return the segmentation network with attention to fewer places."""
    options: dict[str, Any] = {
        "num_encoder_blocks": 2, "depths": [1, 1], "sr_ratios": [2, 1], "hidden_sizes": [16, 24],
        "patch_sizes": [7, 3], "strides": [4, 2], "num_attention_heads": [1, 2], "mlp_ratios": [2, 2],
        "decoder_hidden_size": 24, "num_labels": 5,
    }  # fmt: skip
    model = of_transformers("SegformerForSemanticSegmentation", "SegformerConfig", **options)
    return Subject(model, pixels, (32, 64, (32, 48)), "image size")


@subject("wav2vec 2.0")
def wav2vec() -> Subject:
    """Return the speech encoder with a classifier of characters."""
    options: dict[str, Any] = {
        "conv_dim": [16, 16], "conv_kernel": [6, 4], "conv_stride": [4, 2], "num_conv_pos_embeddings": 8,
        "num_conv_pos_embedding_groups": 4, "num_feat_extract_layers": 2, "do_stable_layer_norm": False,
        "apply_spec_augment": False,
    }  # fmt: skip
    model = of_transformers("Wav2Vec2ForCTC", "Wav2Vec2Config", **VOCABULARY, **ENCODER, **options)
    return Subject(model, lambda samples, length: {"input_values": torch.randn(samples, length)}, (160, 96, 240))
