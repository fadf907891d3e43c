"""`secateur bench artifacts`: one network, whole and cut, as every kind of file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import secateur
from secateur.artifacts.exports.write import write
from secateur.objective.losses import cross_entropy
from secateur.planning.details.file_formats import FORMATS
from secateur_experiments.datasets import digits, mnist
from secateur_experiments.networks import convolutional_network, small_convolutional_network
from secateur_experiments.training import train

SHARE = 0.33  # of the file's bytes that the cut network has
TRAINED, CALIBRATED, TESTED = 10_000, 1_000, 2_000  # digits of MNIST


@dataclass(frozen=True)
class Row:
    """One file.

    Attributes:
        network: "whole" or "cut".
        kind: The ending of the file.
        bytes: Its size.
        overhead: The bytes beside those of the raw weights of that network in float32; below 0 in whole numbers.
        difference: The largest difference of its runtime's outputs from the module's, relative to the largest.
        accuracy: On the test digits, by its own runtime; of .safetensors by PyTorch.
        planned_memory: The bytes of activations that ExecuTorch plans for one sample.
    """

    network: str
    kind: str
    bytes: int
    overhead: int
    difference: float
    accuracy: float | None
    planned_memory: int | None


def compare(folder: Path | None, epochs: int) -> Iterator[Row]:
    """Yield a row for each kind of file of the whole network, then of the cut one.

    Args:
        folder: That of MNIST; None for the digits.
        epochs: The epochs of training.
    """
    data = digits() if folder is None else mnist(folder, train=TRAINED, calibration=CALIBRATED)
    model = small_convolutional_network() if folder is None else convolutional_network()
    train(model, data.train, epochs, cross_entropy)
    test = data.test[0][:TESTED], data.test[1][:TESTED]
    size = secateur.measure(model, data.test[0][:2]).bytes
    budget = secateur.Budget(bytes=int(SHARE * size))
    result = secateur.shrink(model, data.calibration, "cross_entropy", budget, validation=test)
    spec = result.plan.inputs
    with TemporaryDirectory() as place:
        for name, network, sizes in (("whole", model, result.before), ("cut", result.model, result.after)):
            raw = sum(tensor.nbytes for tensor in network.state_dict().values())
            yield Row(name, ".safetensors", sizes.bytes, sizes.bytes - raw, 0.0, sizes.accuracy, None)
            for kind in list(FORMATS)[1:]:
                path = Path(place) / f"{name}{kind}"
                file = write(network, spec, path, data.calibration, "cross_entropy", test)
                yield Row(name, kind, file.bytes, file.bytes - raw, file.difference, file.accuracy, file.planned_memory)


def text(row: Row) -> str:
    """Return a row as one line."""
    return (
        f"{row.network} {row.kind}: {row.bytes:,} bytes, {row.overhead:+,} beside the weights, "
        f"differs by {row.difference:.1e}, accuracy {row.accuracy:.4f}"
    )


def page(rows: list[Row], command: str, dataset: str) -> str:
    """Return the page in Markdown."""
    lines = [
        "# Files that others load\n",
        f"Written by `{command}`: a convolutional network trained on {dataset},",
        f"whole and cut to {SHARE:.0%} of its bytes, weights fitted to what goes. Accuracy is that of each file's own",
        f"runtime, in a fresh process, on {TESTED:,} test digits at most (of .safetensors: of the module); int8 ranges",
        "are found on training digits. The overhead is what a file holds beside the network's weights in float32:",
        "below 0 in int8. The difference is the largest of all outputs, relative to the largest. Planned memory is",
        "that of ExecuTorch's portable kernels for one sample, inputs and outputs with it; XNNPACK's own workspace",
        "is in no plan. `Budget(ram=)` and `measure(...).ram` count the same without ExecuTorch, equal for dense,",
        "convolutional and residual networks; of attention, which it takes apart, its plan has copies that they have",
        "not.\n",
        "| network | file | bytes | overhead | difference | accuracy | planned memory |",
        "|---|---|--:|--:|--:|--:|--:|",
        *(_line(row) for row in rows),
    ]
    return "\n".join(lines) + "\n"


def _line(row: Row) -> str:
    memory = "" if row.planned_memory is None else f"{row.planned_memory:,}"
    numbers = f"{row.bytes:,} | {row.overhead:,} | {row.difference:.1e} | {row.accuracy:.4f} | {memory}"
    return f"| {row.network} | `{row.kind}` | {numbers} |"
