"""What writing into a tensor becomes in the graph: the same values, and derivatives where the model's code has them."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from secateur.structure.capture import Captured, capture
from secateur.structure.graph_run import run
from secateur.structure.inputs import as_call
from secateur.structure.rewrites.writes import has_writes

Write = Callable[[Tensor, Tensor], Tensor]


class Writer(nn.Module):
    """Two layers of width 6 on the same inputs, one written into the other."""

    def __init__(self, function: Write) -> None:
        super().__init__()
        self.h, self.v, self.last, self.function = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 2), function

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(torch.tanh(self.h(x)), torch.tanh(self.v(x))))


def segment(h: Tensor, v: Tensor) -> Tensor:
    y = h.clone()
    y[:, 2:5] = v[:, :3]
    return y


def one_for_all(h: Tensor, v: Tensor) -> Tensor:
    y = h.clone()
    y[:, 2:5] = v[:, :1]
    return y


def number(h: Tensor, v: Tensor) -> Tensor:
    y = h * v
    y[:, 2:5] = 0.5
    return y


def unit(h: Tensor, v: Tensor) -> Tensor:
    y = h.clone()
    y[:, 1] = v[:, 0] ** 2
    return y


def canvas(h: Tensor, v: Tensor) -> Tensor:
    y = torch.zeros_like(h)
    y[:, ::2] = v[:, :3]
    y[:, 1::2] = h[:, 3:]
    return y


def ones(h: Tensor, v: Tensor) -> Tensor:
    y = torch.full_like(h, 2.0)
    y[:, :3] = v[:, :3]
    return h * y


def lower_precision(h: Tensor, v: Tensor) -> Tensor:
    y = torch.zeros(h.shape[0], 6, dtype=torch.float32)
    y[:, :3] = v[:, :3]
    return h + y.double()


def masked(h: Tensor, v: Tensor) -> Tensor:
    y, mask = h.clone(), h > v
    y[mask] = (v**2)[mask]
    return y


def masked_rows(h: Tensor, v: Tensor) -> Tensor:
    y = h.clone()
    y[v[:, 0] > 0] = v.sum(0)
    return y


def masked_units(h: Tensor, v: Tensor) -> Tensor:
    y = h.clone()
    y[:, torch.tensor([True, False, False, True, True, False])] = 0.1
    return y


def counted(h: Tensor, v: Tensor) -> Tensor:
    y = h.clone()
    y[:, torch.tensor([0, 2])] = v[:, 1:3]
    return y


def spectrum(h: Tensor, v: Tensor) -> Tensor:
    y = torch.zeros(h.shape[0], 4, dtype=torch.complex128)
    y[:, 1:3] = torch.fft.rfft(h)[:, :2]
    y[:, -1] = torch.fft.rfft(v)[:, 1]
    y[:, 0] = 2.0
    return torch.fft.irfft(y)


WRITES = [
    segment, one_for_all, number, unit, canvas, ones, lower_precision, masked, masked_rows, masked_units, counted,
    spectrum,
]  # fmt: skip


def captured_of(function: Write) -> tuple[Writer, Captured, Tensor]:
    torch.manual_seed(0)
    model, x = Writer(function).double().eval(), torch.randn(5, 4, dtype=torch.float64)
    return model, capture(model, as_call(x)), x


@pytest.mark.parametrize("function", WRITES)
@pytest.mark.parametrize("n", [1, 5])
def test_the_graph_has_the_models_values_and_derivatives(function: Write, n: int) -> None:
    model, captured, x = captured_of(function)
    got, expected = run(captured, model, as_call(x[:n])), model(x[:n])
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    weights = list(model.parameters())
    slopes = (
        torch.autograd.grad(y.square().sum(), weights, allow_unused=True, materialize_grads=True)
        for y in (got, expected)
    )
    for mine, own in zip(*slopes, strict=True):
        torch.testing.assert_close(mine, own, rtol=1e-6 if function is lower_precision else 1e-12, atol=1e-12)


@pytest.mark.parametrize("function", WRITES)
def test_writes_are_told(function: Write) -> None:
    assert has_writes(captured_of(function)[1].graph)
    assert not has_writes(captured_of(torch.add)[1].graph)


@pytest.mark.parametrize("function", [masked, masked_rows, masked_units])
def test_nothing_is_counted_where_a_mask_chooses(function: Write) -> None:
    names = [str(node.target) for node in captured_of(function)[1].graph.nodes]
    assert "aten.where.self" in names
    assert not any("index" in name for name in names)


def test_values_in_the_order_of_their_places_stay_counted() -> None:
    def in_order(h: Tensor, v: Tensor) -> Tensor:
        y = h.clone()
        y[h > v] = torch.ones_like(h)[h > v]  # another mask, as far as the graph says
        return y

    assert "aten.index_put.default" in [str(node.target) for node in captured_of(in_order)[1].graph.nodes]
