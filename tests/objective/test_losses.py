"""Losses by name and of one's own, what they take, and accuracy.

Covers secateur.objective.losses and secateur.objective.loss_inputs.
"""

import math
from collections import UserDict
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from cases import CASES
from secateur import Budget, find_units, rank, score, shrink
from secateur.errors import ArgumentError, DataError
from secateur.objective.gated_loss import GatedLoss, ones
from secateur.objective.loss_inputs import logits_of
from secateur.objective.losses import (
    LOSSES,
    binary_cross_entropy,
    correct,
    cross_entropy,
    find_loss,
    loss_of_batch,
    squared_error,
)

OUTPUTS = torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, -1.0]], dtype=torch.float64)
CLASSES = torch.tensor([2, 0])


def log_softmax(row: list[float], i: int) -> float:
    return row[i] - math.log(sum(math.exp(v) for v in row))


def bernoulli(o: float, t: float) -> float:
    p = 1 / (1 + math.exp(-o))
    return -t * math.log(p) - (1 - t) * math.log(1 - p)


def values(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_cross_entropy_is_minus_the_log_of_softmax() -> None:
    expected = -(log_softmax([1.0, -2.0, 0.5], 2) + log_softmax([0.0, 3.0, -1.0], 0)) / 2
    assert cross_entropy(OUTPUTS, CLASSES).item() == pytest.approx(expected, rel=1e-14)


def test_cross_entropy_has_the_classes_along_dimension_one() -> None:
    o, t = values(2, 3, 4), torch.tensor([[0, 1, 2, 0], [2, 2, 1, 0]])
    picked = [log_softmax(o[n, :, p].tolist(), int(t[n, p])) for n in range(2) for p in range(4)]
    assert cross_entropy(o, t).item() == pytest.approx(-sum(picked) / 8, rel=1e-14)


def test_cross_entropy_takes_probabilities() -> None:
    t = torch.tensor([[0.2, 0.3, 0.5], [1.0, 0.0, 0.0]], dtype=torch.float64)
    rows = [sum(t[n, i].item() * log_softmax(OUTPUTS[n].tolist(), i) for i in range(3)) for n in range(2)]
    assert cross_entropy(OUTPUTS, t).item() == pytest.approx(-sum(rows) / 2, rel=1e-14)


@pytest.mark.parametrize("shape", [(4, 1), (4,)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.int64, torch.bool], ids=str)
def test_binary_cross_entropy_of_one_output(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    o, t = [0.5, -1.0, 2.0, 0.0], [1, 0, 0, 1]
    expected = sum(map(bernoulli, o, t)) / 4
    got = binary_cross_entropy(
        torch.tensor(o, dtype=torch.float64).reshape(4, 1), torch.tensor(t).to(dtype).reshape(shape)
    )
    assert got.item() == pytest.approx(expected, rel=1e-14)
    assert got.dtype == torch.float64


def test_binary_cross_entropy_is_the_mean_over_all_outputs() -> None:
    t = torch.tensor([[0.0, 1.0, 0.25], [0.5, 1.0, 0.0]], dtype=torch.float64)
    pairs = zip(OUTPUTS.flatten().tolist(), t.flatten().tolist(), strict=True)
    assert binary_cross_entropy(OUTPUTS, t).item() == pytest.approx(sum(bernoulli(o, q) for o, q in pairs) / 6)


def test_squared_error_is_half_the_sum_over_outputs_and_the_mean_over_samples() -> None:
    t = torch.tensor([[0.0, 1.0, 0.5], [2.0, 3.0, -2.0]], dtype=torch.float64)
    assert squared_error(OUTPUTS, t).item() == pytest.approx(((1 + 9 + 0) / 2 + (4 + 0 + 1) / 2) / 2, rel=1e-15)


def test_squared_error_takes_classes_as_one_hot() -> None:
    expected = ((1 + 4 + 0.25) / 2 + (1 + 9 + 1) / 2) / 2
    assert squared_error(OUTPUTS, CLASSES).item() == pytest.approx(expected, rel=1e-15)


def test_squared_error_sums_over_all_further_dimensions() -> None:
    o, t = values(2, 3, 4), values(2, 3, 4, seed=1)
    by_hand = sum((o[n, c, p].item() - t[n, c, p].item()) ** 2 for n in range(2) for c in range(3) for p in range(4))
    assert squared_error(o, t).item() == pytest.approx(by_hand / 2 / 2, rel=1e-14)


def test_squared_error_puts_the_one_hot_classes_along_dimension_one() -> None:
    o, t = values(2, 3, 4), torch.tensor([[0, 1, 2, 0], [2, 2, 1, 0]])
    one_hot = torch.zeros_like(o)
    for n in range(2):
        for p in range(4):
            one_hot[n, t[n, p], p] = 1
    assert squared_error(o, t).item() == pytest.approx(squared_error(o, one_hot).item(), rel=1e-14)


def test_squared_error_takes_outputs_without_a_second_dimension() -> None:
    o, t = torch.tensor([1.0, 3.0]), torch.tensor([0.0, 1.0])
    assert squared_error(o, t).item() == (1 + 4) / 2 / 2


@pytest.mark.parametrize("name", ["cross_entropy", "squared_error"])
@pytest.mark.parametrize(("target", "span"), [([0, 3], "0 to 3"), ([-1, 2], "-1 to 2"), ([7, -5], "-5 to 7")])
def test_a_class_that_there_is_not_is_refused(name: str, target: list[int], span: str) -> None:
    with pytest.raises(DataError, match=rf"^{name}: class targets must be in 0 to 2 for 3 outputs, got {span}$"):
        LOSSES[name](OUTPUTS, torch.tensor(target))


@pytest.mark.parametrize("name", ["cross_entropy", "squared_error"])
@pytest.mark.parametrize("shape", [(3,), (2, 1), (2, 3)], ids=str)
def test_classes_in_another_number_than_samples_are_refused(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError) as caught:
        LOSSES[name](OUTPUTS, torch.zeros(shape, dtype=torch.int64))
    assert str(caught.value) == (
        f"{name}: class targets of shape {shape} for outputs (2, 3); "
        "targets that are no classes must be floating-point numbers"
    )


@pytest.mark.parametrize("name", ["cross_entropy", "squared_error"])
def test_classes_for_outputs_without_classes_are_refused(name: str) -> None:
    with pytest.raises(
        DataError, match=rf"^{name}: class targets of shape \(2,\) for outputs \(2,\); targets that are"
    ):
        LOSSES[name](torch.zeros(2), torch.tensor([0, 1]))


@pytest.mark.parametrize(
    "dtype", [torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.bool], ids=str
)
@pytest.mark.parametrize("name", ["cross_entropy", "squared_error"])
@pytest.mark.parametrize("form", ["samples", "positions"])
def test_classes_may_be_whole_numbers_of_any_type(name: str, dtype: torch.dtype, form: str) -> None:
    o, t = (values(4, 3), torch.tensor([1, 0, 0, 1])) if form == "samples" else (values(2, 3, 2), torch.eye(2).long())
    assert LOSSES[name](o, t.to(dtype)).item() == LOSSES[name](o, t).item()
    hits, wanted = correct(LOSSES[name], o, t.to(dtype)), correct(LOSSES[name], o, t)
    assert hits is not None
    assert wanted is not None
    assert hits.equal(wanted)


@pytest.mark.parametrize("criterion", ["oracle", "taylor1", "taylor2", "hessian", "ggn", "fisher", "obs"])
@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.bool], ids=str)
def test_every_criterion_takes_classes_of_any_type(criterion: str, dtype: torch.dtype) -> None:
    case = CASES["two_hidden"]()
    y = case.y % 2
    got, wanted = (score(case.model, (case.x, t), "cross_entropy", criterion=criterion) for t in (y.to(dtype), y))
    assert all(got[name].equal(wanted[name]) for name in wanted)


