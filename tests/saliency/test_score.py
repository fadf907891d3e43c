"""Scores of units by every criterion, and what is refused.

Covers secateur.saliency.score.
"""

import copy
from contextlib import suppress
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from cases import CASES, randomise
from secateur import find_units, reference, score
from secateur.errors import ArgumentError, DataError, ModelError, SecateurError
from secateur.objective.losses import cross_entropy
from secateur.saliency.criterion import criteria
from secateur.saliency.score import apply_threshold
from secateur.structure.units import Units

CRITERIA = tuple(criteria())
NEEDS_LOSS = tuple(c.name for c in criteria().values() if c.needs == "loss")
FREE = tuple(c.name for c in criteria().values() if c.needs == "nothing")
REPEATABLE = tuple(name for name in CRITERIA if name != "random")


def small(dtype: torch.dtype = torch.float64) -> tuple[nn.Sequential, Tensor, Tensor]:
    torch.manual_seed(0)
    model = randomise(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).to(dtype))
    return model, torch.randn(5, 3).to(dtype), torch.tensor([0, 1, 1, 0, 1])


def test_these_criteria_are_there_at_least() -> None:
    assert {"oracle", "taylor1", "taylor2", "hessian", "magnitude", "activation", "random"} <= set(CRITERIA)
    assert list(CRITERIA) == sorted(CRITERIA)
    assert set(FREE) >= {"magnitude", "random"}
    assert set(NEEDS_LOSS) >= {"oracle", "taylor1", "taylor2", "hessian"}
    others = {name for name, c in criteria().items() if not c.in_loss_units}
    assert others >= {"magnitude", "activation", "random"}
    assert not others & {"oracle", "taylor1", "taylor2", "hessian"}


@cache
def units_of(name: str) -> Units:
    case = CASES[name]()
    return find_units(case.model, case.x)


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("name", CASES)
def test_every_criterion_scores_every_unit_of_every_network(name: str, criterion: str) -> None:
    case = CASES[name]()
    scores = score(case.model, (case.x, case.y), "cross_entropy", units=units_of(name), criterion=criterion)
    assert {key: tuple(values.shape) for key, values in scores.items()} == {key: (n,) for key, n in case.sets.items()}
    for values in scores.values():
        assert values.dtype == torch.float64
        assert values.device.type == "cpu"
        assert not values.requires_grad
        assert bool(values.isfinite().all())
    assert any(bool((values != 0).any()) for values in scores.values())


