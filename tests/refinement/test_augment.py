"""Augmented samples: what the function is given, what it may return, and which samples it sees."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.cutting.slices import gates
from secateur.errors import DataError
from secateur.objective.gated_loss import GatedLoss
from secateur.objective.held_back import hold_back
from secateur.refinement.augment import augmented
from secateur.refinement.distance import Distance
from secateur.refinement.refine import Search
from secateur.refinement.teacher import Teacher

X = torch.randn(20, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.out = nn.Linear(6, 8).double(), nn.Linear(8, 2).double()

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.out(torch.tanh(self.up(a + b)))


def dense() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2)).double()


def gated_loss(model: nn.Module, inputs: Any, seed: int = 0) -> GatedLoss:
    return GatedLoss(model, sc.find_units(model, inputs), [(inputs, None)], "output", seed)


def noisy(inputs: Tensor, generator: torch.Generator) -> Tensor:
    return inputs + torch.rand(inputs.shape, generator=generator, dtype=inputs.dtype)


# ---------------------------------------------------------------- what it is given


@pytest.mark.parametrize(
    ("model", "inputs"), [(dense(), X), (Two(), (X, 2 * X)), (Two(), {"a": X, "b": 2 * X})], ids=["one", "two", "named"]
)
def test_inputs_are_given_as_data_has_them(model: nn.Module, inputs: Any) -> None:
    gated, given = gated_loss(model, inputs), []

    def note(inputs: Any, generator: torch.Generator) -> Any:
        given.append((inputs, generator.device))
        return inputs

    made = augmented(gated, gated.batches, note)
    ((seen, device),) = given
    assert device == torch.device("cpu")
    assert type(seen) is type(inputs)
    pairs = [(seen, inputs)] if isinstance(inputs, Tensor) else zip(_values(seen), _values(inputs), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert (len(made), made[0].size, made[0].targets) == (1, 20, None)
    values = zip(_leaves(made[0].call), _leaves(gated.batches[0].call), strict=True)
    assert all(torch.equal(a, b) and a is not b for a, b in values)


def test_draws_are_those_of_the_seed() -> None:
    made = [augmented(gated, gated.batches, noisy) for gated in (gated_loss(dense(), X, seed) for seed in (0, 0, 1))]
    first, again, other = (_leaves(batches[0].call)[0] for batches in made)
    expected = X + torch.rand(X.shape, generator=torch.Generator().manual_seed(0), dtype=X.dtype)
    assert torch.equal(first, expected)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_each_batch_has_draws_of_its_own() -> None:
    model = dense()
    gated = GatedLoss(model, sc.find_units(model, X), [(X, None), (X, None)], "output")
    first, second = (_leaves(batch.call)[0] for batch in augmented(gated, gated.batches, noisy))
    assert not torch.equal(first, second)


def _values(inputs: Any) -> list[Tensor]:
    return list(inputs.values() if isinstance(inputs, dict) else inputs)


def _leaves(call: Any) -> list[Tensor]:
    return [*call[0], *call[1].values()]


# ---------------------------------------------------------------- which samples it sees


def test_samples_held_out_are_changed_too_and_none_of_them_is_fitted_to() -> None:
    model, seen = dense(), []

    def note(inputs: Tensor, generator: torch.Generator) -> Tensor:
        seen.append(inputs.clone())
        return noisy(inputs, generator)

    gated = gated_loss(model, X)
    search = Search(gated, gates(model, gated.units, {"0": (0, 1, 2)}), {}, note)
    held_out = [i % 5 == 4 for i in range(20)]
    expected = [X[[not held for held in held_out]], X[held_out]]
    assert all(torch.equal(a, b) for a, b in zip(seen, expected, strict=True))
    fitted, held = hold_back(gated.batches, False)
    changed = augmented(gated, [*fitted, *held], noisy)
    distance = Distance(search.network, Teacher(gated), [*held, changed[1]])
    assert search.distance == pytest.approx(distance.value(search.parameters), rel=1e-12)
    for _ in range(3):
        before = search.distance
        search.step()
        assert search.distance <= before
        assert search.distance == pytest.approx(distance.value(search.parameters), rel=1e-12)


# ---------------------------------------------------------------- what is refused


def without(inputs: Any, generator: torch.Generator) -> None:
    return None


def cropped(inputs: Tensor, generator: torch.Generator) -> Tensor:
    return inputs[:, 1:]


def fewer(inputs: Tensor, generator: torch.Generator) -> Tensor:
    return inputs[1:]


def halved(inputs: Tensor, generator: torch.Generator) -> Tensor:
    return inputs.half()


def undefined(inputs: Tensor, generator: torch.Generator) -> Tensor:
    return inputs / 0


def twice(inputs: Tensor, generator: torch.Generator) -> Any:
    return inputs, inputs


def wrong(inputs: Tensor) -> Tensor:
    return inputs


def one_nan(inputs: tuple[Tensor, Tensor], generator: torch.Generator) -> Any:
    return inputs[0], inputs[1].sqrt()


def form(*shape: int, dtype: str = "float64") -> str:
    return f"a tensor of shape {shape}, torch.{dtype} on cpu"


AS = f"expected {form(20, 6)}"
REFUSED = [
    (dense(), X, without, "without returns NoneType, no inputs"),
    (dense(), X, cropped, f"cropped returns as inputs {form(20, 5)}; {AS}"),
    (dense(), X, fewer, f"fewer returns as inputs {form(19, 6)}; {AS}"),
    (dense(), X, halved, f"halved returns as inputs {form(20, 6, dtype='float16')}; {AS}"),
    (dense(), X, undefined, "undefined returns as inputs NaN or infinite values"),
    (dense(), X, twice, "twice returns inputs [0], [1]; expected [0]"),
    (dense(), X, wrong, "wrong fails (TypeError: wrong() takes 1 positional argument but 2 were given)"),
    (Two(), (X, X), one_nan, "one_nan returns as inputs[1] NaN or infinite values"),
]  # fmt: skip


@pytest.mark.parametrize(("model", "inputs", "augment", "text"), REFUSED, ids=[row[2].__name__ for row in REFUSED])
def test_what_are_no_samples_of_that_form_are_refused(model: nn.Module, inputs: Any, augment: Any, text: str) -> None:
    gated = gated_loss(model, inputs)
    with pytest.raises(DataError) as refused:
        augmented(gated, gated.batches, augment)
    assert str(refused.value) == f"augment: {text}"


def test_rows_that_a_table_has_not_are_refused() -> None:
    layers = nn.Embedding(9, 4), nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)
    model, ids = nn.Sequential(*layers), torch.arange(8)[:, None]
    gated = gated_loss(model, ids)

    def later(inputs: Tensor, generator: torch.Generator) -> Tensor:
        return inputs + 2

    with pytest.raises(DataError) as refused:
        augmented(gated, gated.batches, later)
    text = "augment: later returns inputs: rows 2 to 9 of 0.weight are looked up, it has 0 to 8"
    assert str(refused.value) == text
