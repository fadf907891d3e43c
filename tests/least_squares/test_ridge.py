"""Covers also secateur.least_squares.moments."""

from __future__ import annotations

import math
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from secateur.errors import DataError
from secateur.least_squares import moments as sums_of_rows
from secateur.least_squares.moments import FLOOR, Moments, Sums
from secateur.least_squares.ridge import GRID, RIDGE, ROUNDING, NormalEquations, RidgeFit, fit

CPU = torch.device("cpu")
BAD = "compensation: the activations' second moments are not finite or not positive on this data"


class Rows(NamedTuple):
    """Inputs [M, D], targets [M, O], the weights of rows [M, C], and which are held out [M]."""

    a: Tensor
    z: Tensor
    weight: Tensor
    held: Tensor

    @property
    def blocks(self) -> int:
        return self.weight.shape[1]

    def targets(self, c: int) -> Tensor:
        return self.z.chunk(self.blocks, 1)[c].double()

    def moments(self, cuts: list[int] | None = None, weighted: bool = True, targets: bool = True) -> Moments:
        made = Moments(self.a.shape[1], self.z.shape[1] if targets else 0, CPU)
        for a, z, weight, held in zip(*(torch.tensor_split(one, sorted(cuts or [])) for one in self), strict=True):
            made.add(a, z if targets else z[:, :0], held, weight if weighted else None)
        return made

    def counted(self) -> Rows:
        """With the weights by which they count: a share of the mean is added."""
        return self._replace(weight=self.weight + FLOOR * self.weight.double().mean(0))

    def some(self, chosen: Tensor) -> Rows:
        return Rows(*(one[chosen] for one in self))


def made(seed: int, rows: int, inputs: int, blocks: int = 1, outputs: int = 1, offset: float = 2.0) -> Rows:
    """Random ones whose targets are far from linear; about the means `offset`."""
    torch.manual_seed(seed)
    a = offset + torch.randn(rows, inputs, dtype=torch.float64) @ torch.randn(inputs, inputs).double()
    z = torch.randn(rows, blocks * outputs).double() + a @ torch.randn(inputs, blocks * outputs).double()
    return Rows(a, z + offset, torch.rand(rows, blocks).double() + 0.1, torch.rand(rows) < 0.3)


def normal(moments: Moments, sums: Sums, centred: bool) -> NormalEquations:
    """The normal equations that sums of these moments give."""
    a0, z0 = moments.points
    z0 = z0.reshape(moments.blocks, -1) if moments.outputs else torch.zeros_like(sums.xz[:, -1])
    return NormalEquations.of(sums, a0, z0, centred)


def dense(rows: Rows, centred: bool) -> NormalEquations:
    """The weighted means over rows of x xᵀ, block by block."""
    d, found = rows.a.shape[1], []
    for c in range(rows.blocks):
        x = torch.cat([rows.a.double(), rows.targets(c)], 1)
        share = (rows.weight[:, c] / rows.weight[:, c].sum()).double()
        mean = sum(share[m] * x[m] for m in range(len(x)))
        about = x - mean if centred else x
        second = sum(share[m] * torch.outer(about[m], about[m]) for m in range(len(x)))
        found.append((second[:d, :d], second[:d, d:], second[d:, d:].diagonal(), mean[:d], mean[d:]))
    return NormalEquations(*(torch.stack(one) for one in zip(*found, strict=True)))


def whole(moments: Moments) -> Sums:
    """Of all rows."""
    fitted, held = moments.parts()
    return fitted.plus(held)


def assert_same(got: NormalEquations, expected: NormalEquations, rtol: float = 1e-10, atol: float = 1e-10) -> None:
    for one, other in zip(got, expected, strict=True):
        assert one.dtype == torch.float64
        torch.testing.assert_close(one, other, rtol=rtol, atol=atol)


