from __future__ import annotations

import warnings
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from secateur.structure.ops.convolution import patches

CONVOLVE: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


@settings(max_examples=150, deadline=None)
@given(data=st.data(), n=st.integers(1, 3), seed=st.integers(0, 2**31))
def test_patches_times_any_kernel_are_the_convolution(data: st.DataObject, n: int, seed: int) -> None:
    def sizes(low: int, high: int) -> list[int]:
        return data.draw(st.lists(st.integers(low, high), min_size=n, max_size=n))

    kernel, stride, dilation = sizes(1, 3), sizes(1, 3), sizes(1, 2)
    padding: Any = data.draw(st.sampled_from(["same", "valid", sizes(0, 2), [data.draw(st.integers(0, 2))]]))
    stride = [1] * n if padding == "same" else stride
    side = data.draw(st.integers(5, 7))
    torch.manual_seed(seed)
    x, weight = torch.randn(2, 2, *[side] * n).double(), torch.randn(3, 2, *kernel).double()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of even kernels that a copy is made for
        expected = CONVOLVE[n](x, weight, None, stride, padding, dilation)
    view, leading = patches(x, kernel, {"stride": stride, "padding": padding, "dilation": dilation})
    rows = view.flatten(leading).flatten(0, leading - 1)
    places = expected.movedim(1, -1).flatten(0, -2)
    torch.testing.assert_close(rows @ weight.flatten(1).T, places, rtol=1e-12, atol=1e-12)
