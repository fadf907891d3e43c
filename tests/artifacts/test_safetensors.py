"""The written file: content, size (secateur.artifacts.header), loading, refusals."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

import secateur as sc
from cases import CASES, random_kept
from secateur.artifacts.header import file_size
from secateur.artifacts.safetensors import check_path, save, to_bytes, whole_file
from secateur.errors import ArgumentError, ArtifactError, PlanError, SecateurError
from secateur.reference import RandomNetwork


def shrunk(name: str = "two_hidden") -> Any:
    case = CASES[name]()
    budget = sc.Budget(remove_units=3)
    return sc.shrink(case.model, (case.x, case.y), "cross_entropy", budget, criterion="taylor1", progress=False)


def header(content: bytes) -> dict[str, Any]:
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length])  # type: ignore[no-any-return]


# ---------------------------------------------------------------- sizes


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 100))
def test_the_size_of_the_file_is_known_before_it_is_made(seed: int, choice: int) -> None:
    network = RandomNetwork(seed).double()
    units = sc.find_units(network, network.sample(3))
    kept = random_kept(units, choice)
    plan = sc.Plan.from_kept(kept, network.sample(3))
    assert file_size(network, units, plan) == len(to_bytes(sc.cut(network, plan), plan))


class Mixed(nn.Module):
    """A dense network with tensors of other types and shapes beside it."""

    def __init__(self, others: list[tuple[str, torch.dtype, tuple[int, ...], bool]]) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 12), nn.Linear(12, 2)
        for name, dtype, shape, persistent in others:
            self.register_buffer(name, torch.ones(shape).to(dtype), persistent)

    def forward(self, x: Tensor) -> Tensor:
        kept = sum(buffer.double().sum() for buffer in self.buffers())
        return self.b(torch.tanh(self.a(x))) + kept


OTHERS = st.lists(
    st.tuples(
        st.text("abXYZ_09é\"\\ü中", min_size=1, max_size=30).map("buffer{}".format),
        st.sampled_from(
            [
                torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16,
                torch.int8, torch.uint8, torch.bool,
            ]
        ),
        st.lists(st.integers(1, 5), max_size=3).map(tuple),
        st.booleans(),
    ),
    max_size=8,
    unique_by=lambda other: other[0],
)  # fmt: skip


@settings(max_examples=30, deadline=None)
@given(OTHERS, st.sampled_from([torch.float64, torch.float32, torch.bfloat16]), st.integers(1, 12))
def test_the_size_of_the_file_is_known_with_tensors_of_any_type(
    others: list[tuple[str, torch.dtype, tuple[int, ...], bool]], dtype: torch.dtype, left: int
) -> None:
    model = Mixed(others)
    model.a.to(dtype)
    model.b.to(dtype)
    x = torch.zeros(3, 3, dtype=dtype)
    units = sc.find_units(model, x)
    kept = {"a": tuple(range(12 - left, 12))}
    plan = sc.Plan.from_kept(kept, x)
    assert file_size(model, units, plan) == len(to_bytes(sc.cut(model, plan), plan))


@pytest.mark.parametrize(
    "dtype", [torch.uint16, torch.uint32, torch.uint64, torch.complex64, torch.float8_e4m3fn, torch.complex128]
)
def test_a_tensor_of_a_rarer_type_is_counted_or_refused_clearly(dtype: torch.dtype) -> None:
    case = CASES["one_hidden"]()
    case.model.register_buffer("rare", torch.ones(3).to(dtype))
    try:
        size = file_size(case.model, sc.find_units(case.model, case.x), sc.Plan.from_kept({"0": range(7)}, case.x))
    except SecateurError as error:
        assert "rare" in str(error)  # noqa: PT017 - either is right
    else:
        plan = sc.Plan.from_kept({"0": range(7)}, case.x)
        assert size == len(to_bytes(case.model, plan))


# ---------------------------------------------------------------- what is in it


@pytest.mark.parametrize("name", ["branches", "normalised", "tied", "flattened_units"])
def test_a_file_holds_the_tensors_and_says_of_itself_only_what_is_kept_its_inputs_and_its_format(
    name: str, tmp_path: Path
) -> None:
    case = CASES[name]()
    kept = random_kept(sc.find_units(case.model, case.x), 3)
    plan = sc.Plan.from_kept(kept, case.x)
    small = sc.cut(case.model, plan)
    path = tmp_path / "small.safetensors"
    assert save(small, plan, path) == path.stat().st_size == len(path.read_bytes())
    found = header(path.read_bytes())
    assert found.pop("__metadata__").keys() == {"secateur"}
    assert {n: tuple(t["shape"]) for n, t in found.items()} == {
        n: tuple(t.shape) for n, t in small.state_dict().items()
    }
    metadata = json.loads(header(path.read_bytes())["__metadata__"]["secateur"])
    assert metadata == {
        "format": 1,
        "inputs": {"args": [{"dtype": "float64", "shape": list(case.x.shape[1:])}], "kwargs": {}},
        "kept": {n: list(indices) for n, indices in kept.items()},
    }


def test_the_same_result_gives_the_same_bytes(tmp_path: Path) -> None:
    contents = []
    for i in range(2):
        result = shrunk("branches")
        for j in range(2):
            result.save(tmp_path / f"{i}{j}.safetensors")
            contents.append((tmp_path / f"{i}{j}.safetensors").read_bytes())
    assert len(set(contents)) == 1


FRESH = """
import sys
import numpy, torch
import secateur as sc
from secateur.reference import RandomNetwork

