"""The data of the experiments: digits that ship with scikit-learn, MNIST from its files, two toy shapes."""

from __future__ import annotations

import gzip
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from secateur.errors import DataError
from secateur_experiments.extra import from_extra

datasets = from_extra("sklearn.datasets")
model_selection = from_extra("sklearn.model_selection")

Pair = tuple[Tensor, Tensor]  # inputs [N, features] in float32, classes [N]


@dataclass(frozen=True)
class Dataset:
    """Data for one experiment.

    Attributes:
        name: What it shows.
        train: For the weights.
        calibration: A part of `train` on which saliency is computed.
        test: Seen by neither.
        classes: Their number.
    """

    name: str
    train: Pair
    calibration: Pair
    test: Pair
    classes: int

    @property
    def features(self) -> int:
        """Inputs of one sample."""
        return self.train[0].shape[1]


def digits() -> Dataset:
    """Return 1,797 handwritten digits of 8 × 8 pixels in 0 … 1; a quarter for testing, 43 to 46 of each class.

    >>> digits().train[0].shape, digits().test[1].bincount().unique().tolist()
    (torch.Size([1347, 64]), [43, 44, 45, 46])
    """
    x, y = datasets.load_digits(return_X_y=True)
    parts = model_selection.train_test_split(x / 16, y, test_size=450, random_state=0, stratify=y)
    train_x, test_x = (torch.tensor(part, dtype=torch.float32) for part in parts[:2])
    train_y, test_y = (torch.tensor(part) for part in parts[2:])
    return Dataset("digits", (train_x, train_y), (train_x, train_y), (test_x, test_y), 10)


def mnist(folder: str | Path, train: int = 50_000, calibration: int = 5_000) -> Dataset:
    """Read the 28 × 28 digits in 0 … 1 from their four IDX files: the first `train` of 60,000, the 10,000 for testing.

    Args:
        folder: Holds train-images-idx3-ubyte.gz and the three others.
        train: How many of the training digits the weights see.
        calibration: How many of those saliency is computed on.

    Raises:
        DataError: A file is missing or is no IDX file.
    """
    folder = Path(folder)
    x, y = _mnist_pair(folder, "train")
    return Dataset(
        "MNIST",
        (x[:train], y[:train]),
        (x[:calibration], y[:calibration]),
        _mnist_pair(folder, "t10k"),
        10,
    )


def _mnist_pair(folder: Path, part: str) -> Pair:
    images = _read_idx(folder / f"{part}-images-idx3-ubyte.gz", 3)
    labels = _read_idx(folder / f"{part}-labels-idx1-ubyte.gz", 1)
    return images.reshape(len(images), -1).float() / 255, labels.long()


def _read_idx(path: Path, dimensions: int) -> Tensor:
    """Read an IDX file of bytes: two zeros, type 8, the number of dimensions, each as 32 bits, the values.

    Raises:
        DataError: It is missing, or something else.
    """
    try:
        content = gzip.decompress(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: expected a gzipped IDX file ({error.strerror or error})") from error
    shape = np.frombuffer(content, ">i4", dimensions, 4).tolist() if len(content) > 4 * dimensions else []
    if content[:4] != bytes([0, 0, 8, dimensions]) or len(content) != 4 + 4 * dimensions + math.prod(shape):
        raise DataError(f"{path}: not an IDX file of bytes in {dimensions} dimensions")
    return torch.tensor(np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions)).reshape(shape)


def digits_or_mnist(folder: Path | None) -> tuple[Dataset, int]:
    """Return MNIST from its folder, or the digits without one, and the epochs that the papers' networks take."""
    return (digits(), 300) if folder is None else (mnist(folder), 15)


def images(shape: tuple[int, ...], n: int, dtype: torch.dtype, folder: Path | None, classes: int = 10) -> Pair:
    """Return MNIST's test digits where they have the size, else random pixels and targets."""
    if folder is not None and math.prod(shape) == 784 and classes == 10:
        x, y = mnist(folder).test
        return x[:n].reshape(-1, *shape).to(dtype), y[:n]
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(n, *shape, generator=generator, dtype=dtype)
    return x, torch.randint(classes, (n,), generator=generator)


DIAMOND = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])


def random_shape(seed: int = 0, corners: int = 9) -> Tensor:
    """Draw a polygon around the origin [corners, 2]: random directions in order, radii of 0.35 … 1."""
    generator = torch.Generator().manual_seed(seed)
    angles = (torch.arange(corners) + 0.8 * torch.rand(corners, generator=generator)) * (2 * math.pi / corners)
    radii = 0.35 + 0.65 * torch.rand(corners, generator=generator)
    return torch.stack([radii * angles.cos(), radii * angles.sin()], 1)


def inside(points: Tensor, polygon: Tensor) -> Tensor:
    """Tell which points lie in a polygon: a ray from them crosses its edges an odd number of times.

    >>> inside(torch.tensor([[0.2, 0.3], [0.9, 0.9]]), DIAMOND)
    tensor([ True, False])
    """
    (x, y), a, b = points.T[:, :, None], polygon, polygon.roll(-1, 0)
    straddles = (a[:, 1] > y) != (b[:, 1] > y)
    rise = torch.where(a[:, 1] == b[:, 1], torch.ones(()), b[:, 1] - a[:, 1])  # level edges straddle nothing
    crossing = a[:, 0] + (y - a[:, 1]) / rise * (b[:, 0] - a[:, 0])
    crossed: Tensor = (straddles & (x < crossing)).sum(1)
    return crossed % 2 == 1


def toy(name: str, polygon: Tensor, n: int = 4000, seed: int = 0) -> Dataset:
    """Draw points of the square −1 … 1; class 1 is inside the polygon, 0 outside; a quarter for testing."""
    points = 2 * torch.rand(n, 2, generator=torch.Generator().manual_seed(seed)) - 1
    classes = inside(points, polygon).long()
    cut = n - n // 4
    train = points[:cut], classes[:cut]
    return Dataset(name, train, train, (points[cut:], classes[cut:]), 2)


def diamond(n: int = 4000, seed: int = 0) -> Dataset:
    """Return the paper's first toy set: |x| + |y| < 1, half of the square."""
    return toy("diamond", DIAMOND, n, seed)


def random_shape_points(n: int = 4000, seed: int = 0) -> Dataset:
    """Return the paper's second toy set: inside `random_shape(seed)`."""
    return toy("random shape", random_shape(seed), n, seed)
