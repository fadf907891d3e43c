"""Tiny networks of Hugging Face's, and what loads their folders in a process without Secateur."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from secateur_experiments.bench.suite.run import importable

TEXT: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64,
}  # fmt: skip
GROUPED = {**TEXT, "num_key_value_heads": 2, "eos_token_id": None}
IMAGES = {**{k: v for k, v in TEXT.items() if k not in ("vocab_size", "max_position_embeddings")}, "image_size": 16}
SMALL_T5 = {
    "vocab_size": 64, "d_model": 32, "d_ff": 48, "d_kv": 8, "num_layers": 2, "num_heads": 4,
    "decoder_start_token_id": 0, "eos_token_id": None,
}  # fmt: skip
MODELS: dict[str, tuple[str, str, Mapping[str, Any]]] = {
    "Llama": ("LlamaForCausalLM", "LlamaConfig", GROUPED),
    "Qwen2": ("Qwen2ForCausalLM", "Qwen2Config", GROUPED),
    "BERT": ("BertModel", "BertConfig", TEXT),
    "ViT": ("ViTModel", "ViTConfig", {**IMAGES, "patch_size": 4}),
    "T5": ("T5ForConditionalGeneration", "T5Config", SMALL_T5),
}
AUTO = {
    "Llama": "AutoModelForCausalLM", "Qwen2": "AutoModelForCausalLM", "BERT": "AutoModel", "ViT": "AutoModel",
    "T5": "AutoModelForSeq2SeqLM",
}  # fmt: skip
FRESH = """
import sys
class Nowhere:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "secateur":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Nowhere())
shim, auto, folder, given, got = sys.argv[1:]
if shim:
    sys.path.insert(0, shim)
    import tvshim
import torch, transformers
call = torch.load(given)
model = getattr(transformers, auto).from_pretrained(folder, trust_remote_code=True).eval()
with torch.no_grad():
    result = {"output": model(**call)[0], "kind": type(model).__name__}
    if model.can_generate():
        result["tokens"] = model.generate(call["input_ids"], max_new_tokens=5, min_new_tokens=5, do_sample=False)
torch.save(result, got)
"""


def transformers_of_the_zoo() -> Any:
    importable(os.environ.get("ZOO_DIR"))
    transformers = pytest.importorskip("transformers", exc_type=ImportError)
    try:
        transformers.LlamaForCausalLM  # noqa: B018 - whose module imports torchvision
    except ModuleNotFoundError as error:
        pytest.skip(str(error))
    return transformers


def made(name: str) -> tuple[Any, dict[str, torch.Tensor]]:
    transformers = transformers_of_the_zoo()
    kind, config, numbers = MODELS[name]
    torch.manual_seed(0)
    model = getattr(transformers, kind)(getattr(transformers, config)(**numbers)).eval()
    if name == "ViT":
        return model, {"pixel_values": torch.randn(2, 3, 16, 16)}
    ids = torch.randint(3, 60, (2, 9))
    return model, {"input_ids": ids, "decoder_input_ids": ids[:, :5]} if name == "T5" else {"input_ids": ids}


def reloaded(name: str, folder: Path, call: Any, tmp_path: Path) -> dict[str, Any]:
    given, got = tmp_path / "given", tmp_path / "got"
    torch.save(call, given)
    where = os.environ.get("ZOO_DIR", "")
    shim = where if Path(where, "tvshim.py").is_file() else ""
    command = [sys.executable, "-c", FRESH, shim, AUTO[name], str(folder), str(given), str(got)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    result: dict[str, Any] = torch.load(got)
    return result


def assert_the_same(small: Any, result: dict[str, Any], call: Any) -> None:
    with torch.no_grad():
        torch.testing.assert_close(result["output"], small(**call)[0], rtol=1e-6, atol=1e-6)
        if small.can_generate():
            tokens = small.generate(call["input_ids"], max_new_tokens=5, min_new_tokens=5, do_sample=False)
            assert torch.equal(result["tokens"], tokens)


WORDS = [f"w{number}" for number in range(3, 60)]


def save_tokenizer(folder: Path, **special: str) -> None:
    """Write a tokenizer that knows `WORDS` and the number in each."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {"[PAD]": 0, "[UNK]": 1, "[EOS]": 2, **{word: int(word[1:]) for word in WORDS}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = transformers_of_the_zoo().PreTrainedTokenizerFast
    fast(tokenizer_object=tokenizer, unk_token="[UNK]", eos_token="[EOS]", **special).save_pretrained(folder)


def save_folder(name: str, folder: Path) -> None:
    """Write a network and its tokenizer, as folders of Hugging Face's are."""
    model, _ = made(name)
    model.save_pretrained(folder)
    save_tokenizer(folder, pad_token="[PAD]")


def random_texts(count: int, longest: int = 12) -> list[str]:
    draw = random.Random(0)
    return [" ".join(draw.choices(WORDS, k=draw.randint(3, longest))) for _ in range(count)]