torch.set_num_threads(1)  # as here: products on more threads round differently
folder = sys.argv[1]
network = RandomNetwork(7, widths=(3, 6)).double()
x, y = torch.from_numpy(numpy.load(folder + "/x.npy")), torch.from_numpy(numpy.load(folder + "/y.npy"))
result = sc.shrink(network, (x, y), "squared_error", sc.Budget(remove_fraction=0.5), progress=False)
result.save(folder + "/fresh.safetensors")

torch.manual_seed(1)
other = RandomNetwork(7, widths=(3, 6)).double()
with torch.no_grad():
    for parameter in other.parameters():
        parameter.normal_()
loaded = sc.load(folder + "/here.safetensors", other)
with torch.no_grad():
    numpy.save(folder + "/out.npy", loaded(x).numpy())
"""


def test_a_fresh_process_writes_the_same_bytes_and_loads_the_same_function(tmp_path: Path) -> None:
    network = RandomNetwork(7, widths=(3, 6)).double()
    x = network.sample(16)
    y = torch.randn(network(x).shape, generator=torch.Generator().manual_seed(0)).double()
    np.save(tmp_path / "x.npy", x.numpy())
    np.save(tmp_path / "y.npy", y.numpy())
    result = sc.shrink(network, (x, y), "squared_error", sc.Budget(remove_fraction=0.5), progress=False)
    result.save(tmp_path / "here.safetensors")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", FRESH, str(tmp_path)],
        env=os.environ | {"PYTHONHASHSEED": "123", "TZ": "Asia/Tokyo"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "fresh.safetensors").read_bytes() == (tmp_path / "here.safetensors").read_bytes()
    with torch.no_grad():
        assert torch.equal(torch.from_numpy(np.load(tmp_path / "out.npy")), result.model(x))


# ---------------------------------------------------------------- reading it


@pytest.mark.parametrize("name", [name for name in CASES if name != "one_unit"])
def test_a_loaded_network_is_the_one_saved_and_the_model_given_is_left(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES[name]()
    plan = sc.Plan.from_kept(random_kept(sc.find_units(case.model, case.x), 1), case.x)
    small = sc.cut(case.model, plan)
    path = tmp_path / "small.safetensors"
    save(small, plan, path)
    other = CASES[name]().model
    with torch.no_grad():
        for tensor in (*other.parameters(), *other.buffers()):
            tensor.fill_(1)
    before = {n: t.clone() for n, t in other.state_dict().items()}

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a pickle was read")

    monkeypatch.setattr(torch, "load", refuse)
    monkeypatch.setattr(pickle, "load", refuse)
    monkeypatch.setattr(pickle, "loads", refuse)
    loaded = sc.load(path, other)
    assert loaded is not other
    assert all(torch.equal(before[n], t) for n, t in other.state_dict().items())
    assert loaded.state_dict().keys() == small.state_dict().keys()
    assert all(torch.equal(t, loaded.state_dict()[n]) for n, t in small.state_dict().items())
    assert torch.equal(loaded(case.x), small(case.x))


class Twice(nn.Module):
    """One matrix for two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 2)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.tanh(self.a(x) + self.b(x)))


