"""Removal orders by rows are those by second moments where costs are computed anew for each removal."""

from __future__ import annotations

import pytest
import torch

from secateur.compensation import row_elimination
from secateur.compensation.elimination import Elimination, Summation
from secateur.compensation.row_elimination import RowElimination, RowSummation
from secateur.least_squares import rows as rows_of_layers
from secateur.least_squares.rows import Rows

UNITS, EACH, OTHERS, OUTPUTS, ROWS = 9, 3, 2, 4, 11


def both(curved: bool) -> tuple[Summation, RowSummation]:
    """Return the same layer by its second moments and by its rows."""
    torch.manual_seed(0)
    inputs = UNITS * EACH + OTHERS
    data, weight = torch.randn(ROWS, inputs).double(), torch.randn(1, inputs, OUTPUTS).double()
    root, ridge = torch.randn(1, OUTPUTS, OUTPUTS).double(), torch.full((1, 1, 1), 0.01).double()
    curvature = root @ root.mT if curved else None
    rows = torch.randperm(inputs)[: UNITS * EACH].reshape(UNITS, EACH)
    return Summation((data.T @ data)[None], ridge, weight, curvature, rows), RowSummation(
        Rows(data * ROWS**0.5, torch.arange(inputs), False), ridge, weight, curvature, rows
    )


@pytest.mark.parametrize("curved", [False, True])
@pytest.mark.parametrize("columns", [4, 4096])
def test_costs_and_weights_after_each_removal(curved: bool, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_elimination, "GROUPS", UNITS)
    monkeypatch.setattr(row_elimination, "COLUMNS", columns)
    monkeypatch.setattr(rows_of_layers, "COLUMNS", columns)
    moments, rows = both(curved)
    expected, got = Elimination(moments), RowElimination(rows)
    for _ in range(UNITS - 1):
        torch.testing.assert_close(got.costs(), expected.costs(), rtol=1e-8, atol=1e-8)
        unit = int(expected.costs().argmin())
        got.remove(unit)
        got.settle()
        expected.remove(unit)
        expected.settle()
        for one, other in zip(got.weight(), expected.weight(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)


def test_costs_are_computed_anew_for_each_group_of_removals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_elimination, "GROUPS", 3)
    _, rows = both(True)
    elimination, before = RowElimination(rows), RowElimination(rows).costs()
    for unit in (4, 0):
        elimination.remove(unit)
        elimination.settle()
        costs = elimination.costs()
        assert costs[unit] == torch.inf
        left = costs.isfinite()
        assert torch.equal(costs[left], before[left])  # as they were
    elimination.remove(7)
    elimination.settle()
    left = elimination.costs().isfinite()
    assert left.sum() == UNITS - 3
    assert not torch.isclose(elimination.costs()[left], before[left]).any()
