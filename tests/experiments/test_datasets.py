"""Data of the experiments."""

from __future__ import annotations

import gzip

import pytest
import torch

from secateur import SecateurError
from secateur_experiments import datasets as data


def test_digits_are_split_once_and_the_same_every_time():
    a, b = data.digits(), data.digits()
    assert (len(a.train[0]), len(a.test[0]), a.features, a.classes) == (1347, 450, 64, 10)
    assert torch.equal(a.train[0], b.train[0])
    assert torch.equal(a.test[1], b.test[1])
    assert (a.train[0].min(), a.train[0].max(), a.train[0].dtype) == (0, 1, torch.float32)


def test_no_digit_is_in_both_parts():
    parts = data.digits()
    train, test = ({tuple(row) for row in part[0].tolist()} for part in (parts.train, parts.test))
    assert not train & test


def write_idx(path, values: torch.Tensor) -> None:
    header = bytes([0, 0, 8, values.ndim]) + b"".join(n.to_bytes(4, "big") for n in values.shape)
    path.write_bytes(gzip.compress(header + bytes(values.flatten().tolist())))


@pytest.fixture
def folder(tmp_path):
    for part, n in (("train", 5), ("t10k", 3)):
        write_idx(tmp_path / f"{part}-images-idx3-ubyte.gz", torch.arange(n * 6).reshape(n, 2, 3))
        write_idx(tmp_path / f"{part}-labels-idx1-ubyte.gz", torch.arange(n))
    return tmp_path


def test_idx_files_are_read_as_written(folder):
    read = data.mnist(folder, train=4, calibration=2)
    assert torch.equal(read.train[0], torch.arange(24.0).reshape(4, 6) / 255)
    assert read.calibration[1].tolist() == [0, 1]
    assert read.test[1].tolist() == [0, 1, 2]
    assert read.test[0].shape == (3, 6)


def test_real_mnist_has_its_known_sizes_and_counts(mnist_folder):
    read = data.mnist(mnist_folder)
    assert (read.train[0].shape, read.test[0].shape) == ((50_000, 784), (10_000, 784))
    assert read.test[1].bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, r"train-images-idx3-ubyte.gz: expected a gzipped IDX file \(No such file"),
        (b"no gzip", "train-images-idx3-ubyte.gz: expected a gzipped IDX file"),
        (gzip.compress(b""), "not an IDX file of bytes in 3 dimensions"),
        (gzip.compress(bytes([0, 0, 8, 3]) + bytes(12) + b"too long"), "not an IDX file of bytes in 3 dimensions"),
    ],
    ids=["missing", "no gzip", "empty", "wrong length"],
)
def test_what_is_no_idx_file_is_refused(folder, content, text):
    path = folder / "train-images-idx3-ubyte.gz"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(SecateurError, match=text):
        data.mnist(folder)


def test_the_diamond_is_where_the_absolute_values_add_up_to_less_than_one():
    x, y = data.diamond(2000).train
    assert torch.equal(y == 1, x.abs().sum(1) < 1)
    assert 0.45 < y.double().mean() < 0.55


@pytest.mark.parametrize("seed", range(5))
def test_the_random_shape_agrees_with_the_winding_number(seed):
    polygon = data.random_shape(seed)
    points, classes = data.random_shape_points(400, seed).train
    a, b = (corner - points[:, None] for corner in (polygon, polygon.roll(-1, 0)))
    angles = torch.atan2(a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0], (a * b).sum(-1))
    assert torch.equal(classes == 1, angles.sum(1).abs() > 3)
    assert 0.05 < classes.double().mean() < 0.8


def test_shapes_are_those_of_their_seed():
    assert torch.equal(data.random_shape(3), data.random_shape(3))
    assert not torch.equal(data.random_shape(3), data.random_shape(4))
    assert torch.equal(data.random_shape_points(50, 3).train[0], data.random_shape_points(50, 3).train[0])


def test_without_a_folder_the_data_are_the_digits(folder):
    few, epochs = data.digits_or_mnist(None)
    assert (few.name, few.features, epochs) == ("digits", 64, 300)
    read, epochs = data.digits_or_mnist(folder)
    assert (read.name, read.features, epochs) == ("MNIST", 6, 15)


def test_images_are_random_unless_the_digits_of_the_folder_have_their_size(tmp_path):
    for part in ("train", "t10k"):
        write_idx(tmp_path / f"{part}-images-idx3-ubyte.gz", torch.arange(3 * 784).reshape(3, 28, 28) % 256)
        write_idx(tmp_path / f"{part}-labels-idx1-ubyte.gz", torch.arange(3))
    x, y = data.images((1, 28, 28), 2, torch.float64, tmp_path)
    assert torch.equal(x.flatten(1), (torch.arange(2 * 784).reshape(2, 784) % 256 / 255).double())
    assert y.tolist() == [0, 1]
    for shape, folder, classes in (((784,), None, 10), ((3, 4), tmp_path, 10), ((784,), tmp_path, 3)):
        x, y = data.images(shape, 5, torch.float32, folder, classes)
        again, _ = data.images(shape, 5, torch.float32, folder, classes)
        assert (x.shape, x.dtype) == ((5, *shape), torch.float32)
        assert torch.equal(x, again)
        assert 0 <= x.min() < 0.5 < x.max() <= 1
        assert len(y) == 5
        assert max(y) < classes
