"""Shrinking by units, through the public interface alone.

Also covers secateur.result.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import secateur as sc
from cases import CASES, Case
from secateur.errors import ArgumentError, ArtifactError, BudgetError, DataError, InputsError, ModelError, SecateurError
from secateur.planning.plan import Plan
from secateur.result import Result

REMOVABLE = [name for name in CASES if name != "one_unit"]


def shrink(case: Case, budget: Any, **options: Any) -> Result:
    given = {"data": (case.x, case.y), "loss": "cross_entropy", "progress": False, "compensate": False} | options
    return sc.shrink(case.model, budget=budget, **given)


def evaluate(model: nn.Module, x: Tensor, y: Tensor) -> tuple[float, float]:
    with torch.no_grad():
        out = model(x)
    return F.cross_entropy(out, y).item(), (out.argmax(1) == y).sum().item() / len(y)


def snapshot(model: nn.Module) -> list[Any]:
    """Everything that could be changed by accident."""
    return [
        {name: tensor.detach().clone() for name, tensor in model.state_dict().items()},
        [id(tensor) for tensor in model.state_dict(keep_vars=True).values()],
        [module.training for module in model.modules()],
        [(p.requires_grad, p.grad) for p in model.parameters()],
        [(dict(m._forward_hooks), sorted(vars(m))) for m in model.modules()],
    ]


def same(before: list[Any], after: list[Any]) -> bool:
    tensors, others = before[0], after[0]
    equal = all(torch.equal(tensors[n].nan_to_num(7), others[n].nan_to_num(7)) for n in tensors)
    return tensors.keys() == others.keys() and equal and before[1:] == after[1:]


# ---------------------------------------------------------------- each budget


def asked(kind: str, order: Plan) -> sc.Budget:
    """A budget of this kind that lies in the middle of an order."""
    middle = order.states[(len(order.steps) + 1) // 2]
    start = order.states[0]
    assert middle.loss is not None
    assert start.loss is not None
    fields: dict[str, Any] = {
        "bytes": {"bytes": middle.bytes},
        "params": {"params": middle.params + 1},
        "remove_fraction": {"remove_fraction": 0.3},
        "remove_units": {"remove_units": 2},
        "max_loss_increase": {"max_loss_increase": max(middle.loss - start.loss, 0.0)},
        "max_accuracy_drop": {"max_accuracy_drop": 0.2},
        "a size and a quality": {"remove_units": 1, "max_loss_increase": 100.0},
    }[kind]
    return sc.Budget(**fields)


def holds(kind: str, budget: sc.Budget, order: Plan, n: int) -> bool:
    """Whether the budget holds after n steps."""
    start, here = order.states[0], order.states[n]
    if kind == "bytes":
        return here.bytes <= budget.bytes  # type: ignore[operator]
    if kind == "params":
        return here.params <= budget.params  # type: ignore[operator]
    if kind == "max_loss_increase":
        return here.loss - start.loss <= budget.max_loss_increase + 1e-12  # type: ignore[operator]
    if kind == "max_accuracy_drop":
        return start.accuracy - here.accuracy <= 0.2 + 1e-12  # type: ignore[operator]
    return n >= {"remove_fraction": -(-3 * sum(order.sizes.values()) // 10), "remove_units": 2}.get(kind, 1)


@pytest.mark.parametrize(
    "kind",
    [
        "bytes",
        "params",
        "remove_fraction",
        "remove_units",
        "max_loss_increase",
        "max_accuracy_drop",
        "a size and a quality",
    ],
)
@pytest.mark.parametrize("name", REMOVABLE)
def test_shrinking_takes_the_prefix_that_the_budget_asks_for_and_proves_it(
    name: str, kind: str, tmp_path: Path
) -> None:
    case = CASES[name]()
    order = sc.rank(case.model, (case.x, case.y), "cross_entropy", criterion="taylor1", progress=False)
    budget = asked(kind, order)
    before = snapshot(case.model)
    result = shrink(case, budget, criterion="taylor1")
    assert same(before, snapshot(case.model))

    good = [n for n in range(len(order.states)) if holds(kind, budget, order, n)]
    n = good[-1] if kind.startswith("max") else good[0]
    assert result.plan == order.prefix(n)
    assert result.after.params == sum(p.numel() for p in result.model.parameters()) == order.states[n].params
    assert result.save(tmp_path / "a.safetensors") == (tmp_path / "a.safetensors").stat().st_size
    assert result.after.bytes == (tmp_path / "a.safetensors").stat().st_size == order.states[n].bytes
    for sizes, model in ((result.before, case.model), (result.after, result.model)):
        loss, accuracy = evaluate(model, case.x, case.y)
        assert sizes.loss == pytest.approx(loss, abs=1e-10)
        assert sizes.accuracy == accuracy
    assert 0 <= result.max_difference < 1e-10


@pytest.mark.parametrize("scope", ["global", "set"])
def test_a_share_is_of_all_units_or_of_each_set(scope: Any) -> None:
    case = CASES["branches"]()
    result = shrink(case, sc.Budget(remove_fraction=0.5, scope=scope), criterion="magnitude")
    left = {name: len(kept) for name, kept in result.plan.kept.items()}
    assert sum(left.values()) == 5
    if scope == "set":
        assert left == {"left": 3, "right": 2}


def test_what_is_protected_is_whole_in_the_result() -> None:
    case = CASES["branches"]()
    result = shrink(case, sc.Budget(remove_units=3, protect="le*"))
    assert result.plan.kept["left"] == (0, 1, 2, 3, 4, 5)
    assert torch.equal(result.model.left.weight, case.model.left.weight)  # type: ignore[arg-type, union-attr]
    assert len(result.plan.kept["right"]) == 1


# ---------------------------------------------------------------- the result


def test_without_compensation_the_defaults_are_the_oracle_ranked_again_after_each_removal() -> None:
    case = CASES["branches"]()
    result = shrink(case, sc.Budget(remove_units=4))
    assert (result.plan.criterion, result.plan.ranking) == ("oracle", "iterative")
    explicit = shrink(case, sc.Budget(remove_units=4), criterion="oracle", ranking="iterative", threshold=None, seed=0)
    assert explicit.plan == result.plan
    ranked = sc.rank(case.model, (case.x, case.y), "cross_entropy", progress=False)
    assert ranked.prefix(4) == result.plan


def test_the_curve_has_one_row_per_step() -> None:
    case = CASES["branches"]()
    result = shrink(case, sc.Budget(remove_units=4), criterion="taylor1")
    assert [row.removed for row in result.curve] == [1, 2, 3, 4]
    for n, row in enumerate(result.curve, 1):
        small = sc.cut(case.model, result.plan.prefix(n))
        loss, accuracy = evaluate(small, case.x, case.y)
        assert row.loss == pytest.approx(loss, abs=1e-10)
        assert (row.accuracy, row.params) == (accuracy, sum(p.numel() for p in small.parameters()))
        assert row.bytes == result.plan.steps[n - 1].bytes
    assert result.curve[-1].bytes == result.after.bytes
    measured = sc.measure(case.model, case.x)
    assert (result.before.params, result.before.bytes) == (measured.params, result.plan.states[0].bytes)
    assert (result.before.macs, result.before.ram) == (measured.macs, measured.ram)
    after = sc.measure(result.model, case.x)
    assert (result.after.params, result.after.macs, result.after.ram) == (after.params, after.macs, after.ram)
    assert result.after.ram < result.before.ram


def test_the_weights_that_stay_are_the_same_bit_by_bit() -> None:
    case = CASES["branches"]()
    result = shrink(case, sc.Budget(remove_units=5))
    left, right = (torch.tensor(result.plan.kept[name]) for name in ("left", "right"))
    old, new = case.model.state_dict(), result.model.state_dict()
    wanted = {
        "left.weight": old["left.weight"][left],
        "left.bias": old["left.bias"][left],
        "right.weight": old["right.weight"][right],
        "right.bias": old["right.bias"][right],
        "back.weight": old["back.weight"][left][:, right],
        "back.bias": old["back.bias"][left],
        "shared.weight": old["shared.weight"][left][:, left],
        "shared.bias": old["shared.bias"][left],
        "last.weight": old["last.weight"][:, torch.cat([left, 6 + right, 10 + left])],
        "last.bias": old["last.bias"],
    }
    assert new.keys() == wanted.keys()
    assert all(torch.equal(new[name], wanted[name]) for name in wanted)


def test_a_result_reads_as_its_plan_its_sizes_and_its_proof() -> None:
    case = CASES["two_hidden"]()
    result = shrink(case, sc.Budget(remove_units=2))
    text = str(result)
    assert text.startswith(str(result.plan))
    assert text.splitlines()[-4:] == [
        f"before  {result.before}",
        f"after   {result.after}",
        f"cut and gated differ by {result.max_difference:.1e}",
        f"the network is a {type(case.model).__name__}, as it was; proven for 6 and 2 samples",
    ]


def test_a_result_is_cut_again_from_its_plan_and_loaded_from_its_file(tmp_path: Path) -> None:
    case = CASES["normalised"]()
    result = shrink(case, sc.Budget(remove_fraction=0.4))
    result.save(tmp_path / "a.safetensors")
    wanted = result.model(case.x)
    assert torch.equal(sc.cut(case.model, Plan.from_json(result.plan.to_json()))(case.x), wanted)
    assert torch.equal(sc.load(tmp_path / "a.safetensors", CASES["normalised"]().model)(case.x), wanted)


def test_nothing_to_remove_within_the_quality_is_a_copy() -> None:
    case = CASES["one_hidden"]()
    with torch.no_grad():
        data = case.x, case.model(case.x)
    result = shrink(case, sc.Budget(max_loss_increase=1e-12), data=data, loss=F.mse_loss)
    assert result.plan.steps == ()
    assert result.curve == ()
    assert result.before == result.after
    assert torch.equal(result.model(case.x), case.model(case.x))


# ---------------------------------------------------------------- forms of data and models


class Keywords(nn.Module):
    """Keyword inputs, a dict of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 6), nn.Linear(2, 6), nn.Linear(6, 3)

    def forward(self, *, x: Tensor, extra: Tensor, scale: float = 1.0) -> dict[str, Tensor]:
        h = torch.tanh(self.a(x) + self.b(extra))
        return {"hidden": x * scale, "logits": self.c(h)}


