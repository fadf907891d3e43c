"""Folders that `from_pretrained` loads in a process without Secateur.

Covers also secateur.artifacts.config_search and secateur.artifacts.resized_class.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import secateur as sc
from pretrained_networks import MODELS, assert_the_same, made, reloaded, transformers_of_the_zoo
from secateur.artifacts.pretrained import save_pretrained
from secateur.errors import ArgumentError, ArtifactError
from secateur.structure.inputs import InputSpec

FEED_FORWARD = ("mlp.gate_proj", "mlp.fc1", "intermediate.dense", "DenseReluDense.wi")


def kept_by(model: nn.Module, call: Any, count: Callable[[str, int, int], int]) -> sc.Plan:
    units = sc.find_units(model, call)
    kept = {s.name: range(count(s.name, s.size, i)) for i, s in enumerate(units)}
    return sc.Plan.from_kept(kept, call)


def uniform(name: str, size: int, _: int) -> int:
    """Feed-forward widths and heads that are grouped: the same numbers in all layers, half of them."""
    grouped = name.endswith("q_proj[0]") and size == 2
    return size // 2 if name.endswith(FEED_FORWARD) or grouped else size


def unequal(_: str, size: int, i: int) -> int:
    return max(1, size // 2 - i % 3)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MODELS)
def test_equal_widths_are_numbers_of_the_configuration(name: str, tmp_path: Path) -> None:
    model, call = made(name)
    small = sc.cut(model, kept_by(model, call, uniform))
    folder = tmp_path / "small"
    written = save_pretrained(small, InputSpec.of(((), call)), folder)
    assert written == sum(file.stat().st_size for file in folder.iterdir())
    assert not list(folder.glob("*.py"))
    result = reloaded(name, folder, call, tmp_path)
    assert result["kind"] == type(model).__name__
    assert_the_same(small, result, call)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["Llama", "Qwen2", "ViT"])
def test_a_uniform_budget_leaves_numbers_that_the_configuration_says(name: str, tmp_path: Path) -> None:
    model, call = made(name)
    budget = sc.Budget(remove_fraction=0.3, scope="uniform")
    result = sc.shrink(model, call, "output", budget, progress=False)
    assert result.after.params < result.before.params
    folder = tmp_path / "small"
    result.save_pretrained(folder)
    assert not list(folder.glob("*.py"))
    loaded = reloaded(name, folder, call, tmp_path)
    assert loaded["kind"] == type(model).__name__
    assert_the_same(result.model, loaded, call)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MODELS)
def test_widths_of_each_layer_come_with_a_file_of_code(name: str, tmp_path: Path) -> None:
    model, call = made(name)
    small = sc.cut(model, kept_by(model, call, unequal))
    folder = tmp_path / "small"
    save_pretrained(small, InputSpec.of(((), call)), folder)
    assert [file.name for file in folder.glob("*.py")] == ["modeling_resized.py"]
    result = reloaded(name, folder, call, tmp_path)
    assert result["kind"] == f"Resized{type(model).__name__}"
    assert_the_same(small, result, call)


@pytest.mark.filterwarnings("ignore")
def test_the_configuration_has_the_numbers_of_what_is_left(tmp_path: Path) -> None:
    model, call = made("Qwen2")
    small = sc.cut(model, kept_by(model, call, uniform))
    save_pretrained(small, InputSpec.of(((), call)), tmp_path / "small")
    config = transformers_of_the_zoo().AutoConfig.from_pretrained(tmp_path / "small")
    numbers = config.intermediate_size, config.num_attention_heads, config.num_key_value_heads, config.head_dim
    assert numbers == (24, 2, 1, 8)
    assert (config.hidden_size, config.vocab_size) == (32, 64)
    assert model.config.intermediate_size == 48


@pytest.mark.filterwarnings("ignore")
def test_a_result_is_written_and_files_of_the_tokenizer_are_copied(tmp_path: Path) -> None:
    model, call = made("Llama")
    model.save_pretrained(tmp_path / "whole")
    (tmp_path / "whole" / "tokenizer.json").write_text("{}")
    again = type(model).from_pretrained(tmp_path / "whole").eval()
    result = sc.shrink(again, call, "output", sc.Budget(remove_units=4), progress=False)
    result.save_pretrained(tmp_path / "small")
    assert (tmp_path / "small" / "tokenizer.json").read_text() == "{}"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["small", "whole"]


@pytest.mark.filterwarnings("ignore")
def test_of_a_network_that_came_from_no_folder_no_file_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, call = made("BERT")
    for name in ("config.json", "mine.json"):
        (tmp_path / name).write_text("{}")
    monkeypatch.chdir(tmp_path)
    save_pretrained(model, InputSpec.of(((), call)), tmp_path / "small")
    assert not (tmp_path / "small" / "mine.json").exists()


# ---------------------------------------------------------------- what is refused


def test_other_networks_are_refused(tmp_path: Path) -> None:
    spec = InputSpec.of(((torch.zeros(2, 3),), {}))
    with pytest.raises(ArgumentError) as raised:
        save_pretrained(nn.Linear(3, 2), spec, tmp_path / "a")
    assert str(raised.value) == "Linear has no configuration and no from_pretrained: use save"


@pytest.mark.filterwarnings("ignore")
def test_without_a_file_of_code_unequal_widths_are_refused_and_named(tmp_path: Path) -> None:
    model, call = made("BERT")
    small = sc.cut(model, kept_by(model, call, lambda name, n, i: n - i if name.endswith("dense") else n))
    with pytest.raises(ArtifactError) as raised:
        save_pretrained(small, InputSpec.of(((), call)), tmp_path / "small", code=False)
    assert str(raised.value) == (
        f"{tmp_path / 'small'}: no numbers in BertConfig say the sizes left: encoder.layer.0.intermediate.dense.weight "
        "(48 → 46), encoder.layer.0.intermediate.dense.bias (48 → 46), encoder.layer.0.output.dense.weight (48 → 46) "
        "and 3 more; keep such sets whole with Budget(protect=...), or remove the same number from every layer with "
        "Budget(scope='uniform')"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore")
def test_a_folder_with_something_in_it_is_refused(tmp_path: Path) -> None:
    model, call = made("BERT")
    (tmp_path / "note").write_text("mine")
    with pytest.raises(ArtifactError) as raised:
        save_pretrained(model, InputSpec.of(((), call)), tmp_path)
    assert str(raised.value) == f"{tmp_path}: is no empty folder"
    assert [p.name for p in tmp_path.iterdir()] == ["note"]
