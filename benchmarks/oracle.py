"""The oracle as it is run (only what is behind the gates) beside K passes of the whole model; one process.

Prints, per network, the medians of alternating runs, their ratio and the largest difference of the saliencies.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable

import torch

from secateur import find_units, score
from secateur.papers.training import logistic_network
from secateur.reference import leave_one_out
from secateur.saliency.losses import squared_error
from secateur.text import table


def seconds(work: Callable[[], torch.Tensor]) -> tuple[float, torch.Tensor]:
    """How long it takes, and what it gives."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def compare(widths: list[int], samples: int, runs: int) -> dict[str, object]:
    """Both sides on one network in float64, random inputs."""
    model = logistic_network(widths).double()
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(samples, widths[0], dtype=torch.float64, generator=generator)
    y = torch.randint(widths[-1], (samples,), generator=generator)
    units = find_units(model, x)

    def ours() -> torch.Tensor:
        return torch.cat(list(score(model, (x, y), "squared_error", units).values()))

    def naive() -> torch.Tensor:
        return leave_one_out(model, units, (x,), y, squared_error)

    pairs = [(seconds(naive), seconds(ours)) for _ in range(runs)]
    slow, fast = (statistics.median(pair[side][0] for pair in pairs) for side in (0, 1))
    difference = (pairs[0][0][1] - pairs[0][1][1]).abs().max().item()
    name = "-".join(map(str, widths))
    return {"network": name, "naive_s": slow, "ours_s": fast, "ratio": slow / fast, "max_difference": difference}


def main() -> None:
    """All networks, as a table or as JSON."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--samples", type=int, default=5000)
    options.add_argument("--runs", type=int, default=5)
    options.add_argument("--json", action="store_true")
    given = options.parse_args()
    rows = [compare(w, given.samples, given.runs) for w in ([784, 100, 10], [784, 50, 50, 10])]
    if given.json:
        print(json.dumps(rows))
        return
    cells = [(*list(row.values())[:1], *(f"{value:.3g}" for value in list(row.values())[1:])) for row in rows]
    title = f"{given.samples} samples, float64, {torch.get_num_threads()} threads, torch {torch.__version__}, "
    print(table(list(rows[0]), cells, title + platform.machine()))


if __name__ == "__main__":
    main()