@pytest.fixture
def keywords() -> tuple[nn.Module, dict[str, Tensor], Tensor]:
    torch.manual_seed(0)
    model = Keywords().double()
    return model, {"x": torch.randn(6, 3).double(), "extra": torch.randn(6, 2).double()}, torch.randint(0, 3, (6,))


@pytest.mark.parametrize("form", ["pair", "batches", "hugging face", "example", "example in another order"])
def test_keyword_inputs_and_a_dict_with_logits_are_taken(
    form: str, keywords: tuple[nn.Module, dict[str, Tensor], Tensor], tmp_path: Path
) -> None:
    model, inputs, y = keywords
    data: Any = {
        "batches": [({n: t[:4] for n, t in inputs.items()}, y[:4]), ({n: t[4:] for n, t in inputs.items()}, y[4:])],
        "hugging face": [inputs | {"labels": y}],
    }.get(form, (inputs, y))
    example = {"example": inputs, "example in another order": dict(reversed(inputs.items()))}.get(form)
    result = sc.shrink(
        model,
        data,
        "cross_entropy",
        sc.Budget(remove_units=3),
        example_inputs=example,
        progress=False,
        compensate=False,
    )
    with torch.no_grad():
        logits = result.model(**inputs)["logits"]
        kept = torch.tensor(result.plan.kept["a"])
        h = torch.tanh(model.a(inputs["x"]) + model.b(inputs["extra"]))[:, kept]  # type: ignore[operator]
        wanted = h @ model.c.weight[:, kept].T + model.c.bias  # type: ignore[index, union-attr, operator]
    assert (logits - wanted).abs().max() <= 1e-12
    assert result.after.loss == pytest.approx(F.cross_entropy(wanted, y).item(), abs=1e-12)
    assert result.after.accuracy == (wanted.argmax(1) == y).sum().item() / len(y)
    result.save(tmp_path / "a.safetensors")
    assert torch.equal(sc.load(tmp_path / "a.safetensors", Keywords().double())(**inputs)["logits"], logits)


