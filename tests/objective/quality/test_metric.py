"""A metric of one's own: with what it is called, what it may give, and what is measured beside it.

Also covers secateur.objective.quality.quality.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from secateur.errors import ArgumentError, DataError
from secateur.objective.gated_loss import GatedLoss, ones
from secateur.objective.kept_outputs import Kept
from secateur.objective.quality.metric import Run, require_metric, value_of_metric
from secateur.objective.quality.quality import Quality
from secateur.objective.question import Question
from secateur.own_code.find_units import find_units

SIZES = (3, 1, 4)


class Recorder:
    """A metric that keeps what it is called with."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, Any]] = []

    def __call__(self, outputs: Any, targets: Any) -> float:
        self.calls.append((outputs, targets))
        return 0.5


def called(outputs: list[Any], targets: list[Any], sizes: tuple[int, ...] = SIZES) -> tuple[Any, Any]:
    """What a metric is called with, once, for these batches."""
    metric = Recorder()
    runs = [Run(n, n / sum(sizes), o, t) for n, o, t in zip(sizes, outputs, targets, strict=True)]
    assert value_of_metric(metric, runs) == 0.5
    (call,) = metric.calls
    return call


def rows(*shape: int, sizes: tuple[int, ...] = SIZES) -> list[Tensor]:
    g = torch.Generator().manual_seed(len(shape))
    return [torch.randn(n, *shape, generator=g) for n in sizes]


# ---------------------------------------------------------------- with what it is called


@pytest.mark.parametrize("name", ["tensors", "tuples", "dicts", "lists for each sample", "none"])
def test_all_samples_are_one_batch(name: str) -> None:
    a, b = rows(2), rows(2, 5)
    whole, wide = torch.cat(a), torch.cat(b)
    if name == "tensors":
        outputs, targets = called(a, b)
        assert torch.equal(outputs, whole)
        assert torch.equal(targets, wide)
    elif name == "tuples":
        outputs, targets = called([(x, [y], "a", None) for x, y in zip(a, b, strict=True)], [(x,) for x in a])
        assert torch.equal(outputs[0], whole)
        assert torch.equal(outputs[1][0], wide)
        assert outputs[2:] == ("a", None)
        assert torch.equal(targets[0], whole)
    elif name == "dicts":
        outputs, targets = called([{"logits": x} for x in a], [{"y": y} for y in b])
        assert torch.equal(outputs["logits"], whole)
        assert torch.equal(targets["y"], wide)
    elif name == "lists for each sample":
        outputs, targets = called(a, [["a", "b", "c"], ["d"], ["e", "f", "g", "h"]])
        assert torch.equal(outputs, whole)
        assert targets == list("abcdefgh")
    else:
        outputs, targets = called(a, [None] * 3)
        assert torch.equal(outputs, whole)
        assert targets is None