def test_tied_parameters_are_written_once_and_tied_again(tmp_path: Path) -> None:
    model = Twice().double()
    x = torch.randn(3, 4).double()
    plan = sc.Plan.from_kept({"a": (0, 2, 5)}, x)
    small = sc.cut(model, plan)
    path = tmp_path / "small.safetensors"
    save(small, plan, path)
    assert set(header(path.read_bytes())) == {"__metadata__", "a.weight", "a.bias", "b.bias", "c.weight", "c.bias"}
    loaded = sc.load(path, Twice().double())
    assert loaded.a.weight is loaded.b.weight
    assert torch.equal(loaded(x), small(x))


def test_loading_keeps_mode_and_requires_grad_of_the_model_given(tmp_path: Path) -> None:
    result = shrunk()
    result.save(tmp_path / "a.safetensors")
    other = CASES["two_hidden"]().model.train()
    other[2].weight.requires_grad_(False)  # type: ignore[index, union-attr]
    loaded = sc.load(tmp_path / "a.safetensors", other)
    assert loaded.training
    assert [n for n, p in loaded.named_parameters() if not p.requires_grad] == ["2.weight"]


def test_a_model_of_another_precision_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    shrunk().save(path)
    with pytest.raises(ArtifactError) as caught:
        sc.load(path, CASES["two_hidden"]().model.float())
    assert str(caught.value) == f"{path}: 0.bias has dtype torch.float64, the model's would be torch.float32"


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, "cannot be read (No such file or directory: "),
        (b"", "cannot be read (Error while deserializing header: "),
        (b"hello, no tensors here", "cannot be read (Error while deserializing header: "),
    ],
)
def test_a_file_that_is_not_safetensors_is_refused(content: bytes | None, text: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ArtifactError) as caught:
        sc.load(path, CASES["two_hidden"]().model)
    assert str(caught.value).startswith(f"{path}: {text}")


def test_a_file_cut_short_and_a_folder_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    shrunk().save(path)
    path.write_bytes(path.read_bytes()[:-8])
    for bad in (path, tmp_path):
        with pytest.raises(ArtifactError, match="cannot be read"):
            sc.load(bad, CASES["two_hidden"]().model)


@pytest.mark.parametrize(
    ("metadata", "text"),
    [
        (None, "was not written by Secateur, its metadata holds no plan"),
        ({"format": "pt"}, "was not written by Secateur, its metadata holds no plan"),
        ({"secateur": '{"format": 2}'}, "format 2, this version reads 1"),
        ({"secateur": "{}"}, ""),
        ({"secateur": "hello"}, ""),
        ({"secateur": "[]"}, ""),
        ({"secateur": '{"format": 1, "inputs": null, "kept": []}'}, ""),
        ({"secateur": '{"format": 1, "inputs": {"args": []}, "kept": {}}'}, ""),
    ],
)
def test_a_file_with_another_plan_or_none_is_refused(
    metadata: dict[str, str] | None, text: str, tmp_path: Path
) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"0.weight": torch.zeros(2)}, path, metadata)
    with pytest.raises(ArtifactError) as caught:
        sc.load(path, CASES["two_hidden"]().model)
    assert str(caught.value).startswith(f"{path}: {text}")


@pytest.mark.parametrize(
    ("model", "error", "text"),
    [
        (CASES["one_hidden"]().model, PlanError, "the plan keeps units of '2'; the model's unit sets are: 0"),
        (
            nn.Sequential(nn.Linear(5, 6), nn.Sigmoid(), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 2)).double(),
            ArtifactError,
            "x.safetensors: 4.bias has shape (3,), the model's would be (2,)",
        ),
        (
            nn.Sequential(nn.Linear(5, 6), nn.Sigmoid(), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3, False)).double(),
            ArtifactError,
            "x.safetensors: 4.bias has shape (3,), the model's would be none",
        ),
        (
            nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)).double(),
            ArtifactError,
            "x.safetensors: 1.bias has shape none, the model's would be (",
        ),
    ],
    ids=["other sets", "other outputs", "no bias", "another layer"],
)
def test_a_model_of_another_architecture_is_refused(
    model: nn.Module, error: type[SecateurError], text: str, tmp_path: Path
) -> None:
    path = tmp_path / "x.safetensors"
    shrunk().save(path)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    with pytest.raises(error) as caught:
        sc.load(path, model)
    assert str(caught.value).removeprefix(f"{tmp_path}/").startswith(text)
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())


