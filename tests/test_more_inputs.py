"""Inputs without targets beside the data, and augmented ones, through the public interface alone."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import secateur as sc
from secateur.errors import ArgumentError, DataError

HALF = {"0": tuple(range(8)), "2": tuple(range(6))}
N, M = 200, 120  # samples in all, and of the data


def network(inputs: int = 6) -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Linear(inputs, 16), nn.Tanh(), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 3)
    return nn.Sequential(*layers).double()


def samples(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


X = samples(N, 6)
CLASSES = torch.randint(3, (N,), generator=torch.Generator().manual_seed(3))
TARGETS = {
    "output": None,
    "distribution": None,
    "cross_entropy": CLASSES,
    "squared_error": samples(N, 3, seed=4),
    "binary_cross_entropy": F.one_hot(CLASSES, 3).double(),
}


def data_of(loss: str, rows: slice) -> Any:
    targets = TARGETS[loss]
    return X[rows] if targets is None else (X[rows], targets[rows])


def cut(data: Any, loss: Any, inputs: Tensor = X, **options: Any) -> nn.Module:
    return sc.cut(network(), sc.Plan.from_kept(HALF, inputs), compensate=data, loss=loss, **options)


def gap(one: nn.Module, other: nn.Module) -> float:
    """The largest difference between two networks' parameters."""
    return max((a - b).abs().max().item() for a, b in zip(one.parameters(), other.parameters(), strict=True))


def shifted(inputs: Tensor, generator: torch.Generator) -> Tensor:
    return inputs + torch.randn(inputs.shape, generator=generator, dtype=inputs.dtype)


# ---------------------------------------------------------------- inputs without targets


@pytest.mark.parametrize("loss", TARGETS)
@pytest.mark.parametrize("refine", [0, 2])
def test_data_and_the_rest_without_targets_are_as_good_as_all_with_targets(loss: str, refine: int) -> None:
    together = cut(data_of(loss, slice(M)), loss, unlabelled=X[M:], refine=refine)
    assert gap(together, cut(data_of(loss, slice(N)), loss, refine=refine)) < 1e-8
    assert gap(together, cut(data_of(loss, slice(M)), loss, refine=refine)) > 1e-3


@pytest.mark.parametrize(
    "form", [(X[M:],), (X[M:], None), (X[M:], CLASSES[M:]), [X[M:160], X[160:]], [(X[M:], CLASSES[M:])]]
)
def test_they_come_in_every_form_of_data_without_targets(form: Any) -> None:
    data = data_of("cross_entropy", slice(M))
    assert gap(cut(data, "cross_entropy", unlabelled=form), cut(data, "cross_entropy", unlabelled=X[M:])) < 1e-9


def test_without_a_loss_they_count_like_the_data() -> None:
    together = cut((X[:M], None), None, unlabelled=X[M:], refine=1)
    assert gap(together, cut((X, None), None, refine=1)) < 1e-8


def test_by_the_curvature_of_a_loss_of_ones_own_the_data_alone_are_weighed() -> None:
    def own(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets)

    data = X[:M], CLASSES[:M]
    assert gap(cut(data, own, unlabelled=X[M:]), cut(data, own)) == 0.0
    assert gap(cut(data, own, unlabelled=X[M:], refine=1), cut(data, own, refine=1)) > 1e-3
    together = cut(data, own, unlabelled=X[M:], weighting="none")
    assert gap(together, cut((X, CLASSES), own, weighting="none")) < 1e-9


def test_a_mask_says_which_of_their_positions_count() -> None:
    x = samples(30, 7, 6, seed=2)
    x[::2, 4:] = 0
    options: dict[str, Any] = {"inputs": x, "mask": lambda inputs: inputs[..., 0] != 0, "refine": 1}
    together = cut(x[:20], "output", unlabelled=x[20:], **options)
    assert gap(together, cut(x, "output", **options)) < 1e-8
    assert gap(together, cut(x[:20], "output", unlabelled=x[20:], inputs=x, refine=1)) > 1e-4


@pytest.mark.parametrize("rounds", [1, 2])
def test_order_and_measured_losses_are_those_of_the_data(rounds: int) -> None:
    model, data, budget = network(), (X[:M], CLASSES[:M]), sc.Budget(remove_units=14)
    before = copy.deepcopy(model)
    results = [
        sc.shrink(model, data, "cross_entropy", budget, unlabelled=more, refine=1, rounds=rounds, progress=False)
        for more in (None, X[M:], X[M:])
    ]
    alone, together, again = results
    if rounds == 1:
        assert together.plan.kept == alone.plan.kept
        small = sc.cut(model, together.plan, data, "cross_entropy", unlabelled=X[M:])
        assert gap(small, together.model) < 1e-9
    assert gap(together.model, again.model) == 0.0
    assert abs(together.after.loss - alone.after.loss) > 1e-4
    assert together.after.loss == pytest.approx(F.cross_entropy(together.model(data[0]), data[1]).item(), rel=1e-9)
    assert json.loads(together.plan.to_json()).keys() == json.loads(alone.plan.to_json()).keys()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before.parameters(), strict=True))


