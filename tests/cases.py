"""One table of networks for all tests: name -> builder; all in float64, all weights and buffers random."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur import Units, find_units


class Case(NamedTuple):
    """A network, inputs [6, ...], class targets [6], and its unit sets by name."""

    model: nn.Module
    x: Tensor
    y: Tensor
    sets: dict[str, int]


class First(nn.Module):
    """The first of several outputs."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)[0]


class Heads(nn.Module):
    """Three heads of width two before an output projection."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(3, 6) for _ in range(3))
        self.out, self.last, self.heads = nn.Linear(6, 4), nn.Linear(4, 2), 3

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (one(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for one in (self.q, self.k, self.v))
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.last(torch.tanh(self.out(attended)))


def gated_units(model: nn.Module, x: Any) -> Units:
    """All units that a gate of zero removes exactly, also those that the model's own code cannot follow."""
    units = find_units(model, x, "all")
    return Units(units.captured, units.net, model)


Kept = dict[str, tuple[int, ...]]


def random_kept(units: Units, seed: int) -> Kept:
    """One or more units of each set."""
    generator = torch.Generator().manual_seed(seed)
    kept = {}
    for unit_set in units:
        n = int(torch.randint(1, unit_set.size + 1, (), generator=generator))
        kept[unit_set.name] = tuple(sorted(torch.randperm(unit_set.size, generator=generator)[:n].tolist()))
    return kept


CASES: dict[str, Callable[[], Case]] = {}


def case(inputs: tuple[int, ...], classes: int, **sets: int) -> Callable[[Callable[[], nn.Module]], Any]:
    """Register a builder; set names are written with __ for a dot."""

    def register(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        def made() -> Case:
            torch.manual_seed(0)
            model = randomise(build().double().eval())
            x, y = torch.randn(6, *inputs, dtype=torch.float64), torch.randint(0, classes, (6,))
            return Case(model, x, y, {name.replace("__", ".").lstrip("_"): size for name, size in sets.items()})

        CASES[build.__name__] = made
        return build

    return register


def randomise(model: nn.Module) -> nn.Module:
    """Random values in every parameter and buffer; variances positive."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.7)
        for buffer in model.buffers():
            if buffer.is_floating_point():
                buffer.copy_(torch.rand_like(buffer) + 0.3)
    return model


@case((5,), 3, _0=7)
def one_hidden() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 7), nn.Sigmoid(), nn.Linear(7, 3), nn.Sigmoid())


@case((5,), 3, _0=6, _2=4)
def two_hidden() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 6), nn.Sigmoid(), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3))


@case((5,), 3, _0=1)
def one_unit() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 1), nn.Tanh(), nn.Linear(1, 3))


@case((4,), 2, _0=6, _4=5)
def normalised() -> nn.Module:
    return nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(6, 5), nn.GELU(),
        nn.Linear(5, 2),
    )  # fmt: skip


@case((2, 3), 2, _1=4)
def flattened() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))


@case((3, 2), 2, _0=4)
def flattened_units() -> nn.Module:
    """Units repeated at three positions, all consumed by one dense layer."""
    return nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Flatten(), nn.Linear(12, 2))


@case((5,), 3, left=6, right=4)
def branches() -> nn.Module:
    """Two branches, a residual add, a shared layer, a concatenation, a functional forward."""

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right, self.back = nn.Linear(5, 6), nn.Linear(5, 4), nn.Linear(4, 6)
            self.shared, self.last = nn.Linear(6, 6), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            a, b = torch.tanh(self.left(x)), torch.sigmoid(self.right(x))
            a = a + self.back(b)
            a = F.softplus(self.shared(a))
            c = F.softplus(self.shared(a))
            return self.last(torch.cat([a, b, c], -1))

    return Branches()


@case((5,), 3, w1=6, w2=4)
def functional() -> nn.Module:
    """Parameters of the module's own, matmul and a transposed weight."""

    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w1, self.w2 = nn.Parameter(torch.randn(6, 5)), nn.Parameter(torch.randn(6, 4))
            self.w3, self.b3 = nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(3))

        def forward(self, x: Tensor) -> Tensor:
            return torch.addmm(self.b3, torch.tanh(torch.sigmoid(x @ self.w1.t()) @ self.w2), self.w3)

    return Functional()


@case((5,), 5, encode=4)
def tied() -> nn.Module:
    """One weight for two layers, transposed in the second."""

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encode = nn.Linear(5, 4)

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(self.encode(x)) @ self.encode.weight

    return Tied()


def targets(loss: str, outputs: Tensor, seed: int) -> Tensor:
    """Random targets that a named loss takes for these outputs."""
    generator = torch.Generator().manual_seed(seed)
    if loss == "cross_entropy":
        return torch.randint(0, outputs.shape[1], outputs.shape[:1], generator=generator)
    draw = torch.rand if loss == "binary_cross_entropy" else torch.randn
    return draw(outputs.shape, generator=generator, dtype=torch.float64)


def in_batches(x: Tensor, t: Tensor, cuts: list[int]) -> list[tuple[Tensor, Tensor]]:
    """The samples cut before these rows."""
    return list(zip(torch.tensor_split(x, sorted(cuts)), torch.tensor_split(t, sorted(cuts)), strict=True))
