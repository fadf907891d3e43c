"""A folder of Hugging Face's as a network, and texts as its tokenizer reads them.

All comes from the files of the folder; no pickle is read and no code of the folder's is run.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import json
import os
import sys
import warnings
from collections.abc import Collection, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from secateur.arguments import require_path
from secateur.errors import ArgumentError, DataError
from secateur.structure.export import first_line

LIBRARY = "transformers"
ANY = "AutoModel"  # which chooses a network by its configuration, without the layers behind its last hidden state
BATCH = 8  # texts
SHOWN = 3  # names in an error

Texts = list[tuple[dict[str, Tensor], None]]


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Keep what transformers shows to itself, where it is imported: bars and warnings of its own."""
    log: Any = sys.modules.get(f"{LIBRARY}.utils.logging")
    if log is None:
        yield
        return
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()


def load_network(folder: str | os.PathLike[str]) -> nn.Module:
    """Return the network in a folder, of the class that its config.json names, in the type of its weights.

    Raises:
        ArgumentError: transformers is not installed, the folder holds no network of its classes, or not all weights.
    """
    path = require_path(folder, "--hf")
    kind = _class(path)
    options = {"dtype": "auto", "use_safetensors": True, "ignore_mismatched_sizes": True, "output_loading_info": True}
    network, report = _load(kind, path, f"its {kind.__name__}", **options)
    _refuse_incomplete(path, report["missing_keys"], report["mismatched_keys"])
    return network  # type: ignore[no-any-return]


def keyword_inputs(network: nn.Module) -> tuple[str, ...]:
    """Return the names of a network's keyword inputs, without the targets of its own loss."""
    parameters = inspect.signature(network.forward).parameters.values()
    return tuple(p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD and p.name != "labels")


def read_texts(path: Path) -> list[str]:
    """Return the lines of a file that are not empty, each a text.

    Raises:
        DataError: The file cannot be read as UTF-8, or there is no text in it.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    texts = [line for line in lines if line.strip()]
    if not texts:
        raise DataError(f"{path}: there is no text in it")
    return texts


def tokens_of(texts: Sequence[str], folder: Path, most: int) -> Texts:
    """Return texts as inputs of the network in a folder, by the tokenizer in it.

    Raises:
        ArgumentError: The folder holds no tokenizer that transformers loads.
    """
    tokenizer = _load(_library(folder).AutoTokenizer, folder, "its tokenizer")
    files = tokenizer.vocab_files_names.values()
    if files and not any((folder / name).is_file() for name in files):  # it would know no words
        raise ArgumentError(f"--hf {folder}: holds no tokenizer, no {' or '.join(files)}; give an .npz as --data")
    if tokenizer.pad_token is None:  # any will do, as it counts nowhere
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    return tokenised(tokenizer, texts, most)


def tokenised(tokenizer: Any, texts: Sequence[str], most: int, batch: int = BATCH) -> Texts:
    """Return batches of numbers of tokens and what of them is no padding, each as long as its longest text.

    Args:
        tokenizer: A tokenizer of transformers'.
        texts: The texts.
        most: The tokens of a text that are read.
        batch: The texts of a batch.
    """
    options = {
        "padding": True, "padding_side": "right", "truncation": True, "max_length": most, "return_tensors": "pt",
        "return_token_type_ids": False, "return_attention_mask": True,
    }  # fmt: skip
    parts = (list(texts[i : i + batch]) for i in range(0, len(texts), batch))
    return [(dict(tokenizer(part, **options)), None) for part in parts]


def _class(folder: Path) -> Any:
    """Return the class that a folder's config.json names; where it names none, one by its type of model.

    Raises:
        ArgumentError: There is no such file, or no such class.
    """
    named = _config(folder).get("architectures") or [ANY]
    name = named[0] if isinstance(named, list) else named
    library = _library(folder)
    try:
        kind = getattr(library, name) if isinstance(name, str) else None
    except AttributeError:
        kind = None
    except Exception as error:
        raise ArgumentError(f"--hf {folder}: {name} cannot be imported ({first_line(error)})") from error
    if name == ANY or (isinstance(kind, type) and issubclass(kind, nn.Module) and hasattr(kind, "from_pretrained")):
        return kind
    raise ArgumentError(
        f"--hf {folder}: config.json names the architecture {name!r}, which is not in {LIBRARY} {library.__version__}; "
        "no code of the folder's is run"
    )


def _config(folder: Path) -> dict[str, Any]:
    """Return what a folder's config.json says.

    Raises:
        ArgumentError: There is no such folder or file, or it cannot be read.
    """
    path = folder / "config.json"
    if not folder.is_dir():
        raise ArgumentError(f"--hf {folder}: there is no such folder")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArgumentError(f"--hf {folder}: holds no config.json") from None
    except (OSError, ValueError) as error:
        raise ArgumentError(f"--hf {folder}: config.json cannot be read ({error})") from error
    if not isinstance(config, dict):
        raise ArgumentError(f"--hf {folder}: config.json holds no configuration, but {type(config).__name__}")
    return config


def _library(folder: Path) -> Any:
    """Return transformers.

    Raises:
        ArgumentError: It is not installed.
    """
    if find_spec(LIBRARY) is None:
        raise ArgumentError(f'--hf {folder}: needs {LIBRARY}: pip install "secateur[{LIBRARY}]"')
    return importlib.import_module(LIBRARY)


def _load(kind: Any, folder: Path, what: str, **options: Any) -> Any:
    """Return what a class of transformers' loads from a folder.

    Raises:
        ArgumentError: It loads nothing.
    """
    try:
        with quietly():
            return kind.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False, **options)
    except Exception as error:
        raise ArgumentError(
            f"--hf {folder}: {what} cannot be loaded ({type(error).__name__}: {first_line(error)})"
        ) from error


def _refuse_incomplete(folder: Path, missing: Collection[str], mismatched: Collection[tuple[Any, ...]]) -> None:
    """Refuse weights that would be random.

    Raises:
        ArgumentError: The files of the folder lack some, or hold some of another shape.
    """
    for what, names in (("no", missing), ("another shape of", [name for name, *_ in mismatched])):
        if names:
            first = ", ".join(sorted(names)[:SHOWN])
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            raise ArgumentError(f"--hf {folder}: its weights hold {what} {first}{more}")
