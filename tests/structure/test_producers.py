"""What the units of small networks of every kind are called."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cases import First, gated_units
from secateur import Units, find_units
from secateur.structure.units import Include

IMAGES, SEQUENCES, VECTORS = torch.randn(2, 3, 6, 6), torch.randn(2, 5, 4), torch.randn(2, 4)


def kinds(model: nn.Module, x: Tensor, include: Include = "all") -> dict[str, tuple[str, int, str]]:
    return kinds_of(find_units(model.double().eval(), x, include))


def kinds_of(units: Units) -> dict[str, tuple[str, int, str]]:
    return {s.name: (s.kind, s.size, s.removal) for s in units}


class Residual(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


class Block(nn.Module):
    """A transformer block of width 8 with 2 heads of width 3, queries, keys and values from one layer."""

    def __init__(self, attend: Attend) -> None:
        super().__init__()
        self.attend, self.norm1, self.norm2 = attend, nn.LayerNorm(8), nn.LayerNorm(8)
        self.qkv, self.out, self.up, self.down = (nn.Linear(*s) for s in ((8, 18), (6, 8), (8, 10), (10, 8)))

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(n, t, 3, 2, 3).permute(2, 0, 3, 1, 4)
        x = x + self.out(self.attend(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


def eager(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.transpose(-2, -1) / 3**0.5).softmax(-1) @ v


def summed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.einsum("nhst,nhtd->nhsd", torch.einsum("nhsd,nhtd->nhst", q, k).softmax(-1), v)


# ---------------------------------------------------------------- dense layers and convolutions


def test_the_units_of_dense_layers_are_neurons() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))
    assert kinds(model, VECTORS) == {"0": ("neuron", 6, "gated"), "3": ("neuron", 5, "gated")}


def test_neurons_that_are_added_to_each_other_are_neurons() -> None:
    model = nn.Sequential(nn.Linear(4, 6), Residual(nn.Sequential(nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 6))))
    model.append(nn.Linear(6, 2))
    assert kinds(model, VECTORS) == {"0": ("neuron", 6, "gated"), "1.inner.0": ("neuron", 7, "gated")}


def test_neurons_of_a_norm_are_neurons_and_sliced() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 2))
    assert kinds(model, VECTORS) == {"0": ("neuron", 6, "sliced")}
    assert kinds(model, VECTORS, "gated") == {}


def test_the_units_of_convolutions_are_channels_where_they_are_added_too() -> None:
    def block(hidden: int) -> nn.Module:
        return Residual(
            nn.Sequential(
                nn.Conv2d(6, hidden, 3, padding=1), nn.BatchNorm2d(hidden), nn.ReLU(), nn.Conv2d(hidden, 6, 1)
            )
        )

    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 2))
    assert kinds(nn.Sequential(nn.Conv2d(3, 6, 3), block(4), block(5), *head), IMAGES) == {
        "0": ("channel", 6, "gated"),
        "1.inner.0": ("channel", 4, "gated"),
        "2.inner.0": ("channel", 5, "gated"),
        "5": ("neuron", 7, "gated"),
    }


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_groups_and_members_of_channels_are_channels(kind: type[nn.Conv2d]) -> None:
    model = nn.Sequential(kind(3, 8, 1), nn.ReLU(), kind(8, 12, 1, groups=4), nn.ReLU(), kind(12, 2, 1))
    assert kinds(model, IMAGES) == {
        "0[0]": ("channel", 4, "gated"),
        "0[1]": ("channel", 2, "gated"),
        "2": ("channel", 3, "gated"),
    }


def test_channels_of_a_group_norm_are_gated_by_groups_and_sliced_within() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.GroupNorm(4, 8), nn.ReLU(), nn.Conv2d(8, 2, 1))
    assert kinds(model, IMAGES) == {"0[0]": ("channel", 4, "gated"), "0[1]": ("channel", 2, "sliced")}
    assert kinds(model, IMAGES, "gated") == {"0[0]": ("channel", 4, "gated")}


# ---------------------------------------------------------------- sequences


@pytest.mark.parametrize("attend", [F.scaled_dot_product_attention, eager, summed])
def test_a_transformer_block_has_widths_and_heads(attend: Attend) -> None:
    model = nn.Sequential(nn.Linear(4, 8), Block(attend), nn.LayerNorm(8), nn.Linear(8, 2))
    gated = {
        "1.qkv[0]": ("head", 2, "gated"),
        "1.qkv[1]": ("head width", 3, "gated"),
        "1.up": ("feed-forward width", 10, "gated"),
    }
    assert kinds(model, SEQUENCES) == {"0": ("residual width", 8, "sliced")} | gated
    assert kinds_of(gated_units(model, SEQUENCES.double())) == gated


def test_the_layer_of_pytorch_has_the_same_kinds() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 6, batch_first=True)
    assert kinds(nn.Sequential(nn.Linear(4, 8), layer, nn.Linear(8, 2)), SEQUENCES) == {
        "0": ("residual width", 8, "sliced"),
        "1.self_attn[0]": ("head", 2, "gated"),
        "1.self_attn[1]": ("head width", 4, "gated"),
        "1.linear1": ("feed-forward width", 6, "gated"),
    }


class Separate(nn.Module):
    """Four heads of width 3 for two of keys and of values, which are of width 5."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(*s) for s in ((4, 12), (4, 6), (4, 10), (20, 2)))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (-1, w)).transpose(1, 2) for f, w in ((self.q, 3), (self.k, 3), (self.v, 5)))
        return self.out(F.scaled_dot_product_attention(q, k, v, enable_gqa=True).transpose(1, 2).flatten(2))


