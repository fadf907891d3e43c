"""Layers as people write them: what is found in them, by whose code the cut network computes, and its MACs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from cases import randomise
from secateur.cutting.captured_forward import captured_parts
from secateur.structure.graph_run import difference


class Example(NamedTuple):
    """A network, the shape of its inputs, its unit sets: kind, size and removal."""

    model: nn.Module
    shape: tuple[int, ...]
    sets: dict[str, tuple[str, int, str]]
    macs: int
    parts: tuple[str, ...] = ()


class Calls(nn.Module):
    """Some layers, called by a function."""

    def __init__(self, function: Callable[[nn.ModuleList, Tensor], Tensor], *layers: nn.Module) -> None:
        super().__init__()
        self.m, self.function = nn.ModuleList(layers), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.m, x)


class Named(nn.Module):
    """A layer called weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.last = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.weight(x).tanh())


class Steps(nn.Module):
    """A recurrent cell, step by step."""

    def __init__(self, cell: nn.RNNCellBase) -> None:
        super().__init__()
        self.cell, self.last = cell, nn.Linear(cell.hidden_size, 2)

    def forward(self, x: Tensor) -> Tensor:
        state: Any = x.new_zeros(x.shape[0], self.cell.hidden_size)
        state = (state, state) if isinstance(self.cell, nn.LSTMCell) else state
        for i in range(3):
            state = self.cell(x[:, i], state)
        return self.last(state[0] if isinstance(state, tuple) else state)


def attention(m: nn.ModuleList, x: Tensor) -> Tensor:
    h = m[0](x)
    return m[2](m[1](h, h, h)[0])


