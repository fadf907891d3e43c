import math
from collections import UserDict
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from secateur import find_units
from secateur.errors import ArgumentError, DataError
from secateur.saliency.gates import Gated, ones
from secateur.saliency.losses import (
    LOSSES,
    binary_cross_entropy,
    correct,
    cross_entropy,
    evaluate,
    find_loss,
    logits_of,
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
    assert str(caught.value) == f"{name}: class targets of shape {shape} for outputs (2, 3)"


@pytest.mark.parametrize("name", ["cross_entropy", "squared_error"])
def test_classes_for_outputs_without_classes_are_refused(name: str) -> None:
    with pytest.raises(DataError, match=rf"^{name}: class targets of shape \(2,\) for outputs \(2,\)$"):
        LOSSES[name](torch.zeros(2), torch.tensor([0, 1]))


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
    assert str(caught.value) == f"unknown loss {loss!r}; one of: cross_entropy, binary_cross_entropy, squared_error"


def test_a_loss_is_found_by_name_or_is_a_function() -> None:
    def mine(outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.mean()

    assert find_loss("squared_error") is squared_error
    assert find_loss(mine) is mine
    assert isinstance(find_loss(nn.MSELoss()), nn.MSELoss)


@pytest.mark.parametrize(
    ("value", "got"),
    [(torch.zeros(2), r"\(2,\)"), (torch.zeros(2, 3), r"\(2, 3\)"), (0.5, "float"), (None, "NoneType")],
)
def test_a_loss_that_is_not_one_number_is_refused(value: object, got: str) -> None:
    with pytest.raises(DataError, match=rf"^loss: expected the mean over the batch, one number, got {got}$"):
        evaluate(lambda *_: value, OUTPUTS, CLASSES)


def test_a_loss_per_sample_is_refused_where_it_is_used() -> None:
    model, x = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1)), torch.ones(4, 3)
    units = find_units(model, x)
    gated = Gated(model, units, (x, torch.zeros(4, 1)), lambda o, t: (o - t).square().sum(1))
    with pytest.raises(DataError, match=r"one number, got \(4,\)"):
        gated.loss(ones(model, units))


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)], ids=str)
def test_a_loss_of_one_element_is_one_number(shape: tuple[int, ...]) -> None:
    assert evaluate(lambda *_: torch.full(shape, 2.5), OUTPUTS, CLASSES).shape == ()


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
        (OUTPUTS, torch.zeros(1)),
        [OUTPUTS],
    ],
    ids=["tensor", "dict", "mapping", "tuple", "list"],
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
    [({"hidden": OUTPUTS}, "NoneType"), ((1, OUTPUTS), "int"), (SimpleNamespace(), "SimpleNamespace")],
)
def test_outputs_without_a_tensor_are_refused_and_have_no_accuracy(outputs: object, got: str) -> None:
    with pytest.raises(DataError) as caught:
        squared_error(outputs, CLASSES)
    assert str(caught.value) == f"loss: expected a tensor of outputs, got {got}; pass a function instead"
    assert correct(squared_error, outputs, CLASSES) is None


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
