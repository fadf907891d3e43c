"""All networks of the experiments."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from secateur import find_units
from secateur_experiments.networks import (
    Block,
    VisionTransformer,
    ViT,
    convolutional_network,
    lenet,
    logistic_network,
    residual_network,
    resnet18,
    seeded,
    vision_transformer,
)

SETS = {
    convolutional_network: [("channel", 20), ("channel", 50), ("neuron", 200)],
    residual_network: [("channel", 24)] + [("channel", 48)] * 3,
    vision_transformer: [("head", 8), ("head width", 8), ("feed-forward width", 192)] * 3,
}
every_network = pytest.mark.parametrize("build", list(SETS))


def pixels(n: int) -> torch.Tensor:
    return torch.rand(n, 784, generator=torch.Generator().manual_seed(0))


@every_network
def test_rows_of_pixels_become_ten_logits(build):
    assert build()(pixels(3)).shape == (3, 10)


@every_network
def test_the_unit_sets_are_these(build):
    units = find_units(build().eval(), pixels(2))
    assert [(s.kind, s.size) for s in units] == SETS[build]
    assert {s.removal for s in units} == {"gated"}


def test_the_channels_between_two_convolutions_are_apart_from_those_that_are_added():
    units = find_units(residual_network().eval(), pixels(2))
    assert [s.name for s in units] == ["1", "5.conv1", "6.conv1", "7.conv1"]


@every_network
def test_a_network_is_that_of_its_seed_and_leaves_the_global_generator_alone(build):
    before = torch.get_rng_state()
    a, b, c = (build(seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert any(not torch.equal(a[name], c[name]) for name in a)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_global_generator_comes_back_after_an_error():
    before = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError), seeded(3):
        raise ZeroDivisionError
    assert torch.equal(torch.get_rng_state(), before)


@every_network
def test_gradients_reach_every_parameter(build):
    model = build()
    F.cross_entropy(model(pixels(16)), torch.arange(16) % 10).backward()
    assert all(bool(p.grad.any()) for p in model.parameters())


def test_the_rows_are_read_as_images():
    x = pixels(2)
    model = convolutional_network()
    assert torch.equal(model(x), model[1:](x.reshape(2, 1, 28, 28)))


def test_a_block_of_zero_convolutions_adds_nothing():
    block = Block(4, 4, inner=6).eval()
    torch.nn.init.zeros_(block.conv2.weight)
    x = torch.rand(2, 4, 5, 5)
    assert torch.equal(block(x), x)
    assert block.conv1.weight.shape == (6, 4, 3, 3)


def test_a_block_with_a_stride_halves_the_image():
    assert Block(3, 8, 2)(torch.rand(2, 3, 6, 6)).shape == (2, 8, 3, 3)


def test_a_transformer_takes_images_of_its_size():
    model = VisionTransformer((3, 8), patch=2, width=12, layers=1, heads=3, inner=20, classes=7)
    assert model(torch.rand(2, 3, 8, 8)).shape == (2, 7)
    assert model.positions.shape == (1, 17, 12)
    assert model.layers[0].forth.weight.shape == (20, 12)


@pytest.mark.parametrize(
    ("build", "shape", "parameters"),
    [(lenet, (1, 28, 28), 61_706), (resnet18, (3, 32, 32), 11_181_642), (ViT, (3, 32, 32), 5_362_762)],
)
def test_the_networks_that_are_timed_have_their_known_sizes(build, shape, parameters):
    model = build()
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert model(torch.rand(2, *shape)).shape == (2, 10)


def test_a_logistic_network_is_that_of_its_seed_and_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    a, b, c = (logistic_network([3, 5, 2], seed) for seed in (0, 0, 1))
    assert torch.equal(a[0].weight, b[0].weight)
    assert not torch.equal(a[0].weight, c[0].weight)
    assert torch.equal(torch.get_rng_state(), before)


def test_weights_start_as_xavier_says_and_biases_at_zero():
    layer = logistic_network([300, 500, 2])[0]
    assert abs(layer.weight.std().item() - (2 / 800) ** 0.5) < 2e-3
    assert not layer.bias.any()
