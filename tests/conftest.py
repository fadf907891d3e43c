"""Options and fixtures for all tests."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest
import torch

torch.set_num_threads(1)  # the tests run in as many processes as there are cores
hypothesis.settings.register_profile("no time is measured", deadline=None)
hypothesis.settings.load_profile("no time is measured")
collect_ignore = ["outside.py"]  # test_extending.py runs it where the examples are installed


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


@pytest.fixture
def command_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Call it as the console script does: (exit code, stdout, stderr)."""
    from secateur.cli import main

    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["secateur", *words])
        with pytest.raises(SystemExit) as end:
            main()
        code = end.value.code or 0
        assert isinstance(code, int)
        return code, *capfd.readouterr()

    return call
