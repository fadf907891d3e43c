"""Tensors that all samples share; those of samples are tested with the whole of the inputs."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from secateur.errors import ArgumentError, DataError
from secateur.structure.calls.tensor_spec import WRITTEN, Free, TensorSpec, describe_tensor

EDGES = torch.tensor([[0, 3, 1], [2, 0, 0]])


def read(spec: TensorSpec) -> TensorSpec:
    return TensorSpec.from_json(json.loads(json.dumps(spec.to_json())))


@pytest.mark.parametrize("tensor", [EDGES, EDGES > 0, EDGES.int(), EDGES[0]], ids=["long", "bool", "int", "vector"])
def test_shared_whole_numbers_are_written_and_drawn_as_they_are(tensor: torch.Tensor) -> None:
    spec = read(describe_tensor(tensor, shared=True))
    assert spec == describe_tensor(tensor, shared=True)
    assert (spec.shape, spec.per_sample, spec.low, spec.high) == (
        tuple(tensor.shape), False, int(tensor.min()), int(tensor.max()),
    )  # fmt: skip
    for n in (1, 5):
        drawn = spec.sample(n, torch.Generator().manual_seed(n))
        assert drawn.dtype == tensor.dtype
        assert drawn.equal(tensor)


def test_of_very_many_whole_numbers_the_range_alone_is_written() -> None:
    spec = describe_tensor(torch.arange(WRITTEN + 1) + 5, shared=True)
    assert spec.to_json() == {
        "dtype": "int64", "shape": [WRITTEN + 1], "low": 5, "high": WRITTEN + 5, "shared": True,
    }  # fmt: skip
    drawn = read(spec).sample(1, torch.Generator().manual_seed(0))
    assert drawn.shape == (WRITTEN + 1,)
    assert 5 <= int(drawn.min()) <= int(drawn.max()) <= WRITTEN + 5


@given(st.lists(st.integers(0, 4), min_size=1, max_size=4), st.integers(1, 9))
def test_shared_numbers_have_the_example_s_shape_for_any_number_of_samples(shape: list[int], n: int) -> None:
    spec = read(describe_tensor(torch.zeros(shape), shared=True))
    drawn = spec.sample(n, torch.Generator().manual_seed(0))
    assert drawn.shape == tuple(shape)
    assert spec.match(drawn, "x", {}) is drawn
    of_samples = describe_tensor(torch.zeros(shape), shared=False)
    assert of_samples.sample(n, torch.Generator()).shape == (n, *shape[1:])
    assert of_samples.sizes == dict(enumerate(shape[1:], 1))
    assert spec.sizes == dict(enumerate(shape))


def test_the_shape_of_a_shared_tensor_is_checked_whole() -> None:
    spec = TensorSpec("float32", (Free("n1", 7), 3), shared=True)
    sizes: dict[str, tuple[int, str]] = {}
    assert spec.match(torch.zeros(5, 3), "x", sizes).shape == (5, 3)
    assert sizes == {"n1": (5, "dimension 0 of x")}
    with pytest.raises(DataError, match=r"^dimension 0 of y is 4, it must be that of dimension 0 of x, 5$"):
        spec.match(torch.zeros(4, 3), "y", sizes)
    with pytest.raises(DataError, match=r"^x of shape \(5, 2\), the model was captured for \(any, 3\)$"):
        spec.match(torch.zeros(5, 2), "x", {})
    with pytest.raises(DataError, match=r"^x of shape \(\), the model was captured for \(any, 3\)$"):
        spec.match(torch.tensor(1.0), "x", {})


def test_a_number_without_dimensions_is_nobody_s() -> None:
    assert describe_tensor(torch.tensor(2.0), shared=False) == TensorSpec("float32", None)
    assert describe_tensor(torch.tensor(2.0), shared=True) == TensorSpec("float32", None)
    assert not TensorSpec("float32", None).per_sample


def test_complex_numbers_are_refused() -> None:
    with pytest.raises(ArgumentError, match=r"^inputs: complex64 is not supported"):
        describe_tensor(torch.zeros(2, dtype=torch.complex64), shared=True)
