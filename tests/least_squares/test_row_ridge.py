"""Fits by rows are those by second moments, wherever both can be made.

Covers also secateur.least_squares.rows.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.errors import DataError
from secateur.least_squares.moments import Moments
from secateur.least_squares.ridge import fit
from secateur.least_squares.row_ridge import RowMoments, fit_rows, rows_kept

CPU = torch.device("cpu")


class DoubleRows(RowMoments):
    """Rows that keep their digits, to be held against what is computed in float64."""

    dtype = torch.float64


@pytest.mark.parametrize(
    ("inputs", "rows", "kept"),
    [
        (65_536, 25_600, 2048),  # half a gigabyte
        (16_384, 1600, 1600),
        (8192, 6400, 6400),
        (8192, 25_600, None),
        (4096, 4095, 4095),
        (4095, 5, None),  # few inputs: a matrix of them is small
    ],
)
def test_rows_are_kept_where_they_are_fewer_than_many_inputs(inputs: int, rows: int, kept: int | None) -> None:
    assert rows_kept(inputs, rows) == kept


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31), rows=st.integers(1, 20), inputs=st.integers(1, 30), bias=st.booleans(),
    targets=st.booleans(), ridge=st.sampled_from([None, 1e-3, 1.0]), cut=st.integers(0, 20),
)  # fmt: skip
def test_a_fit_by_rows_is_the_fit_by_second_moments(
    seed: int, rows: int, inputs: int, bias: bool, targets: bool, ridge: float | None, cut: int
) -> None:
    torch.manual_seed(seed)
    a, weight = 1 + torch.randn(rows, inputs).double(), torch.randn(1, inputs, 3).double()
    added = torch.randn(1, 3).double() if bias else None
    z = a @ weight[0] + torch.randn(rows, 3).double() if targets else a[:, :0]
    held, kept = torch.arange(rows) % 5 == 4, torch.rand(inputs) < 0.6
    moments, kept_rows = Moments(inputs, z.shape[1], CPU), DoubleRows(inputs, z.shape[1], rows)
    moments.add(a, z, held)
    for part in (slice(cut), slice(cut, None)):
        kept_rows.add(a[part], z[part], held[part])
    if not kept.any():
        return
    expected, got = fit(moments, weight, added, ridge, kept), fit_rows(kept_rows, weight, added, ridge, kept)
    torch.testing.assert_close(got.weight, expected.weight, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(got.ridge, expected.ridge, rtol=1e-9, atol=1e-9)
    assert got.rows is not None
    assert got.second is None
    y = got.rows.columns(torch.arange(int(kept.sum())))
    torch.testing.assert_close((y.T @ y)[None], expected.second, rtol=1e-9, atol=1e-9)
    assert (got.bias is None) == (expected.bias is None) == (not bias)
    if got.bias is not None and expected.bias is not None:
        torch.testing.assert_close(got.bias, expected.bias, rtol=1e-6, atol=1e-6)


def test_whole_layers_without_targets_keep_their_weights() -> None:
    kept_rows, weight = RowMoments(9, 0, 4), torch.randn(1, 9, 2).double()
    a = torch.randn(4, 9)
    kept_rows.add(a, a[:, :0], torch.zeros(4, dtype=torch.bool))
    assert torch.equal(fit_rows(kept_rows, weight, None, None, torch.ones(9, dtype=torch.bool)).weight, weight)


def test_rows_that_are_not_finite_are_refused() -> None:
    kept_rows, a = RowMoments(3, 0, 1), torch.tensor([[1.0, torch.inf, 0.0]])
    kept_rows.add(a, a[:, :0], torch.zeros(1, dtype=torch.bool))
    with pytest.raises(DataError) as raised:
        fit_rows(kept_rows, torch.ones(1, 3, 1).double(), None, None, torch.tensor([True, True, False]))
    assert str(raised.value) == (
        "compensation: the activations' second moments are not finite or not positive on this data"
    )
