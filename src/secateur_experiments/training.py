"""Training, in a few plain lines."""

from __future__ import annotations

import torch
from torch import nn

from secateur.objective.losses import LossFunction, squared_error
from secateur.reporting.progress import progress_bar
from secateur_experiments.datasets import Pair


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
    """Train by Adam with cosine decay to zero and no regulariser; the same seed gives the same weights.

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
