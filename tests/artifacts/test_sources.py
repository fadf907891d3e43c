"""Models and data named by text."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from secateur import SecateurError
from secateur.artifacts.sources import find_data, find_function, find_model

MINE = """
from torch import nn

def later():
    import mine_too
    return mine_too.network()

class Wide(nn.Linear):
    pass

number = 3
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "mine_too.py").write_text("from torch import nn\ndef network(): return nn.Linear(1, 2)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("mine", "mine_too"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield tmp_path
    for name in ("mine", "mine_too"):
        sys.modules.pop(name, None)


def test_a_factory_may_import_from_the_current_folder_when_it_is_called():
    assert find_model("mine:later").out_features == 2


@pytest.mark.parametrize("name", ["mine", "mine:", ":later", ".mine:later", "mine.:later", "mine:a:b", "a b:c", ""])
def test_what_names_no_function_is_refused(name):
    with pytest.raises(SecateurError) as refused:
        find_function("--retrain", name)
    assert str(refused.value) == f"--retrain {name!r}: expected package.module:function"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("mine:number", "MODEL 'mine:number': int is no function"),
        ("mine:none", "MODEL 'mine:none': module 'mine' has no attribute 'none'"),
        ("none_such:f", "MODEL 'none_such:f': No module named 'none_such'"),
        ("builtins:list", "MODEL 'builtins:list': expected a torch.nn.Module, got list"),
        (
            "mine:Wide",
            "MODEL 'mine:Wide': expected a function without arguments (missing a required argument: 'in_features')",
        ),
    ],
)
def test_what_is_no_model_is_refused(name, text):
    with pytest.raises(SecateurError) as refused:
        find_model(name)
    assert str(refused.value) == text


def test_both_kinds_of_file_give_the_tensors_in_them(folder):
    x, y = torch.rand(3, 2), torch.tensor([1, 0, 1])
    np.savez(folder / "data.npz", x=x.numpy(), y=y.numpy())
    save_file({"x": x, "y": y, "z": x + 1}, folder / "data.safetensors")
    for name in ("data.npz", "data.safetensors"):
        assert all(torch.equal(found, made) for found, made in zip(find_data(name), (x, y), strict=True))


def broken(folder):
    np.savez(folder / "whole.npz", x=np.arange(999), y=np.zeros(999))
    np.savez_compressed(folder / "packed.npz", x=np.arange(999), y=np.zeros(999))
    packed = bytearray((folder / "packed.npz").read_bytes())
    packed[60:90] = bytes(30)
    (folder / "packed.npz").write_bytes(packed)
    (folder / "half.npz").write_bytes((folder / "whole.npz").read_bytes()[:300])
    for name in ("empty.npz", "empty.safetensors"):
        (folder / name).write_bytes(b"")
    (folder / "text.npz").write_text("hello, this is no archive")
    np.save(folder / "array.npy", np.zeros(3))
    (folder / "array.npy").rename(folder / "array.npz")
    np.savez(folder / "names.npz", x=np.array(["a"]), y=np.array([0]))
    np.savez(folder / "objects.npz", x=np.array([None]), y=np.array([0]))
    (folder / "folder.npz").mkdir()


NAMES = "packed.npz half.npz empty.npz empty.safetensors text.npz array.npz names.npz objects.npz folder.npz gone.npz"


@pytest.mark.parametrize("name", NAMES.split())
def test_a_file_that_cannot_be_read_is_one_error(folder, name):
    broken(folder)
    with pytest.raises(SecateurError, match=rf"^{name}: cannot be read \("):
        find_data(name)


def test_other_names_of_arrays_and_other_files_are_refused(folder):
    np.savez(folder / "none.npz")
    with pytest.raises(SecateurError, match=r"^none\.npz: expected arrays x and y, found none$"):
        find_data("none.npz")
    text = r"^DATA 'data\.csv': expected package\.module:function or a \.npz or \.safetensors file$"
    with pytest.raises(SecateurError, match=text):
        find_data("data.csv")


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_targets_may_be_missing_where_they_are_not_needed(folder, suffix):
    x = torch.arange(6.0).reshape(2, 3)
    if suffix == "npz":
        np.savez("data.npz", x=x.numpy())
    else:
        save_file({"x": x}, "data.safetensors")
    found, targets = find_data(f"data.{suffix}", labelled=False)
    assert torch.equal(found, x)
    assert targets is None
    with pytest.raises(SecateurError) as refused:
        find_data(f"data.{suffix}")
    assert str(refused.value) == (
        f"data.{suffix}: expected arrays x and y, found x; without targets y the loss can be output or distribution"
    )


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_arrays_may_be_named_like_inputs(folder, suffix):
    arrays = {"ids": torch.arange(6).reshape(2, 3), "mask": torch.ones(2, 3)}
    targets = torch.tensor([0, 1])
    for name, content in (("inputs", arrays), ("both", {**arrays, "y": targets}), ("more", {**arrays, "z": targets})):
        if suffix == "npz":
            np.savez(f"{name}.npz", **{key: array.numpy() for key, array in content.items()})
        else:
            save_file(content, f"{name}.safetensors")
    names = ("ids", "mask", "other")
    found, y = find_data(f"both.{suffix}", inputs=names)
    assert found.keys() == arrays.keys()
    assert all(torch.equal(found[name], arrays[name]) for name in arrays)
    assert torch.equal(y, targets)
    assert find_data(f"inputs.{suffix}", labelled=False, inputs=names)[1] is None
    for name, options, text in (
        (
            "inputs",
            {"inputs": names},
            "x and y, found ids, mask; without targets y the loss can be output or distribution",
        ),
        ("more", {"inputs": names}, "x and y, or ids, mask, other in place of x, found ids, mask, z"),
        ("both", {}, "x and y, found ids, mask, y"),
        ("both", {"inputs": ("ids",)}, "x and y, or ids in place of x, found ids, mask, y"),
    ):
        with pytest.raises(SecateurError) as refused:
            find_data(f"{name}.{suffix}", **options)
        assert str(refused.value) == f"{name}.{suffix}: expected arrays {text}"
