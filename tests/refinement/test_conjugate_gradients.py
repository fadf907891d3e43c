"""Conjugate gradients on parameters by name, against a dense solution."""

from __future__ import annotations

import functools

import pytest
import torch

from secateur.refinement.conjugate_gradients import solve

A = torch.tensor([[4.0, 1, 0], [1, 3, 1], [0, 1, 2]], dtype=torch.float64)
S = torch.tensor([1.0, -2, 3], dtype=torch.float64)


def test_as_many_steps_as_numbers_solve_it_whatever_the_preconditioner() -> None:
    wanted = -torch.linalg.solve(A + 0.5 * torch.eye(3, dtype=torch.float64), S)
    for scale in (torch.ones(3).double(), torch.tensor([1, 5, 0.2]).double()):
        scaled = functools.partial(lambda d, v: {"w": d * v["w"]}, scale)
        x, gain = solve(lambda v: {"w": A @ v["w"]}, scaled, {"w": S}, 0.5, 3)
        torch.testing.assert_close(x["w"], wanted)
        assert gain == pytest.approx(-(S @ wanted + wanted @ A @ wanted / 2).item())


def test_without_a_slope_nothing_moves() -> None:
    x, gain = solve(lambda v: v, lambda v: v, {"w": torch.zeros(2)}, 1.0)
    assert (x["w"].tolist(), gain) == ([0.0, 0.0], 0.0)