@pytest.mark.parametrize(
    "change",
    [
        lambda a, b: ([*a[:2], torch.zeros(4, 7)], b),  # another length
        lambda a, b: (a, [*b[:2], torch.zeros(4, 7, 1)]),
        lambda a, b: ([(x, torch.zeros(2)) for x in a], b),  # what has no samples
        lambda a, b: ([(x, torch.tensor(0.0)) for x in a], b),
        lambda a, b: (a, [{"y": b[0]}, b[1], b[2]]),  # another form
        lambda a, b: (a, [(y, n) for n, y in enumerate(b)]),  # other values
    ],
    ids=["outputs", "targets", "constants", "numbers", "forms", "values"],
)
def test_batches_that_differ_in_more_come_in_two_lists(change: Callable[..., Any]) -> None:
    given = change(rows(2), rows(2, 5))
    outputs, targets = called(*given)
    for listed, batches in ((outputs, given[0]), (targets, given[1])):
        assert isinstance(listed, list)
        assert len(listed) == 3
        for mine, theirs in zip(listed, batches, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


def test_one_batch_comes_as_it_is() -> None:
    outputs, targets = called([(torch.zeros(3, 2), torch.tensor(1.0))], [[{"boxes": torch.zeros(2, 4)}] * 3], (3,))
    assert [tuple(tensor.shape) for tensor in outputs] == [(3, 2), ()]
    assert [tuple(entry["boxes"].shape) for entry in targets] == [(2, 4)] * 3


@pytest.mark.parametrize("sizes", [(4,), (3, 1)])
def test_what_a_metric_does_to_them_stays_with_it(sizes: tuple[int, ...]) -> None:
    outputs, targets = (rows(2, sizes=sizes) for _ in range(2))
    before = [tensor.clone() for tensor in (*outputs, *targets)]
    for tensor in outputs:
        tensor.requires_grad_()

    def metric(o: Tensor, t: Tensor) -> Tensor:
        assert not o.requires_grad
        return o.zero_().sum() + t.zero_().sum()

    runs = [Run(n, n / 4, o, t) for n, o, t in zip(sizes, outputs, targets, strict=True)]
    assert value_of_metric(metric, runs) == 0
    assert all(map(torch.equal, (*outputs, *targets), before))


def test_a_loss_that_compares_with_the_original_leaves_the_metric_the_callers_targets() -> None:
    outputs, y = rows(2), [torch.arange(n) for n in SIZES]
    assert torch.equal(called(outputs, [Kept(o, None, t) for o, t in zip(outputs, y, strict=True)])[1], torch.cat(y))
    assert called(outputs, [Kept(o, None) for o in outputs])[1] is None


@dataclass
class Returned:
    """What PyTorch does not look into."""

    logits: Tensor
    cache: Tensor | None = None


def test_objects_hold_the_outputs_of_all_samples() -> None:
    a = rows(2)
    outputs, _ = called([Returned(x) for x in a], [None] * 3)
    assert isinstance(outputs, Returned)
    assert torch.equal(outputs.logits, torch.cat(a))
    assert outputs.cache is None
    listed, _ = called([Returned(x, torch.zeros(n)) for n, x in enumerate(a, 5)], [None] * 3)
    assert [type(each) for each in listed] == [Returned] * 3
    assert all(torch.equal(each.logits, x) for each, x in zip(listed, a, strict=True))


# ---------------------------------------------------------------- what it gives


@pytest.mark.parametrize(
    "value",
    [0.25, Fraction(1, 4), np.float32(0.25), torch.tensor(0.25), torch.tensor([[0.25]]), torch.tensor(0.25).half()],
    ids=repr,
)
def test_one_number_is_a_metric(value: Any) -> None:
    got = value_of_metric(lambda *_: value, [Run(1, 1.0, torch.zeros(1), None)])
    assert got == 0.25
    assert isinstance(got, float)
    assert value_of_metric(lambda *_: -3, [Run(1, 1.0, torch.zeros(1), None)]) == -3


@pytest.mark.parametrize(
    ("value", "got"),
    [
        (math.nan, "nan"), (-math.inf, "-inf"), (torch.tensor(math.inf), "inf"), (None, "None"), (True, "True"),
        ("high", "'high'"), (torch.zeros(3), "a tensor of shape (3,)"), ([0.5], "list"), (1j, "1j"),
        (torch.tensor(1j), "a tensor of shape ()"), (np.zeros(2), "ndarray"),
    ],
    ids=repr,
)  # fmt: skip
def test_anything_else_is_refused(value: Any, got: str) -> None:
    def bleu(outputs: Any, targets: Any) -> Any:
        return value

    with pytest.raises(DataError) as caught:
        value_of_metric(bleu, [Run(1, 1.0, torch.zeros(1), None)])
    assert str(caught.value) == f"metric bleu: expected one finite number for the data, got {got}"


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("no such class\nmore"), "ValueError: no such class"),
        (KeyError(), "KeyError: KeyError"),
        (DataError("of its own"), "DataError: of its own"),
    ],
)
def test_a_metric_that_fails_is_one_error(error: Exception, text: str) -> None:
    class Failing:
        def __call__(self, *_: Any) -> float:
            raise error

    with pytest.raises(DataError) as caught:
        value_of_metric(Failing(), [Run(1, 1.0, torch.zeros(1), None)])
    assert str(caught.value) == f"metric Failing: it fails on this data ({text})"