def test_a_class_out_of_range_of_any_type_is_refused() -> None:
    with pytest.raises(
        DataError, match=r"^cross_entropy: class targets must be in 0 to 2 for 3 outputs, got 0 to 255$"
    ):
        cross_entropy(OUTPUTS, torch.tensor([255, 0], dtype=torch.uint8))


@pytest.mark.parametrize("shift", [0.0, 0.0009, -0.0009])
def test_probabilities_may_be_rounded(shift: float) -> None:
    t = torch.tensor([[0.2, 0.3, 0.5 + shift], [1.0, 0.0, 0.0]], dtype=torch.float64)
    rows = [sum(t[n, i].item() * log_softmax(OUTPUTS[n].tolist(), i) for i in range(3)) for n in range(2)]
    assert cross_entropy(OUTPUTS, t).item() == pytest.approx(-sum(rows) / 2, rel=1e-14)


def test_probabilities_may_be_rounded_to_their_type() -> None:
    t = torch.full((2, 3), 1 / 3).bfloat16() * torch.tensor([1.0, 1.003]).bfloat16()[:, None]
    assert abs(t.double().sum(1) - 1).max() > 1e-3
    assert cross_entropy(torch.zeros(2, 3).bfloat16(), t).item() == pytest.approx(math.log(3), rel=1e-2)


