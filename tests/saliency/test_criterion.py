"""Criteria of the user's own: as functions, by their decorator, by entry points of other packages."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from installed import install, run_commands
from secateur.errors import ArgumentError, DataError, ModelError
from secateur.saliency.criterion import Criterion, as_criterion, criteria
from secateur.saliency.units.oracle import oracle
from secateur.saliency.weights.obd import obd

HERE = re.escape(__file__)


def small() -> tuple[nn.Sequential, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    return model, (torch.randn(8, 3).double(), torch.tensor([0, 1] * 4))


def by_index(gated: Any, g: Tensor) -> Tensor:
    """The last unit first."""
    return torch.arange(len(g), 0, -1).float()


def score(criterion: Any, **options: Any) -> dict[str, Tensor]:
    model, data = small()
    return sc.score(model, data, "cross_entropy", criterion=criterion, **options)


# ------------------------------------------------------------ one registry


def test_criteria_of_units_and_of_weights_are_kept_apart() -> None:
    units, weights = criteria(), criteria("weight")
    assert {"obs", "magnitude", "random"} <= units.keys() & weights.keys()
    assert "obd" in weights.keys() - units.keys()
    assert {one.granularity for one in units.values()} == {"unit"}
    assert {one.granularity for one in weights.values()} == {"weight"}
    assert list(weights) == sorted(weights)


@pytest.mark.parametrize(
    ("granularity", "start"),
    [("unit", "criterion 'obs' is taken by secateur.saliency.units.obs.obs"),
     ("weight", "weight criterion 'obs' is taken by secateur.saliency.weights.obs.obs")],
)  # fmt: skip
def test_a_name_that_is_taken_is_refused(granularity: Any, start: str) -> None:
    before = criteria(granularity)["obs"]
    with pytest.raises(ArgumentError, match=rf"^{start} \(line \d+ of .*\); .*by_index .* needs another name$"):
        sc.criterion("obs", granularity)(by_index)
    assert criteria(granularity)["obs"] is before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((by_index,), "expected a name, as in @secateur.criterion('mine'), got <function by_index"),
        (("",), "expected a name, as in @secateur.criterion('mine'), got ''"),
        (("mine", "layer"), "unknown granularity 'layer'; one of: unit, weight"),
        (("mine", "unit", "labels"), "unknown needs 'labels'; one of: nothing, data, loss"),
    ],
)
def test_a_criterion_that_is_none_is_refused(arguments: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=re.escape(message)):
        sc.criterion(*arguments)


# ------------------------------------------------------------ functions


def test_a_function_is_taken_wherever_a_name_is() -> None:
    model, data = small()
    assert score(by_index)["0"].tolist() == [4.0, 3.0, 2.0, 1.0]
    assert score(by_index)["0"].dtype == torch.float64
    for ranking in ("single", "iterative"):
        plan = sc.rank(model, data, "cross_entropy", criterion=by_index, ranking=ranking, progress=False)
        assert [step.index for step in plan.steps] == [3, 2, 1]
        assert [step.predicted for step in plan.steps] == [1.0, 2.0, 3.0]
        assert plan.criterion == "by_index"
        assert sc.Plan.from_json(plan.to_json()) == plan
    result = sc.shrink(model, data, "cross_entropy", sc.Budget(remove_units=2), criterion=by_index, progress=False)
    assert result.plan.kept == {"0": (0, 1)}
    assert result.plan.criterion == "by_index"


def test_a_function_that_was_decorated_is_its_own_criterion() -> None:
    assert as_criterion(oracle) is criteria()["oracle"]
    assert as_criterion(criteria()["oracle"]) is criteria()["oracle"]
    assert score(oracle)["0"].equal(score("oracle")["0"])


class Weighted:
    def __call__(self, gated: Any, g: Tensor) -> Tensor:
        return by_index(gated, g)

    def method(self, gated: Any, g: Tensor) -> Tensor:
        return by_index(gated, g)


@pytest.mark.parametrize(
    ("function", "name"),
    [(lambda gated, g: by_index(gated, g), "<lambda>"), (partial(by_index), "by_index"), (Weighted(), "Weighted"),
     (Weighted().method, "method")],
)  # fmt: skip
def test_functions_of_every_kind_have_a_name(function: Any, name: str) -> None:
    assert as_criterion(function) == Criterion(name, function)
    assert score(function)["0"].tolist() == [4.0, 3.0, 2.0, 1.0]


def test_a_function_with_the_name_of_a_criterion_is_refused() -> None:
    def magnitude(gated: Any, g: Tensor) -> Tensor:
        return g

    where = rf"magnitude \(line \d+ of {HERE}\) has the name of secateur\.saliency\.units\.m"
    with pytest.raises(ArgumentError, match=where):
        score(magnitude)


def test_a_criterion_of_weights_is_none_of_units() -> None:
    with pytest.raises(ArgumentError, match=r"^criterion 'obd' judges weights, not units$"):
        score(obd)
    with pytest.raises(ArgumentError, match=r"^criterion 'oracle' judges units, not weights$"):
        score(oracle, granularity="weight")


def test_a_quadratic_ranking_takes_no_function() -> None:
    model, data = small()
    with pytest.raises(
        ArgumentError, match="takes a criterion with interactions: ggn, fisher, hessian; got 'by_index'"
    ):
        sc.rank(model, data, "cross_entropy", criterion=by_index, ranking="quadratic", progress=False)


# ------------------------------------------------------------ what it gives


def test_units_that_cannot_be_judged_go_last_and_unpredicted() -> None:
    model, data = small()

    def unsure(gated: Any, g: Tensor) -> Tensor:
        return torch.tensor([float("inf"), 2.0, float("inf"), 1.0])

    assert score(unsure)["0"].tolist() == [float("inf"), 2.0, float("inf"), 1.0]
    assert score(unsure, threshold="mean")["0"].tolist() == [float("inf"), 1.5, float("inf"), 1.0]
    plan = sc.rank(model, data, "cross_entropy", criterion=unsure, progress=False)
    assert [(step.index, step.predicted) for step in plan.steps] == [(3, 1.0), (1, 2.0), (0, None)]


def test_what_is_said_of_units_that_are_gone_does_not_matter() -> None:
    model, data = small()

    def undefined(gated: Any, g: Tensor) -> Tensor:
        return torch.arange(4.0) / g - torch.where(g == 0, torch.inf, 0)

    plan = sc.rank(model, data, "cross_entropy", criterion=undefined, progress=False)
    assert [step.index for step in plan.steps] == [0, 1, 2]


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (None, "gave NoneType; expected a floating-point number for each of 4 units"),
        ([1.0, 2.0, 3.0, 4.0], "gave list; expected"),
        (torch.ones(3), "gave torch.float32 [3]; expected"),
        (torch.ones(4, 1), "gave torch.float32 [4, 1]; expected"),
        (torch.ones(()), "gave torch.float32 []; expected"),
        (torch.ones(4, dtype=torch.long), "gave torch.int64 [4]; expected"),
        (torch.ones(4, dtype=torch.bool), "gave torch.bool [4]; expected"),
        (torch.tensor([1.0, 2.0, -torch.inf, 3.0]), "gave -inf; a unit that it cannot judge is worth inf"),
    ],
    ids=str,
)
def test_what_is_no_saliency_is_refused(result: object, message: str) -> None:
    def mine(gated: Any, g: Tensor) -> object:
        return result

    with pytest.raises(ArgumentError, match=re.escape(f"criterion 'mine' {message}")):
        score(mine)


def test_nan_is_refused() -> None:
    def mine(gated: Any, g: Tensor) -> Tensor:
        return g / 0 * 0

    with pytest.raises(
        DataError, match=r"^criterion 'mine' gave NaN: what it cannot judge is worth inf; or the loss or"
    ):
        score(mine)


# ------------------------------------------------------------ what goes wrong in it


def test_an_error_in_it_is_shown_as_its_own() -> None:
    def mine(gated: Any, g: Tensor) -> Tensor:
        return {}["key"]

    with pytest.raises(
        ArgumentError, match=rf"^criterion 'mine' failed \(KeyError: 'key'\); it is .* of {HERE}\)$"
    ) as e:
        score(mine)
    assert isinstance(e.value.__cause__, KeyError)


def test_what_the_package_refuses_within_it_is_passed_on() -> None:
    def mine(gated: Any, g: Tensor) -> Tensor:
        raise ModelError("no such network")

    with pytest.raises(ModelError, match=r"^no such network$"):
        score(mine)


def test_an_error_in_a_loss_is_not_shown_as_that_of_a_criterion_of_the_package() -> None:
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return {}["key"]

    model, data = small()
    with pytest.raises(Exception, match="key") as caught:
        sc.score(model, data, loss, criterion="oracle")
    assert "criterion" not in str(caught.value)


# ------------------------------------------------------------ of weights


def ones_of(weights: Any) -> dict[str, Tensor]:
    return {name: torch.ones_like(u) for name, u in weights.present().items()}


def test_a_function_of_weights_is_taken_wherever_a_name_is() -> None:
    def last(weights: Any) -> dict[str, Tensor]:
        return {name: -torch.arange(u.numel()).reshape(u.shape).float() for name, u in weights.present().items()}

    scores = score(last, granularity="weight")
    assert {name: values.shape for name, values in scores.items()} == {"0.weight": (4, 3), "2.weight": (2, 4)}
    assert scores["2.weight"].tolist() == [[0, -1, -2, -3], [-4, -5, -6, -7]]
    assert scores["0.weight"].dtype == torch.float64
    model, data = small()
    budget = sc.Budget(remove_units=3)
    result = sc.shrink(model, data, "cross_entropy", budget, criterion=last, granularity="weight", progress=False)
    assert result.plan.criterion == "last"
    assert result.plan.kept["0.weight"] == tuple(range(9))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _: None, "gave NoneType; expected a dict with a floating-point tensor [4, 3] under '0.weight'"),
        (
            lambda found: {"0.weight": found["0.weight"]},
            "gave dict; expected a dict with a floating-point tensor [2, 4]",
        ),
        (
            lambda found: found | {"2.weight": torch.ones(4, 2)},
            "gave torch.float32 [4, 2]; expected a dict with a floa",
        ),
        (
            lambda found: found | {"2.weight": torch.ones(2, 4).int()},
            "gave torch.int32 [2, 4]; expected a dict with a f",
        ),
        (lambda found: found | {"2.weight": -torch.inf * torch.ones(2, 4)}, "gave -inf; a weight that it cannot judge"),
    ],
    ids=["nothing", "one lacks", "another shape", "integers", "-inf"],
)
def test_what_is_no_saliency_of_weights_is_refused(change: Callable[[Any], Any], message: str) -> None:
    def mine(weights: Any) -> Any:
        return change(ones_of(weights))

    with pytest.raises(ArgumentError, match=re.escape(f"criterion 'mine' {message}")):
        score(mine, granularity="weight")


def test_an_error_in_one_of_weights_is_shown_as_its_own() -> None:
    def mine(weights: Any) -> Any:
        raise RuntimeError("broken")

    with pytest.raises(ArgumentError, match=r"^criterion 'mine' failed \(RuntimeError: broken\)"):
        score(mine, granularity="weight")


# ------------------------------------------------------------ other packages

OTHERS = """
import torch
import secateur as sc

