"""The networks of the suite by name, and what each takes."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

FAMILIES = (
    "yolo", "detection", "vision_transformers", "image_networks", "diffusion", "audio", "torch_attention", "decoders",
    "assorted", "hugging_face_encoders", "hugging_face_decoders", "hugging_face_pairs",
)  # fmt: skip


@dataclass(frozen=True)
class Subject:
    """One network, and the inputs that it takes.

    Attributes:
        model: With any weights.
        inputs: From a number of samples and a size to positional or keyword inputs.
        sizes: All that the network takes; the first is the example's.
        dimension: What the sizes are sizes of.
        dtype: Of weights, inputs and all that is computed.
        prompt: From nothing to the inputs of `generate`; None for networks without.
    """

    model: nn.Module
    inputs: Callable[[int, Any], tuple[Any, ...] | dict[str, Any]]
    sizes: tuple[Any, ...] = (None,)
    dimension: str = "length"
    prompt: Callable[[], dict[str, Any]] | None = None
    dtype: torch.dtype = torch.float64


SUITE: dict[str, Callable[[], Subject]] = {}


def subject(name: str) -> Callable[[Callable[[], Subject]], Callable[[], Subject]]:
    """Register what builds a network."""

    def register(build: Callable[[], Subject]) -> Callable[[], Subject]:
        SUITE[name] = build
        return build

    return register


def suite() -> dict[str, Callable[[], Subject]]:
    """Return what builds each network, by name, in the order of the families."""
    modules = [importlib.import_module(f"{__package__}.models.{family}").__name__ for family in FAMILIES]
    return {name: build for module in modules for name, build in SUITE.items() if build.__module__ == module}


def images(samples: int, size: int | tuple[int, int]) -> tuple[Tensor]:
    """Return random images of three colours, square or of (height, width)."""
    return (torch.randn(samples, 3, *(size if isinstance(size, tuple) else (size, size))),)


def sequences(channels: int) -> Callable[[int, int], tuple[Tensor]]:
    """Return what draws inputs of [samples, length, channels]."""
    return lambda samples, length: (torch.randn(samples, length, channels),)


def tokens(count: int) -> Callable[[int, int], tuple[Tensor]]:
    """Return what draws inputs of [samples, length] numbers below the count."""
    return lambda samples, length: (torch.randint(0, count, (samples, length)),)