@pytest.mark.parametrize("wrap", [tuple, list])
def test_outputs_in_a_tuple_and_several_positional_inputs_are_taken(wrap: Callable[[Any], Any]) -> None:
    class Several(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor, y: Tensor) -> Any:
            h = torch.relu(self.a(x) + self.a(y))
            return wrap((self.b(h), x))

    torch.manual_seed(0)
    model, x, y = Several().double(), torch.randn(5, 3).double(), torch.randn(5, 3).double()
    targets = torch.tensor([0, 1, 1, 0, 1])
    loss = lambda o, t: F.cross_entropy(o[0], t)  # noqa: E731
    result = sc.shrink(model, ((x, y), targets), loss, sc.Budget(remove_units=3), progress=False)
    assert result.after.loss == pytest.approx(F.cross_entropy(result.model(x, y)[0], targets).item(), abs=1e-12)
    assert isinstance(result.model(x, y), wrap)  # type: ignore[arg-type]


def test_a_dict_given_as_example_inputs_needs_no_data() -> None:
    model = Keywords().double()
    example = {"x": torch.zeros(2, 3), "extra": torch.zeros(2, 2)}
    result = sc.shrink(
        model, None, None, sc.Budget(params=40), example_inputs=example, criterion="magnitude", progress=False
    )
    assert result.after.params <= 40 < result.before.params
    assert (result.after.loss, result.curve[0].loss, result.before.accuracy) == (None, None, None)


