"""What a command works on: the network that MODEL or --hf names, and the data for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from secateur.artifacts.hugging_face import keyword_inputs, load_network, read_texts, tokens_of
from secateur.artifacts.sources import find_data, find_model
from secateur.errors import ArgumentError, DataError
from secateur.objective.data import first_inputs, is_pair
from secateur.objective.kept_outputs import KEPT, suited_to
from secateur.objective.unlabelled import data_for
from secateur.structure.capture import eval_outputs
from secateur.structure.inputs import InputSpec, as_call, like_model
from secateur.structure.lengths import few

TEXTS = ".txt"
MOST_TOKENS = 128


@dataclass(frozen=True)
class Source:
    """Where a command finds its network, and how it reads data for it.

    Attributes:
        model: What MODEL gives; None with a folder.
        folder: The folder that --hf gives; None without.
        max_tokens: The tokens of a text that are read; None for `MOST_TOKENS`.

    Raises:
        ArgumentError: There is no model and no folder, or both, or a number of tokens without a folder.
    """

    model: str | None
    folder: Path | None = None
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.model is None and self.folder is None:
            raise ArgumentError("MODEL: needed, or --hf DIR with a folder of Hugging Face's")
        if self.model is not None and self.folder is not None:
            raise ArgumentError(f"MODEL {self.model!r} and --hf {self.folder}: give one of them")
        if self.folder is None and self.max_tokens is not None:
            raise ArgumentError("--max-tokens: is for texts, which --hf reads")

    def network(self) -> nn.Module:
        """Return the network."""
        return find_model(self.model) if self.model is not None else load_network(self.folder or "")

    def data(self, network: nn.Module, name: str, loss: str | None, targets: bool = False) -> tuple[Any, str | None]:
        """Return the data that a name stands for, and the loss.

        Where no loss was named for data of a folder's network without targets, it is the one that suits what the
        network gives.

        Args:
            network: The network.
            name: What the command was given.
            loss: The loss's name; None where none was named.
            targets: Whether targets are kept that the loss does not need, for a metric.

        Raises:
            ArgumentError: No loss was named, and the data may have targets.
            DataError: The data cannot be read, or the loss needs targets and there are none.
        """
        data = self.read(network, name, loss)
        if self.folder is not None and loss is None:
            loss = _loss_without_targets(network, data, name)
        return data_for(network, data, loss, targets=targets), loss

    def read(self, network: nn.Module, name: str, loss: str | None = None) -> Any:
        """Return what a name stands for: a file or a loader, and with a folder texts, which its tokenizer reads.

        Raises:
            ArgumentError: There is no tokenizer, or a number of tokens and no texts.
            DataError: It cannot be read, or has no targets and the loss needs some.
        """
        if self.folder is None:
            return find_data(name, labelled=loss not in KEPT)
        labelled = loss not in (None, *KEPT)
        if Path(name).suffix != TEXTS:
            if self.max_tokens is not None:
                raise ArgumentError(f"--max-tokens: is for texts, a {TEXTS} file, not for {name}")
            return find_data(name, labelled, keyword_inputs(network))
        if labelled:
            raise DataError(f"{name}: texts have no targets; the loss can be {' or '.join(KEPT)}")
        return tokens_of(read_texts(Path(name)), self.folder, self.max_tokens or MOST_TOKENS)


def _loss_without_targets(network: nn.Module, data: Any, name: str) -> str:
    """Return the loss that suits what a network gives for the first samples.

    Raises:
        ArgumentError: The data may have targets.
    """
    if Path(name).suffix != TEXTS and not (is_pair(data) and data[1] is None):
        raise ArgumentError("--loss: needed, but for texts and files without y")
    call = like_model(network, as_call(first_inputs(data)))
    return suited_to(eval_outputs(network, few(call, InputSpec.of(call))))