def test_without_a_name_the_criterion_is_the_oracle() -> None:
    model, x, y = small()
    expected = reference.leave_one_out(model, find_units(model, x), (x,), y, cross_entropy)
    assert torch.allclose(score(model, (x, y), "cross_entropy")["0"], expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("criterion", ["best", "Oracle", "", 3], ids=repr)
def test_an_unknown_criterion_lists_those_there_are(criterion: Any) -> None:
    model, x, y = small()
    with pytest.raises(ArgumentError) as caught:
        score(model, (x, y), "cross_entropy", criterion=criterion)
    assert str(caught.value) == f"unknown criterion {criterion!r}; one of: {', '.join(CRITERIA)}"
    assert isinstance(caught.value, ValueError)


def test_an_unknown_loss_lists_those_there_are() -> None:
    model, x, y = small()
    with pytest.raises(ArgumentError, match=r"^unknown loss 'mse'; one of: cross_entropy, binary_cross_entropy, squ"):
        score(model, (x, y), "mse")


@pytest.mark.parametrize("criterion", FREE)
def test_data_free_criteria_need_units_alone(criterion: str) -> None:
    model, x, y = small()
    alone = score(model, None, None, units=find_units(model, x), criterion=criterion)
    assert alone["0"].equal(score(model, (x, y), "cross_entropy", criterion=criterion)["0"])


@pytest.mark.parametrize("criterion", CRITERIA)
def test_without_data_and_units_the_inputs_are_unknown(criterion: str) -> None:
    with pytest.raises(DataError) as caught:
        score(small()[0], None, None, criterion=criterion)
    assert str(caught.value) == "pass units=find_units(model, example_inputs): without data the inputs are unknown"


@pytest.mark.parametrize("criterion", NEEDS_LOSS)
@pytest.mark.parametrize("missing", ["data", "a loss", "data and a loss"])
def test_a_criterion_says_what_it_needs(criterion: str, missing: str) -> None:
    model, x, y = small()
    data, loss = None if "data" in missing else (x, y), None if "loss" in missing else "cross_entropy"
    with pytest.raises(DataError) as caught:
        score(model, data, loss, units=find_units(model, x), criterion=criterion)
    assert str(caught.value) == f"criterion {criterion!r} needs {missing}; without them: {', '.join(FREE)}"


def test_activation_needs_data_and_no_loss() -> None:
    model, x, _ = small()
    with pytest.raises(DataError, match=r"^criterion 'activation' needs data; without them: magnitude, random$"):
        score(model, None, None, units=find_units(model, x), criterion="activation")
    assert score(model, (x, None), None, criterion="activation")["0"].shape == (4,)


@pytest.mark.parametrize("criterion", NEEDS_LOSS)
def test_a_named_loss_without_targets_is_refused(criterion: str) -> None:
    model, x, _ = small()
    with pytest.raises(DataError, match="targets"):
        score(model, (x, None), "cross_entropy", criterion=criterion)


@pytest.mark.parametrize(
    ("values", "threshold", "expected"),
    [
        ([1.0, 2.0, 9.0], "mean", [1.0, 2.0, 4.0]),
        ([1.0, 2.0, 9.0], "median", [1.0, 2.0, 2.0]),
        ([9.0, 1.0, 4.0, 2.0], "mean", [4.0, 1.0, 4.0, 2.0]),
        ([9.0, 1.0, 4.0, 2.0], "median", [3.0, 1.0, 3.0, 2.0]),
        ([-3.0, -1.0], "mean", [-3.0, -2.0]),
        ([-3.0, -1.0], "median", [-3.0, -2.0]),
        ([5.0], "mean", [5.0]),
        ([5.0], "median", [5.0]),
        ([2.0, 2.0, 2.0], "median", [2.0, 2.0, 2.0]),
        ([3.0, 1.0, 2.0], None, [3.0, 1.0, 2.0]),
        ([], "mean", []),
        ([], "median", []),
    ],
)
def test_what_is_above_the_threshold_is_replaced_by_it(
    values: list[float], threshold: str, expected: list[float]
) -> None:
    given = torch.tensor(values, dtype=torch.float64)
    assert apply_threshold(given, threshold).tolist() == expected
    assert given.tolist() == values


@pytest.mark.parametrize("threshold", ["mean", "median"])
def test_the_threshold_is_that_of_all_units_together(threshold: str) -> None:
    case = CASES["two_hidden"]()
    plain = score(case.model, (case.x, case.y), "cross_entropy", criterion="hessian")
    together = sorted(torch.cat(list(plain.values())).tolist())
    level = sum(together) / 10 if threshold == "mean" else (together[4] + together[5]) / 2
    got = score(case.model, (case.x, case.y), "cross_entropy", criterion="hessian", threshold=threshold)
    everything = torch.cat([got["0"], got["2"]])
    above = torch.cat([plain["0"], plain["2"]]) > level
    assert torch.allclose(everything[above], torch.full_like(everything[above], level), rtol=1e-12)
    assert everything[~above].equal(torch.cat([plain["0"], plain["2"]])[~above])
    assert len(set(everything[above].tolist())) == 1  # tied, to the last bit
    assert above.sum() > 1


@pytest.mark.parametrize("threshold", ["mode", "Mean", 0.5], ids=repr)
def test_an_unknown_threshold_lists_those_there_are(threshold: Any) -> None:
    model, x, y = small()
    with pytest.raises(ArgumentError) as caught:
        score(model, (x, y), "cross_entropy", threshold=threshold)
    assert str(caught.value) == f"unknown threshold {threshold!r}; one of: mean, median"


@pytest.mark.parametrize("criterion", NEEDS_LOSS)
@pytest.mark.parametrize(
    "loss",
    [lambda o, _: (o * float("nan")).mean(), lambda o, _: (o - 100).log().mean()],
    ids=["derivative too", "value alone"],
)
def test_a_loss_that_is_nan_is_refused(criterion: str, loss: Any) -> None:
    model, x, y = small()
    with pytest.raises(DataError, match=r"loss.* is NaN on this data"):
        score(model, (x, y), loss, criterion=criterion)


@pytest.mark.parametrize("criterion", ["taylor1", "taylor2", "hessian"])
def test_a_loss_whose_derivative_alone_is_nan_is_refused(criterion: str) -> None:
    model, x, y = small()
    with pytest.raises(DataError) as caught:
        score(model, (x, y), lambda o, _: (o - o.detach()).sqrt().mean() * 0, criterion=criterion)
    assert str(caught.value) == f"criterion {criterion!r} gave NaN: the loss or its derivative is NaN on this data"


def without_units() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 2), nn.Tanh()).double()