def test_they_are_fitted_on_while_data_are_held_back() -> None:
    model, data = network(), (X[:M], CLASSES[:M])
    budget = sc.Budget(max_loss_increase=0.02)
    result = sc.shrink(model, data, "cross_entropy", budget, unlabelled=X[M:], refine=1, progress=False)
    assert result.plan.basis is not None
    assert (result.plan.basis.where, result.plan.basis.samples) == ("held back", M // 5)
    small = sc.cut(model, result.plan, data, "cross_entropy", unlabelled=X[M:])
    assert gap(small, result.model) < 1e-9
    assert gap(small, sc.cut(model, result.plan, data, "cross_entropy")) > 1e-4


# ---------------------------------------------------------------- augmented inputs


def test_the_network_is_nearer_to_the_original_on_inputs_as_they_are_changed() -> None:
    model = network()
    test = shifted(samples(500, 6, seed=5), torch.Generator().manual_seed(6))
    plain, augmented = (cut(X, "output", refine="auto", augment=augment) for augment in (None, shifted))
    gaps = [(small(test) - model(test)).square().mean().item() for small in (plain, augmented)]
    assert gaps[1] < 0.9 * gaps[0]


def test_the_same_seed_gives_the_same_network() -> None:
    one, again, other = (cut(X, "output", refine=1, augment=shifted, seed=seed) for seed in (1, 1, 2))
    assert gap(one, again) == 0.0
    assert gap(one, other) > 1e-6
    result = sc.shrink(
        network(), X, "output", sc.Budget(remove_units=14), refine=1, augment=shifted, seed=1, progress=False
    )
    small = sc.cut(network(), result.plan, X, "output", augment=shifted, seed=1)
    assert gap(small, result.model) < 1e-9


def test_data_stay_as_they_are_whatever_the_function_does() -> None:
    def in_place(inputs: Tensor, generator: torch.Generator) -> Tensor:
        return inputs.add_(torch.rand((), generator=generator, dtype=inputs.dtype))

    data, more = X[:M].clone(), X[M:].clone()
    options: dict[str, Any] = {"refine": 1, "unlabelled": more, "augment": in_place}
    cut(data, "output", **options)
    sc.shrink(network(), data, "output", sc.Budget(remove_units=14), progress=False, **options)
    assert torch.equal(torch.cat([data, more]), X)


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        (
            {"unlabelled": X, "compensate": False}, ArgumentError,
            "unlabelled: is for weights that are fitted, beside the data",
        ),
        ({"augment": shifted}, ArgumentError, "augment: is for refine=, a number of steps or 'auto'"),
        (
            {"augment": "shifted", "refine": 1}, ArgumentError,
            "augment: expected a function of inputs and a torch.Generator, got 'shifted'",
        ),
        (
            {"unlabelled": X, "granularity": "weight"}, ArgumentError,
            "unlabelled: has no meaning with granularity='weight'",
        ),
        (
            {"augment": shifted, "granularity": "weight"}, ArgumentError,
            "augment: has no meaning with granularity='weight'",
        ),
        (
            {"unlabelled": (x for x in [X])}, DataError,
            "unlabelled: a generator can be read only once; give a list, a DataLoader or a pair of tensors",
        ),
        ({"unlabelled": X[:0]}, DataError, "unlabelled: there is no sample in it"),
        ({"unlabelled": X / 0}, DataError, "unlabelled: the inputs of batch 0 hold NaN or infinite values"),
        (
            {"unlabelled": X[:, :5]}, DataError,
            "unlabelled: batch 0: inputs of shape (200, 5), the model was captured for (samples, 6)",
        ),
    ],
)  # fmt: skip
def test_shrink_refuses_what_it_cannot_use_and_the_model_stays(options: Any, error: Any, text: str) -> None:
    model = network()
    with pytest.raises(error) as refused:
        sc.shrink(model, (X, CLASSES), "cross_entropy", sc.Budget(remove_units=4), progress=False, **options)
    assert str(refused.value) == text
    assert gap(model, network()) == 0.0


def test_they_are_refused_before_any_unit_is_ranked() -> None:
    def never(*_: Any) -> Any:
        pytest.fail("a unit was scored")

    for options in ({"unlabelled": X / 0}, {"augment": lambda inputs, _: inputs / 0, "refine": 1}):
        with pytest.raises(DataError, match="NaN or infinite"):
            sc.shrink(
                network(), X, "output", sc.Budget(remove_units=4), criterion=never, ranking="single", progress=False,
                **options,
            )  # fmt: skip


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"unlabelled": X}, "unlabelled: is for weights that are fitted, beside the data"),
        ({"augment": shifted}, "augment: is for refine=, a number of steps or 'auto'"),
    ],
)
def test_cut_refuses_them_without_data_to_fit_on(options: Any, text: str) -> None:
    with pytest.raises(ArgumentError) as refused:
        sc.cut(network(), sc.Plan.from_kept(HALF, X), **options)
    assert str(refused.value) == text
