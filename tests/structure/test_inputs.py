import json
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from secateur.errors import ArgumentError, DataError, ModelError
from secateur.structure.inputs import (
    Free,
    InputSpec,
    TensorSpec,
    as_call,
    like_model,
    map_tensors,
    tensors,
)

X, Y = torch.zeros(4, 2), torch.ones(4, 3)


@pytest.mark.parametrize(
    ("inputs", "args", "kwargs"),
    [
        (X, (X,), {}),
        ((X, Y), (X, Y), {}),
        ([X, 3], (X, 3), {}),
        ({"x": X, "scale": 2.0}, (), {"x": X, "scale": 2.0}),
        ((), (), {}),
    ],
    ids=["tensor", "tuple", "list", "dict", "nothing"],
)
def test_inputs_are_positional_or_keywords(inputs: Any, args: tuple, kwargs: dict) -> None:
    got_args, got_kwargs = as_call(inputs)
    assert [id(value) for value in got_args] == [id(value) for value in args]
    assert {name: id(value) for name, value in got_kwargs.items()} == {name: id(v) for name, v in kwargs.items()}


@pytest.mark.parametrize(("inputs", "kind"), [(None, "NoneType"), (3, "int"), ("x", "str"), ({1, 2}, "set")])
def test_another_form_is_refused(inputs: Any, kind: str) -> None:
    expected = (
        r"^example_inputs: expected a tensor, a tuple of positional inputs or a dict of keyword inputs, "
        rf"got {kind}$"
    )
    with pytest.raises(ArgumentError, match=expected):
        as_call(inputs)


def test_the_given_dict_is_not_the_one_used() -> None:
    inputs = {"x": X}
    as_call(inputs)[1].clear()
    assert list(inputs) == ["x"]


def test_map_tensors_leaves_plain_values() -> None:
    args, kwargs = map_tensors(((X, 3), {"y": Y, "flag": None}), lambda t: t + 1)
    assert args[0].equal(X + 1)
    assert args[1] == 3
    assert kwargs["y"].equal(Y + 1)
    assert kwargs["flag"] is None
    assert tensors((args, kwargs)) == [args[0], kwargs["y"]]


@pytest.mark.parametrize(
    ("call", "found"),
    [
        (((X, torch.zeros(3, 2)), {}), r"\[3, 4\]"),
        (((), {}), "none"),
    ],
    ids=["two sizes", "nothing"],
)
def test_different_batch_sizes_are_refused(call: Any, found: str) -> None:
    with pytest.raises(
        DataError, match=rf"^inputs: expected one number of samples in the first dimension, got {found}$"
    ):
        InputSpec.of(((X, X), {})).count(call)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_inputs_take_the_dtype_of_the_model_where_they_are_numbers(dtype: torch.dtype) -> None:
    (x, index), kwargs = like_model(nn.Linear(2, 3).to(dtype), ((X.double(), torch.arange(4)), {"mask": X > 0}))
    assert (x.dtype, index.dtype, kwargs["mask"].dtype) == (dtype, torch.int64, torch.bool)


def test_a_model_without_parameters_takes_inputs_in_the_default_dtype() -> None:
    assert like_model(nn.ReLU(), ((X.double(),), {}))[0][0].dtype == torch.float32


def test_a_specification_keeps_what_outlives_the_tensors() -> None:
    call = ((torch.randn(2, 2, 3), torch.tensor([[2, 5], [7, 3]])), {"mask": torch.tensor([True, True]), "p": 0.5})
    spec = InputSpec.of(call)
    assert spec.args == (TensorSpec("float32", (2, 3)), TensorSpec("int64", (2,), 2, 7))
    assert spec.kwargs == (("mask", TensorSpec("bool", (), 1, 1)), ("p", 0.5))
    assert InputSpec.of(((torch.tensor(3.0),), {})).args == (TensorSpec("float32", None),)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (((X, [X, {3}]), {}), r"^inputs\[1\]\[1\]: expected a tensor or a plain value, got set$"),
        (
            ((), {"state": {"h": slice(3)}}),
            r"^inputs\['state'\]\['h'\]: expected a tensor or a plain value, got slice$",
        ),
        (((3,), {}), r"^example_inputs: there is no tensor among them$"),
    ],
    ids=["positional", "keyword", "plain"],
)
def test_what_is_neither_tensor_nor_plain_is_refused_by_name(call: Any, text: str) -> None:
    with pytest.raises(ArgumentError, match=text):
        InputSpec.of(call)


dtypes = st.sampled_from(["float32", "float64", "float16", "bfloat16", "int64", "int32", "uint8", "bool"])