RULE = "cross_entropy: probabilities must be at least 0 and sum to 1 over the classes; "


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("targets", "what"),
    [
        ([[0.2, 0.3, 0.5], [0.5, 0.5, 0.5]], "those of sample 1 of a batch sum to 1.5"),
        ([[0.5, 0.25, 0.0], [0.2, 0.3, 0.5]], "those of sample 0 of a batch sum to 0.75"),
        ([[1.1, 0.0, 0.0], [0.5, 0.25, 0.0]], "those of sample 1 of a batch sum to 0.75"),
        ([[0.2, 0.3, 0.5], [1.0, 0.002, 0.0]], "those of sample 1 of a batch sum to 1.002"),
        ([[1.25, -0.25, 0.0], [0.2, 0.3, 0.5]], "sample 0 of a batch has one of -0.25"),
    ],
)
def test_probabilities_of_another_sum_are_refused(targets: list[list[float]], what: str, dtype: torch.dtype) -> None:
    with pytest.raises(DataError) as caught:
        cross_entropy(OUTPUTS.to(dtype), torch.tensor(targets, dtype=dtype))
    assert str(caught.value) == RULE + what


def test_probabilities_at_each_place_sum_to_one() -> None:
    t = torch.full((2, 3, 4), 1 / 3, dtype=torch.float64)
    assert cross_entropy(t * 0, t).item() == pytest.approx(math.log(3), rel=1e-14)
    t[1, 2, 3] += 2
    with pytest.raises(DataError, match=r"those of sample 1 of a batch sum to 3$"):
        cross_entropy(t * 0, t)


def test_classes_written_as_floating_point_numbers_are_refused_with_a_hint() -> None:
    with pytest.raises(DataError) as caught:
        cross_entropy(OUTPUTS, CLASSES.double())
    assert str(caught.value) == (
        "cross_entropy: expected whole-number classes or probabilities of shape (2, 3), got torch.float64 of shape "
        "(2,); targets.long() makes classes of whole numbers"
    )


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_complex_targets_and_outputs_that_are_no_numbers_are_refused(name: str) -> None:
    with pytest.raises(DataError, match=rf"^{name}: expected a tensor of targets, got torch.complex64$"):
        LOSSES[name](OUTPUTS, torch.zeros(2, 3, dtype=torch.complex64))
    with pytest.raises(DataError, match=r"^loss: expected outputs of floating-point numbers, got torch.int64$"):
        LOSSES[name](OUTPUTS.long(), CLASSES)


@pytest.mark.parametrize(("targets", "span"), [([[0.0], [1.5]], "0 to 1.5"), ([[-0.25], [1.0]], "-0.25 to 1")])
def test_binary_targets_outside_0_to_1_are_refused(targets: list[list[float]], span: str) -> None:
    with pytest.raises(DataError, match=rf"^binary_cross_entropy: targets must be in 0 to 1, got {span}$"):
        binary_cross_entropy(torch.zeros(2, 1), torch.tensor(targets))


