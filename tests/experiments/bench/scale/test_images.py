"""Images in batches."""

from __future__ import annotations

import pytest
import torch

from secateur_experiments.bench.scale import images
from secateur_experiments.bench.scale.task import AbsentError, Folders


def test_images_are_cut_into_batches():
    assert [(x.shape, y.shape) for x, y in images.random_images(6, 8)] == [
        ((4, 3, 8, 8), (4,)), ((2, 3, 8, 8), (2,))
    ]  # fmt: skip
    model = lambda x: torch.eye(2)[x]  # noqa: E731
    assert images.accuracy(model, (torch.tensor([0, 1, 1, 0]), torch.tensor([0, 1, 0, 0]))) == 0.75
    with pytest.raises(AbsentError, match=r"^give --mnist DIR$"):
        images.digits(Folders())