@sc.criterion("theirs", needs="nothing", in_loss_units=False)
def theirs(gated, g):
    return g.cumsum(0).index_fill(0, torch.tensor([0]), float("inf"))

@sc.criterion("theirs", "weight", needs="nothing", in_loss_units=False)
def of_weights(weights):
    return {name: -u for name, u in weights.present().items()}
"""
MAKE = """
import torch
def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
def data():
    return torch.ones(4, 3), torch.tensor([0, 1, 0, 1])
"""


SCORE = "score makes:network --data makes:data --criterion"


def test_criteria_of_other_packages_are_found_on_the_command_line(tmp_path: Path) -> None:
    install(tmp_path, "others", {"others": OTHERS, "makes": MAKE}, {"secateur.criteria": {"all": "others:theirs"}})
    units, weights = run_commands(
        tmp_path, f"{SCORE} theirs --json", f"{SCORE} theirs --granularity weight --json"
    )  # fmt: skip
    assert (units[0], weights[0]) == (0, 0)
    assert json.loads(units[1]) == {"0": [None, 2.0, 3.0, 4.0]}
    assert {name: len(rows) for name, rows in json.loads(weights[1]).items()} == {"0.weight": 4, "2.weight": 2}
    assert "Warning" not in units[2]


def test_a_package_that_is_broken_is_named_and_takes_no_other_down(tmp_path: Path) -> None:
    install(tmp_path, "others", {"others": OTHERS, "makes": MAKE}, {"secateur.criteria": {"all": "others"}})
    install(tmp_path, "broken", {"broken": OTHERS}, {"secateur.criteria": {"again": "broken"}})
    known, unknown = run_commands(tmp_path, f"{SCORE} magnitude --json", f"{SCORE} best")
    assert known[0] == 0
    taken = "failed (ArgumentError: criterion 'theirs' is taken by broken.theirs"
    assert "RuntimeWarning: entry point 'all' of others, group 'secateur.criteria', " + taken in known[2]
    assert unknown[0] == 2
    assert "secateur: unknown criterion 'best'; one of: activation," in unknown[2]
    assert "theirs; entry point 'all' of others, group 'secateur.criteria', " + taken in unknown[2]
