"""What a cut network must compute, found by values alone."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from secateur import SecateurError
from secateur_experiments.bench.architectures import randomise
from secateur_experiments.bench.suite.truth import InDouble, tensors, values, zeroed

KEPT = [0, 2, 3]


def network(hidden: int = 5) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, 2)).double().eval()
    randomise(model)
    return model


def cut_by_hand(model: nn.Sequential) -> nn.Sequential:
    small = network(len(KEPT))
    state = {}
    for name, tensor in model.state_dict().items():
        last = name in ("3.weight", "3.bias")
        state[name] = tensor[:, KEPT] if name == "3.weight" else tensor if last or not tensor.ndim else tensor[KEPT]
    small.load_state_dict(state)
    return small


def test_what_is_gone_is_zero_and_all_else_as_it_was() -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    truth = zeroed(model, cut_by_hand(model))
    gone = [1, 4]
    for name, tensor in truth.state_dict().items():
        expected = before[name].clone()
        if name == "3.weight":
            expected[:, gone] = 0
        elif tensor.ndim and name != "3.bias" and not name.endswith("running_var"):
            expected[gone] = 0
        assert torch.equal(tensor, expected), name
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_the_masked_original_computes_what_a_cut_by_hand_does() -> None:
    model, x = network(), torch.randn(6, 4, dtype=torch.float64)
    small = cut_by_hand(model)
    assert torch.allclose(zeroed(model, small)(x), small(x), rtol=0, atol=1e-14)
    assert not torch.allclose(model(x), small(x), atol=1e-3)


def test_queries_scaled_for_a_smaller_width_are_recognised() -> None:
    model = network()
    small = cut_by_hand(model)
    with torch.no_grad():
        small[0].weight[1] *= (3 / 5) ** 0.5
    truth = zeroed(model, small)
    assert torch.equal(truth[0].weight[2], model[0].weight[2])
    assert not truth[0].weight[1].any()


def test_values_that_the_original_never_had_are_refused() -> None:
    model = network()
    small = cut_by_hand(model)
    with torch.no_grad():
        small[0].weight[1, :2] += 0.1
    with pytest.raises(SecateurError, match=r"^2 of the values left are not the original's$"):
        zeroed(model, small)


def test_tied_values_count_once_and_integers_do_not() -> None:
    model = network()
    model.register_parameter("tied", model[0].weight)
    names = [name for name, _ in values(model)]
    assert names.count("0.weight") + names.count("tied") == 1
    assert "1.num_batches_tracked" not in names
    assert {"1.weight", "1.running_mean", "3.bias"} <= set(names)


def test_tensors_of_an_output_come_in_order_without_caches() -> None:
    @dataclass
    class Output:
        first: Tensor
        rest: list[Tensor]

    a, b, c, d = torch.zeros(4).unbind()
    output = {"past_key_values": (d,), "logits": a, "none": None, "more": Output(b, [c])}
    assert [id(tensor) for tensor in tensors(output)] == [id(a), id(b), id(c)]


def test_what_is_asked_for_in_float32_is_float64() -> None:
    x = torch.full((1,), 1 / 3, dtype=torch.float64)
    with InDouble():
        kinds = [x.float(), x.to(torch.float32), x.softmax(0, dtype=torch.float32), torch.zeros(1, dtype=torch.float32)]
    assert [tensor.dtype for tensor in kinds] == [torch.float64] * 4
    assert torch.equal(kinds[1], x)
    assert x.float().dtype == torch.float32