def test_shared_heads_are_those_of_the_keys_times_those_that_share_them() -> None:
    assert kinds(Separate(), SEQUENCES) == {
        "q[0]": ("head", 2, "gated"),
        "q[1]": ("head", 2, "gated"),
        "q[2]": ("head width", 3, "gated"),
        "v": ("head width", 5, "gated"),
    }


class Mixed(nn.Module):
    """Attention between positions, then between the two heads of each position."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).unflatten(-1, (2, 3)).transpose(1, 2)
        h = (h @ h.transpose(-2, -1) @ h).transpose(1, 2)
        return self.last((h @ h.transpose(-2, -1) @ h).flatten(2))


def test_heads_that_are_multiplied_with_each_other_are_heads() -> None:
    assert kinds(Mixed(), SEQUENCES) == {"first[0]": ("head", 2, "gated"), "first[1]": ("head width", 3, "gated")}


def test_a_width_at_every_position_is_residual_only_where_it_is_added() -> None:
    inner = nn.Sequential(nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 8))
    widths = {"0": ("feed-forward width", 8, "gated"), "1.0": ("feed-forward width", 7, "gated")}
    model = nn.Sequential(nn.Linear(4, 8), inner, nn.ReLU(), nn.Linear(8, 2))
    assert kinds(model, SEQUENCES) == widths | {"1.2": ("feed-forward width", 8, "gated")}
    model = nn.Sequential(nn.Linear(4, 8), Residual(inner), nn.ReLU(), nn.Linear(8, 2))
    assert kinds(model, SEQUENCES) == {
        "0": ("residual width", 8, "gated"),
        "1.inner.0": ("feed-forward width", 7, "gated"),
    }


def test_a_width_that_is_pooled_over_positions_is_of_neurons() -> None:
    class Pooled(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return self[1](torch.tanh(self[0](x)).mean(1))

    assert kinds(Pooled(nn.Linear(4, 6), nn.Linear(6, 2)), SEQUENCES) == {"0": ("neuron", 6, "gated")}


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("directions", [1, 2])
def test_the_units_of_recurrent_layers_are_recurrent_widths(kind: type[nn.LSTM], directions: int) -> None:
    layer = kind(7, 5, 2, batch_first=True, bidirectional=directions == 2)
    model = nn.Sequential(nn.Linear(4, 7), nn.Tanh(), First(layer), nn.Linear(5 * directions, 6), nn.Linear(6, 2))
    assert kinds(model, SEQUENCES) == {
        "0": ("feed-forward width", 7, "gated"),
        "2.inner": ("recurrent width", 5, "gated"),
        "3": ("feed-forward width", 6, "gated"),
    }


def test_a_projection_of_a_recurrent_layer_is_a_recurrent_width_too() -> None:
    model = nn.Sequential(First(nn.LSTM(4, 5, proj_size=3, batch_first=True)), nn.Linear(3, 2))
    assert kinds(model, SEQUENCES) == {
        "0.inner[0]": ("recurrent width", 5, "gated"),
        "0.inner[1]": ("recurrent width", 3, "gated"),
    }


def test_recurrent_widths_that_attend_to_each_other_are_recurrent() -> None:
    class Attending(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            h = self[0](x)
            return self[1](F.scaled_dot_product_attention(h, h, h))

    model = Attending(First(nn.GRU(4, 5, batch_first=True)), nn.Linear(5, 2))
    assert kinds(model, SEQUENCES) == {"0.inner": ("recurrent width", 5, "gated")}
