"""Optimisers that go on with a cut network."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import secateur as sc
from secateur.errors import ArgumentError

X = torch.randn(30, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = torch.arange(30) % 3
KEPT = {"0": [0, 2, 3, 6], "2": [1, 2, 4]}
PLAN = sc.Plan.from_kept(KEPT, X[:2])
Optimizer = torch.optim.Optimizer


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3)
    return nn.Sequential(*layers).double()


def step(optimizer: Optimizer, forward: Callable[[Tensor], Tensor]) -> None:
    optimizer.zero_grad()
    cross_entropy(forward(X), Y).backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def gated(model: nn.Sequential) -> Callable[[Tensor], Tensor]:
    """The forward in which the hidden units that the plan removes are zero."""
    first, second = (torch.zeros(n, dtype=torch.float64) for n in (8, 6))
    first[KEPT["0"]], second[KEPT["2"]] = 1, 1
    return lambda x: model[4](model[3](model[2](model[1](model[0](x)) * first)) * second)


def sliced(model: nn.Sequential) -> list[Tensor]:
    """The slices of the weights that stay, written out."""
    a, b = KEPT["0"], KEPT["2"]
    return [
        model[0].weight[a], model[0].bias[a], model[2].weight[b][:, a], model[2].bias[b], model[4].weight[:, b],
        model[4].bias,
    ]  # fmt: skip


MAKERS: dict[str, Callable[[Any], Optimizer]] = {
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "plain": lambda p: torch.optim.SGD(p, lr=0.1),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, betas=(0.8, 0.9), amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5, centered=True),
}


@pytest.mark.parametrize("name", MAKERS)
def test_a_step_of_the_small_network_is_the_gated_originals_on_what_stays(name: str) -> None:
    model = network()
    optimizer = MAKERS[name](model.parameters())
    for _ in range(3):
        step(optimizer, model)
    small = sc.cut(model, PLAN)
    before = copy.deepcopy(optimizer.state_dict())
    transferred = PLAN.transfer(optimizer, model, small)
    assert type(transferred) is type(optimizer)
    assert str(optimizer.state_dict()) == str(before)
    step(transferred, small)
    untouched = copy.deepcopy(optimizer.state_dict()["state"])
    assert str(untouched) == str(before["state"])
    step(optimizer, gated(model))
    for left, expected in zip(small.parameters(), sliced(model), strict=True):
        assert torch.allclose(left, expected, rtol=1e-12, atol=1e-14)
    fresh = MAKERS[name](sc.cut(network(), PLAN).parameters())
    assert transferred.param_groups[0].keys() == fresh.param_groups[0].keys()
    assert transferred.defaults == fresh.defaults


def test_momenta_without_the_transfer_would_give_another_step() -> None:
    model = network()
    optimizer = MAKERS["momentum"](model.parameters())
    step(optimizer, model)
    small = sc.cut(model, PLAN)
    step(MAKERS["momentum"](small.parameters()), small)
    step(optimizer, gated(model))
    assert not torch.allclose(next(small.parameters()), sliced(model)[0])


def test_groups_frozen_and_foreign_weights_keep_their_places() -> None:
    model = network()
    model[2].bias.requires_grad_(False)
    groups = [
        {"params": [model[4].weight, model[0].bias], "lr": 0.5},
        {"params": [*model[2].parameters()], "weight_decay": 0.25},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    step(optimizer, model)
    small = sc.cut(model, PLAN)
    transferred = PLAN.transfer(optimizer, model, small)
    assert [[p is q for p, q in zip(group["params"], params, strict=True)] for group, params in zip(
        transferred.param_groups, ([small[4].weight, small[0].bias], list(small[2].parameters())), strict=True
    )] == [[True, True], [True, True]]  # fmt: skip
    assert [(group["lr"], group["weight_decay"]) for group in transferred.param_groups] == [(0.5, 0), (0.1, 0.25)]
    assert small[2].bias not in transferred.state
    assert set(transferred.state) == {small[4].weight, small[0].bias, small[2].weight}
    assert torch.equal(
        transferred.state[small[4].weight]["momentum_buffer"],
        optimizer.state[model[4].weight]["momentum_buffer"][:, KEPT["2"]],
    )


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(5, 7), nn.Linear(5, 7)
        self.outer.weight, self.head = self.inner.weight, nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.tanh(self.inner(x)) + torch.tanh(self.outer(x)))
        return logits


def test_tied_weights_have_one_state() -> None:
    torch.manual_seed(0)
    model = Tied().double()
    optimizer = torch.optim.Adam(model.parameters())
    step(optimizer, model)
    (unit_set,) = sc.find_units(model, X)
    plan = sc.Plan.from_kept({unit_set.name: [1, 4]}, X[:2])
    small = sc.cut(model, plan)
    transferred = plan.transfer(optimizer, model, small)
    assert len(transferred.state) == len(optimizer.state) == 5
    exp_avg = optimizer.state[model.inner.weight]["exp_avg"]
    assert torch.equal(transferred.state[small.outer.weight]["exp_avg"], exp_avg[[1, 4]])
    assert transferred.state[small.inner.weight]["step"].item() == 1


def test_biases_that_the_plan_adds_join_their_layers_group() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3, bias=False)).double()
    result = sc.shrink(model, (X, Y), "cross_entropy", sc.Budget(remove_units=4), add_bias=True, progress=False)
    optimizer = torch.optim.SGD(
        [{"params": model[0].parameters()}, {"params": [model[2].weight], "lr": 1.0}], lr=0.1, momentum=0.9
    )
    step(optimizer, model)
    transferred = result.plan.transfer(optimizer, model, result.model)
    assert [len(group["params"]) for group in transferred.param_groups] == [2, 2]
    assert transferred.param_groups[1]["params"][1] is result.model[2].bias
    step(transferred, result.model)
    assert result.model[2].bias.any()


class Scaled(torch.optim.SGD):
    """An optimiser with a setting outside its groups."""

    def __init__(self, params: Any, scale: float) -> None:
        super().__init__(params, lr=0.1, momentum=0.9)
        self.scale = scale

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            group["lr"] *= self.scale
        super().step(closure)


def test_settings_outside_the_groups_are_copied_and_what_a_schedule_replaced_is_not() -> None:
    model = network()
    optimizer = Scaled(model.parameters(), 0.5)
    torch.optim.lr_scheduler.StepLR(optimizer, 1)  # puts a step of its own in the optimiser's place
    step(optimizer, model)
    small, untouched = sc.cut(model, PLAN), copy.deepcopy(model.state_dict())
    transferred = PLAN.transfer(optimizer, model, small)
    before = small[0].weight.detach().clone()
    step(transferred, small)
    assert (transferred.scale, transferred.param_groups[0]["lr"]) == (0.5, 0.025)
    assert optimizer.param_groups[0]["lr"] == 0.05
    assert not torch.equal(small[0].weight, before)
    assert all(torch.equal(tensor, untouched[name]) for name, tensor in model.state_dict().items())


def with_history(model: nn.Module) -> Optimizer:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.state[next(model.parameters())]["history"] = [1, 2]
    return optimizer


def factored(model: nn.Module) -> Optimizer:
    optimizer = torch.optim.Adafactor(model.parameters())
    step(optimizer, model)
    return optimizer


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda _: torch.optim.SGD(nn.Linear(2, 3).parameters(), lr=1),
         r"optimizer: one of its parameters, of shape \(3, 2\), is none of the model's"),
        (with_history, r"optimizer: its state 'history' of 0\.weight is list, which has no slice for the weights that"),
        (lambda model: torch.optim.LBFGS(model.parameters()),
         r"optimizer: its attribute '_params' is a list, which may belong to the original; make a new optimiser"),
        (factored, r"optimizer: its state 'row_var' of 0\.weight is a tensor of shape \(8, 1\), which has no slice"),
        (lambda model: model, r"optimizer: expected a torch\.optim\.Optimizer, got Sequential"),
    ],
)  # fmt: skip
def test_an_optimiser_that_cannot_go_on_is_refused(make: Callable[[Any], Any], text: str) -> None:
    model = network()
    with pytest.raises(ArgumentError, match=text):
        PLAN.transfer(make(model), model, sc.cut(model, PLAN))


def test_a_network_of_another_cut_is_refused() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=1)
    text = r"small: expected 0\.weight of shape \(4, 5\), as the plan leaves it, got \(8, 5\)"
    with pytest.raises(ArgumentError, match=text):
        PLAN.transfer(optimizer, model, network())
    with pytest.raises(
        ArgumentError, match=r"small: expected 0\.weight of shape \(4, 5\), as the plan leaves it, got N"
    ):
        PLAN.transfer(optimizer, model, nn.Linear(5, 4))


def test_the_index_map_tells_where_every_slice_comes_from() -> None:
    model = network()
    mapped, small = PLAN.index_map(model), sc.cut(model, PLAN)
    assert mapped == {
        "0.weight": [[0, 2, 3, 6], None], "0.bias": [[0, 2, 3, 6]], "2.weight": [[1, 2, 4], [0, 2, 3, 6]],
        "2.bias": [[1, 2, 4]], "4.weight": [None, [1, 2, 4]],
    }  # fmt: skip
    for name, tensor in small.state_dict().items():
        old = model.state_dict()[name]
        for dim, indices in enumerate(mapped.get(name, [])):
            old = old if indices is None else old.index_select(dim, torch.tensor(indices))
        assert torch.equal(old, tensor)


def test_the_index_map_of_heads_and_flattened_channels_counts_every_position() -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2))
    plan = sc.Plan.from_kept({"0": [0, 2]}, torch.zeros(2, 1, 4, 4))
    positions = [0, 1, 2, 3, 8, 9, 10, 11]
    assert plan.index_map(model) == {
        "0.weight": [[0, 2], None, None, None],
        "0.bias": [[0, 2]],
        "3.weight": [None, positions],
    }
