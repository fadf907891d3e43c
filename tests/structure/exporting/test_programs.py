"""Exported programs as models: what they compute, what can be cut, what is never read."""

from __future__ import annotations

import json
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, export

import secateur as sc
from secateur.structure.exporting.programs import load_program

X = torch.randn(24, 1, 8, 8, generator=torch.Generator().manual_seed(0))
ROWS = X.flatten(1)[:, :12]
Y = torch.arange(24) % 3


class Tied(nn.Module):
    """Two layers with one weight, one of them called by keyword, and a result in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(12, 12), nn.Linear(12, 3)
        self.second = nn.Linear(12, 12)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor, scale: Tensor) -> dict[str, Tensor]:
        return {"logits": self.head(torch.relu(self.second(torch.relu(self.first(x))) * scale))}


class Attention(nn.Module):
    """A transformer's layer over 4 positions of 6 numbers, in whose code there are sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.layer(self.embed(x.unflatten(1, (4, 3)))).mean(1))
        return logits


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(72, 12), nn.ReLU(),
        nn.Linear(12, 3),
    )  # fmt: skip


def saved(path: Path, model: nn.Module, *args: Any, **kwargs: Any) -> Path:
    """Export a network in eval mode with a dynamic batch."""
    batch = {0: Dim("batch", min=1)}
    shapes = (*(batch for _ in args),) if not kwargs else {"x": batch, **dict.fromkeys(kwargs)}
    torch.export.save(export(model.eval(), args, kwargs, dynamic_shapes=shapes), path)
    return path


@pytest.mark.parametrize(
    ("make", "x", "fraction"), [(convolutional, X, 0.5), (Attention, ROWS, 0.4)], ids=["conv", "attention"]
)
def test_a_program_is_cut_like_the_module_it_was_exported_from(
    tmp_path: Path, make: Callable[[], nn.Module], x: Tensor, fraction: float
) -> None:
    torch.manual_seed(0)
    model = make()
    program = load_program(saved(tmp_path / "m.pt2", model, x[:2]))
    assert torch.equal(program(x), model(x))
    assert program.state_dict().keys() == model.state_dict().keys()
    sets = {unit_set.name: unit_set.size for unit_set in sc.find_units(program, x)}
    assert sets == {unit_set.name: unit_set.size for unit_set in sc.find_units(model, x)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = sc.shrink(program, (x, Y), "cross_entropy", sc.Budget(remove_fraction=fraction), progress=False)
    assert result.max_difference < 1e-5
    assert result.after.params < result.before.params == sum(p.numel() for p in model.parameters())
    result.save(tmp_path / "small.safetensors")
    small = sc.load(tmp_path / "small.safetensors", program)
    assert torch.equal(small(x), result.model(x))
    again = sc.cut(model, result.plan).eval()
    uncompensated = sc.cut(program, result.plan)
    assert torch.allclose(again(x), uncompensated(x), atol=1e-5)


def test_tied_weights_are_one_and_keywords_and_dicts_are_as_they_were(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, scale = Tied(), torch.tensor(2.0)
    program = load_program(saved(tmp_path / "m.pt2", model, ROWS[:2], scale=scale))
    assert program.first.weight is program.second.weight
    assert torch.equal(program(ROWS, scale=scale)["logits"], model(ROWS, scale=scale)["logits"])
    assert len(list(program.parameters())) == len(list(model.parameters()))
    with pytest.raises(TypeError, match="the program takes"):
        program(ROWS, scale)


def test_changing_a_weight_changes_what_the_program_gives_and_gradients_reach_it(tmp_path: Path) -> None:
    program = load_program(saved(tmp_path / "m.pt2", nn.Linear(12, 3), ROWS[:2]))
    program(ROWS).sum().backward()
    assert torch.allclose(program.weight.grad, ROWS.sum(0).expand(3, 12), atol=1e-5)
    with torch.no_grad():
        program.weight.zero_()
    assert torch.equal(program(ROWS), program.bias.expand(24, 3))


def test_the_command_line_cuts_a_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command_line: Any) -> None:
    torch.manual_seed(0)
    model = convolutional()
    saved(tmp_path / "model.pt2", model, X[:2])
    np.savez(tmp_path / "val.npz", x=X.numpy(), y=Y.numpy())
    monkeypatch.chdir(tmp_path)
    words = ("shrink", "model.pt2", "--data", "val.npz", "--loss", "cross_entropy", "--bytes", "3kB")
    code, out, _ = command_line(*words, "--out", "small.safetensors", "--json")
    result = json.loads(out)
    assert (code, result["before"]["params"]) == (0, sum(p.numel() for p in model.parameters()))
    assert result["artifact"]["bytes"] == (tmp_path / "small.safetensors").stat().st_size <= 3000
    small = sc.load(tmp_path / "small.safetensors", model.eval())
    loss = nn.functional.cross_entropy(small(X), Y).item()
    assert result["after"]["loss"] == pytest.approx(loss, rel=1e-4)
    code, out, _ = command_line("inspect", "model.pt2", "--data", "val.npz")
    assert (code, out.splitlines()[0]) == (0, "2 unit sets, 20 units")


class Bomb:
    """What makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_pickle_in_a_program_is_not_read(tmp_path: Path) -> None:
    bomb, path = tmp_path / "exploded", saved(tmp_path / "m.pt2", nn.Linear(12, 3), ROWS[:2])
    torch.save(Bomb(bomb), tmp_path / "bomb.pt")
    inputs = (tmp_path / "bomb.pt").read_bytes()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "bad.pt2", "w") as new:
        for name in old.namelist():
            new.writestr(name, inputs if "sample_inputs" in name else old.read(name))
    torch.save(Bomb(bomb), tmp_path / "pickle.pt2")
    with zipfile.ZipFile(tmp_path / "object.pt2", "w") as new:
        new.writestr("m/data/constants/opaque_obj_0", pickle.dumps(Bomb(bomb)))
    for name, text in (
        ("bad.pt2", "cannot be read as a program of torch.export.save"),
        ("pickle.pt2", "cannot be read as a program of torch.export.save"),
        ("object.pt2", "holds pickled objects, which are never read: m/data/constants/opaque_obj_0"),
    ):
        with pytest.raises(sc.SecateurError) as refused:
            load_program(tmp_path / name)
        assert str(refused.value).startswith(f"{tmp_path / name}: {text}")
        assert "\n" not in str(refused.value)
    assert not bomb.exists()
    torch.load(tmp_path / "bomb.pt", weights_only=False)  # the bomb works
    assert bomb.exists()


def test_a_program_for_one_number_of_samples_says_so(tmp_path: Path) -> None:
    torch.export.save(
        export(nn.Sequential(nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 3)), (ROWS[:2],)), tmp_path / "m.pt2"
    )
    program = load_program(tmp_path / "m.pt2")
    assert program(ROWS[:2]).shape == (2, 3)
    small = sc.cut(program, sc.Plan.from_kept({"0": [0, 2]}, ROWS[:2]))
    assert sum(p.numel() for p in small.parameters()) == 12 * 2 + 2 + 2 * 3 + 3


def test_a_program_exported_in_training_mode_is_refused(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(12, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 3))
    torch.export.save(export(network.train(), (ROWS[:2],)), tmp_path / "m.pt2")
    with pytest.raises(
        sc.SecateurError, match=r"m\.pt2: the program does more than .*dropout.*; export model\.eval\(\)"
    ):
        load_program(tmp_path / "m.pt2")
