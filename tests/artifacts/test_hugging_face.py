"""Folders of Hugging Face's as networks, and texts as tokens."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pretrained_networks import made, random_texts, save_folder, transformers_of_the_zoo
from secateur.artifacts.hugging_face import (
    keyword_inputs,
    load_network,
    quietly,
    read_texts,
    tokenised,
    tokens_of,
)
from secateur.errors import ArgumentError

pytestmark = pytest.mark.filterwarnings("ignore")


def test_texts_are_tokens_padded_for_each_batch_and_cut_at_the_longest(tmp_path: Path) -> None:
    save_folder("BERT", tmp_path)
    texts = ["w3 w4", "w5 none w6", "w7", "w8 w9 w10 w11 w12"]
    batches = tokens_of(texts, tmp_path, 4)
    assert [targets for _, targets in batches] == [None]
    (inputs, _), *_ = batches
    assert inputs["input_ids"].tolist() == [[3, 4, 0, 0], [5, 1, 6, 0], [7, 0, 0, 0], [8, 9, 10, 11]]
    assert inputs["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]]
    assert inputs.keys() == {"input_ids", "attention_mask"}
    assert [len(inputs["input_ids"]) for inputs, _ in tokens_of(random_texts(19), tmp_path, 4)] == [8, 8, 3]


def test_batches_are_of_the_size_asked_for() -> None:
    def tokenizer(texts: list[str], **_: Any) -> dict[str, torch.Tensor]:
        return {"input_ids": torch.zeros(len(texts), max(map(len, texts)))}

    shapes = [tuple(inputs["input_ids"].shape) for inputs, _ in tokenised(tokenizer, ["ab", "abcd", "a"], 9, batch=2)]
    assert shapes == [(2, 4), (1, 1)]


def test_a_text_is_a_line_that_is_not_empty(tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_bytes("ä b\r\n\n  \nc\u2028d\n".encode())
    assert read_texts(path) == ["ä b", "c\u2028d"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_network_is_loaded_in_the_type_of_its_weights_in_eval_mode(tmp_path: Path, dtype: torch.dtype) -> None:
    model, _ = made("Llama")
    model.to(dtype).save_pretrained(tmp_path)
    loaded: Any = load_network(tmp_path)
    assert type(loaded) is type(model)
    assert not loaded.training
    assert {p.dtype for p in loaded.parameters()} == {dtype}
    assert all(torch.equal(loaded.get_parameter(name), weight) for name, weight in model.named_parameters())


def test_where_no_class_is_named_the_type_of_the_model_says_it(tmp_path: Path) -> None:
    model, _ = made("BERT")
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["architectures"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert type(load_network(tmp_path)) is type(model)


@pytest.mark.parametrize("kind", ["BertModel", "AutoTokenizer"])
def test_nothing_but_the_folder_is_looked_into_and_no_code_of_it_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    save_folder("BERT", tmp_path)
    called = []

    def loading(*args: Any, **options: Any) -> None:
        called.append((*args, options["local_files_only"], options["trust_remote_code"]))
        raise OSError("nothing\nloaded")

    monkeypatch.setattr(getattr(transformers_of_the_zoo(), kind), "from_pretrained", loading)
    what = "its tokenizer" if kind == "AutoTokenizer" else "its BertModel"
    with pytest.raises(ArgumentError) as raised:
        load_network(tmp_path) if kind == "BertModel" else tokens_of(["w3"], tmp_path, 4)
    assert str(raised.value) == f"--hf {tmp_path}: {what} cannot be loaded (OSError: nothing)"
    assert called == [(str(tmp_path), True, False)]


def test_inputs_are_those_by_keyword_without_the_networks_own_targets() -> None:
    names = keyword_inputs(made("BERT")[0])
    assert names[:2] == ("input_ids", "attention_mask")
    assert "labels" not in keyword_inputs(made("Llama")[0])
    assert keyword_inputs(nn.Linear(2, 3)) == ("input",)


def test_what_transformers_shows_is_shown_again_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    log = transformers_of_the_zoo().utils.logging
    log.set_verbosity_info()
    with quietly():
        assert (log.get_verbosity(), log.is_progress_bar_enabled()) == (log.ERROR, False)
    assert (log.get_verbosity(), log.is_progress_bar_enabled()) == (log.INFO, True)
    log.set_verbosity_warning()


def test_without_transformers_nothing_is_kept_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "transformers.utils.logging", raising=False)
    with quietly():
        pass
