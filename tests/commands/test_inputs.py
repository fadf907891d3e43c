"""A folder of Hugging Face's in, and a folder out."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import secateur as sc
from pretrained_networks import (
    assert_the_same,
    made,
    random_texts,
    reloaded,
    save_folder,
    save_tokenizer,
    transformers_of_the_zoo,
)

pytestmark = pytest.mark.filterwarnings("ignore")
Run = Callable[..., tuple[int, str, str]]
FILES = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
UNIFORM = ("--remove-fraction", "0.3", "--scope", "uniform")
IDS = torch.randint(3, 60, (12, 9), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with those of networks, and data."""
    transformers_of_the_zoo()
    folder = tmp_path_factory.mktemp("folders")
    for name in ("Llama", "BERT", "T5"):
        save_folder(name, folder / name)
    texts = random_texts(24)
    (folder / "texts.txt").write_text("\n".join([*texts[:12], "", *texts[12:], ""]), encoding="utf-8")
    mask = torch.ones_like(IDS)
    mask[3:, 6:] = 0
    np.savez(folder / "named.npz", input_ids=IDS.numpy(), attention_mask=mask.numpy())
    np.savez(folder / "x.npz", x=IDS.numpy())
    np.savez(folder / "x_and_y.npz", x=IDS.numpy(), y=IDS.numpy())
    np.savez(folder / "others.npz", input_ids=IDS.numpy(), mask=mask.numpy())
    return folder


@pytest.fixture
def run(folders: Path, monkeypatch: pytest.MonkeyPatch, command_line: Run) -> Run:
    monkeypatch.chdir(folders)
    return command_line


