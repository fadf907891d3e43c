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
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor, nn

from secateur.arguments import checked_call, require_model, require_path
from secateur.artifacts.sparse import Masked, decode_all, pack, unpack
from secateur.cutting.cut import cut
from secateur.cutting.weight_masks import Masks, count_moved, freeze
from secateur.errors import ArgumentError, ArtifactError, ModelError
from secateur.planning.plan import Plan
from secateur.structure.inputs import InputSpec
from secateur.structure.process_state import one_at_a_time
from secateur.structure.units import Units

FORMAT = 1
KEY = "secateur"  # one entry: safetensors writes several in no fixed order

# The dtypes as safetensors names them, in the order in which it writes them.
_NAMES = {
    torch.uint64: "U64",
    torch.int64: "I64",
    torch.float64: "F64",
    torch.complex64: "C64",
    torch.float32: "F32",
    torch.uint32: "U32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.uint16: "U16",
    torch.int16: "I16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors to write: every parameter and persistent buffer once, tied ones under their first name.

    Raises:
        ArtifactError: A tensor is of a type that safetensors does not know.
    """
    first: dict[Tensor, str] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor):
            first.setdefault(tensor, name)
            if tensor.dtype not in _NAMES:
                raise ArtifactError(f"{name}: safetensors holds no {tensor.dtype}")
    return {name: tensor for tensor, name in first.items()}


def metadata(plan: Plan) -> dict[str, str]:
    """Return a file's metadata: format version, kept indices, input specification, how the plan was made."""
    return _metadata(plan.inputs, kept=plan.kept, **plan.options_to_json())


def _metadata(inputs: InputSpec | None, **removed: Any) -> dict[str, str]:
    content = {"format": FORMAT, "inputs": inputs and inputs.to_json(), **removed}
    return {KEY: json.dumps(content, separators=(",", ":"))}


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
    return serialize(entries, _metadata(inputs, masked=masked))


def _on_cpu(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors_of(model).items()}


def file_size(model: nn.Module, units: Units, plan: Plan) -> int:
    """Return the bytes of the file that the model will be written to when cut by a plan, without making it.

    The file consists of eight bytes of length, a JSON header padded to a multiple of eight, and the data.

    Args:
        model: The network, with the biases that the plan adds.
        units: The network's units.
        plan: Says which units are kept, what the inputs are, and how it was made: all of it is written.
    """
    shapes = units.shapes({name: len(indices) for name, indices in plan.kept_indices})
    tensors = [
        (name, tensor.dtype, shapes.get(name, tuple(tensor.shape))) for name, tensor in tensors_of(model).items()
    ]
    order = list(_NAMES)
    offset = 0
    header: dict[str, object] = {"__metadata__": metadata(plan)}
    for name, dtype, shape in sorted(tensors, key=lambda t: (order.index(t[1]), t[0])):
        end = offset + dtype.itemsize * torch.Size(shape).numel()
        header[name] = {"dtype": _NAMES[dtype], "shape": shape, "data_offsets": [offset, end]}
        offset = end
    length = len(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode())
    return 8 + -(-length // 8) * 8 + offset


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
    check_path(path)
    with whole_file(path) as temporary:
        temporary.write_bytes(content)
    return len(content)


def check_path(path: str | os.PathLike[str]) -> None:
    """Refuse a path that cannot be written, before any work is done for it.

    Raises:
        ArgumentError: It is no path, or ends in something else than .safetensors.
        ArtifactError: Its folder does not exist or cannot be written to.
    """
    path = require_path(path)
    if path.suffix != ".safetensors":
        raise ArgumentError(f"{path}: files are written as .safetensors, not as {path.suffix or 'no extension'!r}")
    try:
        folder = path.resolve().parent
        if not folder.is_dir():
            raise ArtifactError(f"{path}: cannot be written, there is no folder {folder}")
        if path.is_dir() or not os.access(folder, os.W_OK):
            raise ArtifactError(f"{path}: cannot be written, {folder} allows no new file or this is a folder")
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path}: cannot be written ({error})") from error


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
    require_model(model)
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