@pytest.mark.parametrize("shape", [(3,), (2, 1), (3, 2)], ids=str)
def test_binary_targets_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=r"^binary_cross_entropy: .*targets.*outputs"):
        binary_cross_entropy(torch.zeros(2, 3), torch.zeros(shape))


@pytest.mark.parametrize("shape", [(3,), (2, 1), (3, 2), (2,)], ids=str)
def test_squared_error_never_broadcasts(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError) as caught:
        squared_error(OUTPUTS, torch.zeros(shape))
    assert str(caught.value) == f"squared_error: targets of shape {shape}, outputs of (2, 3)"


@pytest.mark.parametrize("shape", [(2,), (2, 2), (3,)], ids=str)
def test_targets_that_are_neither_classes_nor_probabilities_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=r"^cross_entropy: "):
        cross_entropy(OUTPUTS, torch.zeros(shape, dtype=torch.float64))


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_a_named_loss_needs_targets(name: str) -> None:
    with pytest.raises(DataError, match="targets"):
        LOSSES[name](OUTPUTS, None)


@pytest.mark.parametrize("loss", ["mse", "CROSS_ENTROPY", "", 3, None], ids=repr)
def test_an_unknown_loss_lists_those_there_are(loss: object) -> None:
    with pytest.raises(ArgumentError) as caught:
        find_loss(loss)
    names = "cross_entropy, binary_cross_entropy, squared_error, output, distribution"
    assert str(caught.value) == f"unknown loss {loss!r}; one of: {names}"


def test_a_class_is_no_loss() -> None:
    with pytest.raises(ArgumentError) as caught:
        find_loss(nn.MSELoss)
    assert str(caught.value) == "loss: MSELoss is a class; give an instance, MSELoss()"


def test_a_loss_that_fails_says_so() -> None:
    def wrong(outputs: Tensor, targets: Tensor) -> Tensor:
        raise KeyError("mask")

    with pytest.raises(DataError) as caught:
        loss_of_batch(wrong, OUTPUTS, CLASSES)
    assert str(caught.value) == "loss: it fails on this data (KeyError: 'mask')"
    assert isinstance(caught.value.__cause__, KeyError)
    with pytest.raises(DataError, match=r"^loss: it fails on this data \(RuntimeError: .*Int"):
        loss_of_batch(nn.CrossEntropyLoss(), OUTPUTS, CLASSES.int())


def test_a_loss_is_found_by_name_or_is_a_function() -> None:
    def mine(outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.mean()

    assert find_loss("squared_error") is squared_error
    assert find_loss(mine) is mine
    assert isinstance(find_loss(nn.MSELoss()), nn.MSELoss)


@pytest.mark.parametrize(
    ("value", "got"),
    [
        (torch.zeros(2), r"\(2,\)"),
        (torch.zeros(2, 3), r"\(2, 3\)"),
        (0.5, "float"),
        (None, "NoneType"),
        (torch.tensor(1j), "a complex one"),
    ],
)
def test_a_loss_that_is_not_one_number_is_refused(value: object, got: str) -> None:
    with pytest.raises(DataError, match=rf"^loss: expected the mean over the batch, one number, got {got}$"):
        loss_of_batch(lambda *_: value, OUTPUTS, CLASSES)


def test_a_loss_per_sample_is_refused_where_it_is_used() -> None:
    model, x = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1)), torch.ones(4, 3)
    units = find_units(model, x)
    gated = GatedLoss(model, units, (x, torch.zeros(4, 1)), lambda o, t: (o - t).square().sum(1))
    with pytest.raises(DataError, match=r"one number, got \(4,\)"):
        gated.loss(ones(model, units))


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)], ids=str)
def test_a_loss_of_one_element_is_one_number(shape: tuple[int, ...]) -> None:
    assert loss_of_batch(lambda *_: torch.full(shape, 2.5), OUTPUTS, CLASSES).shape == ()


class Named(NamedTuple):
    """As some models return it."""

    hidden: Tensor
    logits: Tensor


class Output(UserDict):
    """As libraries return it: entries by name and as attributes."""

    def __getattr__(self, name: str) -> object:
        return self.__dict__["data"][name]


