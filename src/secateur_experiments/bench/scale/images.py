"""Networks of images: one that is trained here on MNIST, and known ones with random weights, for time."""

from __future__ import annotations

import torch
from torch import nn

from secateur import Budget, find_units
from secateur.objective.losses import cross_entropy
from secateur_experiments.bench.scale.task import AbsentError, Batches, Folders, Task, imported, removing
from secateur_experiments.datasets import Pair, images, mnist
from secateur_experiments.networks import seeded
from secateur_experiments.training import train

BATCH = 4
CLASSES = 1000


def three_convolutions(seed: int = 0) -> nn.Sequential:
    """Return 64, 128 and 128 channels of 3 × 3 with BatchNorm, each pooled, and a classifier of ten.

    >>> sum(p.numel() for p in three_convolutions().parameters())
    223690
    """

    def block(inputs: int, channels: int, last: nn.Module) -> list[nn.Module]:
        return [nn.Conv2d(inputs, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(), last]

    with seeded(seed):
        blocks = [*block(1, 64, nn.MaxPool2d(2)), *block(64, 128, nn.MaxPool2d(2))]
        last = [*block(128, 128, nn.AdaptiveAvgPool2d(1)), nn.Flatten(), nn.Linear(128, 10)]
        return nn.Sequential(nn.Unflatten(1, (1, 28, 28)), *blocks, *last)


def accuracy(model: nn.Module, data: Pair) -> float:
    """Return the share of the samples that are classified right."""
    with torch.no_grad():
        right = sum(int((model(x).argmax(1) == y).sum()) for x, y in pieces(data, 500))
    return right / len(data[1])


def pieces(data: Pair, size: int) -> Batches:
    """Return data as batches of a size."""
    return list(zip(*(torch.split(tensor, size) for tensor in data), strict=True))


def digits(folders: Folders, samples: int = 1_000, size: str = "300 kB") -> Task:
    """Return the three convolutions after an epoch on MNIST, some digits, and a file's size.

    Raises:
        AbsentError: MNIST is not here.
    """
    if folders.mnist is None:
        raise AbsentError("give --mnist DIR")
    data = mnist(folders.mnist)
    model = three_convolutions()
    train(model, data.train, 1, cross_entropy, progress=False)
    x, y = data.calibration[0][:samples], data.calibration[1][:samples]
    before = accuracy(model, data.test)

    def quality(small: nn.Module) -> dict[str, float]:
        return {"accuracy before": before, "accuracy": accuracy(small, data.test)}

    return Task(model, find_units(model, x[:2]), [(x, y)], "cross_entropy", Budget(bytes=size), 0.5, quality=quality)


def random_images(count: int, pixels: int = 224) -> Batches:
    """Return batches of images of random pixels and random classes."""
    return pieces(images((3, pixels, pixels), count, torch.float32, None, CLASSES), BATCH)


def torchvision_model(name: str, folders: Folders) -> nn.Module:
    """Return a model of torchvision's with random weights.

    Raises:
        AbsentError: torchvision cannot be imported.
    """
    build = imported("torchvision.models", name, folders)
    with seeded(0):
        model: nn.Module = build(weights=None)
    return model.eval()


def residual(name: str, count: int, folders: Folders) -> Task:
    """Return a ResNet and so many images, of which half of all units go."""
    model, data = torchvision_model(name, folders), random_images(count)
    units = find_units(model, data[0][0][:2])
    return Task(model, units, data, "cross_entropy", removing(units, 0.5), 0.5)


def wide_residual(folders: Folders) -> Task:
    """Return a network of which half of each set goes by the size of its weights, without data."""
    model = torchvision_model("wide_resnet50_2", folders)
    example, options = random_images(2)[0][0], {"criterion": "magnitude", "ranking": "single"}
    units = find_units(model, example)
    return Task(model, units, [], None, removing(units, 0.5, of_each_set=True), 0.5, options, example)


def vision_transformer(folders: Folders, count: int = 128, share: float = 0.4) -> Task:
    """Return deit_tiny and so many images; of its heads and its feed-forward units a share goes."""
    create_model = imported("timm", "create_model", folders)
    with seeded(0):
        model = create_model("deit_tiny_patch16_224", pretrained=False).eval()
    data = random_images(count)
    units = find_units(model, data[0][0][:2])
    budget = removing(units, share, ("head", "feed-forward width"), of_each_set=True)
    return Task(model, units, data, "cross_entropy", budget, share)
