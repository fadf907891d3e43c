"""Masks of single weights, and what training does to them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.cutting.weight_masks import count_moved, freeze, rezero
from secateur.errors import ArgumentError, PlanError


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def some(model: nn.Module, which: int = 0) -> dict[str, Tensor]:
    """Masks without every third weight; every unit keeps some on both sides."""
    return {n: (torch.arange(p.numel()) % 3 != which).view(p.shape) for n, p in model.named_parameters()}


def train(model: nn.Module, optimiser: torch.optim.Optimizer, steps: int = 5) -> None:
    x = torch.randn(20, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

    def error() -> Tensor:
        optimiser.zero_grad()
        loss: Tensor = (model(x) - x[:, :3].sin()).square().mean()
        loss.backward()
        return loss

    for _ in range(steps):
        optimiser.step(error)  # type: ignore[arg-type]


OPTIMISERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.1),
    "Nesterov": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "Adam": lambda p: torch.optim.Adam(p, 0.1, weight_decay=0.1),
    "AMSGrad": lambda p: torch.optim.Adam(p, 0.1, amsgrad=True),
    "AdamW": lambda p: torch.optim.AdamW(p, 0.1, weight_decay=0.1),
    "RMSprop": lambda p: torch.optim.RMSprop(p, 0.1, momentum=0.9, centered=True),
    "Adagrad": lambda p: torch.optim.Adagrad(p, 0.1),
    "LBFGS": lambda p: torch.optim.LBFGS(p, 0.1, max_iter=5),
}


@pytest.mark.parametrize("name", OPTIMISERS)
def test_removed_weights_stay_zero_in_training_and_all_others_move(name: str) -> None:
    model = network()
    before, masks = copy.deepcopy(model.state_dict()), some(model)
    freeze(model, masks)
    for n, p in model.named_parameters():
        assert torch.equal(p, torch.where(masks[n], before[n], 0))
    train(model, OPTIMISERS[name](model.parameters()))
    for n, p in model.named_parameters():
        assert p[~masks[n]].abs().max() == 0
        assert ((p - before[n])[masks[n]].abs() > 1e-6).all()
    assert model.state_dict().keys() == before.keys()


def test_kept_weights_train_as_if_the_removed_ones_were_set_to_zero_after_each_step() -> None:
    model, other = network(), network()
    masks = some(model)
    freeze(model, masks)
    rezero(other, masks)
    train(model, torch.optim.SGD(model.parameters(), 0.1), 4)
    for _ in range(4):
        train(other, torch.optim.SGD(other.parameters(), 0.1), 1)
        rezero(other, masks)
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_freezing_again_replaces_the_mask() -> None:
    model = network()
    first, second = some(model), some(model, 1)
    freeze(model, first)
    freeze(model, {n: first[n] & second[n] for n in first})
    assert all(len(p._backward_hooks or {}) == 1 for p in model.parameters())
    train(model, torch.optim.Adam(model.parameters(), 0.1))
    for n, p in model.named_parameters():
        assert torch.equal(p == 0, ~(first[n] & second[n]))
    freeze(model, {n: torch.ones_like(mask) for n, mask in first.items()})
    train(model, torch.optim.Adam(model.parameters(), 0.1))
    assert all((p != 0).all() for p in model.parameters())


def test_the_mask_is_that_of_the_call_whatever_becomes_of_it() -> None:
    model, mask = network(), torch.zeros(3, 8, dtype=torch.bool)
    freeze(model, {"2.weight": mask})
    mask[:] = True
    train(model, torch.optim.Adam(model.parameters(), 0.1))
    assert model[2].weight.abs().max() == 0


def test_parameters_not_named_and_other_hooks_are_left_alone() -> None:
    model, seen = network(), []
    model[0].weight.register_hook(lambda g: seen.append(g.clone()))
    before = copy.deepcopy(model.state_dict())
    freeze(model, {"0.weight": torch.zeros(8, 5, dtype=torch.bool)})
    assert all(torch.equal(before[n], p) for n, p in model.named_parameters() if n != "0.weight")
    train(model, torch.optim.SGD(model.parameters(), 0.1), 1)
    assert len(seen) == 1
    assert seen[0].abs().max() > 0
    assert all((before[n] != p).any() for n, p in model.named_parameters())
    assert model[0].weight.abs().max() == 0


def test_gradients_at_hand_are_masked_too_and_infinite_ones_do_no_harm() -> None:
    layer = nn.Linear(3, 1, bias=False)
    (layer.weight * torch.tensor([1.0, 2.0, float("inf")])).sum().backward()
    freeze(layer, {"weight": torch.tensor([[True, False, False]])})
    assert layer.weight.grad is not None
    assert layer.weight.grad.tolist() == [[1, 0, 0]]
    (layer.weight * torch.tensor([1.0, 2.0, float("inf")])).sum().backward()
    assert layer.weight.grad.tolist() == [[2, 0, 0]]


def test_weights_that_are_not_trained_are_zeroed_and_frozen_for_when_they_are() -> None:
    model = network()
    model[2].requires_grad_(False)
    masks = some(model)
    freeze(model, masks)
    assert [p.requires_grad for p in model.parameters()] == [True, True, False, False]
    assert count_moved(model, masks) == 0
    model[2].requires_grad_(True)
    train(model, torch.optim.Adam(model.parameters(), 0.1))
    assert count_moved(model, masks) == 0


def test_sparse_gradients() -> None:
    table = nn.Embedding(6, 4, sparse=True)
    mask = torch.rand(6, 4, generator=torch.Generator().manual_seed(0)) < 0.5
    freeze(table, {"weight": mask})
    before = table.weight.detach().clone()
    optimiser = torch.optim.SparseAdam(table.parameters(), 0.1)
    for _ in range(3):
        optimiser.zero_grad()
        (table(torch.tensor([1, 1, 4])) - 2).square().sum().backward()
        optimiser.step()
    moved = torch.zeros(6, 4, dtype=torch.bool)
    moved[[1, 4]] = mask[[1, 4]]
    assert torch.equal(table.weight != before, moved)
    assert torch.equal(table.weight != 0, mask)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.complex64])
def test_other_types_and_shapes(dtype: torch.dtype) -> None:
    shapes: dict[str, tuple[int, ...]] = {"scalar": (), "none": (0, 3), "cube": (2, 2, 2)}
    model = nn.ParameterDict({name: torch.ones(shape, dtype=dtype) for name, shape in shapes.items()})
    masks = {"scalar": torch.tensor(False), "none": torch.ones(0, 3, dtype=torch.bool)}
    masks["cube"] = torch.tensor([[[True, False], [False, True]], [[True, True], [False, False]]])
    freeze(model, masks)
    sum((p + 1).sum().abs() for p in model.values()).backward()
    assert model["scalar"] == model["scalar"].grad == 0
    assert torch.equal(model["cube"] != 0, masks["cube"])
    assert torch.equal(model["cube"].grad != 0, masks["cube"])
    assert model["none"].shape == (0, 3)


def test_integers_that_never_have_gradients_are_zeroed() -> None:
    model = nn.ParameterDict({"n": nn.Parameter(torch.tensor([3, 4]), requires_grad=False)})
    freeze(model, {"n": torch.tensor([True, False])})
    assert model["n"].tolist() == [3, 0]


def test_tied_weights_are_frozen_once_under_their_first_name() -> None:
    model = nn.ModuleDict({"a": nn.Linear(2, 2, False), "b": nn.Linear(2, 2, False)})
    model["b"].weight = model["a"].weight
    mask = torch.tensor([[True, False], [True, True]])
    freeze(model, {"a.weight": mask})
    model["b"](model["a"](torch.ones(1, 2))).sum().backward()
    assert torch.equal(model["b"].weight.grad != 0, mask)
    with pytest.raises(PlanError, match=r"^masks: 'b.weight' is no parameter of the model; those are: a.weight$"):
        freeze(model, {"b.weight": mask})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_masks_follow_the_parameters_to_their_device() -> None:
    model = network()
    masks = some(model)
    freeze(model, masks)
    model.cuda()
    sum(p.square().sum() + p.sum() for p in model.parameters()).backward()  # type: ignore[union-attr]
    assert all(torch.equal((p.grad != 0).cpu(), masks[n]) for n, p in model.named_parameters())  # type: ignore[union-attr]
    freeze(model, masks)
    assert count_moved(model, masks) == 0


def test_a_model_moved_to_another_dtype_or_captured_is_still_frozen() -> None:
    model = network().float()
    masks = some(model)
    freeze(model, masks)
    model.double()
    sc.find_units(model, torch.zeros(2, 5, dtype=torch.float64))
    train(model, torch.optim.Adam(model.parameters(), 0.1))
    assert count_moved(model, masks) == 0


def test_an_optimiser_from_before_moves_them_until_they_are_set_to_zero_again() -> None:
    model = network()
    optimiser, masks = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9), some(model)
    train(model, optimiser)
    freeze(model, masks)
    train(model, optimiser, 1)
    assert count_moved(model, masks) == sum(int((~mask).sum()) for mask in masks.values())
    kept = [p[masks[n]].clone() for n, p in model.named_parameters()]
    rezero(model, masks)
    assert count_moved(model, masks) == 0
    assert all(torch.equal(a, p[masks[n]]) for a, (n, p) in zip(kept, model.named_parameters(), strict=True))


def test_a_copy_has_the_zeros_and_is_frozen_when_that_is_asked_for() -> None:
    model = network()
    masks = some(model)
    freeze(model, masks)
    twin = copy.deepcopy(model)
    assert count_moved(twin, masks) == 0
    freeze(twin, masks)
    train(twin, torch.optim.Adam(twin.parameters(), 0.1))
    assert count_moved(twin, masks) == 0


@pytest.mark.parametrize(
    ("name", "mask", "error", "text"),
    [
        ("1.weight", torch.ones(8, 5, dtype=torch.bool), PlanError,
         "masks: '1.weight' is no parameter of the model; those are: 0.weight, 0.bias, 2.weight, 2.bias"),
        ("2.weight", torch.ones(8, 3, dtype=torch.bool), PlanError,
         "masks: that of '2.weight' has shape (8, 3), the parameter has (3, 8)"),
        ("2.weight", torch.ones(3, 8), ArgumentError,
         "masks: that of '2.weight' must be a tensor of torch.bool, got torch.float32"),
        ("2.weight", [True], ArgumentError, "masks: that of '2.weight' must be a tensor of torch.bool, got list"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("call", [freeze, rezero, count_moved])
def test_masks_that_do_not_fit_are_refused_before_anything_is_changed(
    name: str, mask: Any, error: type[Exception], text: str, call: Callable[..., object]
) -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(error) as caught:
        call(model, {"0.weight": torch.zeros(8, 5, dtype=torch.bool), name: mask})
    assert str(caught.value) == text
    assert all(torch.equal(before[n], p) for n, p in model.named_parameters())
    assert not any(p._backward_hooks for p in model.parameters())
