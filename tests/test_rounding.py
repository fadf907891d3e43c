"""The helper that tells rounding from a wrong result."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rounding import assert_close_ulps

EPS = torch.finfo(torch.float64).eps


@pytest.mark.parametrize(
    ("actual", "expected"),
    [
        (2.0 + 4 * EPS, 2.0),
        ([1.0, 1e-20], [1.0 - EPS, 0.0]),  # a small number beside a large one
        (torch.tensor([3.0]), torch.tensor([3.0 + 1e-6])),  # of float32
        (0.0, 0.0),
        ([], []),
    ],
)
def test_rounding_is_allowed(actual: Any, expected: Any) -> None:
    assert_close_ulps(actual, expected)


@pytest.mark.parametrize(
    ("actual", "expected"),
    [
        (2.0 + 12 * EPS, 2.0),
        ([1.0, 1e-14], [1.0, 0.0]),
        (1e-300, 0.0),
        (torch.tensor([3.0]), torch.tensor([3.0 + 3e-6])),
        (torch.tensor([1.0]), torch.tensor([1.0], dtype=torch.float64)),
        ([1.0], [1.0, 1.0]),
        (float("nan"), 1.0),
    ],
)
def test_more_is_not(actual: Any, expected: Any) -> None:
    with pytest.raises(AssertionError):
        assert_close_ulps(actual, expected)