def tokens(length: int) -> dict[str, Tensor]:
    mask = torch.ones(2, length, dtype=torch.long)
    mask[1, length // 2 :] = 0
    return {"input_ids": IDS[:2, :length], "attention_mask": mask}


# ---------------------------------------------------------------- what is read and written


@pytest.mark.parametrize(("name", "options"), [("Llama", ()), ("BERT", ("--protect", "*attention*"))])
def test_a_folder_becomes_a_smaller_one_that_gives_what_the_file_of_secateurs_does(
    run: Run, tmp_path: Path, name: str, options: tuple[str, ...]
) -> None:
    words = ("shrink", "--hf", name, "--data", "texts.txt", *UNIFORM, *options)
    code, out, err = run(*words, "--out", str(tmp_path / "small"), "--json")
    assert code == 0, err  # which says what took a second or more
    folder = tmp_path / "small"
    files = [*FILES[:1], *(["generation_config.json"] if name == "Llama" else []), *FILES[1:]]
    result = json.loads(out)
    assert result["artifact"] == {
        "path": str(folder),
        "bytes": sum((folder / file).stat().st_size for file in files),
        "files": files,
        "trust_remote_code": False,
    }
    assert run(*words, "--out", str(tmp_path / "small.safetensors"))[0] == 0
    small = sc.load(tmp_path / "small.safetensors", made(name)[0])
    assert sum(p.numel() for p in small.parameters()) == result["after"]["params"] < result["before"]["params"]
    for length in (9, 5):
        assert_the_same(small, reloaded(name, folder, tokens(length), tmp_path), tokens(length))


def test_people_read_how_large_the_folder_is(run: Run, tmp_path: Path) -> None:
    words = ("shrink", "--hf", "Llama", "--data", "texts.txt", "--remove-units", "9", "--ranking", "single")
    code, out, _ = run(*words, "--out", str(tmp_path / "small"))
    assert code == 0
    (line,) = [line for line in out.splitlines() if line.startswith("written to ")]
    assert line.startswith(f"written to {tmp_path / 'small'}, ")
    assert line.endswith(" in 6 files; from_pretrained needs trust_remote_code=True")


def test_a_folder_is_written_for_each_size(run: Run, tmp_path: Path) -> None:
    sizes = {"0.09MB": 90_000, "80kB": 80_000}
    asked = [word for size in sizes for word in ("--bytes", size)]
    words = ("shrink", "--hf", "Llama", "--data", "texts.txt", "--scope", "uniform", *asked)
    code, out, _ = run(*words, "--out", str(tmp_path / "small-{bytes}"), "--json")
    assert code == 0
    results = json.loads(out)
    assert [Path(result["artifact"]["path"]).name for result in results] == ["small-0.09MB", "small-80kB"]
    for result, most in zip(results, sizes.values(), strict=True):
        folder = Path(result["artifact"]["path"])
        assert result["artifact"]["bytes"] == sum(file.stat().st_size for file in folder.iterdir())
        assert (folder / "model.safetensors").stat().st_size <= most
        assert not (folder / "modeling_resized.py").exists()


@pytest.mark.parametrize(("data", "least"), [("texts.txt", 24), ("named.npz", 12), ("x.npz", 12)])
def test_without_targets_the_loss_is_the_one_that_suits_the_outputs(run: Run, data: str, least: int) -> None:
    for name, loss in (("Llama", "distribution"), ("BERT", "output")):
        words = ("score", "--hf", name, "--data", data, "--json")
        code, out, err = run(*words)
        assert code == 0, err  # which says what took a second or more
        assert out == run(*words, "--loss", loss)[1]
    assert out != run(*words[:3], "Llama", *words[4:], "--loss", "output")[1]


def test_texts_are_read_up_to_a_number_of_tokens(run: Run, folders: Path, tmp_path: Path) -> None:
    shorter = [" ".join(line.split()[:4]) for line in (folders / "texts.txt").read_text().splitlines()]
    (tmp_path / "shorter.txt").write_text("\n".join(shorter))
    words = ("shrink", "--hf", "Llama", "--remove-units", "4", "--ranking", "single", "--json")
    whole, cut, short = (
        json.loads(run(*words, "--data", data, *options, "--out", str(tmp_path / f"{n}.safetensors"))[1])["after"]
        for n, (data, *options) in enumerate(
            [("texts.txt",), ("texts.txt", "--max-tokens", "4"), (str(tmp_path / "shorter.txt"),)]
        )
    )
    assert cut == short != whole


def test_arrays_named_like_inputs_may_have_targets(run: Run, tmp_path: Path) -> None:
    transformers = transformers_of_the_zoo()
    torch.manual_seed(0)
    numbers = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = transformers.ViTConfig(**numbers, image_size=16, patch_size=4, num_labels=3)
    model = transformers.ViTForImageClassification(config).eval()
    model.save_pretrained(tmp_path / "vit")
    images, classes = torch.randn(8, 3, 16, 16), torch.arange(8) % 3
    np.savez(tmp_path / "data.npz", pixel_values=images.numpy(), y=classes.numpy())
    words = ("--hf", str(tmp_path / "vit"), "--data", str(tmp_path / "data.npz"))
    code, out, _ = run("score", *words, "--loss", "cross_entropy", "--criterion", "taylor1", "--json")
    expected = sc.score(model, ({"pixel_values": images}, classes), "cross_entropy", criterion="taylor1")
    assert code == 0
    assert json.loads(out) == {name: pytest.approx(values.tolist(), rel=1e-4) for name, values in expected.items()}
    code, _, err = run("score", *words)
    assert (code, err) == (2, "secateur: --loss: needed, but for texts and files without y\n")
    assert run("inspect", *words)[0] == 0


def test_all_commands_take_a_folder(run: Run, tmp_path: Path) -> None:
    words = ("--hf", "BERT", "--data", "texts.txt", "--json")
    code, out, _ = run("inspect", *words)
    assert code == 0
    sizes = {unit_set["name"]: unit_set["size"] for unit_set in json.loads(out)["sets"]}
    assert sizes["encoder.layer.0.intermediate.dense"] == 48
    code, out, _ = run("interactions", *words)
    assert code == 0
    assert ["encoder.layer.1.intermediate.dense", 47] in json.loads(out)["units"]


# ---------------------------------------------------------------- what is refused

EVIL = "from pathlib import Path\nPath('ran').write_text('')\nclass Mine: ...\n"


def spoiled(folders: Path, folder: Path) -> None:
    """Write folders that hold less than a network."""
    config = json.loads((folders / "BERT" / "config.json").read_text())
    weights = load_file(folders / "BERT" / "model.safetensors")

    def written(name: str, changes: Any, tensors: dict[str, Tensor] | None) -> Path:
        (folder / name).mkdir()
        text = changes if isinstance(changes, str) else json.dumps({**config, **changes})
        (folder / name / "config.json").write_text(text)
        if tensors is not None:
            save_file(tensors, folder / name / "model.safetensors", {"format": "pt"})
        return folder / name

    (folder / "empty").mkdir()
    written("broken", "{", weights)
    written("listed", "[1]", weights)
    written("weightless", {}, None)
    written("strange", {"architectures": ["pipeline"]}, weights)
    written("unknown", {"architectures": None, "model_type": "none such"}, weights)
    own = {"auto_map": dict.fromkeys(("AutoConfig", "AutoModel"), "mine.Mine")}
    for name, architectures in (("own", ["Mine"]), ("nameless", [])):
        path = written(name, {**own, "architectures": architectures, "model_type": "mine"}, weights)
        (path / "mine.py").write_text(EVIL)
    written("wordless", {}, weights)
    names = sorted(weights)
    written("lacking", {}, {name: weights[name] for name in names[4:]})
    written("other", {}, {**weights, names[0]: torch.zeros(3)})
    torch.save(weights, written("pickled", {}, None) / "pytorch_model.bin")
    (folder / "blank.txt").write_text("\n \n")
    (folder / "bytes.txt").write_bytes(b"\xff\xfe\xfa")
    (folder / "full").mkdir()
    (folder / "full" / "note").write_text("mine")
    (folder / "file").write_text("mine")


GOOD = {"--hf": "BERT", "--data": "texts.txt", "--out": "small", "--remove-units": "4"}
INPUTS = "input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, encoder_hidden_states, "
REFUSED: list[tuple[dict[str, str], int, str]] = [
    ({"--hf": ""}, 2, "MODEL: needed, or --hf DIR with a folder of Hugging Face's"),
    ({"MODEL": "model.pt2"}, 2, "MODEL 'model.pt2' and --hf BERT: give one of them"),
    ({"--hf": "gone"}, 2, "--hf gone: there is no such folder"),
    ({"--hf": "texts.txt"}, 2, "--hf texts.txt: there is no such folder"),
    ({"--hf": "empty"}, 2, "--hf empty: holds no config.json"),
    ({"--hf": "broken"}, 2, "--hf broken: config.json cannot be read (Expecting property name"),
    ({"--hf": "listed"}, 2, "--hf listed: config.json holds no configuration, but list"),
    ({"--hf": "weightless"}, 2, "--hf weightless: its BertModel cannot be loaded (OSError: Error no file named model."),
    ({"--hf": "pickled"}, 2, "--hf pickled: its BertModel cannot be loaded (OSError: Error no file named model.safet"),
    ({"--hf": "strange"}, 2, "--hf strange: config.json names the architecture 'pipeline', which is not in transform"),
    ({"--hf": "unknown"}, 2, "--hf unknown: its AutoModel cannot be loaded (ValueError: The checkpoint you are trying"),
    ({"--hf": "own"}, 2, "--hf own: config.json names the architecture 'Mine', which is not in transformers "),
    ({"--hf": "nameless"}, 2, "--hf nameless: its AutoModel cannot be loaded (ValueError: The repository nameless con"),
    ({"--hf": "lacking"}, 2, "--hf lacking: its weights hold no embeddings.LayerNorm.bias, embeddings.LayerNorm.w"),
    ({"--hf": "other"}, 2, "--hf other: its weights hold another shape of embeddings.LayerNorm.bias\n"),
    ({"--hf": "wordless"}, 2, "--hf wordless: holds no tokenizer, no vocab.txt or tokenizer.json; give an .npz as --d"),
    ({"--hf": "T5"}, 2, "T5ForConditionalGeneration does not run on the inputs given, of shape ("),
    ({"--data": "gone.txt"}, 2, "gone.txt: cannot be read ([Errno 2] No such file or directory: 'gone.txt')"),
    ({"--data": "blank.txt"}, 2, "blank.txt: there is no text in it"),
    ({"--data": "bytes.txt"}, 2, "bytes.txt: cannot be read ('utf-8' codec can't decode byte 0xff in position 0"),
    ({"--data": "others.npz"}, 2, f"others.npz: expected arrays x and y, or {INPUTS}"),
    ({"--data": "x_and_y.npz"}, 2, "--loss: needed, but for texts and files without y"),
    ({"--data": "texts.csv"}, 2, "DATA 'texts.csv': expected package.module:function or a .npz or .safetensors file"),
    ({"--loss": "cross_entropy"}, 2, "texts.txt: texts have no targets; the loss can be output or distribution"),
    ({"--loss": "entropy"}, 2, "texts.txt: texts have no targets; the loss can be output or distribution"),
    ({"--max-tokens": "9", "--data": "x.npz"}, 2, "--max-tokens: is for texts, a .txt file, not for x.npz"),
    ({"--max-tokens": "9", "--hf": "", "MODEL": "a:b"}, 2, "--max-tokens: is for texts, which --hf reads"),
    ({"--hf": "", "MODEL": "a:b"}, 2, "small: files are written as .safetensors, .pt2, .onnx, .int8.onnx, .pte or"),
    ({"--hf": "gone", "--out": "no/small"}, 2, "no/small: cannot be written, there is no folder "),
    ({"--hf": "gone", "--out": "full"}, 2, "full: is no empty folder"),
    ({"--hf": "gone", "--out": "file"}, 2, "file: is no empty folder"),
    ({"--hf": "gone", "--out": "small.pkl"}, 2, "small.pkl: files are written as .safetensors"),
    (
        {"--hf": "gone", "--granularity": "weight"},
        2,
        "--out small: single weights are left out of .safetensors files alone",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("changed", "code", "text"), REFUSED, ids=[" ".join(c.values()) for c, _, _ in REFUSED])
def test_what_cannot_be_used_is_one_line_and_nothing_is_written_or_run(
    run: Run, folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: dict[str, str], code: int,
    text: str,
) -> None:  # fmt: skip
    spoiled(folders, tmp_path)
    for path in folders.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    before = {path.name for path in tmp_path.iterdir()}
    options = {**GOOD, **changed}
    model = [options.pop("MODEL")] if "MODEL" in options else []
    words = [word for pair in options.items() if pair[1] for word in pair]
    given, out, err = run("shrink", *model, *words, "--json")
    assert (given, out) == (code, "")
    assert err.startswith(f"secateur: {text}")
    assert err.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == before


def test_without_transformers_it_says_what_to_install(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    text = 'secateur: --hf BERT: needs transformers: pip install "secateur[transformers]"\n'
    assert run("inspect", "--hf", "BERT", "--data", "texts.txt") == (2, "", text)


def test_a_tokenizer_without_padding_pads_with_what_counts_nowhere(run: Run, folders: Path, tmp_path: Path) -> None:
    for file in ("config.json", "model.safetensors"):
        (tmp_path / file).write_bytes((folders / "Llama" / file).read_bytes())
    save_tokenizer(tmp_path)
    words = ("score", "--data", "texts.txt", "--json")
    code, out, _ = run(*words, "--hf", str(tmp_path))
    assert code == 0
    expected = json.loads(run(*words, "--hf", "Llama")[1])
    assert json.loads(out) == {name: pytest.approx(values, rel=1e-3) for name, values in expected.items()}
