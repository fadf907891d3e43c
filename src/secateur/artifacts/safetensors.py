"""The written file: safetensors with the plan in the metadata, no pickle.

There are two kinds: a network that was cut, with the kept units in the metadata; and one of the original sizes with
single weights removed, which is written without them (see `sparse`).
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor, nn

from secateur.arguments import checked_call, require_model, require_path
from secateur.artifacts.header import FORMAT, KEY, metadata, metadata_of, tensors_of
from secateur.artifacts.sparse import Masked, decode_all, pack, unpack
from secateur.cutting.cut import cut
from secateur.cutting.weight_masks import Masks, count_moved, freeze
from secateur.errors import ArgumentError, ArtifactError, ModelError, PathError
from secateur.planning.details.file_formats import Format, format_of, require_libraries
from secateur.planning.plan import Plan
from secateur.process_state import one_at_a_time
from secateur.structure.inputs import InputSpec

SUFFIX = ".safetensors"


def to_bytes(model: nn.Module, plan: Plan) -> bytes:
    """Return the file's content; the same plan and weights give the same bytes."""
    return serialize(_on_cpu(model), metadata(plan))


def weights_to_bytes(model: nn.Module, masks: Masks, inputs: InputSpec | None) -> bytes:
    """Return the content of a file without the removed weights; the same weights and masks give the same bytes.

    Args:
        model: A network of the original sizes, its removed weights zero, as `freeze` leaves them.
        masks: Parameter name → which of its weights are kept [the parameter's shape].
        inputs: The inputs that the model takes; None where unknown.

    Raises:
        ArgumentError: A mask is no tensor of bools.
        ArtifactError: Removed weights are not zero, or a parameter is not part of the model's state_dict.
        PlanError: The masks do not fit the model.

    >>> import torch
    >>> layer, masks = nn.Linear(100, 100), {"weight": torch.arange(10_000).view(100, 100) % 10 == 0}
    >>> freeze(layer, masks)
    >>> len(weights_to_bytes(layer, masks, None))  # 4 bytes and 1 for each of 1,000 weights, 100 biases, the header
    5712
    """
    moved = count_moved(model, masks)
    if moved:
        raise ArtifactError(f"{moved} of the weights that were removed are not zero; set them to zero before writing")
    tensors = _on_cpu(model)
    if not masks.keys() <= tensors.keys():
        raise ArtifactError(f"not in the model's state_dict: {', '.join(sorted(masks.keys() - tensors.keys()))}")
    entries, masked = pack(tensors, {name: mask.cpu() for name, mask in masks.items()})
    return serialize(entries, metadata_of(inputs, masked=masked))


def _on_cpu(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors_of(model).items()}


def save(model: nn.Module, plan: Plan, path: str | os.PathLike[str]) -> int:
    """Write the file, whole or not at all, and return how many bytes it has.

    Raises:
        ArgumentError: The path ends in something else than .safetensors.
        ArtifactError: It cannot be written.
    """
    return save_bytes(to_bytes(model, plan), path)


def save_bytes(content: bytes, path: str | os.PathLike[str]) -> int:
    """Write a file's content, whole or not at all, and return how many bytes it has.

    Raises:
        ArgumentError: The path ends in something else than .safetensors.
        ArtifactError: It cannot be written.
    """
    form = check_path(path)
    if form.suffix != SUFFIX:
        raise ArgumentError(f"{path}: what is written here ends in {SUFFIX}, not in {form.suffix}")
    with whole_file(path) as temporary:
        temporary.write_bytes(content)
    return len(content)


def check_path(path: str | os.PathLike[str]) -> Format:
    """Return the kind of file that a path stands for, or refuse one that cannot be written, before any work is done.

    Raises:
        ArgumentError: It is no path, its ending stands for no kind of file, or what writes that is not installed.
        PathError: Its folder does not exist or cannot be written to.
    """
    path = require_path(path)
    form = require_libraries(format_of(path), path)
    check_place(path)
    return form


def check_place(path: Path, folder: bool = False) -> None:
    """Refuse a path that nothing can be written to.

    Args:
        path: The path of a file.
        folder: Whether it is that of a folder instead, which may be there if it is empty.

    Raises:
        PathError: Its folder does not exist or cannot be written to, or something is there that is not replaced.
    """
    try:
        parent = path.resolve().parent
        there, writable = parent.is_dir(), (folder or not path.is_dir()) and os.access(parent, os.W_OK)
        taken = folder and path.exists() and (not path.is_dir() or any(path.iterdir()))
    except (OSError, ValueError) as error:
        raise PathError(f"{path}: cannot be written ({error})") from error
    if not there:
        raise PathError(f"{path}: cannot be written, there is no folder {parent}")
    if taken:
        raise PathError(f"{path}: is no empty folder")
    if not writable:
        raise PathError(f"{path}: cannot be written, {parent} allows no new file or this is a folder")


