from __future__ import annotations

import copy
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from secateur.compensation import block_obs as survivors
from secateur.compensation.block_obs import BlockOBS


class Problem(NamedTuple):
    """AᵀA [C, D, D], the weights at the start [C, D, o], λ [C, 1, 1], R [C, o, r], and the inputs' names."""

    second: Tensor
    weight: Tensor
    ridge: Tensor
    root: Tensor
    names: Tensor

    @property
    def metric(self) -> Tensor:
        """B = R Rᵀ."""
        return self.root @ self.root.mT

    def survivors(self) -> BlockOBS:
        return BlockOBS(self.second, self.weight, self.ridge, self.root, self.names)

    def without(self, gone: list[int]) -> Tensor:
        """The W of least tr((W − W₀)ᵀ (AᵀA + λI) (W − W₀)) with these rows zero: ridge regression on A W₀, about W₀."""
        left = [i for i in range(len(self.names)) if i not in gone]
        solved = torch.zeros_like(self.weight)
        for c, (second, start, λ) in enumerate(zip(self.second, self.weight, self.ridge[:, 0, 0], strict=True)):
            normal = second[left][:, left] + λ * torch.eye(len(left)).to(second)
            solved[c, left] = torch.linalg.solve(normal, second[left] @ start + λ * start[left])
        return solved

    def cost(self, weight: Tensor, ridge: bool) -> Tensor:
        """½ tr(B ΔWᵀ G ΔW), or its data's part."""
        total = weight.new_zeros(())
        for c, delta in enumerate(weight - self.weight):
            matrix = self.second[c] + (self.ridge[c] * torch.eye(len(delta)).to(delta) if ridge else 0)
            total += 0.5 * torch.trace(self.metric[c] @ delta.T @ matrix @ delta)
        return total


def problem(
    seed: int, inputs: int, blocks: int = 1, outputs: int = 1, rank: int = 1, rows: int = 30, ridge: float = 1e-2
) -> Problem:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    a = normal(blocks, rows, inputs) @ (normal(inputs, inputs) / inputs**0.5)
    names = torch.randperm(3 * inputs + 2, generator=generator)[:inputs].sort().values  # some of a whole layer's
    λ = ridge * (1 + torch.rand(blocks, 1, 1, dtype=torch.float64, generator=generator))
    weight, root = normal(blocks, inputs, outputs), normal(blocks, outputs, rank)
    return Problem(a.mT @ a / rows, weight, λ, root, names)


def groups(sizes: list[int], seed: int) -> list[list[int]]:
    """All inputs in a random order, cut into groups; some lie apart."""
    order = torch.randperm(sum(sizes), generator=torch.Generator().manual_seed(seed))
    return [one.tolist() for one in torch.split(order, sizes)]


def named(given: Problem, group: list[int]) -> Tensor:
    return given.names[torch.tensor(group)]


def entire(one: BlockOBS, names: Tensor, change: Tensor | None = None) -> Tensor:
    """Its weights, with rows of zeros for inputs that it no longer holds."""
    found = one.weights.new_zeros(len(one.weights), len(names), one.width)
    found[:, torch.searchsorted(names, one.names)] = one.weight(change)
    return found


def assert_close(got: Tensor, expected: Tensor, scale: Tensor | float = 1.0) -> None:
    """To 1e-8, relative to the scale at least."""
    assert got.dtype == torch.float64
    assert got.shape == expected.shape
    assert float((got - expected).abs().max()) <= 1e-8 * max(float(expected.abs().max()), float(scale))


