"""Units that are handed in belong to the forward that the model has now."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.overrides import TorchFunctionMode

from secateur import Units, find_units
from secateur.errors import DataError, ModelError
from secateur.structure.check_units import check_units
from secateur.structure.inputs import as_call

OTHER = r"^units: found on another forward: the captured graph differs from the model by \d\S* of the largest output; "


class Network(nn.Module):
    """Attributes that decide what forward computes, and one layer with state of each kind."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.drop = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5)
        self.act: Callable[[Tensor], Tensor] = torch.tanh
        self.inner = nn.Sequential(nn.Linear(6, 5), nn.Sigmoid())
        self.last, self.scale, self.shift = nn.Linear(5, 3), 1.0, torch.zeros(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.inner(self.drop(self.act(self.norm(self.first(x)))))) * self.scale + self.shift


def network(dtype: torch.dtype = torch.float64) -> Network:
    torch.manual_seed(0)
    model = Network().to(dtype)
    nn.init.uniform_(model.norm.running_var, 0.5, 1.5)
    return model.eval()


def inputs(n: int = 5, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(1)).to(dtype)


def check(model: nn.Module, units: Units, x: Any) -> None:
    check_units(model, units, as_call(x))


def swap_a_layer(model: Network) -> None:
    model.inner[1] = nn.ReLU()


def swap_a_layer_with_weights(model: Network) -> None:
    class Doubling(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    model.inner[0] = Doubling(6, 5).double()


def add_a_layer(model: Network) -> None:
    model.inner.append(nn.Tanh())


def change_a_function(model: Network) -> None:
    model.act = F.gelu


def change_a_number(model: Network) -> None:
    model.scale = 1.001


def change_a_tensor(model: Network) -> None:
    model.shift = torch.full((3,), 1e-3)


def change_eps(model: Network) -> None:
    model.norm.eps = 2e-5


def hook_outputs(model: Network) -> None:
    model.first.register_forward_hook(lambda _, __, output: 1.01 * output)


def hook_inputs(model: Network) -> None:
    model.last.register_forward_pre_hook(lambda _, args: (args[0].abs().sqrt(),))


def replace_forward(model: Network) -> None:
    forward = model.forward
    model.forward = lambda x: forward(x).relu()


def return_two(model: Network) -> None:
    forward = model.forward
    model.forward = lambda x: (forward(x), x)


def return_another_shape(model: Network) -> None:
    forward = model.forward
    model.forward = lambda x: forward(x)[:, :2]


CHANGES = [
    swap_a_layer, swap_a_layer_with_weights, add_a_layer, change_a_function, change_a_number, change_a_tensor,
    change_eps, hook_outputs, hook_inputs, replace_forward, return_two, return_another_shape,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("training", [False, True])
def test_another_forward_is_refused_and_the_model_left_as_it_was(
    change: Callable[[Network], None], training: bool
) -> None:
    model = network().train(training)
    units = find_units(model, inputs())
    check(model, units, inputs())
    change(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ModelError) as refused:
        check(model, units, inputs())
    assert str(refused.value).startswith("units: found on another forward: the captured graph differs from the model")
    assert str(refused.value).endswith(" of the largest output; call find_units again")
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert model.drop.training is training
    check(model, find_units(model, inputs()), inputs())


@pytest.mark.parametrize("change", [swap_a_layer, change_a_function, hook_outputs])
def test_another_forward_is_refused_in_float32(change: Callable[[Network], None]) -> None:
    model, x = network(torch.float32), inputs(dtype=torch.float32)
    units = find_units(model, x)
    change(model)
    with pytest.raises(ModelError, match=OTHER):
        check(model, units, x)


def test_the_error_says_by_how_much_and_what_to_do() -> None:
    model, x = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU(), nn.Linear(2, 1)), torch.tensor([[1.0], [-2.0]])
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0], [0.0]]))
        model[2].weight.copy_(torch.tensor([[1.0, 1.0]]))
        model[2].bias.zero_()
    units = find_units(model, x)
    model[1] = nn.LeakyReLU(0.25)  # gives 1 and −0.5 instead of 1 and 0
    with pytest.raises(ModelError) as refused:
        check(model, units, x)
    text = "the captured graph differs from the model by 0.5 of the largest output; call find_units again"
    assert str(refused.value) == f"units: found on another forward: {text}"


def untie(model: nn.Module) -> None:
    model.decode.weight = nn.Parameter(model.decode.weight.detach().clone())


def parametrise(model: nn.Module) -> None:
    parametrizations.weight_norm(model.encode)


def add_a_parameter(model: nn.Module) -> None:
    model.more = nn.Parameter(torch.zeros(2))