# ---------------------------------------------------------------- writing it


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors.bin", "a.SAFETENSORS"])
def test_another_extension_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError) as caught:
        shrunk().save(tmp_path / name)
    possible = ".safetensors, .pt2, .onnx, .int8.onnx, .pte or .int8.pte"
    text = f"{tmp_path / name}: files are written as {possible}, not as {Path(name).suffix!r}"
    assert str(caught.value) == text
    assert list(tmp_path.iterdir()) == []


def test_a_path_without_extension_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"files are written as .*\.int8\.pte, not as 'no extension'$"):
        shrunk().save(tmp_path / "small")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("under", ["missing", "file"])
def test_a_path_in_no_folder_is_refused(under: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("here")
    path = tmp_path / under / "a.safetensors"
    with pytest.raises(ArtifactError) as caught:
        shrunk().save(path)
    assert str(caught.value) == f"{path}: cannot be written, there is no folder {tmp_path / under}"
    assert os.listdir(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "here"


def test_a_path_that_is_a_folder_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.mkdir()
    with pytest.raises(ArtifactError) as caught:
        shrunk().save(path)
    assert str(caught.value) == f"{path}: cannot be written, {tmp_path} allows no new file or this is a folder"
    assert os.listdir(tmp_path) == ["a.safetensors"]
    assert os.listdir(path) == []


@pytest.mark.parametrize("name", ["a" * 400 + ".safetensors", "a\0.safetensors"], ids=["too long", "null byte"])
def test_a_name_that_no_file_can_have_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="cannot be written"):
        shrunk().save(tmp_path / name)
    assert os.listdir(tmp_path) == []


def test_a_path_is_checked_without_writing(tmp_path: Path) -> None:
    check_path(tmp_path / "a.safetensors")
    check_path(str(tmp_path / "a.safetensors"))
    assert os.listdir(tmp_path) == []


FAILURES = {
    "disk full": (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), ArtifactError),
    "interrupt": (KeyboardInterrupt(), KeyboardInterrupt),
    "anything else": (RuntimeError("boom"), RuntimeError),
}


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("old", [None, b"what was there"])
def test_a_write_that_fails_half_way_leaves_nothing_behind(
    failure: str, old: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = shrunk()
    path = tmp_path / "a.safetensors"
    if old is not None:
        path.write_bytes(old)
    raised, seen = FAILURES[failure]
    halves = []

    def write_half(self: Path, data: bytes) -> int:
        with open(self, "wb") as file:
            file.write(data[: len(data) // 2])
        halves.append(self.stat().st_size)
        raise raised

    monkeypatch.setattr(Path, "write_bytes", write_half)
    with pytest.raises(seen) as caught:
        result.save(path)
    monkeypatch.undo()
    assert halves == [result.after.bytes // 2]
    if seen is ArtifactError:
        assert str(caught.value) == f"{path}: cannot be written (No space left on device)"
    assert os.listdir(tmp_path) == ([] if old is None else ["a.safetensors"])
    assert old is None or path.read_bytes() == old


def test_a_file_takes_the_place_of_an_older_one_and_its_permissions_are_the_usual(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"old")
    result = shrunk()
    assert result.save(str(path)) == path.stat().st_size == result.after.bytes
    assert os.listdir(tmp_path) == ["a.safetensors"]
    (tmp_path / "other").write_bytes(b"")
    assert path.stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_relative_path_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = shrunk()
    result.save("a.safetensors")
    with whole_file("b.safetensors") as temporary:
        temporary.write_bytes(b"x")
    assert sorted(os.listdir(tmp_path)) == ["a.safetensors", "b.safetensors"]
    assert (
        hashlib.sha256(Path("a.safetensors").read_bytes()).digest()
        == hashlib.sha256(to_bytes(result.model, result.plan)).digest()
    )
