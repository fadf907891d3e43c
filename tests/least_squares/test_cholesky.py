"""Factorisation and inverse of second moments against PyTorch's own, for any size of the blocks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from secateur.errors import DataError
from secateur.least_squares import cholesky
from secateur.least_squares.cholesky import factorise, invert

RIDGE = torch.tensor([1e-2, 0.3], dtype=torch.float64)[:, None, None]


def moments(inputs: int, rows: int = 40) -> Tensor:
    """AᵀA / N of two blocks [2, D, D]."""
    a = torch.randn(2, rows, inputs, dtype=torch.float64, generator=torch.Generator().manual_seed(inputs))
    return a.mT @ a / rows


def with_ridge(matrix: Tensor) -> Tensor:
    return matrix + RIDGE * torch.eye(matrix.shape[1], dtype=torch.float64)


@pytest.mark.parametrize("inputs", [1, 2, 7, 12])
def test_the_factor_is_that_of_the_lower_triangle_with_its_ridge_in_the_matrix_place(inputs: int) -> None:
    matrix = moments(inputs)
    expected = torch.linalg.cholesky(with_ridge(matrix))
    half = matrix.tril()
    factor = factorise(half, RIDGE)
    assert factor.data_ptr() == half.data_ptr()
    torch.testing.assert_close(factor, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("block", [1, 2, 5, 7, 12, 13])
@pytest.mark.parametrize("inputs", [1, 2, 7, 12])
def test_the_inverse_is_that_of_the_matrix_however_many_columns_are_made_at_a_time(
    inputs: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cholesky, "BLOCK", block)
    matrix = moments(inputs)
    expected = torch.linalg.inv(with_ridge(matrix))
    factor = factorise(matrix, RIDGE)
    inverse = invert(factor)
    assert inverse.data_ptr() == factor.data_ptr()
    torch.testing.assert_close(inverse, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(inverse, inverse.mT, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_matrix_of_lower_rank_is_inverted_with_its_ridge_in_the_matrix_dtype(dtype: torch.dtype) -> None:
    matrix = moments(6, rows=2)
    expected = torch.linalg.inv(with_ridge(matrix))
    inverse = invert(factorise(matrix.to(dtype), RIDGE.to(dtype)))
    assert inverse.dtype == dtype
    tolerance = 1e-3 if dtype == torch.float32 else 1e-9
    torch.testing.assert_close(inverse.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -1.0])
def test_what_is_not_finite_or_not_positive_is_refused(value: float) -> None:
    matrix = moments(3)
    matrix[1, 2, 2] = value
    with pytest.raises(DataError) as caught:
        factorise(matrix, RIDGE)
    assert str(caught.value) == (
        "compensation: the activations' second moments are not finite or not positive on this data"
    )