@pytest.mark.parametrize(
    "outputs",
    [
        OUTPUTS,
        {"hidden": torch.zeros(1), "logits": OUTPUTS},
        Output(hidden=torch.zeros(1), logits=OUTPUTS),
        Named(torch.zeros(1), OUTPUTS),
        [OUTPUTS],
        (OUTPUTS, None),
        (1, {"scores": [OUTPUTS]}),
        {"scores": OUTPUTS},
    ],
    ids=["tensor", "dict", "mapping", "namedtuple", "list", "beside nothing", "nested", "another name"],
)
def test_a_named_loss_takes_the_logits_of_any_outputs(outputs: object) -> None:
    assert logits_of(outputs) is OUTPUTS
    assert cross_entropy(outputs, CLASSES).item() == cross_entropy(OUTPUTS, CLASSES).item()
    assert squared_error(outputs, CLASSES).item() == squared_error(OUTPUTS, CLASSES).item()
    assert binary_cross_entropy(outputs, OUTPUTS.sigmoid()) == binary_cross_entropy(OUTPUTS, OUTPUTS.sigmoid())
    hits = correct(cross_entropy, outputs, torch.tensor([0, 0]))
    assert hits is not None
    assert hits.tolist() == [True, False]


@pytest.mark.parametrize(
    ("outputs", "got"),
    [({"hidden": None}, "dict"), ((1, None), "tuple"), ([], "list"), (SimpleNamespace(), "SimpleNamespace")],
)
def test_outputs_without_a_tensor_are_refused_and_have_no_accuracy(outputs: object, got: str) -> None:
    with pytest.raises(DataError) as caught:
        squared_error(outputs, CLASSES)
    assert str(caught.value) == f"loss: expected a tensor of outputs, got {got}; pass a function instead"
    assert correct(squared_error, outputs, CLASSES) is None


