"""Decoders of transformers, tiny."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from secateur_experiments.bench.suite.models.hugging_face_encoders import LENGTHS, VOCABULARY, of_transformers, text
from secateur_experiments.bench.suite.registry import Subject, subject

DECODER: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "max_position_embeddings": 40,
}  # fmt: skip


def _prompt() -> dict[str, Any]:
    return {"input_ids": torch.randint(3, 60, (2, 5)), "attention_mask": torch.ones(2, 5, dtype=torch.long)}


def _decoder(name: str, network: str, configuration: str, **options: Any) -> Callable[[], Subject]:
    def build() -> Subject:
        model = of_transformers(network, configuration, **VOCABULARY, **options)
        return Subject(model, text, LENGTHS, prompt=_prompt)

    return subject(name)(build)


_decoder("Llama", "LlamaForCausalLM", "LlamaConfig", num_key_value_heads=2, **DECODER)
_decoder("Qwen3", "Qwen3ForCausalLM", "Qwen3Config", num_key_value_heads=2, head_dim=8, **DECODER)
_decoder(
    "Gemma3", "Gemma3ForCausalLM", "Gemma3TextConfig", num_key_value_heads=2, head_dim=8, sliding_window=8,
    layer_types=["sliding_attention", "full_attention"], **DECODER,
)  # fmt: skip
_decoder("Mistral", "MistralForCausalLM", "MistralConfig", num_key_value_heads=2, sliding_window=None, **DECODER)
_decoder("Phi", "PhiForCausalLM", "PhiConfig", **DECODER)
_decoder("GPT-2", "GPT2LMHeadModel", "GPT2Config", n_embd=32, n_layer=2, n_head=4, n_positions=40)
_decoder("GPT-NeoX", "GPTNeoXForCausalLM", "GPTNeoXConfig", **DECODER)
_decoder(
    "OPT", "OPTForCausalLM", "OPTConfig", hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4,
    max_position_embeddings=40, word_embed_proj_dim=32,
)  # fmt: skip
_decoder("BLOOM", "BloomForCausalLM", "BloomConfig", hidden_size=32, n_layer=2, n_head=4)
_decoder(
    "Qwen3-MoE", "Qwen3MoeForCausalLM", "Qwen3MoeConfig", num_key_value_heads=2, head_dim=8, num_experts=4,
    num_experts_per_tok=2, moe_intermediate_size=24, decoder_sparse_step=1, mlp_only_layers=[],
    experts_implementation="batched_mm", **DECODER,
)  # fmt: skip
_decoder(
    "Mamba2", "Mamba2ForCausalLM", "Mamba2Config", hidden_size=32, num_hidden_layers=2, num_heads=8, head_dim=8,
    expand=2, state_size=8, n_groups=2, chunk_size=8, conv_kernel=4,
)  # fmt: skip
