"""Weights to prove with, and a model that holds them for a while."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from secateur.own_code.probe_weights import holding, probe_weights


class Several(nn.Module):
    """Parameters and buffers of every sort."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(50, 40), nn.BatchNorm1d(40)
        self.again = self.layer  # one parameter of two names
        self.alone = nn.Parameter(torch.tensor(-2.0))
        self.whole, self.mask = nn.Buffer(torch.arange(5)), nn.Buffer(torch.tensor([True, False]))
        self.masked = nn.Buffer(torch.tensor([0.0, -torch.inf]))


def several() -> Several:
    torch.manual_seed(0)
    return Several()


def own(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach() for name, tensor in (*model.named_parameters(), *model.named_buffers())}


def test_there_is_one_for_every_parameter_and_buffer_in_float64() -> None:
    model = several()
    before, found = own(model), probe_weights(model)
    assert found.keys() == before.keys()
    assert "again.weight" not in found
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == {
        name: tuple(tensor.shape) for name, tensor in before.items()
    }
    kinds = {name: tensor.dtype for name, tensor in found.items() if tensor.dtype != torch.float64}
    assert kinds == {"whole": torch.int64, "mask": torch.bool, "norm.num_batches_tracked": torch.int64}
    assert not any(tensor.requires_grad for tensor in found.values())


@pytest.mark.parametrize("name", ["layer.weight", "layer.bias", "norm.weight", "norm.running_var", "alone"])
def test_signs_and_sizes_stay_and_values_change(name: str) -> None:
    model = several()
    ratio = probe_weights(model)[name] / own(model)[name].double()
    assert 0.5 <= ratio.min()
    assert ratio.max() <= 1.5
    assert bool((ratio != 1).all())
    assert len(ratio.flatten().unique()) == ratio.numel()  # no two alike, so that none can be taken for another


@pytest.mark.parametrize(
    ("name", "inputs"), [("layer.weight", 50), ("layer.bias", 1), ("norm.weight", 1), ("norm.bias", 1)]
)
def test_parameters_of_zero_become_small_numbers(name: str, inputs: int) -> None:
    model = several()
    nn.init.zeros_(model.get_parameter(name))
    found = probe_weights(model)[name]
    assert bool((found != 0).all())
    assert found.abs().max() <= 0.5 / inputs**0.5
    assert found.abs().max() >= 0.4 / inputs**0.5
    assert found.min() < 0 < found.max()
    assert len(found.unique()) == found.numel()


def test_single_zeros_are_replaced_alone() -> None:
    model = several()
    with torch.no_grad():
        model.layer.weight[3, 4] = 0
    ratio = probe_weights(model)["layer.weight"] / model.layer.weight.detach().double()
    assert (~ratio.isfinite()).nonzero().tolist() == [[3, 4]]


def test_buffers_of_zero_whole_numbers_and_infinities_stay() -> None:
    model = several()
    found = probe_weights(model)
    for name in ("norm.running_mean", "whole", "mask", "masked"):
        assert found[name].tolist() == model.get_buffer(name).tolist()


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0)])
def test_what_holds_nothing_does_so_still(shape: tuple[int, ...]) -> None:
    model = several()
    model.empty, model.none = nn.Parameter(torch.zeros(shape)), nn.Buffer(torch.zeros(shape))
    assert [tuple(probe_weights(model)[name].shape) for name in ("empty", "none")] == [shape, shape]


def test_the_same_model_gets_the_same_ones_and_keeps_its_own() -> None:
    model = several()
    before = {name: tensor.clone() for name, tensor in own(model).items()}
    state = torch.get_rng_state()
    first, second = probe_weights(model), probe_weights(model)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(torch.equal(before[name], tensor) for name, tensor in own(model).items())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_model_holds_other_values_for_a_while() -> None:
    model = several()
    objects, before = list(model.parameters()), {name: tensor.clone() for name, tensor in own(model).items()}
    storages = {name: tensor.data_ptr() for name, tensor in own(model).items()}
    values = probe_weights(model)
    with holding(model, values):
        assert [id(one) for one in model.parameters()] == [id(one) for one in objects]
        assert all(torch.equal(values[name], tensor) for name, tensor in own(model).items())
        assert model.layer.weight.dtype == torch.float64
        assert model.again.weight is model.layer.weight
        assert model.layer(torch.ones(1, 50).double()).dtype == torch.float64
    assert [id(one) for one in model.parameters()] == [id(one) for one in objects]
    assert {name: tensor.data_ptr() for name, tensor in own(model).items()} == storages
    assert all(torch.equal(before[name], tensor) for name, tensor in own(model).items())
    assert {name: tensor.dtype for name, tensor in own(model).items()} == {n: t.dtype for n, t in before.items()}


def test_it_has_its_own_again_after_an_error() -> None:
    model = several()
    before = {name: tensor.clone() for name, tensor in own(model).items()}
    with pytest.raises(ValueError, match="inside"), holding(model, probe_weights(model)):
        raise ValueError("inside")
    assert all(torch.equal(before[name], tensor) for name, tensor in own(model).items())


def test_some_values_or_none_can_be_given() -> None:
    model = several()
    weight, bias = model.layer.weight.detach().clone(), torch.ones(40)
    with holding(model, {"layer.bias": bias}):
        assert model.layer.bias.tolist() == [1] * 40
        assert torch.equal(model.layer.weight, weight)
    assert model.layer.bias.tolist() != [1] * 40
    with holding(model, None):
        assert torch.equal(model.layer.weight, weight)