def test_loss_and_accuracy_are_measured_on_validation_data_and_decide_the_budget() -> None:
    case = CASES["two_hidden"]()
    torch.manual_seed(1)
    other = torch.randn(9, 5).double(), torch.randint(0, 3, (9,))
    budget = sc.Budget(max_loss_increase=0.02)
    result = shrink(case, budget, validation=other)
    order = sc.rank(case.model, (case.x, case.y), "cross_entropy", progress=False)
    losses = [evaluate(sc.cut(case.model, order.prefix(n)), *other)[0] for n in range(9)]
    n = max(n for n in range(9) if losses[n] - losses[0] <= 0.02)
    assert [(s.set, s.index) for s in result.plan.steps] == [(s.set, s.index) for s in order.steps[:n]]
    assert result.plan != shrink(case, budget).plan
    assert result.after.loss == pytest.approx(losses[n], abs=1e-10)
    assert [row.loss for row in result.curve] == pytest.approx(losses[1 : n + 1], abs=1e-10)
    assert result.before.accuracy == evaluate(case.model, *other)[1]


def test_known_units_are_used_and_a_single_sample_is_enough() -> None:
    case = CASES["branches"]()
    units = sc.find_units(case.model, case.x)
    assert shrink(case, sc.Budget(remove_units=2), units=units).plan == shrink(case, sc.Budget(remove_units=2)).plan
    one = shrink(case, sc.Budget(remove_units=2), data=(case.x[:1], case.y[:1]))
    assert len(one.plan.steps) == 2


def test_float32_data_is_taken_for_a_float64_model() -> None:
    case = CASES["two_hidden"]()
    result = shrink(case, sc.Budget(remove_units=2), data=(case.x.float(), case.y))
    wanted = shrink(case, sc.Budget(remove_units=2), data=(case.x.float().double(), case.y))
    assert [row.loss for row in result.curve] == [row.loss for row in wanted.curve]
    assert {p.dtype for p in result.model.parameters()} == {torch.float64}


# ---------------------------------------------------------------- quiet, and without traces


@pytest.mark.parametrize("progress", [True, False])
def test_nothing_is_written_to_stdout(progress: bool, capfd: pytest.CaptureFixture[str]) -> None:
    shrink(CASES["two_hidden"](), sc.Budget(remove_units=3), progress=progress)
    out, err = capfd.readouterr()
    assert out == ""
    assert progress or err == ""


@pytest.mark.parametrize("criterion", ["random", "oracle"])
def test_the_states_of_random_numbers_are_left(criterion: str) -> None:
    case = CASES["normalised"]()
    case.model.train()
    states = torch.random.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    grad, dtype = torch.is_grad_enabled(), torch.get_default_dtype()
    shrink(case, sc.Budget(remove_units=3), criterion=criterion)
    assert torch.equal(states[0], torch.random.get_rng_state())
    assert states[1:] == (random.getstate(), np.random.get_state()[1].tolist())
    assert (grad, dtype) == (torch.is_grad_enabled(), torch.get_default_dtype())
    assert case.model.training


def test_the_same_call_gives_the_same_result() -> None:
    first, second = (shrink(CASES["branches"](), sc.Budget(remove_units=4), criterion="random") for _ in range(2))
    assert (first.plan, first.curve, first.after) == (second.plan, second.curve, second.after)
    other = shrink(CASES["branches"](), sc.Budget(remove_units=4), criterion="random", seed=5)
    assert other.plan.steps != first.plan.steps


# ---------------------------------------------------------------- errors