# ---------------------------------------------------------------- any sequence of removals


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31), sizes=st.lists(st.integers(1, 3), min_size=1, max_size=8), blocks=st.integers(1, 3),
    outputs=st.integers(1, 3), rank=st.integers(1, 4), rows=st.integers(2, 40),
    ridge=st.sampled_from([1e-3, 1e-2, 1.0, 100.0]),
)  # fmt: skip
def test_after_any_removals_weights_are_the_ridge_solution_and_costs_add_up(
    seed: int, sizes: list[int], blocks: int, outputs: int, rank: int, rows: int, ridge: float
) -> None:
    given_ = problem(seed, sum(sizes), blocks, outputs, rank, rows, ridge)
    order, one = groups(sizes, seed), given_.survivors()
    gone: list[int] = []
    whole = data = 0.0
    for group in order:
        inputs = named(given_, group)
        of_whole, of_data = one.costs(inputs[None])
        whole, data = whole + of_whole.item(), data + of_data.item()
        changed = entire(one, given_.names, one.change(inputs))
        one.remove(inputs)
        gone += group
        expected = given_.without(gone)
        assert_close(entire(one, given_.names), expected, given_.weight.abs().max())
        assert_close(changed, expected, given_.weight.abs().max())
        assert not entire(one, given_.names)[:, gone].any()
        total = given_.cost(expected, True)
        assert whole == pytest.approx(total.item(), rel=1e-8)
        assert abs(data - given_.cost(expected, False).item()) <= 1e-8 * total
        if len(gone) < len(given_.names):
            weight_and_root = torch.cat([one.weights[:, :, :outputs] @ given_.root], 2)
            assert_close(
                one.weights[:, :, outputs:], weight_and_root, given_.weight.abs().max() * given_.root.abs().max()
            )


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**31), width=st.integers(1, 3), count=st.integers(2, 6), blocks=st.integers(1, 2),
    outputs=st.integers(1, 3), ridge=st.sampled_from([1e-3, 1e-1, 10.0]),
)  # fmt: skip
def test_the_costs_of_all_candidates_are_what_each_removal_does(
    seed: int, width: int, count: int, blocks: int, outputs: int, ridge: float
) -> None:
    given_ = problem(seed, width * count, blocks, outputs, 2, ridge=ridge)
    order, one = groups([width] * count, seed), given_.survivors()
    gone: list[int] = []
    while order:
        candidates = torch.stack([named(given_, group) for group in order])
        whole, data = one.costs(candidates)
        assert whole.shape == data.shape == (len(order),)
        before = entire(one, given_.names)
        for k, group in enumerate(order):
            trial = copy.deepcopy(one)
            trial.remove(named(given_, group))
            after = given_.without(gone + group)
            assert_close(entire(trial, given_.names), after, given_.weight.abs().max())
            for got, ridged in ((whole[k], True), (data[k], False)):
                assert_close(got, given_.cost(after, ridged) - given_.cost(before, ridged), given_.cost(after, True))
        assert torch.equal(entire(one, given_.names), before)  # asking changes nothing
        one.remove(candidates[0])
        gone += order.pop(0)


def test_without_a_root_there_are_no_costs_but_the_same_weights() -> None:
    given_ = problem(0, 6, 2, 3)
    bare = given_._replace(root=given_.root[:, :, :0]).survivors()
    for group in ([1], [4, 0]):
        bare.remove(named(given_, group))
    assert_close(entire(bare, given_.names), given_.without([0, 1, 4]))
    assert bare.costs(given_.names[[2]][None])[0].tolist() == [0.0]


# ---------------------------------------------------------------- arrays


def test_rows_are_struck_out_when_many_are_gone_without_changing_results(monkeypatch: pytest.MonkeyPatch) -> None:
    given_ = problem(1, 40, 2, 2, 2)
    one, order = given_.survivors(), torch.randperm(40, generator=torch.Generator().manual_seed(0)).tolist()
    monkeypatch.setattr(survivors, "SPARSE", 1.0)
    never = given_.survivors()
    widths = []
    for i, k in enumerate(order[:-1]):
        name, rest = given_.names[[k]], given_.names[torch.tensor(order[i:])][:, None]
        monkeypatch.setattr(survivors, "SPARSE", 0.25)
        assert len(one.names) == one.weights.shape[1] == one.moved.shape[1] == one.inverse.shape[1]
        costs, left = one.costs(rest), 40 - i - 1
        one.remove(name)
        widths.append(len(one.names))
        assert left <= widths[-1] < left / 0.75 or widths[-1] == left
        assert one.inverse.shape == (2, widths[-1], widths[-1])
        assert one.inverse.untyped_storage().nbytes() == one.inverse.numel() * 8  # a view would hold the larger one
        monkeypatch.setattr(survivors, "SPARSE", 1.0)
        for got, expected in zip(costs, never.costs(rest), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)
        never.remove(name)
        torch.testing.assert_close(entire(one, given_.names), entire(never, given_.names), rtol=1e-9, atol=1e-12)
    assert len(never.names) == 40
    assert sorted(set(widths), reverse=True) == [40, 30, 22, 16, 12, 9, 6, 4, 3, 2, 1]


