"""Run where the examples of docs/extending.md are installed: writes what they give, as JSON.

The first argument is the page's example of a function that is no criterion by name.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from my_network import data, network
from torch import Tensor, nn

import secateur as sc

inputs, targets = data()
model = network().double()
units = sc.find_units(model, inputs)
BATCHES = {
    "whole": (inputs, targets),
    "doubled": (torch.cat([inputs, inputs]), torch.cat([targets, targets])),
    "in parts": [(inputs[:3], targets[:3]), (inputs[3:], targets[3:])],
}
OPTIONS: dict[str, dict[str, Any]] = {"wanda": {}, "snip": {"granularity": "weight"}}


def score(criterion: Any, form: str = "whole", **options: Any) -> list[float]:
    """The saliencies of all units or weights in a row."""
    found = sc.score(model, BATCHES[form], "squared_error", units=units, criterion=criterion, **options)
    assert all(values.dtype == torch.float64 for values in found.values())
    return torch.cat([values.flatten() for values in found.values()]).tolist()


def wanda() -> list[float]:
    """By hand."""
    with torch.no_grad():
        h = torch.tanh(model[0](inputs.double()))
        pairs = (h, model[2].weight), (torch.tanh(model[2](h)), model[4].weight[None])
        return torch.cat([(o.square().mean(0) * w.square().sum(0)).sqrt() for o, w in pairs]).tolist()


def snip() -> list[float]:
    """By hand."""
    weights = [model[0].weight, model[2].weight]
    loss = 0.5 * (model(inputs.double()) - targets).square().sum(1).mean()
    slopes = torch.autograd.grad(loss, weights)
    return torch.cat([(w * s).abs().flatten() for w, s in zip(weights, slopes, strict=True)]).tolist()


def slope(example: str) -> list[float]:
    """By the example."""
    names: dict[str, Any] = {"sc": sc, "model": model, "data": BATCHES["whole"]}
    exec(example.replace("sc.score", "found = sc.score").replace("cross_entropy", "squared_error"), names)
    return torch.cat([*names["found"].values()]).tolist()


class Squares(nn.Module):
    """Takes units without a weight."""

    def forward(self, x: Tensor) -> Tensor:
        return x @ x.T @ x


def unjudged() -> list[bool]:
    """Which of such units it cannot judge."""
    net = nn.Sequential(nn.Linear(3, 4), Squares(), nn.Linear(4, 1))
    return sc.score(net, (inputs, None), None, criterion="wanda")["0"].isinf().tolist()


def shrunk() -> list[int]:
    """The units left of a network of its own operations, and its parameters."""
    budget = sc.Budget(remove_units=6)
    result = sc.shrink(model, BATCHES["whole"], "squared_error", budget, units=units, progress=False)
    return [*map(len, result.plan.kept.values()), result.after.params]


sys.stdout.write(
    json.dumps(
        {
            "as told": [score(name, **options) for name, options in OPTIONS.items()],
            "by hand": [wanda(), snip()],
            "doubled": [score(name, "doubled", **options) for name, options in OPTIONS.items()],
            "in parts": [score(name, "in parts", **options) for name, options in OPTIONS.items()],
            "slope": slope(sys.argv[1]),
            "taylor1": score("taylor1"),
            "unjudged": unjudged(),
            "shrunk": shrunk(),
        }
    )
)
