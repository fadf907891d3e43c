"""Training."""

from __future__ import annotations

import torch
from torch import nn

from secateur.objective.losses import squared_error
from secateur_experiments.datasets import digits
from secateur_experiments.networks import logistic_network
from secateur_experiments.training import train


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
