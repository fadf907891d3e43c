"""Networks of the papers and their training, in a few plain lines."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn

from secateur.papers.data import Pair
from secateur.reporting.progress import progress_bar
from secateur.saliency.losses import LossFunction, squared_error


def logistic_network(widths: Sequence[int], seed: int = 0) -> nn.Sequential:
    """Dense layers with logistic sigmoids, the outputs too; Xavier normal weights, biases 0.

    >>> [tuple(p.shape) for p in logistic_network([64, 100, 10]).parameters()]
    [(100, 64), (100,), (10, 100), (10,)]
    """
    generator = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layer = nn.Linear(inputs, outputs, device="meta").to_empty(device="cpu")  # draws nothing
        nn.init.xavier_normal_(layer.weight, generator=generator)
        nn.init.zeros_(layer.bias)
        layers += [layer, nn.Sigmoid()]
    return nn.Sequential(*layers)


def train(
    model: nn.Module,
    data: Pair,
    epochs: int,
    loss: LossFunction = squared_error,
    learning_rate: float = 3e-3,
    batch: int = 128,
    seed: int = 0,
    progress: bool = True,
) -> None:
    """Adam with cosine decay to zero, no regulariser; the same seed gives the same weights.

    Args:
        model: Its parameters are changed.
        data: Inputs and targets.
        epochs: Passes over the data.
        loss: The mean over a batch.
        learning_rate: At the start.
        batch: Samples of a step.
        seed: Of the order of the samples.
        progress: Show a bar on stderr.
    """
    x, y = data
    generator = torch.Generator().manual_seed(seed)
    steps = epochs * -(-len(x) // batch)
    optimiser = torch.optim.Adam(model.parameters(), learning_rate)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    model.train()
    with progress_bar("training", progress) as bar:
        for epoch in range(epochs):
            for rows in torch.split(torch.randperm(len(x), generator=generator), batch):
                optimiser.zero_grad()
                loss(model(x[rows]), y[rows]).backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                decay.step()
            bar(epoch + 1, epochs)
    model.eval()
