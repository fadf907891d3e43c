from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from cases import CASES
from secateur.errors import DataError, ModelError
from secateur.structure.capture import Captured, capture
from secateur.structure.graph_run import (
    bind,
    check_capture,
    difference,
    flatten,
    own_dtypes,
    run,
    tolerance,
    tolerance_of,
)
from secateur.structure.inputs import Call, as_call

INF = float("inf")


class Several(nn.Module):
    """Keyword inputs, plain values, a structure of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor, scale: float = 1.0, *, shift: Tensor, mask: Tensor | None = None) -> dict:
        h = torch.tanh(self.first(x) * scale) + shift
        h = h if mask is None else h * mask
        return {"out": self.last(h), "more": (h.sum(-1), [h]), "none": None}


X, SHIFT, MASK = torch.randn(5, 3).double(), torch.randn(5, 4).double(), torch.arange(20).reshape(5, 4) % 2
EXAMPLES: dict[str, Call] = {
    "keywords": ((), {"x": X, "shift": SHIFT, "mask": MASK}),
    "both": ((X,), {"mask": MASK, "shift": SHIFT}),
    "plain values": ((X, 2.0), {"shift": SHIFT}),
    "a plain keyword": ((X,), {"mask": None, "shift": SHIFT}),
}  # fmt: skip


def several() -> Several:
    torch.manual_seed(0)
    return Several().double()


@pytest.mark.parametrize("call", EXAMPLES.values(), ids=list(EXAMPLES))
def test_keywords_in_any_order_are_bound_by_name(call: Call) -> None:
    model = several()
    captured = capture(model, call)
    expected = model(*call[0], **call[1])
    for kwargs in (call[1], dict(reversed(call[1].items()))):
        got = run(captured, model, (call[0], kwargs))
        assert difference(expected, got)[1] < 1e-14
        assert list(got) == ["out", "more", "none"]
        assert got["none"] is None
        assert isinstance(got["more"], tuple)
        assert isinstance(got["more"][1], list)


def test_inputs_are_flattened_in_the_order_of_the_graph() -> None:
    model = several()
    captured = capture(model, EXAMPLES["both"])
    values = flatten(captured, ((X,), {"shift": SHIFT, "mask": MASK}))
    by_name = dict(zip(captured.inputs, values, strict=True))
    assert {name: id(value) for name, value in by_name.items()} == {"x": id(X), "shift": id(SHIFT), "mask": id(MASK)}


def test_every_placeholder_is_bound_to_what_it_stands_for() -> None:
    model = several()
    captured = capture(model, EXAMPLES["both"])
    placeholders = [node.name for node in captured.graph.nodes if node.op == "placeholder"]
    bound = dict(zip(placeholders, bind(captured, model, EXAMPLES["both"]), strict=True))
    assert {captured.weights[name]: id(bound[name]) for name in captured.weights} == {
        name: id(parameter) for name, parameter in model.named_parameters()
    }
    assert {name: id(bound[name]) for name in captured.inputs} == {"x": id(X), "shift": id(SHIFT), "mask": id(MASK)}


def test_constants_are_bound_too() -> None:
    class Scaled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * torch.tensor([1.0, 2.0], dtype=torch.float64)

    model = Scaled(3, 2).double()
    captured = capture(model, as_call(X))
    assert [constant.tolist() for constant in captured.constants.values()] == [[1, 2]]
    assert difference(model(X), run(captured, model, as_call(X)))[1] < 1e-14


@pytest.mark.parametrize(
    ("call", "given"),
    [
        (((X, SHIFT), {}), r"2 positional, keywords \[\]"),
        (((X,), {"mask": MASK}), r"1 positional, keywords \['mask'\]"),
        (((), {"x": X, "shift": SHIFT}), r"0 positional, keywords \['shift', 'x'\]"),
        (((X,), {"shift": SHIFT, "mask": MASK}), r"1 positional, keywords \['mask', 'shift'\]"),
    ],
)
def test_other_inputs_than_the_example_s_are_refused(call: Call, given: str) -> None:
    captured = capture(several(), ((X,), {"shift": SHIFT}))
    expected = r"inputs: expected 1 positional, keywords \['shift'\] as in the example"
    with pytest.raises(DataError, match=rf"^{expected}, got {given}$"):
        flatten(captured, call)


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    ("expected", "got", "absolute", "relative"),
    [
        (tensor(1, -4), tensor(1, -4), 0, 0),
        (tensor(1, -4), tensor(1.5, -4), 0.5, 0.125),
        (tensor(1, -4), tensor(1, -3), 1, 0.25),
        ((tensor(8), tensor(1)), (tensor(6), tensor(2)), 2, 1),
        ({"a": tensor(2), "b": [3, None]}, {"a": tensor(1), "b": [5, None]}, 1, 0.5),
        (tensor(1, -4).float(), tensor(1.5, -4), 0.5, 0.125),
        (torch.tensor([3, 4]), torch.tensor([3, 2]), 2, 0.5),
        (tensor(), tensor(), 0, 0),
        (tensor(0, 0), tensor(0, 0), 0, 0),
        (tensor(0, 0), tensor(0, 1e-12), 1e-12, 1e18),
        (tensor(1, INF, -INF), tensor(1, INF, -INF), 0, 0),
        (tensor(-4, INF), tensor(-3, INF), 1, 0.25),
        (tensor(INF, INF), tensor(INF, INF), 0, 0),
        (torch.tensor([3 + 4j, 1]), torch.tensor([3 + 4j, 1]), 0, 0),
        (torch.tensor([3 + 4j, 1]), torch.tensor([3 + 2j, 1]), 2, 0.5),
        (torch.tensor([3 - 4j, 1]), torch.tensor([2 - 4j, 1]), 1, 0.25),
        (torch.tensor([True, False]), torch.tensor([True, True]), 1, 1),
    ],
    ids=[
        "equal", "one", "the largest", "several outputs", "a structure", "dtypes", "integers", "empty", "zeros",
        "not zero", "equal infinities", "beside an infinity", "nothing else", "complex", "the imaginary part",
        "the real part", "yes and no",
    ],
)  # fmt: skip
def test_the_difference_is_the_largest_and_relative_to_the_largest_value(
    expected: object, got: object, absolute: float, relative: float
) -> None:
    assert difference(expected, got) == pytest.approx((absolute, relative), rel=1e-12, abs=0)


NAN = float("nan")


@pytest.mark.parametrize(
    ("expected", "got"),
    [
        (tensor(1, 2), tensor(1, NAN)),
        (tensor(1, NAN), tensor(1, 2)),
        (tensor(1, NAN), tensor(1, NAN)),
        ((tensor(1), tensor(NAN)), (tensor(1), tensor(3))),
        (tensor(1, 2), tensor(1, INF)),
        (tensor(1, INF), tensor(1, 2)),
        (tensor(1, INF), tensor(1, -INF)),
        (tensor(1, INF), tensor(INF, 1)),
        (tensor(1, INF), tensor(1, NAN)),
        (torch.tensor([1 + 1j]), torch.tensor([complex(1, NAN)])),
    ],
)
def test_what_is_not_finite_is_never_close(expected: object, got: object) -> None:
    absolute, relative = difference(expected, got)
    assert absolute > 1e300
    assert relative > 1e300


@pytest.mark.parametrize("got", [tensor(1), tensor(1, 1, 1), tensor(1, 1)[None]])
def test_another_shape_is_never_close(got: Tensor) -> None:
    assert difference(tensor(1, 1), got) == (INF, INF)


@pytest.mark.parametrize(
    ("dtype", "allowed"),
    [(torch.float64, 1e-9), (torch.float32, 1e-4), (torch.float16, 1e-2), (torch.bfloat16, 5e-2)],
)
def test_rounding_is_allowed_for_by_dtype(dtype: torch.dtype, allowed: float) -> None:
    assert tolerance(nn.Linear(2, 2).to(dtype)) == allowed


def test_a_model_without_parameters_is_one_of_float32() -> None:
    assert tolerance(nn.ReLU()) == 1e-4


def captured_with(scale: float) -> tuple[nn.Module, Captured, Call]:
    """A model of one layer, captured, then changed by a factor."""
    model, x, *_ = CASES["one_hidden"]()
    model = model[:1]
    captured = capture(model, as_call(x))
    model.register_forward_hook(lambda _module, _inputs, out: out * scale)
    return model, captured, as_call(x)


def test_a_capture_within_rounding_passes() -> None:
    assert check_capture(*captured_with(1 + 1e-11)) is None


@pytest.mark.parametrize(("scale", "shown"), [(1 + 1e-6, "1.0e-06"), (2.0, "5.0e-01"), (NAN, "inf")])
def test_a_capture_that_computes_something_else_is_refused(scale: float, shown: str) -> None:
    with pytest.raises(ModelError, match=rf"^Sequential: the captured graph differs from the model by {shown} of the "):
        check_capture(*captured_with(scale))


class Scaled(nn.Module):
    """A layer whose input is scaled by what a function makes."""

    def __init__(self, scale: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.scale = nn.Linear(3, 2), scale

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x * self.scale(x))


@pytest.mark.parametrize(
    ("scale", "own"),
    [
        (lambda x: x.sigmoid(), set()),
        (lambda _: torch.tensor([0.1, 0.2, 0.3]), set()),  # held against what is computed, by nothing else
        (lambda _: torch.tensor([0.1, 0.2, 0.3])[None].expand(2, 3)[:1], set()),
        (lambda _: torch.tensor([0.1, 0.2, 0.3]).exp(), {torch.float32}),
        (lambda _: torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64).exp(), set()),
        (lambda x: x.float().exp(), {torch.float32}),
        (lambda x: x.bfloat16().exp() + x.float(), {torch.float32, torch.bfloat16}),
    ],
)
def test_the_code_has_dtypes_of_its_own(scale: Callable[[Tensor], Tensor], own: set[torch.dtype]) -> None:
    captured = capture(Scaled(scale).double(), as_call(torch.randn(4, 3).double()))
    assert own_dtypes(captured) == own
    allowed = {torch.float32: 3e-6, torch.bfloat16: 5e-2}
    assert tolerance_of(captured, torch.float64) == max([1e-9, *(allowed[dtype] for dtype in own)])
    assert tolerance_of(captured, torch.float32) == max([1e-4, *(allowed[dtype] for dtype in own)])
