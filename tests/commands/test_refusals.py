"""What the command line refuses: one line on stderr, its exit code, and nothing written."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.export import Dim, export

Run = Callable[..., tuple[int, str, str]]
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(20, 6)).astype("float32"), np.arange(20) % 3
GOOD = {
    "MODEL": "model.pt2", "--data": "val.npz", "--loss": "cross_entropy", "--bytes": "1200",
    "--out": "small.safetensors",
}  # fmt: skip
SHORT = {"x": X, "y": Y[:-1]}
DATA: dict[str, dict[str, Any]] = {
    "val": {"x": X, "y": Y},
    "short": SHORT,
    "alone": {"x": X},
    "fractions": {"x": X, "y": Y + 0.5},
    "classes": {"x": X, "y": Y + 1},
    "negative": {"x": X, "y": Y - 1},
    "wide": {"x": np.ones((20, 7), "float32"), "y": Y},
    "texts": {"x": np.array(["a"] * 20), "y": Y},
    "ints": {"x": X.astype("int64"), "y": Y},
    "complex": {"x": X + 1j, "y": Y},
    "objects": {"x": np.array([X[:1], None], object), "y": Y},
    "nan": {"x": np.where(X > 1, np.nan, X).astype("float32"), "y": Y},
    "empty": {"x": X[:0], "y": Y[:0]},
}


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, data, and what is neither."""
    folder = tmp_path_factory.mktemp("files")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 20), nn.Tanh(), nn.Linear(20, 3)).eval()
    program = export(model, (torch.zeros(2, 6),), dynamic_shapes=({0: Dim("batch", min=1)},))
    torch.export.save(program, folder / "model.pt2")
    for name, arrays in DATA.items():
        np.savez(folder / f"{name}.npz", **arrays)
    (folder / "text.pt2").write_text("no model")
    (folder / "text.npz").write_text("no data")
    torch.save(model, folder / "pickle.pt2")
    torch.save(model, folder / "pickle.pt")
    (folder / "pickle.npz").write_bytes(pickle.dumps({"x": X, "y": Y}))
    (folder / "pickle.pkl").write_bytes(pickle.dumps({"x": X, "y": Y}))
    return folder


@pytest.fixture
def run(files: Path, monkeypatch: pytest.MonkeyPatch, command_line: Run) -> Run:
    monkeypatch.chdir(files)
    return command_line


def words(changed: Mapping[str, str]) -> list[str]:
    """The command with some of its options changed."""
    options = {**GOOD, **changed}
    model = options.pop("MODEL")
    return ["shrink", model, *(word for pair in options.items() for word in pair)]


PROGRAM = "cannot be read as a program of torch.export.save ("
REFUSED = [
    ({"MODEL": "gone.pt2"}, 2, f"gone.pt2: {PROGRAM}FileNotFoundError"),
    ({"MODEL": "text.pt2"}, 2, f"text.pt2: {PROGRAM}BadZipFile: File is not a zip file)"),
    ({"MODEL": "val.npz"}, 2, "MODEL 'val.npz': expected package.module:function or a .pt2 file"),
    ({"MODEL": "math:pi"}, 2, "MODEL 'math:pi': float is no function"),
    ({"MODEL": "builtins:list"}, 2, "MODEL 'builtins:list': expected a torch.nn.Module, got list"),
    ({"MODEL": "pickle.pt2"}, 2, f"pickle.pt2: {PROGRAM}"),
    (
        {"MODEL": "pickle.pt"},
        2,
        "MODEL 'pickle.pt': such a file can hold a pickle, which is never read; expected a .pt2",
    ),
    ({"--data": "gone.npz"}, 2, "gone.npz: cannot be read ([Errno 2] No such file or directory: 'gone.npz')"),
    ({"--data": "text.npz"}, 2, "text.npz: cannot be read ("),
    ({"--data": "pickle.npz"}, 2, "pickle.npz: cannot be read ("),
    (
        {"--data": "pickle.pkl"},
        2,
        "DATA 'pickle.pkl': such a file can hold a pickle, which is never read; expected a .npz",
    ),
    (
        {"--data": "objects.npz"},
        2,
        "objects.npz: cannot be read (Object arrays cannot be loaded when allow_pickle=False)",
    ),
    ({"--data": "alone.npz"}, 2, "alone.npz: expected arrays x and y, found x"),
    ({"--data": "short.npz"}, 2, "data: 20 inputs, but 19 targets"),
    ({"--data": "empty.npz"}, 2, "data: there is no sample in it"),
    ({"--data": "texts.npz"}, 2, "texts.npz: cannot be read ("),
    ({"--data": "complex.npz"}, 2, "inputs: complex64 is not supported, only floating-point numbers, integers and bo"),
    ({"--data": "ints.npz"}, 2, "ProgramModule does not run on the inputs given, of shape (20, 6): "),
    ({"--data": "nan.npz"}, 2, "data: the inputs of batch 0 hold NaN or infinite values"),
    ({"--data": "wide.npz"}, 2, "ProgramModule does not run on the inputs given, of shape (20, 7)"),
    ({"--data": "fractions.npz"}, 2, "cross_entropy: expected whole-number classes or probabilities of shape (20, 3)"),
    ({"--data": "classes.npz"}, 2, "cross_entropy: class targets must be in 0 to 2 for 3 outputs, got 1 to 3"),
    ({"--data": "negative.npz"}, 2, "cross_entropy: class targets must be in 0 to 2 for 3 outputs, got -1 to 1"),
    ({"--validation": "classes.npz"}, 2, "cross_entropy: class targets must be in 0 to 2 for 3 outputs, got 1 to 3"),
    ({"--loss": "entropy"}, 2, "unknown loss 'entropy'; one of: cross_entropy, binary_cross_entropy, squared_error"),
    (
        {"--bytes": "100"},
        1,
        "Budget(bytes=100) cannot be met: at most 19 of 20 units can be removed, which leaves 13 par",
    ),
    ({"--bytes": "-5"}, 2, "bytes: expected an int or a size such as '200 kB', '64 KiB' or '1.5 MB', got '-5'"),
    ({"--out": "no/small.safetensors"}, 2, "no/small.safetensors: cannot be written, there is no folder "),
    ({"--out": "small.pkl"}, 2, "small.pkl: files are written as .safetensors"),
    ({"--report": "no/a.html"}, 2, "no/a.html: cannot be written (No such file or directory)"),
    ({"--picture": "no/a.png"}, 2, "no/a.png: cannot be written (No such file or directory)"),
]


@pytest.mark.parametrize(("changed", "code", "text"), REFUSED, ids=[" ".join(c.values()) for c, _, _ in REFUSED])
@pytest.mark.parametrize("as_json", [True, False])
def test_what_cannot_be_used_is_one_line_and_nothing_is_written(
    run: Run, files: Path, changed: dict[str, str], code: int, text: str, as_json: bool
) -> None:
    before = {path.name: path.read_bytes() for path in files.iterdir()}
    given, out, err = run(*words(changed), *(["--json"] if as_json else []))
    assert (given, out) == (code, "")
    assert err.startswith(f"secateur: {text}")
    assert err.count("\n") == 1
    assert {path.name: path.read_bytes() for path in files.iterdir()} == before


def test_without_a_fault_it_is_written(run: Run, files: Path) -> None:
    code, out, err = run(*words({}))
    assert (code, err) == (0, "")
    assert out.endswith("\nwritten to small.safetensors\n")
    assert (files / "small.safetensors").stat().st_size <= 1200
    (files / "small.safetensors").unlink()