def test_a_model_without_removable_units_is_refused_with_reasons() -> None:
    _, x, y = small()
    with pytest.raises(ModelError) as caught:
        score(without_units(), (x, y), "cross_entropy")
    assert str(caught.value) == (
        "the model has no removable units: 0.weight[0] (2): a model output; 0.weight[1] (3): a model input"
    )


def test_units_given_that_are_none_are_refused_with_reasons() -> None:
    model, (_, x, _) = without_units(), small()
    with pytest.raises(ModelError, match=r"^the model has no removable units: 0\.weight\[0\] \(2\): a model output"):
        score(model, None, None, units=find_units(model, x), criterion="magnitude")


def test_a_model_without_parameters_has_no_units() -> None:
    _, x, y = small()
    with pytest.raises(ModelError, match=r"^the model has no removable units: it has no parameters$"):
        score(nn.Tanh(), (x, y), "cross_entropy")


def test_weights_that_are_not_finite_are_refused() -> None:
    model, x, y = small()
    with torch.no_grad():
        model[2].bias[1] = float("nan")
    with pytest.raises(ModelError, match=r"^2\.bias: 1 of 2 values are NaN or infinite$"):
        score(model, (x, y), "cross_entropy")


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("form", ["pair", "list", "DataLoader"])
def test_scoring_leaves_everything_as_it_was(criterion: str, form: str) -> None:
    case = CASES["normalised"]()
    model = case.model.train()
    model[3].eval()
    model[4].weight.requires_grad_(False)
    model[6].weight.grad = torch.ones_like(model[6].weight)
    modes = [module.training for module in model.modules()]
    before = copy.deepcopy(model.state_dict())
    storage = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    x, y = case.x.clone(), case.y.clone()
    loader = DataLoader(TensorDataset(case.x, case.y), batch_size=4, generator=torch.Generator())
    data: Any = {"pair": (case.x, case.y), "list": [(case.x, case.y)], "DataLoader": loader}[form]
    rng = torch.get_rng_state()
    score(model, data, "cross_entropy", criterion=criterion)
    assert torch.get_rng_state().equal(rng)
    assert [module.training for module in model.modules()] == modes
    assert list(model.state_dict()) == list(before)
    for name, tensor in model.state_dict().items():
        assert tensor.equal(before[name])
        assert tensor.data_ptr() == storage[name]
    assert [p.requires_grad for p in model.parameters()].count(False) == 1
    assert model[6].weight.grad.equal(torch.ones_like(model[6].weight))
    assert all(p.grad is None for name, p in model.named_parameters() if name != "6.weight")
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert case.x.equal(x)
    assert case.y.equal(y)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_model_in_training_is_scored_in_eval_mode(criterion: str) -> None:
    case = CASES["normalised"]()
    expected = score(case.model, (case.x, case.y), "cross_entropy", criterion=criterion)
    got = score(case.model.train(), (case.x, case.y), "cross_entropy", criterion=criterion)
    assert all(got[name].equal(values) for name, values in expected.items())


@pytest.mark.parametrize("criterion", CRITERIA)
def test_it_does_not_matter_whether_gradients_are_off_outside(criterion: str) -> None:
    model, x, y = small()
    units = find_units(model, x)
    expected = score(model, (x, y), "cross_entropy", units=units, criterion=criterion)["0"]
    with torch.no_grad():
        got = score(model, (x, y), "cross_entropy", units=units, criterion=criterion)["0"]
    assert got.equal(expected)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_in_inference_mode_scores_are_the_same_or_refused(criterion: str) -> None:
    model, x, y = small()
    units = find_units(model, x)
    got = expected = score(model, (x, y), "cross_entropy", units=units, criterion=criterion)["0"]
    with suppress(SecateurError), torch.inference_mode():
        got = score(model, (x, y), "cross_entropy", units=units, criterion=criterion)["0"]
    assert got.equal(expected)


