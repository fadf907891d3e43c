"""How close two results have to be that differ by rounding alone: processors and libraries round differently."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def assert_close_ulps(actual: Any, expected: Any, ulps: int = 4, dtype: torch.dtype = torch.float64) -> None:
    """Refuse numbers that differ by more than a few units in the last place of the largest one expected.

    Args:
        actual: A tensor, a number, or lists of numbers.
        expected: Likewise, of the same shape.
        ulps: How many units.
        dtype: In which numbers that are no tensors were computed.
    """
    one, other = (x if isinstance(x, Tensor) else torch.tensor(x, dtype=dtype) for x in (actual, expected))
    largest = other.detach().abs().max().item() if other.numel() else 0.0
    torch.testing.assert_close(one, other, rtol=0, atol=ulps * torch.finfo(other.dtype).eps * largest)