# ---------------------------------------------------------------- moments


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31), n=st.integers(1, 12), inputs=st.integers(1, 5), blocks=st.integers(1, 3),
    outputs=st.integers(1, 3), cuts=st.lists(st.integers(0, 12), max_size=4), centred=st.booleans(),
    weighted=st.booleans(),
)  # fmt: skip
def test_moments_are_the_weighted_means_of_products(
    seed: int, n: int, inputs: int, blocks: int, outputs: int, cuts: list[int], centred: bool, weighted: bool
) -> None:
    rows = made(seed, n, inputs, blocks if weighted else 1, outputs)
    if not weighted:
        rows = rows._replace(weight=torch.ones_like(rows.weight))
    moments = rows.moments(cuts, weighted)
    rows = rows.counted() if weighted else rows
    assert moments.blocks == rows.blocks
    assert_same(normal(moments, whole(moments), centred), dense(rows, centred))
    for sums, chosen in zip(moments.parts(), (~rows.held, rows.held), strict=True):
        if chosen.any():
            assert_same(normal(moments, sums, centred), dense(rows.some(chosen), centred), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(sums.xx[:, -1, -1], rows.weight[chosen].sum(0), rtol=1e-12, atol=1e-12)
        assert torch.equal(sums.xx, sums.xx.mT)


@pytest.mark.parametrize("centred", [True, False])
def test_many_rows_are_multiplied_a_few_at_a_time(centred: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sums_of_rows, "ROWS", 6)
    monkeypatch.setattr(sums_of_rows, "COLUMNS", 2)
    rows = made(0, 20, 4, 2, 2)
    moments = rows.moments([7])
    assert_same(normal(moments, whole(moments), centred), dense(rows.counted(), centred))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("centred", [True, False])
def test_rows_of_little_precision_far_from_zero_keep_their_digits(dtype: torch.dtype, centred: bool) -> None:
    rows = made(1, 400, 3, 2, 1, offset=0.0)
    low = Rows((200 * rows.a + 3000).to(dtype), (200 * rows.z - 3000).to(dtype), *rows[2:])  # float16: squares overflow
    low = low._replace(weight=low.weight.to(dtype))
    moments = low.moments([100, 101, 300])
    expected = dense(low._replace(weight=low.weight.double()).counted(), centred)
    assert_same(normal(moments, whole(moments), centred), expected, rtol=2e-5, atol=2.0 if not centred else 0.3)


def test_digits_are_kept_where_the_mean_is_much_larger_than_the_spread() -> None:
    rows = made(2, 300, 3, offset=0.0)
    low = rows._replace(a=(rows.a + 1e4).float(), z=(rows.z - 1e4).float(), weight=torch.ones(300, 1))
    moments = low.moments([30])
    got, expected = normal(moments, whole(moments), True), dense(low, True)
    torch.testing.assert_close(got.aa, expected.aa, rtol=1e-4, atol=1e-4)  # squares of 1e4 have digits of 8 in float32
    torch.testing.assert_close(got.az, expected.az, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(got.a, expected.a, rtol=1e-6, atol=0)


def test_adding_no_rows_changes_nothing() -> None:
    rows, none = made(3, 5, 3), torch.zeros(5, dtype=torch.bool)
    moments = Moments(3, 1, CPU)
    for _ in range(2):
        moments.add(*rows.some(none)[:2], none[:0], rows.weight[:0])
        assert moments.origin is None
        assert not any(one.any() for one in whole(moments))
    assert_same(
        normal(moments, whole(moments), False), NormalEquations(*(torch.zeros_like(x) for x in dense(rows, True)))
    )
    moments.add(rows.a, rows.z, rows.held, rows.weight)
    before = whole(moments)
    moments.add(*rows.some(none)[:2], none[:0], rows.weight[:0])
    assert all(torch.equal(one, other) for one, other in zip(whole(moments), before, strict=True))


def test_one_row_is_its_own_mean() -> None:
    rows = made(4, 1, 3, 2, 2)
    moments = rows.moments()
    centred, plain = (normal(moments, whole(moments), about) for about in (True, False))
    for one in centred[:3]:
        assert not one.any()
    torch.testing.assert_close(plain.aa, (rows.a.T @ rows.a).expand(2, 3, 3), rtol=1e-13, atol=0)
    torch.testing.assert_close(centred.a, rows.a.expand(2, 3), rtol=1e-13, atol=0)
    torch.testing.assert_close(centred.z, rows.z.reshape(2, 2), rtol=1e-13, atol=0)


def test_without_the_floor_rows_of_weight_zero_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = made(5, 12, 3, 2, 2)
    rows.weight[2:5, 0] = 0
    rows.weight[7:, 1] = 0
    moments = rows.moments([4])
    monkeypatch.setattr(sums_of_rows, "FLOOR", 0.0)
    first, second = rows.some(rows.weight[:, 0] > 0), rows.some(rows.weight[:, 1] > 0)
    got, one, two = normal(moments, whole(moments), True), dense(first, True), dense(second, True)
    expected = NormalEquations(*(torch.stack([x[0], y[1]]) for x, y in zip(one, two, strict=True)))
    assert_same(got, expected)


def test_a_block_whose_rows_all_weigh_nothing_keeps_its_weights() -> None:
    rows = made(6, 8, 3, 2, 1)
    rows.weight[:, 1] = 0
    present = torch.randn(2, 3, 1).double()
    found = fit(rows.moments(), present, zero(present, True), None, torch.ones(3, dtype=torch.bool))
    torch.testing.assert_close(found.weight[1], present[1], rtol=1e-12, atol=1e-12)
    assert all(bool(one.isfinite().all()) for one in found if one is not None)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e4])
