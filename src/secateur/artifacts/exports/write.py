"""The way from a module to a file of another runtime: exported, run in a fresh process, compared, then put in place."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from secateur.artifacts.exports.onnx import to_int8_onnx, to_onnx
from secateur.artifacts.exports.program import export_program, exportable, outputs_of, single_program
from secateur.artifacts.exports.pt2 import to_pt2
from secateur.artifacts.exports.pte import planned_memory, to_int8_pte, to_pte
from secateur.artifacts.exports.runtimes import run_file
from secateur.artifacts.safetensors import check_path, whole_file
from secateur.errors import ArgumentError, ArtifactError, SecateurError
from secateur.objective.data import batches
from secateur.objective.losses import LossFunction, find_loss
from secateur.objective.quality.metric import Run
from secateur.objective.quality.quality import quality_of
from secateur.planning.details.file_formats import Format
from secateur.process_state import one_at_a_time
from secateur.structure.export import first_line
from secateur.structure.exporting.tracing import quiet
from secateur.structure.inputs import Call, InputSpec, map_tensors, sample_weight
from secateur.structure.lengths import one_shorter

CHUNK = 64  # samples that are run at a time, at most
CALIBRATION = 512  # samples on which the ranges of values are found, at most
TOLERANCE = 1e-5  # relative to the largest output; half precision rounds more


@dataclass(frozen=True)
class Written:
    """A written file.

    Attributes:
        path: Where it is.
        bytes: Its size.
        difference: The largest difference of its outputs from the module's, relative to the largest output.
        planned_memory: The bytes of activations that ExecuTorch plans for one sample; None for other files.
        loss: The loss that its own runtime has on the data; None without targets or loss.
        accuracy: The accuracy on them; None also where there are no classes.
        module_loss: The module's own loss on the same samples.
        module_accuracy: The module's own accuracy on them.
    """

    path: str
    bytes: int
    difference: float
    planned_memory: int | None = None
    loss: float | None = None
    accuracy: float | None = None
    module_loss: float | None = None
    module_accuracy: float | None = None


class _Piece(NamedTuple):
    """Some samples of the data."""

    call: Call
    targets: Any
    size: int


@one_at_a_time
def write(
    model: nn.Module,
    spec: InputSpec | None,
    path: str | os.PathLike[str],
    data: Any = None,
    loss: Any = None,
    validation: Any = None,
    most: int | None = None,
) -> Written:
    """Write a module as a file that another runtime loads, whole or not at all.

    The file is run by its own runtime, in a fresh process, and compared with the module before it is put in place.

    Args:
        model: The module; left as it was.
        spec: The form of its inputs.
        path: The file; its ending says which kind.
        data: Inputs and targets, to compare and to measure on, and to find the ranges of values where the file is in
            whole numbers; None for random inputs.
        loss: The loss to measure, as for `score`; None for none.
        validation: The data to compare and to measure on; None for `data`.
        most: How many bytes the file may have; None for any number.

    Raises:
        ArgumentError: The ending is unknown, a library is missing, or data are.
        ArtifactError: The module cannot be exported so, or the file is too large or does not compute what it does.
        DataError: The data cannot be used.
    """
    form = check_path(path)
    if spec is None:
        raise ArgumentError(f"{path}: the form of the model's inputs is not known")
    if form.quantised and data is None:
        raise ArgumentError(f"{path}: needs data, on which the ranges of values are found; None were given")
    name = str(path)
    with exportable(model) as module:
        step = form.most_samples or CHUNK
        pieces, judged = (
            [] if samples is None else list(_pieces(module, samples, step)) for samples in (data, validation)
        )
        judged = judged or pieces
        _check_dtype(name, module, form)
        with _exporting(module, name), quiet():
            planned = planned_memory(single_program(module, spec)) if form.most_samples else None
        trial = _Trial(module, form, path, _calibration(pieces), judged, most)
        if spec.free:
            with contextlib.suppress(ArtifactError):  # of some operations a runtime takes the samples' number alone
                return trial.written(spec, planned, loss)
        return trial.written(spec.without_free(), planned, loss)


class _Trial(NamedTuple):
    """A file that is written and compared with the module.

    Attributes:
        module: The module, `exportable`.
        form: The kind of file.
        path: Where it shall be.
        calibration: The inputs on which ranges of values are found.
        judged: The samples to compare and to measure on, beside random ones.
        most: How many bytes the file may have; None for any number.
    """

    module: nn.Module
    form: Format
    path: str | os.PathLike[str]
    calibration: list[Call]
    judged: list[_Piece]
    most: int | None

    def written(self, spec: InputSpec, planned: int | None, loss: Any) -> Written:
        """Write the file for inputs of a form: other sizes than the example's are tried where that leaves them free.

        Raises:
            ArtifactError: As for `write`.
        """
        module, name = self.module, str(self.path)
        with _exporting(module, name), quiet():
            program = export_program(module, spec, self.form.most_samples)
            content = _lowered(program, spec, self.form, self.calibration)
        if self.most is not None and len(content) > self.most:
            raise ArtifactError(f"{name}: has {len(content):,} bytes, more than the {self.most:,} allowed")
        with whole_file(self.path) as temporary:
            temporary.write_bytes(content)
            calls = _trials(module, spec, self.judged) + [piece.call for piece in self.judged]
            wanted, results = outputs_of(module, calls), run_file(temporary, Path(self.path).suffix, calls, name)
            difference = _compare(name, self.form, wanted, results, _tolerance(module))
            quality = _quality(loss, self.judged, wanted, results)
        return Written(name, len(content), difference, planned, *quality)


def content_size(model: nn.Module, spec: InputSpec, form: Format, data: Any) -> int:
    """Return how many bytes a file of a kind would have.

    Args:
        model: The module; left as it was.
        spec: The form of its inputs.
        form: The kind of file.
        data: Inputs and targets, on which a file in whole numbers finds the ranges of values, which change its size
            by some bytes; None for random inputs.

    Raises:
        ArtifactError: The module cannot be exported so.
    """
    with exportable(model) as module, _exporting(module, form.suffix), quiet():
        pieces = list(_pieces(module, data, form.most_samples or CHUNK)) if form.quantised and data is not None else []
        program = export_program(module, spec, form.most_samples)
        return len(_lowered(program, spec, form, _calibration(pieces) or [spec.sample(module)]))


@contextlib.contextmanager
def _exporting(model: nn.Module, name: str) -> Iterator[None]:
    """Let whatever the exporters raise be one error.

    Raises:
        ArtifactError: One of them raised something.
        SecateurError: What Secateur itself refuses.
    """
    try:
        yield
    except SecateurError:
        raise
    except Exception as error:
        what = f"{type(model).__name__} cannot be exported ({type(error).__name__}: {first_line(error)})"
        raise ArtifactError(f"{name}: {what}") from error


def _check_dtype(name: str, model: nn.Module, form: Format) -> None:
    """Refuse weights that the quantisers leave as they are.

    Raises:
        ArgumentError: The file shall be in whole numbers, and the weights are of such a type.
    """
    dtype = sample_weight(model).dtype
    if form.quantised and dtype not in (torch.float32, torch.float16):
        raise ArgumentError(f"{name}: only float32 and float16 are turned into whole numbers, the model is of {dtype}")


def _lowered(program: ExportedProgram, spec: InputSpec, form: Format, calibration: list[Call]) -> bytes:
    """Return the content of a file of this kind."""
    if form.suffix == ".pt2":
        return to_pt2(program)
    if form.extra == "onnx":
        return to_int8_onnx(program, calibration, spec) if form.quantised else to_onnx(program, spec)
    if form.quantised:
        return to_int8_pte(program, calibration, spec, form.most_samples)
    return to_pte(program)


def _pieces(model: nn.Module, data: Any, most: int) -> Iterator[_Piece]:
    """Yield the data in pieces of so many samples, at most."""
    for batch in batches(model, data):
        tied = batch.spec is None or bool(batch.spec.fixed)
        step = batch.size if tied else most
        for start in range(0, batch.size, step):
            rows = slice(start, start + step)
            targets = batch.targets[rows] if isinstance(batch.targets, Tensor) else None
            call = batch.call if tied else batch.take(rows)
            yield _Piece(call, targets, min(step, batch.size - start))


def _calibration(pieces: list[_Piece]) -> list[Call]:
    """Return the inputs of the first pieces, in contiguous memory."""
    calls, samples = [], 0
    for piece in pieces:
        if samples < CALIBRATION:
            calls.append(map_tensors(piece.call, Tensor.contiguous))
            samples += piece.size
    return calls


def _trials(model: nn.Module, spec: InputSpec, pieces: list[_Piece]) -> list[Call]:
    """Return inputs of one, two and five samples, of the data or random ones; also shorter ones where that is free."""
    if spec.fixed:
        calls = [spec.sample(model)]
    elif pieces and pieces[0].size >= 5:
        calls = [spec.take(pieces[0].call, slice(n)) for n in (1, 2, 5)]
    else:
        calls = [spec.sample(model, n) for n in (1, 2, 5)]
    return [*calls, one_shorter(spec.sample(model), spec)] if spec.free else calls


def _tolerance(model: nn.Module) -> float:
    return max(TOLERANCE, 8 * torch.finfo(sample_weight(model).dtype).eps)


def _compare(name: str, form: Format, wanted: list[Any], results: list[list[Tensor]], tolerance: float) -> float:
    """Return the largest difference of a file's outputs from the module's, relative to the largest output.

    Raises:
        ArtifactError: They are of other shapes, not finite, or too far apart.
    """
    worst = 0.0
    for outputs, result in zip(wanted, results, strict=True):
        leaves = [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]
        shapes, own = ([tuple(tensor.shape) for tensor in tensors] for tensors in (leaves, result))
        if shapes != own:
            raise ArtifactError(f"{name}: its own runtime returns outputs of shapes {own}, the module of {shapes}")
        for leaf, other in zip(leaves, result, strict=True):
            worst = max(worst, _difference(leaf, other))
    if not worst <= (math.inf if form.quantised else tolerance):
        raise ArtifactError(
            f"{name}: outputs of its own runtime differ from the module's by {worst:.1e} of the largest, "
            f"more than {tolerance:.0e}; nothing was written"
        )
    return worst


def _difference(wanted: Tensor, result: Tensor) -> float:
    """Return the largest difference, relative to the largest value; NaN where one is not finite and the other is."""
    wanted, result = wanted.double(), result.double()
    if not wanted.numel():
        return 0.0
    same = (wanted == result) | (wanted.isnan() & result.isnan())
    gaps = torch.where(same, 0.0, (wanted - result).abs())
    largest = wanted[wanted.isfinite()].abs().max() if wanted.isfinite().any() else torch.ones(())
    return (gaps.max() / largest.clamp(min=torch.finfo(torch.float64).tiny)).item()


def _quality(
    loss: Any, pieces: list[_Piece], wanted: list[Any], results: list[list[Tensor]]
) -> tuple[float | None, float | None, float | None, float | None]:
    """Return loss and accuracy on the data of the file and of the module; their outputs are the last of all."""
    if loss is None or not pieces or any(piece.targets is None for piece in pieces):
        return None, None, None, None
    function, own = find_loss(loss), wanted[-len(pieces) :]
    read = [_in_form(outputs, result) for outputs, result in zip(own, results[-len(pieces) :], strict=True)]
    return *_measured(function, pieces, read), *_measured(function, pieces, own)


def _in_form(outputs: Any, result: list[Tensor]) -> Any:
    """Return a file's tensors in the form of the module's outputs."""
    leaves, form = tree_flatten(outputs)
    tensors = iter(result)
    return tree_unflatten([next(tensors) if isinstance(leaf, Tensor) else leaf for leaf in leaves], form)


def _measured(loss: LossFunction, pieces: list[_Piece], outputs: list[Any]) -> tuple[float | None, float | None]:
    """Return loss and accuracy."""
    n = sum(piece.size for piece in pieces)
    runs = [
        Run(piece.size, piece.size / n, values, piece.targets) for piece, values in zip(pieces, outputs, strict=True)
    ]
    quality = quality_of(loss, None, runs)
    return quality.loss, quality.accuracy