@pytest.mark.parametrize(
    ("outputs", "count", "places"),
    [
        ((OUTPUTS, OUTPUTS[:1]), 2, ["outputs[0]", "outputs[1]"]),
        ([None, OUTPUTS, (OUTPUTS, OUTPUTS)], 3, ["outputs[1]", "outputs[2]"]),
        ({"boxes": OUTPUTS, "count": 2, "scores": OUTPUTS}, 2, ["outputs['boxes']", "outputs['scores']"]),
        (Output(boxes=OUTPUTS, scores=OUTPUTS), 2, ["outputs['boxes']", "outputs['scores']"]),
        ({"logits": (OUTPUTS, OUTPUTS)}, 2, ["outputs['logits']"]),
    ],
    ids=["tuple", "list", "dict", "mapping", "logits"],
)
@pytest.mark.parametrize("name", sorted(LOSSES))
def test_a_named_loss_does_not_choose_among_outputs(name: str, outputs: object, count: int, places: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        LOSSES[name](outputs, CLASSES)
    assert str(caught.value) == (
        f"loss: a loss with a name takes one tensor, the model returns {count} ({', '.join(places)}); pick one, "
        f"loss=lambda outputs, targets: torch.nn.functional.cross_entropy({places[0]}, targets)"
    )
    assert correct(LOSSES[name], outputs, CLASSES) is None
    assert correct(lambda *_: OUTPUTS.sum(), outputs, CLASSES) is None


class Detector(nn.Module):
    """Boxes first, then the classes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.boxes, self.classes = nn.Linear(3, 5), nn.Linear(5, 4), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.tanh(self.a(x))
        return self.boxes(h), self.classes(h)


def test_the_first_of_several_outputs_is_not_taken_for_logits() -> None:
    torch.manual_seed(0)
    model, x, y = Detector().double(), values(6, 3), torch.tensor([0, 1, 2, 2, 1, 0])
    with pytest.raises(DataError, match=r"the model returns 2 \(outputs\[0\], outputs\[1\]\); pick one"):
        shrink(model, (x, y), "cross_entropy", Budget(remove_units=2), progress=False)
    picked = lambda outputs, targets: nn.functional.cross_entropy(outputs[1], targets)  # noqa: E731
    result = shrink(model, (x, y), picked, Budget(remove_units=2), progress=False)
    expected = nn.functional.cross_entropy(result.model(x)[1], y).item()
    assert result.after.loss == pytest.approx(expected, rel=1e-12)
    assert [state.accuracy for state in result.plan.states] == [None] * 3


@pytest.mark.parametrize("loss", [cross_entropy, squared_error, lambda o, _: o.sum()], ids=["ce", "se", "own"])
def test_a_prediction_is_the_largest_output(loss: object) -> None:
    hits = correct(loss, OUTPUTS, torch.tensor([0, 2]))
    assert hits is not None
    assert hits.tolist() == [True, False]


def test_a_prediction_at_each_place_is_the_largest_along_dimension_one() -> None:
    o = values(2, 3, 4)
    t = torch.tensor([[0, 1, 2, 0], [2, 2, 1, 0]])
    expected = [[max(range(3), key=lambda c: o[n, c, p].item()) == t[n, p].item() for p in range(4)] for n in range(2)]
    hits = correct(cross_entropy, o, t)
    assert hits is not None
    assert hits.tolist() == expected


@pytest.mark.parametrize("loss", [cross_entropy, squared_error])
def test_one_hot_targets_are_classes(loss: object) -> None:
    hits = correct(loss, OUTPUTS, torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]))
    assert hits is not None
    assert hits.tolist() == [True, False]


@pytest.mark.parametrize("shape", [(4, 1), (4,)], ids=str)
def test_a_binary_prediction_is_a_logit_above_zero(shape: tuple[int, ...]) -> None:
    o, t = torch.tensor([[0.5], [-1.0], [2.0], [0.0]]), torch.tensor([1.0, 0.0, 0.0, 1.0]).reshape(shape)
    hits = correct(binary_cross_entropy, o, t)
    assert hits is not None
    assert hits.flatten().tolist() == [True, True, False, False]


def test_several_binary_outputs_count_each() -> None:
    hits = correct(binary_cross_entropy, OUTPUTS, torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]))
    assert hits is not None
    assert hits.tolist() == [[True, True, False], [True, False, False]]


@pytest.mark.parametrize(
    ("loss", "outputs", "targets"),
    [
        (squared_error, OUTPUTS, torch.tensor([[0.5, 1.0, 0.0], [0.0, 1.0, 0.0]])),
        (squared_error, OUTPUTS, torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 0.0]])),
        (squared_error, OUTPUTS[:, :1], torch.tensor([[0.0], [1.0]])),
        (cross_entropy, OUTPUTS, torch.tensor([[0.5, 0.5, 0.0], [0.0, 1.0, 0.0]])),
        (binary_cross_entropy, OUTPUTS[:, :1], torch.tensor([[0.5], [1.0]])),
        (lambda o, _: o.sum(), OUTPUTS, values(2, 5)),
        (lambda o, _: o.sum(), OUTPUTS, None),
        (lambda o, _: o.sum(), OUTPUTS, {"classes": CLASSES}),
    ],
    ids=["regression", "two hot", "one output", "soft", "soft binary", "shapes differ", "no targets", "dict"],
)
def test_without_classes_there_is_no_accuracy(loss: object, outputs: Tensor, targets: object) -> None:
    assert correct(loss, outputs, targets) is None


# ---------------------------------------------------------------- infinite losses


def minus_log(outputs: Tensor, targets: Tensor) -> Tensor:
    """Infinite where a sample's first output is 0 or less."""
    return -outputs[:, 0].clamp(min=0).log().mean()


def one_way() -> nn.Module:
    """o = 2 h_1 + h_2 of h = x: without both units it is 0."""
    model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.Linear(2, 1, bias=False)).double()
    with torch.no_grad():
        model[0].weight.fill_(1)
        model[1].weight.copy_(torch.tensor([[2.0, 1.0]]))
    return model


@pytest.mark.parametrize("criterion", ["oracle", "taylor1", "taylor2", "hessian", "ggn", "obs"])
@pytest.mark.parametrize("value", [math.inf, -math.inf])
def test_an_infinite_loss_of_the_network_as_trained_is_refused(criterion: str, value: float) -> None:
    x = torch.ones(3, 1, dtype=torch.float64)
    with pytest.raises(DataError, match=r"^loss: it is infinite on this data$"):
        score(one_way(), (x, x), lambda o, _: o.square().mean() + value, criterion=criterion)


