"""The kinds of files that are written, by their endings, and the libraries that each needs."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from secateur.errors import ArgumentError

INT8 = ".int8"


@dataclass(frozen=True)
class Format:
    """A kind of file.

    Attributes:
        suffix: The ending of its name.
        libraries: The modules that write and run it.
        extra: The extra of Secateur's that installs them.
        most_samples: The largest batch that it takes; None for any.
        quantised: Whether weights and values are whole numbers of 8 bits, whose scales are found on data.
    """

    suffix: str
    libraries: tuple[str, ...] = ()
    extra: str = ""
    most_samples: int | None = None
    quantised: bool = False


_ONNX = "onnx", "onnxscript", "onnxruntime"
_EXECUTORCH = "executorch", "torchao"
# ExecuTorch plans the memory of the largest batch beforehand; kernels chosen from 16 samples on would fix a larger one
MOST = 8

FORMATS = {
    form.suffix: form
    for form in (
        Format(".safetensors"),
        Format(".pt2"),
        Format(".onnx", _ONNX, "onnx"),
        Format(f"{INT8}.onnx", _ONNX, "onnx", quantised=True),
        Format(".pte", _EXECUTORCH, "executorch", MOST),
        Format(f"{INT8}.pte", _EXECUTORCH, "executorch", MOST, quantised=True),
    )
}


def format_of(path: Path) -> Format:
    """Return the kind of file that a path's ending stands for.

    Raises:
        ArgumentError: There is no such kind.

    >>> format_of(Path("v1.2.int8.onnx")).suffix
    '.int8.onnx'
    """
    suffix = path.suffix
    if Path(path.stem).suffix == INT8:
        suffix = INT8 + suffix
    if suffix not in FORMATS:
        *most, last = FORMATS
        names = f"{', '.join(most)} or {last}"
        raise ArgumentError(f"{path}: files are written as {names}, not as {suffix or 'no extension'!r}")
    return FORMATS[suffix]


def artifact_format(name: object) -> Format:
    """Return the kind of file that a name such as "int8.pte" stands for.

    Raises:
        ArgumentError: There is no such kind.

    >>> artifact_format("int8.pte").suffix
    '.int8.pte'
    """
    suffix = f".{name.removeprefix('.')}" if isinstance(name, str) else None
    if suffix not in FORMATS:
        names = ", ".join(form.removeprefix(".") for form in FORMATS)
        raise ArgumentError(f"Budget: artifact must be one of {names}; got {name!r}")
    return FORMATS[suffix]


def require_libraries(form: Format, name: object) -> Format:
    """Return a kind of file if what writes it is installed.

    Args:
        form: The kind of file.
        name: What an error calls the file.

    Raises:
        ArgumentError: A library is missing.
    """
    missing = [library for library in form.libraries if find_spec(library) is None]
    if missing:
        *most, last = missing
        names = f"{', '.join(most)} and {last}" if most else last
        raise ArgumentError(f'{name}: needs {names}: pip install "secateur[{form.extra}]"')
    return form
