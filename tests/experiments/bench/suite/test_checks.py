"""Cut networks used in every way; each check finds what is broken."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur import SecateurError
from secateur_experiments.bench.architectures import randomise
from secateur_experiments.bench.suite import checks
from secateur_experiments.bench.suite.registry import Subject, sequences

FAST = ["TextCNN", "DLRM"]
USED = ["equal", "train", "deepcopy", "state_dict", "save", "export", "again", "unequal"]


class Reader(nn.Module):
    """A dense layer over the sum of all steps; a fault for each check."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.fault = nn.Linear(3, 4), nn.Linear(4, 2), ""

    def forward(self, x: Tensor) -> Tensor:
        if self.fault == "length" and x.shape[1] != 5:
            raise RuntimeError("view does not fit")
        if self.fault == "batch" and len(x) == 1:
            x = x + 1
        if self.fault == "gradient":
            return self.last(self.first(x).detach().sum(1))
        return self.last(self.first(x).sum(1)) * (1.5 if self.fault == "wrong" else 1)

    def __deepcopy__(self, memo: dict[int, Any]) -> Reader:
        twin = Reader().double()
        twin.load_state_dict(self.state_dict())
        twin.fault = self.fault if self.fault != "copy" else "wrong"
        return twin

    def __reduce__(self) -> Any:
        if self.fault == "pickle":
            raise TypeError("cannot pickle a closure")
        return super().__reduce__()

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return None if self.fault == "state" else super().load_state_dict(*args, **kwargs)

    def generate(self, ids: Tensor, use_cache: bool, cache_implementation: str = "", **_: Any) -> Any:
        if self.fault == "mute" or (cache_implementation and self.fault == "none is static"):
            raise ValueError("no static cache")
        steps = [self.last.weight[:1] * (2 if self.fault == "cached" and use_cache else 1)]

        class Result:
            sequences, logits = ids, steps

        return Result


def case(fault: str = "", fault_of_the_original: str = "") -> checks.Case:
    torch.manual_seed(0)
    original = Reader().double().eval()
    randomise(original)
    truth = copy.deepcopy(original)
    with torch.no_grad():
        truth.first.weight[1] = truth.first.bias[1] = truth.last.weight[:, 1] = 0
    small = copy.deepcopy(truth)
    original.fault, small.fault = fault_of_the_original, fault
    prompt = {"ids": torch.ones(1, 2, dtype=torch.long)}
    return checks.Case(Subject(original, sequences(3), (5, 4, 7), prompt=lambda: prompt), original, small, truth)


def test_what_is_right_passes_every_check() -> None:
    results = {
        name: check(case()) for name, check in checks.CHECKS.items() if name not in ("again", "unequal", "compile")
    }
    assert results == {
        "equal": "yes", "free": "batch, length", "generate": "dynamic, static, none", "train": "yes",
        "deepcopy": "yes", "state_dict": "yes", "save": "yes", "export": "yes",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("check", "fault", "message"),
    [
        ("equal", "wrong", "differs by "),
        ("free", "length", "2 of 4, length 4: RuntimeError: view does not fit"),
        ("free", "batch", "1 of 4, batch 1: differs by "),
        ("generate", "cached", "2 of 3, dynamic: differs by "),
        ("generate", "none is static", "1 of 3, static: ValueError: no static cache"),
        ("train", "gradient", "2 without a gradient, first.bias"),
        ("deepcopy", "copy", "differs by "),
        ("state_dict", "state", "differs by "),
        ("save", "pickle", "cannot pickle a closure"),
    ],
)
def test_each_check_finds_its_fault(check: str, fault: str, message: str) -> None:
    with pytest.raises((SecateurError, TypeError)) as error:
        checks.CHECKS[check](case(fault))
    assert str(error.value).startswith(message)
    assert checks.cell(checks.CHECKS[check], case(fault), verbose=False).startswith("no: ")


def test_nothing_is_lost_where_the_original_could_not_either() -> None:
    assert checks.CHECKS["save"](case("pickle", "pickle")) == "nor the original"
    wordless = case()
    wordless.truth.fault = "mute"
    assert checks.generate(wordless) == "nor the original"


def test_a_removal_that_changes_nothing_is_no_proof() -> None:
    good = case()
    unchanged = checks.Case(good.subject, good.original, copy.deepcopy(good.original), copy.deepcopy(good.original))
    assert checks.cell(checks.equal, unchanged, verbose=False) == "no: what was removed does not count"


def test_a_failing_check_prints_its_traceback_if_asked_to(capsys: pytest.CaptureFixture[str]) -> None:
    checks.cell(checks.free, case("length"), verbose=True)
    assert "2 of 4, length 4" in capsys.readouterr().err


def test_the_type_that_numbers_are_made_in_is_put_back() -> None:
    with checks.throughout(torch.float64):
        assert torch.zeros(1).dtype == torch.float64
    assert torch.zeros(1).dtype == torch.float32


@pytest.mark.parametrize("name", FAST)
def test_small_networks_are_used_as_before(name: str) -> None:
    row = checks.examine(name)
    assert [row[column] for column in USED] == ["yes"] * len(USED)
    assert row["captured"] == ()
    assert row["free"].startswith("batch, ")
    assert row["generate"] == ""
    assert row["left"] < 0.8 * row["params"]
