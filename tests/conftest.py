"""Options and fixtures for all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)  # the tests run in as many processes as there are cores


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the slow tests, too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--slow"):
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="slow: run with --slow"))


@pytest.fixture(scope="session")
def mnist_folder() -> Path:
    """The folder of MNIST's four files, from the environment variable MNIST_DIR."""
    folder = Path(os.environ.get("MNIST_DIR", "no-such-folder"))
    if not folder.is_dir():
        pytest.skip("MNIST is not here: set MNIST_DIR to the folder of its four .gz files")
    return folder
