"""The result of shrinking: the smaller network, how it came about and what it costs."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import nn

from secateur.artifacts import safetensors
from secateur.artifacts.exports.write import write
from secateur.artifacts.measure import Sizes
from secateur.artifacts.pretrained import save_pretrained
from secateur.artifacts.safetensors import weights_to_bytes
from secateur.planning.plan import Plan
from secateur.planning.weight_plan import WeightPlan
from secateur.reporting.paths import check_page


class Row(NamedTuple):
    """One step of the trade-off; loss, accuracy and metric are None where they were not measured."""

    removed: int
    loss: float | None
    accuracy: float | None
    params: int
    bytes: int
    metric: float | None = None


@dataclass(frozen=True)
class Result:
    """A shrunk network, how it came about and what it costs.

    Attributes:
        model: The smaller network; without single weights one of the same sizes, these zero and frozen.
        plan: The removals; `secateur.cut(original, plan)` makes the same network again, with
            ``compensate=data, loss=loss`` where weights made up for them; of one made in rounds the same structure, its
            weights are in `model`. For single weights, their masks.
        curve: One row per step of the plan.
        before: Sizes, loss, accuracy and metric of the original; `before.bytes` is its file's size with the same
            metadata.
        after: Sizes, loss, accuracy and metric of the smaller network; `after.bytes` is the written file's size.
        max_difference: The largest difference between its outputs and those of the gated original, with the trained
            weights where there are such; of single weights, those of the original's graph with its weights and the
            masks.
        captured: The submodules of `model` whose own code cannot compute with the sizes left, and that compute by
            their part of the captured graph instead, as in eval mode; ("",) if that is the whole network.
        proven: The numbers of samples and the sizes of inputs that the proof is for, and how it generates, in words.
    """

    model: nn.Module
    plan: Plan | WeightPlan
    curve: tuple[Row, ...]
    before: Sizes
    after: Sizes
    max_difference: float
    captured: tuple[str, ...] = ()
    proven: str = ""

    def save(self, path: str | os.PathLike[str], data: Any = None) -> int:
        """Write the network, whole or not at all, and return the number of bytes.

        The path's ending says what is written: .safetensors, with the plan, for `load`; .pt2 for PyTorch, .onnx and
        .int8.onnx for ONNX Runtime, .pte and .int8.pte for ExecuTorch. Those for others hold no plan; each is run by
        its own runtime in a fresh process, and compared with the network, before it is put in place.

        Args:
            path: The file.
            data: Inputs, with targets or None, on which files in whole numbers find the ranges of values; the others
                are compared on them, too, or on random ones.

        Raises:
            ArgumentError: The path ends in something else, or needs a library or data that are not there.
            ArtifactError: It cannot be written, computes something else, or removed weights are no longer zero.
            DataError: The data cannot be used.
        """
        if safetensors.check_path(path).suffix != safetensors.SUFFIX:
            return write(self.model, self.plan.inputs, path, data).bytes
        if isinstance(self.plan, Plan):
            return safetensors.save(self.model, self.plan, path)
        return safetensors.save_bytes(weights_to_bytes(self.model, self.plan.masks, self.plan.inputs), path)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> int:
        """Write a network of Hugging Face's as a folder that `from_pretrained` loads, and return the number of bytes.

        Neither Secateur nor the plan is needed there: the configuration has the numbers of what is left. Where no
        numbers say that, since layers differ, a file of code lies beside the weights, and `from_pretrained` needs
        ``trust_remote_code=True``. The folder is loaded and compared with the network before it takes its name.

        Args:
            folder: A new or empty folder.

        Raises:
            ArgumentError: The network is none of Hugging Face's, or the form of its inputs is not known.
            ArtifactError: The folder cannot be written or is not empty, or no configuration says the sizes left.
        """
        return save_pretrained(self.model, self.plan.inputs, folder)

    def report(self, path: str | os.PathLike[str]) -> None:
        """Write what happened as one .html file that needs nothing else, whole or not at all.

        Args:
            path: The file to write; ends in .html or .htm.

        Raises:
            ArgumentError: The path ends in something else.
            ArtifactError: It cannot be written.
        """
        from secateur.reporting.page import write_page  # matplotlib is slow to import, and only pages need it
        from secateur.reporting.result_page import result_page

        check_page(path)
        write_page(result_page(self.plan, self.before, self.after, self.max_difference, self._form()), path)

    def __str__(self) -> str:
        sizes = f"before  {self.before}\nafter   {self.after}"
        compared = "cut and gated" if isinstance(self.plan, Plan) else "it and the graph with masked weights"
        return f"{self.plan}\n\n{sizes}\n{compared} differ by {self.max_difference:.1e}\n{self._form()}"

    def _form(self) -> str:
        return "; ".join(filter(None, (self._kind(), self.proven)))

    def _kind(self) -> str:
        if not self.captured:
            return f"the network is a {type(self.model).__name__}, as it was"
        if self.captured == ("",):
            return "the network is its pruned graph: its own code cannot compute with the sizes left"
        names = ", ".join(self.captured[:3]) + (" ..." if len(self.captured) > 3 else "")
        return f"{len(self.captured)} of its modules compute by their pruned graph: {names}"