L, C = nn.Linear, nn.Conv2d
NEURON, CHANNEL, WIDTH = "neuron", "channel", "recurrent width"
EXAMPLES: dict[str, Callable[[], Example]] = {
    "weight norm": lambda: Example(
        nn.Sequential(nn.utils.parametrizations.weight_norm(L(4, 6)), nn.Tanh(), L(6, 2)), (4,),
        {"0": (NEURON, 6, "gated")}, 36,
    ),
    "spectral norm": lambda: Example(
        nn.Sequential(nn.utils.parametrizations.spectral_norm(L(4, 6)), nn.Tanh(), L(6, 2)), (4,),
        {"0": (NEURON, 6, "sliced")}, 66,
    ),
    "a layer called weight": lambda: Example(Named(), (4,), {"weight": (NEURON, 6, "gated")}, 36),
    "two outputs": lambda: Example(
        Calls(lambda m, x: m[1](torch.frexp(m[0](x)).mantissa), L(4, 6), L(6, 2)), (4,),
        {"m.0": (NEURON, 6, "gated")}, 36,
    ),
    "depthwise": lambda: Example(
        nn.Sequential(C(3, 8, 3), nn.ReLU(), C(8, 8, 3, groups=8), nn.ReLU(), C(8, 2, 1)), (3, 8, 8),
        {"0": (CHANNEL, 8, "gated")}, 9184,
    ),
    "transposed": lambda: Example(
        nn.Sequential(C(3, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 6, 3), nn.ReLU(), C(6, 2, 1)), (3, 6, 6),
        {"0": (CHANNEL, 8, "gated"), "2": (CHANNEL, 6, "gated")}, 10800,
    ),
    "attention whose weights nobody uses": lambda: Example(
        Calls(attention, L(4, 8), nn.MultiheadAttention(8, 2, batch_first=True), L(8, 2)), (5, 4),
        {"m.0": ("feed-forward width", 8, "gated"), "m.1[0]": ("head", 2, "gated"),
         "m.1[1]": ("head width", 4, "gated"), "m.1.out_proj": ("feed-forward width", 8, "gated")}, 1920,
    ),
    "projected lstm": lambda: Example(
        Calls(lambda m, x: m[1](m[0](x)[0]), nn.LSTM(5, 6, 2, True, True, 0, True, 4), L(8, 2)), (5, 5),
        {"m.0[0]": (WIDTH, 6, "gated"), "m.0[1]": (WIDTH, 4, "gated")}, 5600,
    ),
    "lstm cell": lambda: Example(Steps(nn.LSTMCell(4, 6)), (3, 4), {"cell": (WIDTH, 6, "gated")}, 732),
    "gru cell": lambda: Example(Steps(nn.GRUCell(4, 6)), (3, 4), {"cell": (WIDTH, 6, "gated")}, 552),
    "rnn cell": lambda: Example(Steps(nn.RNNCell(4, 6)), (3, 4), {"cell": (WIDTH, 6, "gated")}, 192),
    "layer norm without weights": lambda: Example(
        nn.Sequential(L(4, 6), nn.LayerNorm(6, elementwise_affine=False), nn.Tanh(), L(6, 2)), (4,),
        {"0": (NEURON, 6, "sliced")}, 36,
    ),
    "channel shuffle": lambda: Example(
        nn.Sequential(C(3, 8, 3), nn.ChannelShuffle(4), nn.ReLU(), C(8, 2, 1)), (3, 6, 6),
        {"0[0]": (CHANNEL, 4, "gated"), "0[1]": (CHANNEL, 2, "gated")}, 3712,
    ),
    "unflatten": lambda: Example(
        nn.Sequential(L(4, 6), nn.Unflatten(1, (2, 3)), nn.ReLU(), nn.Flatten(), L(6, 2)), (4,),
        {"0[0]": (NEURON, 2, "gated"), "0[1]": (NEURON, 3, "gated")}, 36,
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*not part of single contiguous chunk:UserWarning")
@pytest.mark.parametrize("name", EXAMPLES)
def test_what_is_found_and_what_the_cut_network_is(name: str) -> None:
    torch.manual_seed(0)
    model, shape, sets, macs, parts = EXAMPLES[name]()
    model = randomise(model.double().eval())
    x = torch.randn(4, *shape, dtype=torch.float64)
    units = sc.find_units(model, x, include="all")
    assert {s.name: (s.kind, s.size, s.removal) for s in units} == sets
    assert units.macs({}) == macs
    kept = {s.name: range((s.size + 1) // 2) for s in units}
    small = sc.cut(model, sc.Plan.from_kept(kept, x))
    assert captured_parts(small) == parts
    assert sc.measure(small, x).macs == units.macs({name: len(left) for name, left in kept.items()})
    if all(s.removal == "gated" for s in units) and "norm" not in name:
        assert difference(zeroed(model, units, kept)(x), small(x))[1] < 1e-9


def zeroed(model: nn.Module, units: sc.Units, kept: dict[str, range]) -> nn.Module:
    """The original with all parameters of the removed units zero."""
    model = copy.deepcopy(model)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for unit_set in units:
            gone = sorted(set(range(unit_set.size)) - set(kept[unit_set.name]))
            for part in unit_set.slices:
                parameters[part.tensor].index_fill_(part.dim, part.index[gone].flatten(), 0)
    return model


def test_a_dimension_of_a_weight_that_no_value_has_is_fixed() -> None:
    units = sc.find_units(EXAMPLES["depthwise"]().model, torch.randn(2, 3, 8, 8), include="all")
    assert {one.name: one.reason for one in units.fixed}["2.weight[1]"] == "no value that is computed has it"


def test_a_layer_without_sizes_yet_is_refused() -> None:
    model = nn.Sequential(nn.LazyLinear(6), L(6, 2))
    with pytest.raises(sc.SecateurError, match=r"^0\.weight has no size yet: call the model once$"):
        sc.find_units(model, torch.zeros(2, 3))


def test_an_axis_that_is_fixed_is_refused_with_the_reason() -> None:
    model = nn.Sequential(L(4, 6), nn.LayerNorm(6), L(6, 2))
    units = sc.find_units(model, torch.zeros(2, 4))
    text = r"^'0' cannot lose units: layer_norm averages over it; include='all' removes it as sliced$"
    with pytest.raises(sc.SecateurError, match=text):
        units["0"]
    with pytest.raises(sc.SecateurError, match=r"^'2\.weight\[0\]' cannot lose units: a model output$"):
        units["2.weight[0]"]
    plan = sc.Plan.from_kept({"2.weight[0]": [0]}, torch.zeros(2, 4))
    with pytest.raises(sc.SecateurError) as caught:
        sc.cut(model, plan)
    assert str(caught.value) == (
        "the plan keeps units of '2.weight[0]', which cannot lose any: a model output; the model's unit sets are: 0"
    )
