"""A question asked of a network: checked before the model is captured, made once, judged on the samples told."""

from typing import Any

import pytest
import torch
from torch import nn

from cases import CASES
from secateur import find_units
from secateur.errors import ArgumentError, DataError, ModelError
from secateur.objective.gated_loss import GatedLoss
from secateur.objective.question import Question
from secateur.objective.unlabelled import MoreInputs

CASE = CASES["branches"]()


def asked(**options: Any) -> Question:
    return Question(CASE.model, (CASE.x, CASE.y), "cross_entropy", **options)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"model": None}, "model: expected"),
        ({"seed": "a"}, "seed: expected"),
        ({"loss": "hinge"}, "unknown loss 'hinge'"),
        ({"max_memory": 0}, "max_memory: expected a size above 0, got 0"),
    ],
)
def test_what_can_be_told_without_the_graph_is_refused_at_once(change: dict[str, Any], text: str) -> None:
    def not_called(*_: Any) -> None:
        pytest.fail("the model was called")

    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    model.register_forward_pre_hook(not_called)
    arguments = {"model": model, "data": None, "loss": "squared_error"} | change
    with pytest.raises(ArgumentError, match=text):
        Question(**arguments)


def test_units_are_found_with_the_first_batch_or_taken_as_they_are() -> None:
    units = find_units(CASE.model, CASE.x)
    assert asked(units=units).units is units
    assert asked().units.places == units.places
    assert asked(example_inputs=CASE.x[:1]).units.places == units.places


def test_a_model_without_units_is_refused_where_they_are_needed_only() -> None:
    question = Question(nn.Linear(2, 1), (torch.ones(2, 2), torch.ones(2, 1)), "squared_error")
    assert len(question.all_units) == 0
    with pytest.raises(ModelError, match="no removable units"):
        question.units  # noqa: B018


def test_without_validation_the_data_judge_and_e_is_made_once() -> None:
    question = asked()
    assert question.judged_on == "data"
    assert question.judge is question.gated
    assert question.samples == len(CASE.x)


def test_validation_judges_with_the_same_graph() -> None:
    question = asked(validation=(CASE.x[:3], CASE.y[:3]))
    assert question.judged_on == "validation"
    assert question.samples == 3
    assert question.judge.graph is question.gated.graph
    expected = GatedLoss(CASE.model, question.units, (CASE.x[:3], CASE.y[:3]), "cross_entropy")
    assert question.judge.measure(question.ones) == expected.measure(question.ones)


def test_samples_held_back_judge_what_the_others_are_fitted_to() -> None:
    question, n = asked(), len(CASE.x)
    parted = question.holding_back()
    assert (parted.judged_on, question.judged_on) == ("held back", "data")
    assert parted.samples == n // 5
    assert sum(batch.size for batch in parted.gated.batches) == n - n // 5
    assert question.samples == n


def test_too_few_samples_to_hold_any_back_are_refused() -> None:
    with pytest.raises(DataError, match="fewer than 5 samples"):
        Question(CASE.model, (CASE.x[:4], CASE.y[:4]), "cross_entropy").holding_back()


def test_the_question_of_another_model_keeps_all_but_the_model() -> None:
    question = asked(validation=(CASE.x[:3], CASE.y[:3]), seed=5, max_memory="1 GB")
    model = CASES["branches"]().model
    again = question.for_model(model, None)
    assert again.model is model
    assert (again.seed, again.max_memory, again.judged_on) == (5, "1 GB", "validation")
    assert again.samples == 3
    assert again.units.places == question.units.places


def test_inputs_beside_the_data_are_for_calibration_alone() -> None:
    question = asked()
    assert question.calibration is question.gated
    more = asked().with_more(MoreInputs([CASE.x[:3], CASE.x[:4]]))
    n = len(CASE.x)
    assert (more.calibration.samples, more.gated.samples, more.samples) == (n + 7, n, n)
    assert more.calibration.graph is more.gated.graph
    parted = more.holding_back()  # though calibration was made before
    assert (parted.calibration.samples, parted.samples) == (n - n // 5 + 7, n // 5)
    again = more.for_model(CASES["branches"]().model, None)
    assert again.calibration.samples == n + 7
