"""The cap on memory: what it is, how values are counted, and that it holds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import nn

from secateur import find_units, rank, score
from secateur.errors import ArgumentError
from secateur.objective.gated_loss import GatedLoss, ones
from secateur.objective.memory import bytes_alive, bytes_held, bytes_of, memory_cap

CPU = torch.device("cpu")


def test_a_quarter_of_what_is_free() -> None:
    free = psutil.virtual_memory().available
    assert memory_cap(None, CPU) == pytest.approx(free / 4, rel=0.2)
    assert memory_cap("64 MiB", CPU) == 2**26
    assert memory_cap(1000, CPU) == 1000


@pytest.mark.parametrize(
    ("given", "message"),
    [(0, "max_memory: expected a size above 0, got 0"), ("much", "max_memory: expected an int or a size such as")],
)
def test_no_memory(given: Any, message: str) -> None:
    model, x = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)), torch.ones(4, 2)
    data = (x, torch.zeros(4, dtype=torch.long))
    for call in (score, rank):
        with pytest.raises(ArgumentError, match=message):
            call(model, data, "cross_entropy", max_memory=given)


def test_values_are_counted() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 5)).double()
    units = find_units(model, torch.ones(4, 2).double())
    assert bytes_of(units.captured.graph.nodes) == (3 + 3 + 5) * 8
    a, b = torch.zeros(10), torch.zeros(3)
    assert bytes_held([a, a[2:], b, 7, None], [b]) == 40


def test_values_that_are_still_needed_are_counted_where_they_are_most() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 50), nn.ReLU(), nn.Linear(50, 5)).double()
    graph = find_units(model, torch.ones(4, 2).double()).captured.graph
    linear = [node for node in graph.nodes if node.target is torch.ops.aten.linear.default]
    tanh = linear[1].args[0]
    assert bytes_alive(graph, linear[:1]) == 3 * 8  # what it gives, no input
    assert bytes_alive(graph, linear[1:2]) == (3 + 50) * 8
    assert bytes_alive(graph, [tanh]) == (3 + 3) * 8
    assert bytes_alive(graph, linear) == (50 + 5) * 8
    assert bytes_alive(graph, []) == 0


def kept(gated: GatedLoss) -> bool:
    """Whether values that no gate changes are held, and not computed each time that they are asked for."""
    first, again = (next(gated.cached).frontier for _ in range(2))
    return all(a is b for a, b in zip(first, again, strict=True))


def test_with_little_memory_nothing_is_kept_and_the_result_is_the_same() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    x, y = torch.randn(50, 4).double(), torch.randint(3, (50,))
    units = find_units(model, x)
    little = GatedLoss(model, units, (x, y), "cross_entropy", max_memory=8000)
    much = GatedLoss(model, units, (x, y), "cross_entropy")
    sizes = [[batch.size for batch in gated.cached] for gated in (little, much)]
    assert sizes == [[5] * 10, [50]]
    assert [kept(little), kept(much)] == [True, True]
    assert not kept(GatedLoss(model, units, (x, y), "cross_entropy", max_memory=7000))
    plans = [
        rank(model, (x, y), "cross_entropy", units=units, max_memory=size, progress=False)
        for size in (None, 8000, 7000, 1)
    ]
    for plan in plans[1:]:
        assert [(s.set, s.index) for s in plan.steps] == [(s.set, s.index) for s in plans[0].steps]
        assert [s.loss for s in plan.steps] == pytest.approx([s.loss for s in plans[0].steps], rel=1e-12)
    assert little.loss(ones(model, units)) == pytest.approx(much.loss(ones(model, units)), rel=1e-13)


PEAK = """
import sys, torch
from pathlib import Path
from secateur import find_units, rank, score
from secateur_experiments.networks import lenet
from secateur_experiments.networks import logistic_network

def resident(what):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(what))

torch.manual_seed(0)
torch.set_num_threads(2)
name, cap = sys.argv[1], int(sys.argv[2])
shape = (784,) if name == "dense" else (1, 28, 28)
model = (logistic_network([784, 100, 100, 10]) if name == "dense" else lenet()).eval()
x, y = torch.rand(10_000, *shape), torch.randint(10, (10_000,))
units = find_units(model, x[:64])
score(model, (x[:64], y[:64]), "cross_entropy", units=units)  # what libraries load once
Path("/proc/self/clear_refs").write_text("5")  # the peak starts here
before = resident("VmRSS")
score(model, (x, y), "cross_entropy", units=units, max_memory=cap)
print(resident('VmHWM') - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux to measure a peak")
@pytest.mark.parametrize(("name", "megabytes"), [("dense", 64), ("conv", 100), ("conv", 400)])
def test_the_peak_stays_under_the_cap(name: str, megabytes: int) -> None:
    cap = megabytes * 10**6
    command = [sys.executable, "-c", PEAK, name, str(cap)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert not done.returncode, done.stderr
    assert 0.1 * cap < int(done.stdout) <= 1.1 * cap