def test_an_infinite_loss_is_refused_before_an_order_is_made() -> None:
    x = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    with pytest.raises(DataError, match=r"^loss: it is infinite on this data$"):
        rank(one_way(), (x, x), minus_log, criterion="magnitude", compensate=False, progress=False)
    with pytest.raises(DataError, match=r"^loss: it is infinite on this data$"):
        shrink(
            one_way(), (x, x), minus_log, Budget(remove_units=1), criterion="magnitude", granularity="weight",
            progress=False,
        )  # fmt: skip


def test_a_loss_may_become_infinite_where_units_are_gone() -> None:
    model, x = one_way(), torch.ones(3, 1, dtype=torch.float64)
    without = [-math.log(1) + math.log(3), -math.log(2) + math.log(3)]
    assert score(model, (x, x), minus_log, criterion="oracle")["0"].tolist() == pytest.approx(without, rel=1e-14)
    units = find_units(model, x)
    gated = GatedLoss(model, units, (x, x), minus_log)
    assert gated.loss(torch.zeros(2, dtype=torch.float64)) == math.inf
    assert gated.measure(torch.zeros(2, dtype=torch.float64))[0] == math.inf
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[2.0, -1.0]]))
    rises = score(model, (x, x), minus_log, criterion="oracle")["0"].tolist()
    assert rises == [math.inf, pytest.approx(-math.log(2), rel=1e-14)]
    plan = rank(model, (x, x), minus_log, compensate=False, progress=False, ranking="iterative")
    assert [step.index for step in plan.steps] == [1]


# ---------------------------------------------------------------- losses that change what they are given


def centred(outputs: Tensor, targets: Tensor) -> Tensor:
    targets -= 1
    return (outputs - targets).square().mean()


def doubled(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.mul_(2) - targets).square().mean()


@pytest.mark.parametrize("criterion", ["oracle", "taylor1", "taylor2", "hessian", "ggn", "obs"])
@pytest.mark.parametrize("form", ["pair", "batches", "dict"])
def test_a_loss_that_changes_its_targets_is_refused_and_the_caller_s_are_as_they_were(
    criterion: str, form: str
) -> None:
    case = CASES["one_hidden"]()
    x, t = case.x, values(6, 3)
    data = {"pair": (x, t), "batches": [(x[:2], t[:2]), (x[2:], t[2:])], "dict": [(x, {"values": t})]}[form]
    loss = (lambda o, targets: centred(o, targets["values"])) if form == "dict" else centred
    with pytest.raises(DataError) as caught:
        score(case.model, data, loss, criterion=criterion)
    assert str(caught.value) == "loss: it changes its targets in place; let it work on a copy, targets.clone()"
    assert t.equal(values(6, 3))


@pytest.mark.parametrize("criterion", ["obd", "obd_ggn", "obs"])
def test_of_single_weights_too(criterion: str) -> None:
    case, t = CASES["one_hidden"](), values(6, 3)
    with pytest.raises(DataError, match="it changes its targets in place"):
        score(case.model, (case.x, t), centred, criterion=criterion, granularity="weight")
    assert t.equal(values(6, 3))


@pytest.mark.parametrize("criterion", ["oracle", "taylor1", "hessian", "ggn"])
def test_a_loss_that_changes_its_outputs_is_refused(criterion: str) -> None:
    case = CASES["one_hidden"]()
    with pytest.raises(DataError) as caught:
        score(case.model, (case.x, values(6, 3)), doubled, criterion=criterion)
    assert str(caught.value) == "loss: it changes its outputs in place; let it work on a copy, outputs.clone()"


def test_a_loss_may_work_on_a_copy_in_place() -> None:
    case, t = CASES["one_hidden"](), values(6, 3)
    got = score(case.model, (case.x, t), lambda o, t: centred(o, t.clone()), criterion="taylor1")["0"]
    wanted = score(case.model, (case.x, t), lambda o, t: (o - (t - 1)).square().mean(), criterion="taylor1")["0"]
    assert got.equal(wanted)