@st.composite
def tensor_specs(draw: st.DrawFn) -> TensorSpec:
    dtype = draw(dtypes)
    free = st.builds(Free, st.sampled_from(["n1", "n2"]), st.integers(3, 9))
    shape = draw(st.none() | st.lists(st.integers(0, 3) | free, max_size=3).map(tuple))
    if getattr(torch, dtype).is_floating_point:
        return TensorSpec(dtype, shape)
    low, high = sorted(draw(st.tuples(*[st.integers(0, 1 if dtype == "bool" else 200)] * 2)))
    return TensorSpec(dtype, shape, low, high)


values = tensor_specs() | st.integers() | st.booleans() | st.none() | st.text() | st.floats(allow_nan=False)
specs = st.builds(
    lambda args, kwargs: InputSpec(tuple(args), tuple(kwargs.items())),
    st.lists(values, max_size=3),
    st.dictionaries(st.text(max_size=4), values, max_size=3),
)


@given(specs)
@settings(deadline=None)
def test_a_specification_survives_json(spec: InputSpec) -> None:
    again = InputSpec.from_json(json.loads(json.dumps(spec.to_json())))
    assert again == spec
    assert repr(again) == repr(spec)  # True is not 1, 1.0 neither


@given(tensor_specs(), st.integers(1, 5), st.integers(0, 3))
@settings(deadline=None)
def test_samples_have_the_form_and_range_that_was_seen(spec: TensorSpec, n: int, seed: int) -> None:
    def draw() -> Tensor:
        return spec.sample(n, torch.Generator().manual_seed(seed))

    sample = draw()
    assert sample.dtype == getattr(torch, spec.dtype)
    sizes = [size.size if isinstance(size, Free) else size for size in spec.shape or ()]
    assert tuple(sample.shape) == (() if spec.shape is None else (n, *sizes))
    assert sample.equal(draw())
    if not sample.is_floating_point() and sample.numel():
        assert spec.low <= int(sample.min()) <= int(sample.max()) <= spec.high


def test_sampled_integers_reach_both_ends_of_the_range() -> None:
    sample = TensorSpec("int64", (100,), 3, 5).sample(4, torch.Generator().manual_seed(0))
    assert sample.unique().tolist() == [3, 4, 5]


def test_sampled_numbers_are_normal_in_the_model_s_dtype() -> None:
    spec = InputSpec.of(((torch.zeros(2, 500),), {"scale": 2.0}))
    args, kwargs = spec.sample(nn.Linear(500, 1).double(), n=40)
    assert kwargs == {"scale": 2.0}
    assert (args[0].dtype, args[0].shape) == (torch.float64, (40, 500))
    assert abs(args[0].mean()) < 0.02
    assert abs(args[0].std() - 1) < 0.02


def test_samples_depend_on_the_seed_and_on_nothing_else() -> None:
    spec, model = InputSpec.of(((X, Y), {})), nn.Linear(2, 3)
    one = spec.sample(model, seed=1)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    again, other = spec.sample(model, seed=1), spec.sample(model, seed=2)
    assert torch.get_rng_state().equal(state)
    assert all(a.equal(b) for a, b in zip(one[0], again[0], strict=True))
    assert not any(a.equal(b) for a, b in zip(one[0], other[0], strict=True))


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.first(x) + y


class Optional(Two):
    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        return self.first(x) if y is None else self.first(x) + y


@pytest.mark.parametrize("model", [nn.Linear(5, 3), nn.Sequential(nn.ReLU(), nn.Linear(5, 3)), Optional()])
def test_a_model_that_starts_with_a_dense_layer_tells_its_inputs(model: nn.Module) -> None:
    assert InputSpec.guess(model) == InputSpec((TensorSpec("float32", (5,)),), ())


@pytest.mark.parametrize(
    "model", [nn.Conv1d(5, 3, 1), nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 3)), nn.ReLU(), Two()]
)
def test_inputs_are_not_guessed_of_another_model(model: nn.Module) -> None:
    with pytest.raises(
        ModelError, match=r"^the model's inputs are not known: give example inputs, to Plan\.from_kept or as --data$"
    ):
        InputSpec.guess(model)


FORM = InputSpec.of(((X, 3), {"y": Y, "scale": torch.tensor(2.0)}))


