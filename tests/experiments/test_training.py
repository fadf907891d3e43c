"""Training."""

from __future__ import annotations

import torch
from torch import nn

from secateur.papers.data import digits
from secateur.papers.training import logistic_network, train
from secateur.saliency.losses import squared_error


def test_a_network_is_that_of_its_seed_and_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    a, b, c = (logistic_network([3, 5, 2], seed) for seed in (0, 0, 1))
    assert torch.equal(a[0].weight, b[0].weight)
    assert not torch.equal(a[0].weight, c[0].weight)
    assert torch.equal(torch.get_rng_state(), before)


def test_weights_start_as_xavier_says_and_biases_at_zero():
    layer = logistic_network([300, 500, 2])[0]
    assert abs(layer.weight.std().item() - (2 / 800) ** 0.5) < 2e-3
    assert not layer.bias.any()


def test_training_lowers_the_error_and_repeats_exactly():
    x, y = digits().train
    models = [logistic_network([64, 8, 10]) for _ in range(2)]
    before = squared_error(models[0](x), y)
    for model in models:
        train(model, (x, y), epochs=5, progress=False)
    assert squared_error(models[0](x), y) < 0.7 * before
    assert all(torch.equal(p, q) for p, q in zip(*(m.parameters() for m in models), strict=True))
    assert not models[0].training


def test_the_step_size_ends_at_zero():
    model = nn.Linear(1, 1)
    train(model, (torch.ones(4, 1), torch.zeros(4, 1)), epochs=1, batch=4, learning_rate=0.1, progress=False)
    first = model.weight.clone()
    train(model, (torch.ones(4, 1), torch.zeros(4, 1)), epochs=1, batch=4, learning_rate=0.0, progress=False)
    assert torch.equal(model.weight, first)