def make_folder(path: str | os.PathLike[str]) -> Path:
    """Return the folder; make it if there is none.

    Raises:
        ArtifactError: It cannot be made.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be made a folder ({error.strerror})") from error
    return folder


@contextlib.contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary file beside `path` that takes its place at the end, or leaves nothing behind.

    Raises:
        ArtifactError: It cannot be written.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        yield temporary
        temporary.replace(target)
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@checked_call
@one_at_a_time
def load(path: str | os.PathLike[str], model: nn.Module) -> nn.Module:
    """Rebuild a network from its file: cut `model` by the plan in the metadata, then fill in the weights.

    Where single weights were removed, a copy of `model` is filled instead, with zeros in their place, and these are
    frozen: training does not move them. No pickle is read and no code of the file's is run.

    Args:
        path: A file that `Result.save` wrote.
        model: A network of the original architecture and sizes; its weights do not matter, it is not touched.

    Raises:
        ArgumentError: The path is no path, or the model no module.
        ArtifactError: The file cannot be read, was not written by Secateur, or does not fit the model.
        ModelError: The model cannot be captured or copied.
        PlanError: The model lacks unit sets that the plan names.
    """
    path = require_path(path)
    model = require_model(model)
    try:
        content, tensors = _read(path)
        plan = _read_plan(content, tensors)
        if not isinstance(plan, Plan):
            return _with_zeros(plan, model)
        small = cut(model, plan)
        _check_fit(tensors, small)
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}") from error
    small.load_state_dict(tensors, strict=False)  # tied parameters are written once
    return small


def _read(path: str | os.PathLike[str]) -> tuple[str, dict[str, Tensor]]:
    """Return the metadata that Secateur wrote, and the tensors.

    Raises:
        ArtifactError: It cannot be read, or was not written by Secateur.
    """
    try:
        with safe_open(path, framework="pt") as file:
            content = (file.metadata() or {}).get(KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"cannot be read ({error})") from error
    if content is None:
        raise ArtifactError("was not written by Secateur, its metadata holds no plan")
    return content, tensors


def _read_plan(content: str, tensors: dict[str, Tensor]) -> Plan | dict[str, Tensor | Masked]:
    """Return the plan that a network was cut by; of one without single weights its tensors, incomplete ones `Masked`.

    Raises:
        ArtifactError: The metadata cannot be understood.
    """
    try:
        data = json.loads(content)
        if data["format"] != FORMAT:
            raise ArtifactError(f"format {data['format']!r}, this version reads {FORMAT}")
        if "masked" in data:
            return unpack(tensors, data["masked"])
        kept = tuple((name, tuple(indices)) for name, indices in data["kept"].items())
        inputs = data["inputs"] and InputSpec.from_json(data["inputs"])
        return Plan(kept, inputs=inputs, **Plan.options_from_json(data))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ArtifactError(f"its plan cannot be read ({type(error).__name__}: {error})") from error


def _check_fit(stored: Mapping[str, Tensor | Masked], network: nn.Module) -> None:
    """Refuse tensors that differ from the network's own in more than their values.

    Raises:
        ArtifactError: Names, shapes or dtypes differ.
    """
    wanted = tensors_of(network)
    for what in ("shape", "dtype"):
        for name in sorted(wanted.keys() | stored.keys()):
            got, expected = (getattr(tensors.get(name), what, "none") for tensors in (stored, wanted))
            if got != expected:
                got, expected = (tuple(x) if what == "shape" and x != "none" else x for x in (got, expected))
                raise ArtifactError(f"{name} has {what} {got}, the model's would be {expected}")


def _with_zeros(stored: dict[str, Tensor | Masked], model: nn.Module) -> nn.Module:
    """Return a copy of the model with the stored weights; removed ones are zero and frozen.

    Raises:
        ArtifactError: They do not fit the model.
        ModelError: The model cannot be copied.
    """
    _check_fit(stored, model)
    tensors, masks = decode_all(stored)
    unknown = sorted(masks.keys() - dict(model.named_parameters()).keys())
    if unknown:
        raise ArtifactError(f"{', '.join(unknown)}: weights are removed from what is no parameter of the model")
    try:
        network = copy.deepcopy(model)
    except Exception as error:
        raise ModelError(f"{type(model).__name__} cannot be copied ({type(error).__name__}: {error})") from error
    network.load_state_dict(tensors, strict=False)
    freeze(network, masks)
    return network
