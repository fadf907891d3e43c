from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import secateur as sc
from secateur.cutting.attributes import update_attributes
from secateur.reference import RandomNetwork


def test_a_dense_layer_says_its_new_sizes() -> None:
    layer = nn.Linear(7, 5)
    layer.weight = nn.Parameter(torch.zeros(2, 3))
    update_attributes(nn.Sequential(layer))
    assert (layer.out_features, layer.in_features) == (2, 3)


@pytest.mark.parametrize(
    ("affine", "track"), [(True, True), (False, True), (True, False)], ids=["whole", "no weights", "no statistics"]
)
def test_a_batch_norm_says_its_new_size(affine: bool, track: bool) -> None:
    norm = nn.BatchNorm1d(5, affine=affine, track_running_stats=track)
    if affine:
        norm.weight, norm.bias = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    if track:
        norm.running_mean, norm.running_var = torch.zeros(3), torch.ones(3)
    update_attributes(nn.ModuleDict({"norm": norm}))
    assert norm.num_features == 3


def test_a_batch_norm_without_tensors_and_other_modules_are_left() -> None:
    norm, other = nn.BatchNorm1d(5, affine=False, track_running_stats=False), nn.LayerNorm(4)
    update_attributes(nn.Sequential(norm, other, nn.ReLU()))
    assert norm.num_features == 5
    assert other.normalized_shape == (4,)


class Wide(nn.Linear):
    """A dense layer of the user's own."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


def test_a_layer_of_ones_own_says_its_new_sizes_too() -> None:
    model = nn.Sequential(
        Wide(4, 6, bias=False), nn.BatchNorm1d(6, affine=False), nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 2)
    )
    model.double().eval()
    small = sc.cut(model, sc.Plan.from_kept({"0": [0, 5, 2], "2": [1, 3]}, torch.zeros(2, 4)))
    assert [str(layer) for layer in small] == [  # type: ignore[attr-defined]
        "Wide(in_features=4, out_features=3, bias=False)",
        str(nn.BatchNorm1d(3, affine=False)),
        "Linear(in_features=3, out_features=2, bias=True)",
        str(nn.BatchNorm1d(2)),
        "Linear(in_features=2, out_features=2, bias=True)",
    ]
    assert [layer.out_features for layer in model if isinstance(layer, nn.Linear)] == [6, 5, 2]
    assert [layer.num_features for layer in model if isinstance(layer, nn.BatchNorm1d)] == [6, 5]


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6))
def test_attributes_agree_with_shapes_everywhere_in_a_cut_network(seed: int) -> None:
    network = RandomNetwork(seed).double()
    x = network.sample(3)
    small = sc.cut(network, sc.Plan.from_kept({name: [size - 1] for name, size in network.sets.items()}, x))
    for module in small.modules():
        if isinstance(module, nn.Linear):
            assert (module.out_features, module.in_features) == module.weight.shape
            assert module.bias is None or module.bias.shape == (module.out_features,)
        elif isinstance(module, nn.BatchNorm1d):
            assert module.running_mean is not None
            assert {len(t) for t in (module.weight, module.bias, module.running_mean)} == {module.num_features}