@pytest.mark.parametrize(("metric", "got"), [(3, "3"), ("accuracy", "'accuracy'"), (Recorder, "the class Recorder")])
def test_what_is_no_function_is_refused(metric: Any, got: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        require_metric(metric)
    expected = "metric: expected a function of outputs and targets that returns a number"
    assert str(caught.value).startswith(f"{expected}, got {got}")
    assert require_metric(None) is None


# ---------------------------------------------------------------- beside the loss


def network() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double(), torch.randn(9, 3).double()
    return model, x, torch.tensor([0, 1, 1] * 3)


def test_it_is_measured_of_the_gated_network_with_loss_and_accuracy() -> None:
    model, x, y = network()
    batches, metric, g = [(x[:4], y[:4]), (x[4:], y[4:])], Recorder(), torch.tensor([1.0, 0, 1, 0]).double()
    units = find_units(model, x)
    gated = GatedLoss(model, units, batches, "cross_entropy", metric=metric)
    plain = GatedLoss(model, units, batches, "cross_entropy").measure(g)
    assert gated.measure(g) == plain._replace(metric=0.5)
    assert plain == Quality(plain.loss, plain.accuracy, None, 9)
    ((outputs, targets),) = metric.calls
    expected = model[2](model[1](model[0](x)) * g)
    assert (outputs - expected).abs().max() < 1e-12
    assert torch.equal(targets, y)


@pytest.mark.parametrize("loss", ["output", "distribution"])
@pytest.mark.parametrize("form", ["pair", "batches", "labels"])
def test_targets_beside_inputs_reach_the_metric_where_the_loss_needs_none(loss: str, form: str) -> None:
    model, x, y = network()
    data: Any = {
        "pair": (x, y), "batches": [(x[:4], y[:4]), (x[4:], y[4:])],
        "labels": [{"input": x[:4], "labels": y[:4]}, {"input": x[4:], "labels": y[4:]}],
    }[form]  # fmt: skip
    metric = Recorder()
    question = Question(model, data, loss).measuring(metric)
    assert question.judge.measure(question.ones).metric == 0.5
    assert torch.equal(metric.calls[0][1], y)
    held = question.holding_back()
    held.judge.measure(held.ones)
    assert torch.equal(metric.calls[1][1], y[4::5])
    unlabelled = Question(model, x, loss).measuring(metric)
    unlabelled.judge.measure(unlabelled.ones)
    assert metric.calls[2][1] is None


def test_names_for_each_sample_are_held_back_with_them() -> None:
    model, x, _ = network()
    metric = Recorder()
    question = Question(model, [(x, list("abcdefghi"))], "output").measuring(metric).holding_back()
    question.judge.measure(question.ones)
    assert metric.calls[0][1] == ["e"]


@pytest.mark.parametrize("given", [{"loss": None}, {"data": None}])
def test_there_is_none_without_data_or_loss(given: dict[str, Any]) -> None:
    model, x, y = network()
    with pytest.raises(ArgumentError) as caught:
        Question(model, **{"data": (x, y), "loss": "cross_entropy"} | given, units=find_units(model, x)).measuring(len)
    assert str(caught.value) == "metric: is measured where the loss is, and needs data and a loss"


def test_the_question_of_another_model_has_the_same_metric() -> None:
    model, x, y = network()
    question, metric = Question(model, (x, y), "output"), Recorder()
    other = question.measuring(metric).for_model(model, None)
    other.judge.measure(ones(model, other.units))
    assert torch.equal(metric.calls[0][1], y)
    assert question.metric is None
    assert question.judge.measure(question.ones).metric is None