def test_a_call_of_the_example_s_form_is_returned_as_it_is() -> None:
    x, y, scale = torch.ones(9, 2).double(), torch.ones(9, 3), torch.tensor(5.0)
    args, kwargs = FORM.match(((x, 3), {"scale": scale, "y": y}))
    assert args[0] is x
    assert args[1] == 3
    assert kwargs["y"] is y
    assert kwargs["scale"] is scale


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (
            ((X,), {"y": Y, "scale": X[0, 0]}),
            "inputs: expected 2 positional, keywords ['scale', 'y'] as in the example",
        ),
        (
            ((X, 3), {"y": Y}),
            "inputs: expected 2 positional, keywords ['scale', 'y'] as in the example, got 2 positional",
        ),
        (((Y, 3), {"y": Y, "scale": X[0, 0]}), "inputs[0] of shape (4, 3), the model was captured for (samples, 2)"),
        (((X, 4), {"y": Y, "scale": X[0, 0]}), "inputs[1]: captured with 3, got 4"),
        (((X, X), {"y": Y, "scale": X[0, 0]}), "inputs[1]: captured with 3, got a tensor"),
        (((X, 3), {"y": Y[0], "scale": X[0, 0]}), "inputs['y'] of shape (3,), the model was captured for (samples, 3)"),
        (((X, 3), {"y": Y, "scale": X[:, 0]}), "inputs['scale'] of shape (4,), the model was captured for ()"),
        (
            ((X, 3), {"y": Y.long(), "scale": X[0, 0]}),
            "inputs['y'] of torch.int64, the model was captured for torch.float32",
        ),
    ],
)
def test_a_call_of_another_form_is_refused(call: Any, text: str) -> None:
    for where in ("", "data: batch 3: "):
        with pytest.raises(DataError) as caught:
            FORM.match(call, where)
        assert str(caught.value).startswith(where + text)


@pytest.mark.parametrize(
    ("example", "given", "taken"),
    [
        (torch.int64, torch.int32, True),
        (torch.int64, torch.uint8, True),
        (torch.int16, torch.int8, True),
        (torch.int32, torch.int64, False),
        (torch.int8, torch.uint8, False),
        (torch.uint16, torch.int8, False),
        (torch.int64, torch.bool, False),
        (torch.bool, torch.int64, False),
        (torch.int64, torch.float32, False),
        (torch.bool, torch.bool, True),
        (torch.float16, torch.float64, True),
    ],
)
def test_whole_numbers_come_in_the_example_s_type_if_that_holds_them(
    example: torch.dtype, given: torch.dtype, taken: bool
) -> None:
    spec = InputSpec.of(((X.to(example),), {}))
    if taken:
        (got,), _ = spec.match(((Y[:, :2].to(given),), {}))
        assert got.dtype == (given if given.is_floating_point else example)
        assert got.tolist() == Y[:, :2].tolist()
    else:
        with pytest.raises(DataError) as caught:
            spec.match(((Y[:, :2].to(given),), {}))
        assert str(caught.value) == f"inputs of {given}, the model was captured for {example}"


def test_the_only_number_of_samples_is_kept() -> None:
    spec = InputSpec((TensorSpec("float32", (2,)),), (), fixed=4)
    assert spec.match(((X,), {}))[0][0] is X
    with pytest.raises(
        DataError, match=r"^data: inputs: the model's code fixes the batch at 4 samples, got 3; give all"
    ):
        spec.match(((X[:3],), {}), "data: ")


def test_a_specification_written_before_sizes_were_free_is_read() -> None:
    written = {"args": [{"dtype": "float32", "shape": [2, 3]}, {"dtype": "float32", "shape": None}], "kwargs": {}}
    assert InputSpec.from_json(written).args == (TensorSpec("float32", (2, 3)), TensorSpec("float32", None))


def test_free_sizes_are_written_with_their_name_and_the_size_of_the_example() -> None:
    spec = InputSpec((TensorSpec("float32", (Free("n1", 7), 4)),), ())
    assert spec.to_json()["args"] == [{"dtype": "float32", "shape": [("n1", 7), 4]}]
    assert spec.free == {"n1": 7}
    assert spec.sample(nn.Linear(1, 1), n=3)[0][0].shape == (3, 7, 4)


@given(n=st.integers(1, 3), first=st.integers(1, 9), second=st.integers(1, 9))
def test_tied_sizes_are_the_same(n: int, first: int, second: int) -> None:
    spec = InputSpec((TensorSpec("float32", (Free("n1", 7), 2)),), (("y", TensorSpec("float32", (Free("n1", 7),))),))
    call = (torch.zeros(n, first, 2),), {"y": torch.zeros(n, second)}
    if first == second:
        sizes: dict[str, tuple[int, str]] = {}
        assert spec.match(call, sizes=sizes)[0][0].shape == (n, first, 2)
        assert sizes == {"n1": (first, "dimension 1 of inputs[0]")}
        return
    with pytest.raises(DataError) as caught:
        spec.match(call, "data: ")
    assert str(caught.value) == (
        f"dimension 1 of data: inputs['y'] is {second}, it must be that of dimension 1 of data: inputs[0], {first}"
    )