def test_constant_inputs_have_no_moments_about_the_mean(value: float) -> None:
    rows = made(7, 9, 3)
    rows.a[:, 1] = value
    moments = rows.moments([2])
    got = normal(moments, whole(moments), True)
    bound = 1e-14 * max(1.0, value * value)
    assert max(got.aa[:, 1].abs().max(), got.aa[:, :, 1].abs().max(), got.az[:, 1].abs().max()) <= bound
    assert got.a[0, 1].item() == pytest.approx(value, rel=1e-13)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("blocks", [1, 4])
def test_without_targets_a_fit_is_to_what_the_present_weights_give(blocks: int, bias: bool) -> None:
    rows, kept = made(16, 15, 5, blocks, 4 // blocks), torch.tensor([True, False, True, True, False])
    weight = torch.randn(blocks, 5, 4 // blocks).double()
    added = torch.randn(blocks, 4 // blocks).double() if bias else None
    z = torch.cat([rows.a @ one for one in weight], 1) + (0 if added is None else added.flatten())
    for ridge in (None, 0.01):
        got = fit(rows.moments([6], blocks > 1, targets=False), weight, added, ridge, kept)
        expected = fit(rows._replace(z=z).moments([6], blocks > 1), weight, added, ridge, kept)
        for one, other in zip(got, expected, strict=True):
            assert (one is None) == (other is None)
            if one is not None and other is not None:
                torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    same = fit(rows.moments([6], blocks > 1, targets=False), weight, added, None, torch.ones(5, dtype=torch.bool))
    assert torch.equal(same.weight, weight)
    expected = fit(rows._replace(z=z).moments([6], blocks > 1), weight, added, RIDGE, torch.ones(5, dtype=torch.bool))
    torch.testing.assert_close(same.second, expected.second, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(same.ridge, expected.ridge, rtol=1e-10, atol=1e-10)
    if same.bias is not None:
        torch.testing.assert_close(same.bias, added, rtol=1e-12, atol=1e-12)


def test_moments_of_some_outputs_are_those_of_their_rows() -> None:
    rows, outputs = made(16, 15, 5, 4, 1), torch.tensor([1, 3])
    some = rows._replace(z=rows.z[:, outputs], weight=rows.weight[:, outputs])
    moments = rows.moments([6], targets=False)
    only, expected = moments.only(outputs), some.moments([6], targets=False)
    assert (moments.blocks, only.blocks) == (4, 2)
    for got, wanted in zip(only.parts(), expected.parts(), strict=True):
        assert_same(normal(only, got, True), normal(expected, wanted, True))
    plain = rows.moments([6], weighted=False, targets=False)
    assert all(torch.equal(*pair) for pair in zip(whole(plain.only(outputs)), whole(plain), strict=True))


# ---------------------------------------------------------------- fits


def zero(weight: Tensor, bias: bool) -> Tensor | None:
    """A bias that there is, whatever it is."""
    return torch.zeros_like(weight[:, 0]) if bias else None


def dense_fit(rows: Rows, weight: Tensor, bias: bool, ridge: float, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Weights [C, D', o] and biases [C, o] by the normal equations of the inputs and a column of ones."""
    weights, biases = [], []
    for c in range(rows.blocks):
        a, share = rows.a[:, kept], rows.weight[:, c] / rows.weight[:, c].sum()
        spread = a - (share @ a if bias else 0)
        λ = ridge * (share @ spread.square()).mean()
        design = torch.cat([a, torch.ones(len(a), int(bias), dtype=a.dtype)], 1)
        penalty = λ * torch.eye(design.shape[1], dtype=a.dtype)
        penalty[a.shape[1] :] = 0
        about = torch.cat([weight[c][kept], torch.zeros(int(bias), weight.shape[2], dtype=a.dtype)])
        left = design.T @ (share[:, None] * design) + penalty
        solved = torch.linalg.solve(left, design.T @ (share[:, None] * rows.targets(c)) + penalty @ about)
        weights.append(solved[: a.shape[1]])
        biases.append(solved[a.shape[1] :].sum(0))
    return torch.stack(weights), torch.stack(biases)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31), n=st.integers(2, 20), inputs=st.integers(1, 6), blocks=st.integers(1, 3),
    outputs=st.integers(1, 3), bias=st.booleans(), power=st.integers(-4, 1),
)  # fmt: skip
def test_a_fit_is_the_ridge_solution_about_the_present_weights(
    seed: int, n: int, inputs: int, blocks: int, outputs: int, bias: bool, power: int
) -> None:
    rows = made(seed, n, inputs, blocks, outputs)  # also fewer rows than inputs
    kept = torch.rand(inputs) < 0.6
    kept[int(torch.randint(inputs, ()))] = True
    weight = torch.randn(blocks, inputs, outputs).double()
    got = fit(rows.moments([3, 8]), weight, zero(weight, bias), 10.0**power, kept)
    rows = rows.counted()
    weights, biases = dense_fit(rows, weight, bias, 10.0**power, kept)
    torch.testing.assert_close(got.weight, weights, rtol=1e-8, atol=1e-8)
    assert (got.bias is None) != bias
    if got.bias is not None:
        torch.testing.assert_close(got.bias, biases, rtol=1e-8, atol=1e-8)
    expected = dense(rows._replace(a=rows.a[:, kept]), bias)
    torch.testing.assert_close(got.second, expected.aa, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(got.mean, expected.a, rtol=1e-12, atol=1e-12)
    λ = 10.0**power * expected.aa.diagonal(dim1=1, dim2=2).mean(1)
    torch.testing.assert_close(got.ridge, λ[:, None, None], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("bias", [True, False])
def test_the_bias_for_other_weights_leaves_no_mean_error(bias: bool) -> None:
    rows = made(8, 15, 4, 2, 2)
    kept = torch.tensor([True, False, True, True])
    weight, other = torch.randn(2, 4, 2).double(), torch.randn(2, 3, 2).double()
    found, rows = fit(rows.moments(), weight, zero(weight, bias), 0.1, kept), rows.counted()
    added = found.bias_for(other)
    assert (added is None) != bias
    for c in range(2 if added is not None else 0):
        missing = rows.targets(c) - rows.a[:, kept] @ other[c] - added[c]
        assert (rows.weight[:, c] @ missing).abs().max() < 1e-12


@pytest.mark.parametrize("ridge", [1e-6, 1e-2, 10.0, None])
def test_constant_inputs_that_go_are_made_up_for_by_the_bias_alone(ridge: float | None) -> None:
    rows = made(9, 30, 5, 1, 2)
    rows.a[:, 1], rows.a[:, 4] = 3.7, -0.2
    weight, bias = torch.randn(1, 5, 2).double(), torch.randn(2).double()
    rows = rows._replace(z=rows.a @ weight[0] + bias)
    kept = torch.tensor([True, False, True, True, False])
    found = fit(rows.moments([6]), weight, zero(weight, True), ridge, kept)
    assert found.bias is not None
    missing = rows.z - rows.a[:, kept] @ found.weight[0] - found.bias[0]
    assert missing.abs().max() < 1e-12 * rows.z.abs().max()
    torch.testing.assert_close(found.weight[0], weight[0, kept], rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(found.bias[0], bias + 3.7 * weight[0, 1] - 0.2 * weight[0, 4], rtol=1e-10, atol=1e-10)

    rows = rows._replace(z=rows.a @ weight[0])  # without a bias the others can do it in part only
    found = fit(rows.moments([6]), weight, None, ridge or 1e-2, kept)
    missing = rows.z - rows.a[:, kept] @ found.weight[0]
    assert found.bias is None
    assert missing.abs().mean() > 1e-3 * rows.z.abs().mean()
    torch.testing.assert_close(
        found.weight, dense_fit(rows.counted(), weight, False, ridge or 1e-2, kept)[0], rtol=1e-7, atol=0
    )


def test_nothing_gone_from_a_layer_that_gives_its_targets_changes_nothing() -> None:
    rows, weight = made(10, 4, 6, 2, 2), torch.randn(2, 6, 2).double()  # fewer rows than inputs
    rows = rows._replace(z=torch.cat([rows.a @ one for one in weight], 1) + 0.5)
    found = fit(rows.moments(), weight, zero(weight, True), 1e-3, torch.ones(6, dtype=torch.bool))
    torch.testing.assert_close(found.weight, weight, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.bias, torch.full((2, 2), 0.5).double(), rtol=1e-8, atol=1e-8)


# ---------------------------------------------------------------- the choice of the ridge


def held_out_error(rows: Rows, weight: Tensor, bias: bool, ridge: float, kept: Tensor) -> float:
    """The weighted mean square on the rows held out, of a fit to the others, summed over outputs."""
    rows = rows.counted()
    solved, added = dense_fit(rows.some(~rows.held), weight, bias, ridge, kept)
    held, total = rows.some(rows.held), 0.0
    for c in range(rows.blocks):
        missing = held.targets(c) - held.a[:, kept] @ solved[c] - added[c]
        total += (held.weight[:, c] @ missing.square() / held.weight[:, c].sum()).sum().item()
    return total


def chosen(found: RidgeFit, rows: Rows, bias: bool, kept: Tensor) -> float:
    """The relative ridge that was taken."""
    expected = dense(rows.counted()._replace(a=rows.a[:, kept]), bias).aa.diagonal(dim1=1, dim2=2).mean(1)
    relative = found.ridge[:, 0, 0] / expected
    assert relative.max() <= relative.min() * (1 + 1e-9)
    return relative[0].item()


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31), n=st.integers(10, 40), blocks=st.integers(1, 2), bias=st.booleans(),
    noise=st.sampled_from([0.01, 1.0, 10.0]),
)  # fmt: skip
def test_the_ridge_does_well_on_what_is_held_out(seed: int, n: int, blocks: int, bias: bool, noise: float) -> None:
    rows = made(seed, n, 6, blocks, 1)
    rows = rows._replace(z=rows.a @ torch.randn(6, blocks).double() + noise * torch.randn(n, blocks).double())
    rows.held[:3] = True
    kept = torch.tensor([True, True, False, True, True, False])
    weight = torch.randn(blocks, 6, 1).double()
    errors = {ridge: held_out_error(rows, weight, bias, ridge, kept) for ridge in GRID}
    got = chosen(fit(rows.moments(), weight, zero(weight, bias), None, kept), rows, bias, kept)
    good = [ridge for ridge, error in errors.items() if error <= 1.01 * min(errors.values()) * (1 + 1e-6)]
    expected = min(good, key=lambda ridge: abs(math.log(ridge / RIDGE)))
    near = [error for error in errors.values() if abs(error / min(errors.values()) - 1.01) < 1e-5]
    assert got == pytest.approx(expected, rel=1e-8) or near


def test_few_noisy_rows_ask_for_a_large_ridge_and_many_clean_ones_for_a_small_one() -> None:
    torch.manual_seed(0)
    here = torch.randn(1, 20, 1).double()
    kept = torch.ones(20, dtype=torch.bool)
    a = torch.randn(25, 20).double()
    few = Rows(a, a @ here[0] + 10 * torch.randn(25, 1).double(), torch.ones(25, 1).double(), torch.arange(25) % 5 == 4)
    assert chosen(fit(few.moments(), here, zero(here, True), None, kept), few, True, kept) == pytest.approx(1.0)
    a = torch.randn(500, 20).double() * torch.logspace(0, -3, 20).double()
    z = a @ torch.randn(20, 1).double()
    many = Rows(a, z, torch.ones(500, 1).double(), torch.arange(500) % 5 == 4)
    assert chosen(fit(many.moments(), here, zero(here, True), None, kept), many, True, kept) < 1e-5


def test_where_every_ridge_is_exact_it_is_the_usual_one() -> None:
    rows, weight = made(11, 20, 4, 1, 2), torch.randn(1, 4, 2).double()
    rows = rows._replace(z=rows.a @ weight[0] + (0.1 * ROUNDING) ** 0.5 * torch.randn(20, 2).double())
    kept = torch.ones(4, dtype=torch.bool)
    assert chosen(fit(rows.moments(), weight, zero(weight, True), None, kept), rows, True, kept) == pytest.approx(RIDGE)


@pytest.mark.parametrize("held", ["none", "all"])
def test_where_nothing_can_be_held_out_the_ridge_is_the_usual_one(held: str) -> None:
    rows = made(12, 12, 4, 2, 1)
    rows = rows._replace(z=100 * torch.randn(12, 2).double())  # a large ridge would be best
    rows.held[:] = held == "all"
    kept, weight = torch.tensor([True, True, True, False]), torch.zeros(2, 4, 1).double()
    assert chosen(fit(rows.moments(), weight, None, None, kept), rows, False, kept) == pytest.approx(RIDGE)
    rows.held[:] = torch.arange(12) >= 8
    assert chosen(fit(rows.moments(), weight, None, None, kept), rows, False, kept) > 10 * RIDGE


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("ridge", [None, 1e-3])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_activations_that_are_not_finite_are_refused(value: float, ridge: float | None, bias: bool) -> None:
    rows = made(13, 10, 3, 2, 1)
    rows.held[0] = True
    rows.a[4, 1] = value
    with pytest.raises(DataError) as caught:
        fit(rows.moments(), torch.randn(2, 3, 1).double(), bias, ridge, torch.ones(3, dtype=torch.bool))
    assert str(caught.value) == BAD


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_targets_that_are_not_finite_are_refused(value: float) -> None:
    rows = made(14, 10, 3, 2, 1)
    rows.z[4, 1] = value
    with pytest.raises(DataError) as caught:
        fit(rows.moments(), torch.randn(2, 3, 1).double(), True, 1e-3, torch.ones(3, dtype=torch.bool))
    assert str(caught.value) == BAD


def test_inputs_that_are_all_constant_keep_their_weights() -> None:
    rows, weight = made(15, 6, 3), torch.randn(1, 3, 1).double()
    rows = rows._replace(a=torch.tensor([1.0, -2.0, 0.0]).double().expand(6, 3))
    found = fit(rows.moments(), weight, zero(weight, True), None, torch.tensor([True, True, False]))
    torch.testing.assert_close(found.weight, weight[:, :2], rtol=1e-12, atol=1e-12)
    assert found.bias is not None
    weights = rows.counted().weight
    mean = (weights[:, 0] @ rows.z) / weights.sum()
    expected = mean - torch.tensor([1.0, -2.0]).double() @ weight[0, :2]
    torch.testing.assert_close(found.bias[0], expected, rtol=1e-12, atol=1e-12)
