"""The benchmark of curvature."""

from pathlib import Path

import pytest
import torch

from secateur.errors import ArgumentError
from secateur_experiments.bench.curvature import TASKS, has_backpack, of_gates, of_passes, of_weights


def test_the_hessian_in_the_gates_is_that_of_torch_func() -> None:
    rows = list(of_gates(8, 1, torch.float64, None, progress=False))
    assert [(row.network, row.beside) for row in rows] == [(f"784-{k}-10", "torch.func.hessian") for k in (100, 400)]
    assert all(row.max_difference is not None and row.max_difference < 1e-12 for row in rows)
    assert all(row.ratio == row.theirs_s / row.ours_s for row in rows)


def test_fisher_is_timed_beside_one_pass() -> None:
    (row,) = of_passes(8, 1, torch.float64, progress=False, classes=20)
    assert (row.network, row.samples, row.max_difference) == ("784-200-20", 8, None)


@pytest.mark.skipif(not has_backpack(None), reason="needs BackPACK")
def test_every_weight_is_as_backpack_has_it() -> None:
    rows = list(of_weights(8, 1, torch.float64, None, progress=False))
    assert [row.network for row in rows] == list(TASKS)
    assert all(row.max_difference is not None and row.max_difference < 1e-12 for row in rows)


def test_a_folder_without_the_shim_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"zoo: there is no tvshim\.py in"):
        has_backpack(tmp_path)