@pytest.mark.parametrize("criterion", REPEATABLE)
def test_several_batches_score_as_one(criterion: str) -> None:
    case = CASES["branches"]()
    units = find_units(case.model, case.x)
    batches = [(case.x[i], case.y[i]) for i in (slice(0, 1), slice(1, 5), slice(5, 6))]
    one, several = (
        score(case.model, data, "cross_entropy", units=units, criterion=criterion)
        for data in ((case.x, case.y), batches)
    )
    assert all(torch.allclose(one[name], several[name], rtol=1e-10, atol=1e-14) for name in one)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_one_unit_is_scored(criterion: str) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(3, 1), nn.Tanh(), nn.Linear(1, 1)).double(), torch.randn(5, 3).double()
    (values,) = score(model, (x, torch.zeros(5, 1)), "squared_error", criterion=criterion, threshold="median").values()
    assert values.shape == (1,)
    if criterion in ("oracle", "hessian", "taylor2"):  # E is quadratic in g, so that all of them are exact
        error = lambda g: 0.5 * (g * torch.tanh(model[0](x)) @ model[2].weight.T + model[2].bias).square().mean()  # noqa: E731
        assert values.item() == pytest.approx((error(0) - error(1)).item(), rel=1e-10)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_one_sample_is_enough(criterion: str) -> None:
    model, x, y = small()
    alone = score(model, (x[:1], y[:1]), "cross_entropy", criterion=criterion)["0"]
    twice = score(model, (x[[0, 0]], y[[0, 0]]), "cross_entropy", criterion=criterion)["0"]
    assert torch.allclose(alone, twice, rtol=1e-12, atol=1e-40)


@pytest.mark.parametrize("criterion", REPEATABLE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_two_identical_units_are_worth_the_same(criterion: str, dtype: torch.dtype) -> None:
    model, x, y = small(dtype)
    with torch.no_grad():
        for tensor, dim in ((model[0].weight, 0), (model[0].bias, 0), (model[2].weight, 1)):
            tensor.select(dim, 3).copy_(tensor.select(dim, 1))
    values = score(model, (x, y), "cross_entropy", criterion=criterion)["0"]
    exactness = 1e-5 if dtype == torch.float32 else 1e-12
    assert torch.allclose(values[1], values[3], rtol=exactness, atol=exactness * values.abs().max().item())
    assert not torch.allclose(values[0], values[1], rtol=1e-3)


@pytest.mark.parametrize("criterion", REPEATABLE)
def test_float32_gives_what_float64_gives_up_to_rounding(criterion: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "secateur.compensation.unit_surgeon.SPAN", 1.0
    )  # float32 cannot measure a rise of 1e-6 of the loss
    case = CASES["branches"]()
    wide = score(case.model, (case.x, case.y), "cross_entropy", criterion=criterion)
    narrow = score(case.model.float(), (case.x, case.y), "cross_entropy", criterion=criterion)
    for name, values in wide.items():
        assert narrow[name].dtype == torch.float64
        assert (narrow[name] - values).abs().max() <= 1e-4 * max(v.abs().max() for v in wide.values())


def test_a_unit_that_does_nothing_is_worth_nothing() -> None:
    model, x, y = small()
    with torch.no_grad():
        model[2].weight[:, 2] = 0
    for criterion in ("oracle", "taylor1", "taylor2", "hessian"):
        values = score(model, (x, y), "cross_entropy", criterion=criterion)["0"]
        assert values[2].abs() <= 1e-15
        assert values[[0, 1, 3]].abs().min() > 1e-6


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a second device")
@pytest.mark.parametrize("criterion", CRITERIA)
def test_another_device_gives_the_same(criterion: str) -> None:
    case = CASES["branches"]()
    here = score(case.model, (case.x, case.y), "cross_entropy", criterion=criterion)
    there = score(case.model.cuda(), (case.x, case.y), "cross_entropy", criterion=criterion)
    for name, values in here.items():
        assert there[name].device.type == "cpu"
        assert torch.allclose(there[name], values, rtol=1e-9, atol=1e-13)


def test_units_of_a_vector_are_scored_by_every_criterion() -> None:
    class Vector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.v, self.w = nn.Parameter(torch.ones(2)), nn.Parameter(torch.tensor([[1.0, 0.0], [0.0, 3.0]]))
            self.last = nn.Linear(2, 1, bias=False)
            nn.init.ones_(self.last.weight)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(x * (self.v @ self.w))

    data = torch.ones(4, 2).double(), torch.zeros(4, 1).double()
    wanted = {
        "oracle": [-3.5, -7.5],
        "taylor1": [-4.0, -12.0],
        "activation": [1.0, 1.0],
        "magnitude": [2**0.5, 10**0.5],
    }
    for criterion, values in wanted.items():
        got = score(Vector().double(), data, "squared_error", criterion=criterion)
        assert next(iter(got.values())).tolist() == pytest.approx(values, rel=1e-12)