class Branching(nn.Module):
    """Its forward looks at values."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x)) if x.sum() > 0 else self.a(x))


def broken(name: str, model: nn.Module | None = None) -> nn.Module:
    model = model or CASES["two_hidden"]().model
    with torch.no_grad():
        model.state_dict()[name].view(-1)[1] = torch.nan
    return model


def once(case: Case) -> Iterator[tuple[Tensor, Tensor]]:
    yield case.x, case.y


CASE = CASES["two_hidden"]()
X, Y = CASE.x, CASE.y
NAN = X.clone()
NAN[2, 1] = torch.nan
INFINITE = X.clone()
INFINITE[5, 4] = torch.inf

ERRORS: dict[str, tuple[dict[str, Any], type[SecateurError], str]] = {
    "NaN in weights": ({"model": broken("2.weight")}, ModelError, "2.weight: 1 of 24 values are NaN or infinite"),
    "NaN in a buffer": (
        {"model": broken("1.running_var", CASES["normalised"]().model), "data": (X[:, :4], Y % 2)},
        ModelError,
        "1.running_var: 1 of 6 values are NaN or infinite",
    ),
    "NaN in data": ({"data": (NAN, Y)}, DataError, "data: the inputs of batch 0 hold NaN or infinite values"),
    "infinite data": ({"data": (INFINITE, Y)}, DataError, "data: the inputs of batch 0 hold NaN or infinite values"),
    "NaN later": (
        {"data": [(X, Y), (NAN, Y)]},
        DataError,
        "data: the inputs of batch 1 hold NaN or infinite values",
    ),
    "NaN in targets": (
        {"data": (X, NAN[:, :3]), "loss": "squared_error"},
        DataError,
        "data: the targets of batch 0 hold NaN or infinite values",
    ),
    "NaN in validation": (
        {"validation": (NAN, Y)},
        DataError,
        "validation: the inputs of batch 0 hold NaN or infinite values",
    ),
    "no samples": ({"data": (X[:0], Y[:0])}, DataError, "data: there is no sample in it"),
    "no samples in any batch": ({"data": [(X[:0], Y[:0])] * 3}, DataError, "data: there is no sample in it"),
    "no batch": ({"data": []}, DataError, "data: there is no sample in it"),
    "no validation": ({"validation": []}, DataError, "validation: there is no sample in it"),
    "data read once": (
        {"data": once(CASE)},
        DataError,
        "data: a generator can be read only once; give a list, a DataLoader or a pair of tensors",
    ),
    "no data": ({"data": None}, DataError, "pass units=find_units(model, example_inputs): without data"),
    "data of another form": (
        {"data": X},
        DataError,
        "data: expected (inputs, targets) as tensors, or an iterable of such pairs; got Tensor",
    ),
    "fewer targets": ({"data": (X, Y[:4])}, DataError, "data: 6 inputs, but "),
    "targets too high": (
        {"data": (X, Y + 5)},
        DataError,
        f"cross_entropy: class targets must be in 0 to 2 for 3 outputs, got {int(Y.min()) + 5} to {int(Y.max()) + 5}",
    ),
    "targets below 0": (
        {"data": (X, Y - 3), "loss": "squared_error"},
        DataError,
        f"squared_error: class targets must be in 0 to 2 for 3 outputs, got {int(Y.min()) - 3} to {int(Y.max()) - 3}",
    ),
    "targets no probabilities": (
        {"data": (X, X[:, :3] * 0 + 2), "loss": "binary_cross_entropy"},
        DataError,
        "binary_cross_entropy: targets must be in 0 to 1, got 2 to 2",
    ),
    "a loss per sample": (
        {"loss": lambda o, _: o.sum(1)},
        DataError,
        "loss: expected the mean over the batch, one number, got (6,)",
    ),
    "no loss": ({"loss": None}, DataError, "criterion 'obs' needs a loss; without them: magnitude, random"),
    "file too small": (
        {"budget": sc.Budget(bytes="0.1 kB")},
        BudgetError,
        "Budget(bytes=100) cannot be met: at most 8 of 10 units can be removed, which leaves 14 parameters and a file",
    ),
    "too much to remove": (
        {"budget": sc.Budget(remove_fraction=1.0)},
        BudgetError,
        "Budget(remove_fraction=1.0) cannot be met: at most 8 of 10 units can be removed, which leaves 14 parameters",
    ),
    "quality too high": (
        {
            "data": (X, CASE.model(X).detach()),
            "loss": "squared_error",
            "budget": sc.Budget(remove_units=3, max_loss_increase=1e-9),
        },
        BudgetError,
        "Budget(remove_units=3, max_loss_increase=1e-09) cannot be met: at most 0 of 10 units can be removed "
        "within max_loss_increase=1e-09, which leaves 79 parameters and a file of ",
    ),
    "quality without classes": (
        {"data": (X, X[:, :3]), "loss": "squared_error", "budget": sc.Budget(max_accuracy_drop=0.1)},
        ArgumentError,
        "Budget: max_accuracy_drop needs the accuracy after each step, and it was not measured",
    ),
    "size and quality without classes": (
        {"data": (X, X[:, :3]), "loss": "squared_error", "budget": sc.Budget(remove_units=1, max_accuracy_drop=0.1)},
        ArgumentError,
        "Budget: max_accuracy_drop needs the accuracy after each step, and it was not measured",
    ),
    "nothing to protect": (
        {"budget": sc.Budget(remove_units=1, protect="fc")},
        ArgumentError,
        "Budget: protect='fc' is no unit set; there are: 0, 2",
    ),
    "a number for a budget": ({"budget": 0.5}, ArgumentError, "budget: expected secateur.Budget(...), got 0.5"),
    "no budget": ({"budget": None}, ArgumentError, "budget: expected secateur.Budget(...), got None"),
    "criterion": (
        {"criterion": "best"},
        ArgumentError,
        "unknown criterion 'best'; one of: activation, fisher, ggn, hessian, magnitude, obs, oracle, random, "
        "taylor1, taylor2",
    ),
    "ranking": ({"ranking": "best"}, ArgumentError, "unknown ranking 'best'; one of: single, iterative, quadratic"),
    "threshold": ({"threshold": "max"}, ArgumentError, "unknown threshold 'max'; one of: mean, median"),
    "loss": (
        {"loss": "mse"},
        ArgumentError,
        "unknown loss 'mse'; one of: cross_entropy, binary_cross_entropy, squared_error",
    ),
    "a model that cannot be exported": (
        {"model": Branching().double()},
        ModelError,
        "Branching chooses by the values of tensors what it computes, at ",
    ),
    "inputs that do not fit": (
        {"data": (X[:, :4], Y)},
        InputsError,
        "Sequential does not run on the inputs given, of shape (6, 4): ",
    ),
    "nothing to remove": (
        {"model": nn.Linear(5, 3).double()},
        ModelError,
        "the model has no removable units: weight[0] (3): a model output; weight[1] (5): a model input",
    ),
    "example inputs of another form": (
        {"example_inputs": 5},
        ArgumentError,
        "example_inputs: expected a tensor, a tuple of positional inputs or a dict of keyword inputs, got int",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_says_what_is_wrong_and_leaves_nothing_behind(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    changes, kind, text = ERRORS[name]
    given: dict[str, Any] = {
        "model": CASES["two_hidden"]().model,
        "data": (X, Y),
        "loss": "cross_entropy",
        "budget": sc.Budget(remove_units=3),
    } | changes
    model = given["model"].train()
    before, state = snapshot(model), torch.random.get_rng_state()
    with pytest.raises(kind) as caught:
        sc.shrink(**given)
    assert type(caught.value) is kind
    assert str(caught.value).startswith(text)
    assert same(before, snapshot(model))
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.is_grad_enabled()
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr().out == ""


def test_units_of_another_model_are_refused() -> None:
    case, other = CASES["two_hidden"](), CASES["one_hidden"]()
    with pytest.raises(SecateurError, match="units"):
        shrink(case, sc.Budget(remove_units=3), units=sc.find_units(other.model, other.x))


def test_a_model_that_cannot_be_exported_says_what_to_avoid() -> None:
    with pytest.raises(ModelError) as caught:
        sc.shrink(Branching().double(), (X, Y), "cross_entropy", sc.Budget(remove_units=1), progress=False)
    assert str(caught.value).startswith("Branching chooses by the values of tensors what it computes, at 'return ")


def test_a_path_that_cannot_be_written_is_refused_and_the_result_can_be_saved_elsewhere(tmp_path: Path) -> None:
    result = shrink(CASES["two_hidden"](), sc.Budget(remove_units=3))
    (tmp_path / "file").write_text("here")
    with pytest.raises(ArtifactError) as caught:
        result.save(tmp_path / "file" / "a.safetensors")
    folder = tmp_path / "file"
    assert str(caught.value) == f"{folder / 'a.safetensors'}: cannot be written, there is no folder {folder}"
    with pytest.raises(ArgumentError, match=r"files are written as .* or \.int8\.pte, not as '\.gguf'"):
        result.save(tmp_path / "a.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    result.save(tmp_path / "a.safetensors")
    assert result.after.bytes == (tmp_path / "a.safetensors").stat().st_size