def drop_a_parameter(model: nn.Module) -> None:
    model.encode.bias = None


def halve(model: nn.Module) -> None:
    model.half()


def widen(model: nn.Module) -> None:
    model.encode = nn.Linear(4, 7)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (untie, "decode.weight is none, this model's is (4, 4) float32"),
        (parametrise, "encode.weight is (4, 4) float32, this model's is none"),
        (add_a_parameter, "more is none, this model's is (2,) float32"),
        (drop_a_parameter, "encode.bias is (4,) float32, this model's is none"),
        (halve, "encode.weight is (4, 4) float32, this model's is (4, 4) float16"),
        (widen, "encode.weight is (4, 4) float32, this model's is (7, 4) float32"),
    ],
)
def test_other_parameters_are_refused_although_outputs_may_agree(
    change: Callable[[nn.Module], None], text: str
) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encode, self.decode = nn.Linear(4, 4), nn.Linear(4, 4, bias=False)
            self.decode.weight = self.encode.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.decode(torch.tanh(self.encode(x)))

    model, x = Tied(), inputs(dtype=torch.float32)
    units = find_units(model, x)
    check(model, units, x)
    change(model)
    with pytest.raises(ModelError) as refused:
        check(model, units, x)
    assert str(refused.value) == f"units: found on a model whose {text}"


def train_mode(model: Network) -> Network:
    return model.train()


def train_further(model: Network) -> Network:
    optimiser = torch.optim.SGD(model.train().parameters(), lr=0.5)
    for _ in range(3):
        optimiser.zero_grad()
        model(inputs(9)).square().sum().backward()
        optimiser.step()
    return model


def take_other_weights(model: Network) -> Network:
    model.load_state_dict({name: tensor * 2 for name, tensor in model.state_dict().items()})
    return model


def freeze(model: Network) -> Network:
    return model.requires_grad_(False)


def look_on(model: Network) -> Network:
    model.inner.register_forward_hook(lambda *_: None)
    return model


def drop_more(model: Network) -> Network:
    model.drop.p = 0.9
    return model


@pytest.mark.parametrize(
    "change", [train_mode, train_further, take_other_weights, freeze, look_on, drop_more, copy.deepcopy]
)
def test_the_same_forward_is_taken_with_any_weights(change: Callable[[Network], Network]) -> None:
    model = network()
    units = find_units(model, inputs())
    check(change(model), units, inputs(7))


def test_inputs_follow_the_model() -> None:
    model = network()
    check(model, find_units(model, inputs()), inputs(dtype=torch.float32))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a second device")
def test_the_model_and_the_inputs_may_move() -> None:
    model = network()
    model.register_buffer("shift", model.__dict__.pop("shift"))  # a tensor that is none of the model's stays behind
    units = find_units(model, inputs())
    check(model, units, inputs().cuda())
    check(model.cuda(), units, inputs())


def test_weights_that_are_not_finite_are_named_as_such() -> None:
    model = network()
    units = find_units(model, inputs())
    with torch.no_grad():
        model.first.bias[2] = torch.nan
    with pytest.raises(ModelError, match=r"^first\.bias: 1 of 6 values are NaN or infinite$"):
        check(model, units, inputs())


def test_inputs_that_do_not_fit_are_named_as_such() -> None:
    model = network()
    units = find_units(model, inputs())
    with pytest.raises(DataError, match=r"^inputs of shape \(5, 3\), the model was captured for \(samples, 4\)$"):
        check(model, units, inputs()[:, :3])
    with pytest.raises(DataError, match=r"^inputs: expected 1 positional, keywords \[\] as in the example, got 2"):
        check(model, units, (inputs(), inputs()))


def test_a_graph_that_no_longer_runs_is_another_forward() -> None:
    class Looking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.first = nn.Linear(3, 2), lambda index: torch.eye(3)[index]

        def forward(self, index: Tensor) -> Tensor:
            return self.last(self.first(index))

    model = Looking()
    units = find_units(model, torch.tensor([0, 2]))
    model.first = lambda index: torch.ones(len(index), 3)
    with pytest.raises(ModelError) as refused:
        check(model, units, torch.tensor([0, 5]))
    assert str(refused.value).startswith(
        "units: found on another forward: the captured graph does not run with this model's weights ("
    )


class CountingLayers(TorchFunctionMode):
    """How often a dense layer is computed from Python."""

    calls = 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += function in (F.linear, torch.ops.aten.linear.default)
        return function(*args, **kwargs or {})


def test_it_costs_one_pass_of_the_model_and_one_of_the_graph() -> None:
    model = network()
    units = find_units(model, inputs())
    with CountingLayers() as count:
        check(model, units, inputs())
    assert count.calls == 2 * 3
