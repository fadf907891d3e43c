"""Truth values of tensors that a forward asks for: which are checks of values, and which choose what is computed.

A check is a branch whose other side ends in an error, as that of an assert or of a test for NaN. It changes no value.
"""

from __future__ import annotations

import linecache
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from secateur.structure.inputs import Call, call_on_copies

TRUTHS = (Tensor.__bool__, torch.is_nonzero, torch.equal, torch.allclose, Tensor.equal, Tensor.allclose)
TORCH = str(Path(torch.__file__).parent)


class Place(NamedTuple):
    """A line of code that asks for the truth value of a tensor, for the n-th time."""

    file: str
    line: int
    n: int

    def __str__(self) -> str:
        return f"{linecache.getline(self.file, self.line).strip()!r} ({Path(self.file).name}:{self.line})"


class Truths(TorchFunctionMode):
    """Gives truth values as they were told, others as they are.

    Attributes:
        told: The values to give, by place.
        asked: The values that were given, by place.
    """

    def __init__(self, told: Mapping[Place, bool]) -> None:
        super().__init__()
        self.told = told
        self.asked: dict[Place, bool] = {}
        self._times: Counter[tuple[str, int]] = Counter()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Return a truth value; what any other function returns."""
        if function not in TRUTHS and not (function is Tensor.item and args[0].dtype == torch.bool):
            return function(*args, **(kwargs or {}))
        place = self._place()
        self.asked[place] = self.told[place] if place in self.told else bool(function(*args, **(kwargs or {})))
        return self.asked[place]

    def _place(self) -> Place:
        frame = sys._getframe(1)
        while frame.f_back and (frame.f_code.co_filename.startswith(TORCH) or frame.f_code.co_filename == __file__):
            frame = frame.f_back
        where = frame.f_code.co_filename, frame.f_lineno
        self._times[where] += 1
        return Place(*where, self._times[where])


def find_truths(model: nn.Module, call: Call) -> dict[Place, bool]:
    """Return the truth values that a model asks for, in the order in which it does."""
    return _run(model, call, {})


def first_choice(model: nn.Module, call: Call, truths: Mapping[Place, bool]) -> Place | None:
    """Return the first place at which the other value ends in no error, so that it chooses what is computed."""
    return next((place for place in truths if _runs_with_another(model, call, truths, place)), None)


def _runs_with_another(model: nn.Module, call: Call, truths: Mapping[Place, bool], place: Place) -> bool:
    try:
        _run(model, call, {**truths, place: not truths[place]})
    except Exception:  # noqa: BLE001 - whatever it is, no value is computed then
        return False
    return True


def _run(model: nn.Module, call: Call, told: Mapping[Place, bool]) -> dict[Place, bool]:
    with torch.no_grad(), Truths(told) as truths:
        call_on_copies(model, call)
    asked: dict[Place, bool] = truths.asked
    return asked
