"""Several threads at once: each gets what it would have got alone, and the process is as it was."""

from __future__ import annotations

import io
import logging
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules import transformer

import secateur as sc

THREADS, CALLS = 4, 2
DATA = torch.randn(24, 5, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2] * 8)


def network(seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(5, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Dropout(0.5), nn.Linear(7, 6), nn.Sigmoid(),
            nn.Linear(6, 3),
        )  # fmt: skip


def shrink(model: nn.Module, progress: bool = False) -> Any:
    budget = sc.Budget(remove_fraction=0.5)
    return sc.shrink(model, DATA, nn.CrossEntropyLoss(), budget, recalibrate=True, progress=progress)


def at_once(work: Callable[[int], Any]) -> list[Any]:
    """What each thread's work returns; all begin together."""
    begin, returned = threading.Barrier(THREADS), dict[int, Any]()

    def run(number: int) -> None:
        begin.wait()
        returned[number] = work(number)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [returned[number] for number in range(THREADS)]  # a KeyError: that thread failed


def process() -> dict[str, Any]:
    """All that a call may change for the whole process."""
    return {
        "streams": (sys.stdout, sys.stderr),
        "logging": logging.root.manager.disable,
        "warnings": list(warnings.filters),
        "code": [dict(vars(one)) for one in (nn.Module, F, transformer, torch, torch.Tensor)],
        "kernels": [one.enabled for one in (torch.backends.mkldnn, torch.backends.cudnn)],
        "attention": [torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.mem_efficient_sdp_enabled()],
        "matplotlib": dict(matplotlib.rcParams),
        "random": torch.random.get_rng_state().tolist(),
    }  # fmt: skip


@pytest.fixture(scope="module")
def imported() -> None:
    """PyTorch imports more when it exports for the first time, which sets filters of warnings."""
    shrink(network(0))


@pytest.fixture(autouse=True)
def unchanged(imported: None) -> Iterator[None]:
    before = process()
    yield
    after = process()
    for what, value in before.items():
        assert after[what] == value, what


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(tensor, b[name]) for name, tensor in a.items())


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("shared", "progress"), [(False, True), (True, False)])
def test_threads_shrink_at_once_as_they_would_alone(
    shared: bool, progress: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = [network(0)] * THREADS if shared else [network(seed) for seed in range(THREADS)]
    before = [state(model) for model in models]
    alone = {model: shrink(model) for model in models}
    if progress:
        monkeypatch.setattr(sys, "stderr", Terminal())

    def work(number: int) -> list[Any]:
        return [shrink(models[number], progress) for _ in range(CALLS)]

    for model, results in zip(models, at_once(work), strict=True):
        expected = alone[model]
        for result in results:
            assert result.plan == expected.plan
            assert (result.curve, result.before, result.after) == (expected.curve, expected.before, expected.after)
            assert same(state(result.model), state(expected.model))
    if progress:
        assert sys.stderr.getvalue().count("\x1b[?25l") == THREADS * CALLS  # each display hides the cursor
        monkeypatch.undo()
    for model, weights in zip(models, before, strict=True):
        assert same(state(model), weights)
        assert all(module.training for module in model.modules())


def everything(model: nn.Module, folder: Path) -> list[Any]:
    """What all public functions give for one model, as plain values."""
    units = sc.find_units(model, DATA[0])
    scores = sc.score(model, DATA, "cross_entropy", units=units, criterion="hessian")
    weights = sc.score(model, DATA, "cross_entropy", units=units, granularity="weight")
    matrix = sc.interactions(model, DATA, "cross_entropy", units=units, curvature="hessian")
    plan = sc.rank(model, DATA, "cross_entropy", units=units, criterion="taylor2", progress=False)
    small = sc.cut(model, plan.at(sc.Budget(remove_units=5)))
    result = shrink(model)
    size = result.save(folder / "small.safetensors")
    result.report(folder / "small.html")
    loaded = sc.load(folder / "small.safetensors", model)
    tensors = [*scores.values(), *weights.values(), matrix, *small.state_dict().values(), *loaded.state_dict().values()]
    sizes = sc.measure(small, DATA[0])
    return [[one.tolist() for one in tensors], plan, sizes, size, (folder / "small.html").read_text()]


def test_all_public_functions_run_in_threads_at_once_as_they_would_alone(tmp_path: Path) -> None:
    models = [network(0), network(1)]
    alone = [everything(model, tmp_path) for model in models]
    folders = [tmp_path / str(number) for number in range(THREADS)]
    for folder in folders:
        folder.mkdir()
    together = at_once(lambda number: everything(models[number % 2], folders[number]))
    assert together == [*alone, *alone]


def test_threads_may_write_the_same_file_at_once(tmp_path: Path) -> None:
    result = shrink(network(0))
    path = tmp_path / "small.safetensors"
    sizes = at_once(lambda _: [result.save(path) for _ in range(20)])
    assert {size for several in sizes for size in several} == {path.stat().st_size}
    assert list(tmp_path.iterdir()) == [path]
