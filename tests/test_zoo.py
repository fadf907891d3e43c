"""Real architectures, where ZOO_DIR names the folder of a zoo.py; an independent check of what a cut computes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.structure.graph_run import difference, in_double
from secateur_experiments.bench import architectures

SAMPLE = [
    "torchvision/resnet18", "torchvision/mobilenet_v2", "torchvision/densenet121", "torchvision/shufflenet_v2_x1_0",
    "timm/resnest14d", "timm/ghostnet_100", "timm/deit_tiny_patch16_224", "timm/levit_128s", "timm/convnext_nano",
    "hf/bert", "hf/gpt2", "hf/llama_gqa", "hf/t5", "hf/qwen3_gqa", "torch/lenet", "torch/lstm_2layer", "torch/gru",
    "torch/transformer_encoder", "torch/unet", "torch/pixel_shuffle",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder() -> str:
    found = os.environ.get("ZOO_DIR", "no-such-folder")
    if not Path(found, "zoo.py").is_file():
        pytest.skip("the zoo is not here: set ZOO_DIR to the folder of its zoo.py")
    return found


def doubled(inputs: Any) -> Any:
    if isinstance(inputs, dict):
        return {name: in_double(value) for name, value in inputs.items()}
    return tuple(map(in_double, inputs))


def outputs(model: nn.Module, inputs: Any) -> Any:
    with torch.no_grad():
        return model(**inputs) if isinstance(inputs, dict) else model(*inputs)


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLE)
def test_zeroing_the_removed_slices_of_the_original_gives_what_the_cut_does(folder: str, name: str) -> None:
    """Not by axes and gates: the original's own code, with every parameter of a removed unit set to zero."""
    model, inputs = architectures.build(folder, name)
    model, inputs = model.double().train().eval(), doubled(inputs)  # LeViT then forgets biases made of its weights
    units = sc.find_units(model, inputs)
    kept = architectures.half(units)
    small = sc.cut(model, sc.Plan.from_kept(kept, inputs)).eval()
    got, whole = outputs(small, inputs), outputs(model, inputs)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for unit_set in units:
            gone = sorted(set(range(unit_set.size)) - set(kept[unit_set.name]))
            for part in unit_set.slices:
                if part.tensor in parameters:
                    parameters[part.tensor].index_fill_(part.dim, part.index[gone].flatten(), 0)
    wanted = outputs(model, inputs)
    assert difference(wanted, whole)[1] > 1e-3
    assert difference(wanted, got)[1] < (3e-6 if name.startswith("hf/") else 1e-9)  # whose code computes in float32


@pytest.mark.slow
@pytest.mark.parametrize("include", ["gated", "all"])
@pytest.mark.parametrize("name", SAMPLE)
def test_a_cut_has_the_parameters_and_sizes_predicted(folder: str, name: str, include: Any) -> None:
    model, inputs = architectures.build(folder, name)
    units = sc.find_units(model, inputs, include)
    kept = architectures.half(units)
    small = sc.cut(model, sc.Plan.from_kept(kept, inputs))
    counts = {name: len(indices) for name, indices in kept.items()}
    assert sum(p.numel() for p in small.parameters()) == units.params(counts) < units.params({})
    found = {name: tuple(tensor.shape) for name, tensor in (*small.named_parameters(), *small.named_buffers())}
    assert {name: found[name] for name in units.shapes(counts)} == units.shapes(counts)
    assert sc.measure(small, inputs).macs == units.macs(counts)
