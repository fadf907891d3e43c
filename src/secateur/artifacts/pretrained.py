"""A cut network of Hugging Face's as a folder that `from_pretrained` loads, without Secateur."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from secateur.arguments import require_path
from secateur.artifacts.config_search import configurations, differing
from secateur.artifacts.hugging_face import quietly
from secateur.artifacts.resized_class import resized
from secateur.artifacts.safetensors import check_place
from secateur.cutting.captured_forward import captured_parts
from secateur.errors import ArgumentError, ArtifactError
from secateur.structure.capture import evaluating
from secateur.structure.export import first_line
from secateur.structure.graph_run import TOLERANCE, difference
from secateur.structure.inputs import Call, InputSpec, call_on_copies

BESIDE_WEIGHTS = (".json", ".txt", ".model", ".jinja")  # files of tokenizers and processors
WRITTEN_ANEW = ("config.json", "generation_config.json")
TOKENS = 4  # that are generated to compare
TOLERATED = 1e-6  # of the largest output
SHOWN = 3  # parameters named in an error


def save_pretrained(
    model: nn.Module, inputs: InputSpec | None, folder: str | os.PathLike[str], code: bool = True
) -> int:
    """Write a cut network of Hugging Face's, whole or not at all, and return how many bytes the folder has.

    The numbers in its configuration (widths, heads, ...) become those of what is left. Where no numbers say that, since
    layers differ, a file of code lies beside the weights (see `secateur.artifacts.resized_class`). Files of the
    tokenizer are copied where the original came from a folder. What is loaded is compared with the network, outputs and
    tokens that it generates, before the folder takes its name.

    Args:
        model: The network; left as it was.
        inputs: The form of its inputs.
        folder: A new or empty folder.
        code: Whether a file of code may be written.

    Raises:
        ArgumentError: The network is none of Hugging Face's, or the form of its inputs is not known.
        ArtifactError: The folder cannot be written or is not empty, or no configuration says the sizes left.
    """
    target = require_path(folder)
    if not hasattr(model, "config") or not callable(getattr(type(model), "from_pretrained", None)):
        raise ArgumentError(f"{type(model).__name__} has no configuration and no from_pretrained: use save")
    if inputs is None:
        raise ArgumentError(f"{target}: cannot be compared, the form of the network's inputs is not known")
    call = inputs.sample(model, inputs.fixed or 2)
    with _whole_folder(target) as temporary, quietly():
        written = any(_written(model, type(model)(config), call, temporary) for config in configurations(model))
        if not written and not (code and _written_with_code(model, call, temporary)):
            raise ArtifactError(f"{target}: {_reason(model)}")
        _copy_tokenizer(model, temporary)
        return sum(file.stat().st_size for file in temporary.iterdir())


def _written(model: Any, twin: Any, call: Call, folder: Path) -> bool:
    """Write the network as a twin of the same sizes; return whether it is the same when it is loaded again."""
    twin = twin.to(model.dtype)
    twin.load_state_dict(_weights(model, twin))
    if getattr(model, "generation_config", None) is not None:
        twin.generation_config = model.generation_config
    twin.save_pretrained(folder)
    return _same(model, type(twin).from_pretrained(folder, dtype=model.dtype).to(model.device), call)


def _weights(model: nn.Module, twin: nn.Module) -> dict[str, Tensor]:
    """Return what the twin saves, from the network: it may save more of its buffers."""
    every = {**model.state_dict(), **dict(model.named_buffers())}
    return {name: every[name].detach().cpu().contiguous() for name in twin.state_dict()}


def _written_with_code(model: nn.Module, call: Call, folder: Path) -> bool:
    """Write the network with a file of code; return whether it is the same when it is loaded again."""
    if captured_parts(model):
        return False
    with contextlib.suppress(ImportError):  # of what the class needs, in a process of its own
        return _written(model, resized(model, folder), call, folder)
    return False


def _same(model: Any, loaded: Any, call: Call) -> bool:
    """Return whether outputs are the same, and what is generated."""
    with torch.no_grad(), evaluating(model), evaluating(loaded):
        try:
            expected, got = (_floats(call_on_copies(network, call)) for network in (model, loaded))
        except (RuntimeError, ValueError, IndexError):
            return False  # its code takes these sizes for others
        absolute, relative = difference(expected, got)
        allowed = max([TOLERATED, *(TOLERANCE[tensor.dtype] for tensor in expected)])
        if not min(absolute, relative) <= allowed:
            return False
        tokens = _tokens(model, call) if _generates(model, call) else None
        return tokens is None or torch.equal(tokens, _tokens(loaded, call))


def _floats(outputs: Any) -> list[Tensor]:
    values = outputs.to_tuple() if hasattr(outputs, "to_tuple") else outputs
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _generates(model: Any, call: Call) -> bool:
    return bool(callable(getattr(model, "can_generate", None)) and model.can_generate() and _ids(model, call))


def _ids(model: Any, call: Call) -> dict[str, Tensor]:
    """Return the inputs that tokens are generated from: those that are not the decoder's own."""
    args, kwargs = call
    first = {model.main_input_name: args[0]} if args else {}
    names = (model.main_input_name, "attention_mask")
    return first | {name: kwargs[name] for name in names if name in kwargs}


def _tokens(model: Any, call: Call) -> Any:
    """Return what the network generates; None where its configuration does not say from what."""
    try:
        return model.generate(**_ids(model, call), max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False)
    except ValueError:
        return None


def _copy_tokenizer(model: Any, folder: Path) -> None:
    """Copy the files that lie beside the weights in the folder that the original came from."""
    name = getattr(model.config, "_name_or_path", "")
    origin = Path(name)
    if not name or not (origin / "config.json").is_file():
        return
    for file in origin.iterdir():
        kept = file.suffix in BESIDE_WEIGHTS and not file.name.endswith(".index.json")
        if kept and file.name not in WRITTEN_ANEW and file.is_file() and not (folder / file.name).exists():
            shutil.copyfile(file, folder / file.name)


def _reason(model: nn.Module) -> str:
    """Return why no configuration is the network's, and what to do."""
    captured = [name or "the whole network" for name in captured_parts(model)]
    if captured:
        return f"{', '.join(captured[:SHOWN])}: computes by its captured graph, which no configuration says"
    sizes = list(dict.fromkeys(f"{s.tensor} ({s.before} → {s.after})" for s in differing(model)))
    more = f" and {len(sizes) - SHOWN} more" if len(sizes) > SHOWN else ""
    return (
        f"no numbers in {type(model.config).__name__} say the sizes left: {', '.join(sizes[:SHOWN])}{more}; keep such "
        "sets whole with Budget(protect=...), or remove the same number from every layer with Budget(scope='uniform')"
    )


@contextlib.contextmanager
def _whole_folder(target: Path) -> Iterator[Path]:
    """Yield a temporary folder beside the target that takes its place at the end, or leaves nothing behind.

    Raises:
        ArtifactError: It cannot be written, or there is something in it.
    """
    check_place(target, folder=True)
    try:
        with tempfile.TemporaryDirectory(dir=target.resolve().parent, prefix=f".{target.name}.") as folder:
            temporary = Path(folder, "written")
            temporary.mkdir(mode=0o755)
            yield temporary
            if target.exists():
                target.rmdir()
            temporary.rename(target)
    except OSError as error:
        raise ArtifactError(f"{target}: cannot be written ({error.strerror or first_line(error)})") from error
