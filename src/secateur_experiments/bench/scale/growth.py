"""How the time of the job grows with units, layers and samples: exponents of small dense networks."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from secateur import Budget, shrink
from secateur_experiments.bench.timing import exponent, seconds
from secateur_experiments.networks import seeded

WIDTH, CLASSES = 64, 10
SAMPLES = 1_000


@dataclass(frozen=True)
class Question:
    """What grows.

    Attributes:
        sizes: How far.
        bar: The exponent that must not be exceeded.
        build: From a size, the hidden widths and the number of samples.
    """

    sizes: Sequence[int]
    bar: float
    build: Callable[[int], tuple[list[int], int]]


@dataclass(frozen=True)
class Trend:
    """Median seconds by size, and the power of the size with which they grow.

    Attributes:
        what: What grows.
        seconds: By size.
        exponent: Of the line through them, both in logarithms.
        bar: The exponent that must not be exceeded.
    """

    what: str
    seconds: Mapping[int, float]
    exponent: float
    bar: float


QUESTIONS = {
    "units": Question((256, 512, 1024, 2048, 4096), 2.3, lambda size: ([size], SAMPLES)),
    "layers": Question((2, 4, 8, 16, 32), 1.2, lambda size: ([WIDTH] * size, SAMPLES)),
    "samples": Question((500, 1000, 2000, 4000, 8000), 1.2, lambda size: ([4 * WIDTH] * 2, size)),
}


def trends(ranking: str, runs: int, questions: Mapping[str, Question] = QUESTIONS) -> Iterator[Trend]:
    """Time the removal of half of all units at every size, after one at the least that is not counted."""
    for what, question in questions.items():
        removal_seconds(*question.build(question.sizes[0]), ranking)
        times = {
            size: statistics.median(removal_seconds(*question.build(size), ranking) for _ in range(runs))
            for size in question.sizes
        }
        yield Trend(what, times, exponent(times), question.bar)


def removal_seconds(hidden: Sequence[int], samples: int, ranking: str) -> float:
    """Return how long half of the hidden units of a random dense network take to go."""
    with seeded(0):
        layers = [(nn.Linear(*sizes), nn.ReLU()) for sizes in itertools.pairwise([WIDTH, *hidden])]
        model = nn.Sequential(*itertools.chain(*layers), nn.Linear(hidden[-1], CLASSES)).eval()
        data = torch.randn(samples, WIDTH), torch.randint(CLASSES, (samples,))
    budget = Budget(remove_fraction=0.5)
    return seconds(lambda: shrink(model, data, "cross_entropy", budget, ranking=ranking, progress=False))[0]