@pytest.mark.parametrize("outputs", [1, 3])
def test_all_but_one_can_go_and_the_last_one_too(outputs: int) -> None:
    given_ = problem(2, 7, 1, outputs, 2)
    one = given_.survivors()
    for k in (3, 0, 6, 1, 5, 2):
        one.remove(given_.names[[k]])
    scalar = given_.second[0, 4, 4] + given_.ridge[0, 0, 0]
    expected = (given_.second[0, 4] @ given_.weight[0] + given_.ridge[0, 0, 0] * given_.weight[0, 4]) / scalar
    assert_close(entire(one, given_.names)[0, 4], expected)
    assert entire(one, given_.names).count_nonzero() == outputs
    whole, data = one.costs(given_.names[[4]][None])
    nothing = torch.zeros_like(given_.weight)
    so_far = given_.without([0, 1, 2, 3, 5, 6])
    assert_close(whole[0], given_.cost(nothing, True) - given_.cost(so_far, True))
    assert_close(data[0], given_.cost(nothing, False) - given_.cost(so_far, False))
    one.remove(given_.names[[4]])
    assert not entire(one, given_.names).any()
    assert entire(one, given_.names).shape == given_.weight.shape


def test_a_layer_with_one_input() -> None:
    given_ = Problem(
        torch.tensor([[[3.0]], [[5.0]]]).double(), torch.tensor([[[2.0]], [[-1.0]]]).double(),
        torch.tensor([[[1.0]], [[0.5]]]).double(), torch.tensor([[[2.0]], [[3.0]]]).double(), torch.tensor([17]),
    )  # fmt: skip
    one = given_.survivors()
    whole, data = one.costs(torch.tensor([[17]]))
    assert whole.item() == pytest.approx(0.5 * (4 * 4 * 4 + 9 * 1 * 5.5), rel=1e-12)
    assert data.item() == pytest.approx(0.5 * (4 * 4 * 3 + 9 * 1 * 5), rel=1e-12)
    assert_close(one.change(torch.tensor([17])), -given_.weight)
    one.remove(torch.tensor([17]))
    assert entire(one, given_.names).tolist() == [[[0.0]], [[0.0]]]


# ---------------------------------------------------------------- tied inputs


def test_of_two_inputs_that_are_the_same_one_costs_nothing() -> None:
    torch.manual_seed(0)
    a = torch.randn(50, 5).double()
    a[:, 3] = a[:, 1]
    λ = torch.full((1, 1, 1), 1e-7).double()
    weight = torch.randn(1, 5, 2).double()
    given_ = Problem((a.T @ a / 50)[None], weight, λ, torch.eye(2).double()[None], torch.arange(5))
    one = given_.survivors()
    whole, data = one.costs(torch.arange(5)[:, None])
    assert (whole[[1, 3]] < 1e-6).all()
    assert (data[[1, 3]].abs() < 1e-9).all()
    assert (whole[[0, 2, 4]] > 1e-2).all()
    one.remove(torch.tensor([3]))
    after = entire(one, given_.names)[0]
    torch.testing.assert_close(a @ after, a @ weight[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(after[1], weight[0, 1] + weight[0, 3], rtol=1e-5, atol=1e-5)
    whole, data = one.costs(torch.tensor([[1]]))
    assert min(whole.item(), data.item()) > 1e-2  # it has no twin any more
    missing = a @ (given_.without([1, 3])[0] - weight[0])
    assert data.item() == pytest.approx(0.5 * missing.square().sum().item() / 50, rel=1e-5)


def test_inputs_that_are_zero_cost_nothing_and_change_nothing() -> None:
    given_ = problem(3, 4, 1, 2)
    given_.second[:, 2] = given_.second[:, :, 2] = 0
    one = given_.survivors()
    _, data = one.costs(given_.names[:, None])
    assert abs(data[2].item()) < 1e-12
    one.remove(given_.names[[2]])
    assert_close(entire(one, given_.names)[:, [0, 1, 3]], given_.weight[:, [0, 1, 3]])
