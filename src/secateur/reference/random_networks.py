"""Random networks whose gated outputs are computed by hand, for property tests."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Value(NamedTuple):
    """A value in a random network: the names of the unit sets along its last dimension, None for the inputs."""

    sets: tuple[str | None, ...]
    widths: tuple[int, ...]


class RandomNetwork(nn.Module):
    """A random network of dense layers whose unit sets are known by construction.

    Chains, branches, residual adds, concatenation, shared layers, batch norm, activations; with
    ``positions`` the inputs are [N, positions, features], flattened before the last layer. All parameters and
    buffers are random.

    Args:
        seed: Decides everything.
        widths: The least and the largest number of units of a layer.
        steps: The number of operations.

    Attributes:
        sets: Unit set → its size; the name is that of the first layer that makes it.
        features: The inputs' last dimension.
        positions: Their middle dimension; 0 where there is none.

    >>> network = RandomNetwork(0)
    >>> x = network.sample(3)
    >>> bool((network(x) == network.gated(x, {})).all())
    True
    """

    def __init__(self, seed: int, widths: tuple[int, int] = (1, 6), steps: int = 7) -> None:
        super().__init__()
        self._random = torch.Generator().manual_seed(seed)
        self._widths = widths
        self.positions = self._draw(0, 3) if self._draw(0, 2) == 0 else 0
        self.features = self._draw(1, 5)
        self.sets: dict[str, int] = {}
        self.layers = nn.ModuleList()
        self._program: list[tuple[Any, ...]] = []
        self._values = [Value((None,), (self.features,))]
        self._linear(0)
        for _ in range(steps):
            self._step()
        self._last(self._draw(1, 4))
        for tensor in (*self.parameters(), *self.buffers()):
            if tensor.is_floating_point():
                tensor.data.copy_(torch.rand(tensor.shape, generator=self._random) + 0.1)
        for parameter in self.parameters():
            parameter.data.copy_(torch.randn(parameter.shape, generator=self._random))
        del self._random
        self.eval()

    def _draw(self, low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=self._random))

    def _emit(self, value: Value, *instruction: Any) -> None:
        self._program.append(instruction)
        self._values.append(value)

    def _add_layer(self, layer: nn.Module) -> int:
        self.layers.append(layer)
        return len(self.layers) - 1

    def _linear(self, source: int, out: Value | None = None) -> None:
        width = sum(out.widths) if out else self._draw(*self._widths)
        layer = self._add_layer(nn.Linear(sum(self._values[source].widths), width, bias=self._draw(0, 3) > 0))
        if out is None:
            name = f"layers.{layer}"
            self.sets[name] = width
            out = Value((name,), (width,))
        self._emit(out, "layer", layer, source)

    def _step(self) -> None:
        source = self._draw(1, len(self._values) - 1)
        value = self._values[source]
        kind = self._draw(0, 6)
        if kind <= 1:
            self._linear(source)
        elif kind == 2:
            self._emit(value, "activation", self._draw(0, 3), source)
        elif kind == 3 and not self.positions:
            self._emit(value, "norm", self._add_layer(nn.BatchNorm1d(sum(value.widths))), source)
        elif kind == 4:
            self._linear(source, value)  # back to the same width, and added
            self._emit(value, "add", source, len(self._values) - 1)
        elif kind == 5:
            other = self._draw(1, len(self._values) - 1)
            joint = Value(value.sets + self._values[other].sets, value.widths + self._values[other].widths)
            self._emit(joint, "cat", source, other)
        else:
            shared = [i for i in self._program if i[0] == "layer" and self._values[i[2]].sets == value.sets]
            if shared:
                _, layer, _ = shared[0]
                made = next(
                    v for i, v in zip(self._program, self._values[1:], strict=True) if i[:2] == ("layer", layer)
                )
                self._emit(made, "layer", layer, source)

    def _last(self, outputs: int) -> None:
        everything = list(range(1, len(self._values)))[-3:]
        for other in everything[1:]:
            joined = len(self._values) - 1 if other != everything[1] else everything[0]
            a, b = self._values[joined], self._values[other]
            self._emit(Value(a.sets + b.sets, a.widths + b.widths), "cat", joined, other)
        source = len(self._values) - 1
        width = sum(self._values[source].widths) * max(self.positions, 1)
        if self.positions:
            self._emit(self._values[source], "flatten", source)
        last = self._add_layer(nn.Linear(width, outputs))
        self._emit(Value((None,), (outputs,)), "layer", last, len(self._values) - 1)

    def sample(self, n: int, seed: int = 0) -> Tensor:
        """Random inputs for n samples, in the network's dtype."""
        shape = (n, self.positions, self.features) if self.positions else (n, self.features)
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(shape, generator=generator).to(next(self.parameters()).dtype)

    def forward(self, x: Tensor) -> Tensor:
        """The outputs [N, outputs]."""
        return self.gated(x, {})

    def gated(self, x: Tensor, gates: dict[str, Tensor]) -> Tensor:
        """The outputs with the units of some sets multiplied by gates wherever a layer sums over them."""
        values = [x]
        for instruction in self._program:
            values.append(self._run(instruction, values, gates))
        return values[-1]

    def _run(self, instruction: tuple[Any, ...], values: list[Tensor], gates: dict[str, Tensor]) -> Tensor:
        kind, *operands = instruction
        if kind == "layer":
            layer, source = operands
            x, vector = values[source], self._vector(self._values[source], gates)
            if vector is not None:
                x = x * vector.repeat(x.shape[-1] // len(vector))
            result = self.layers[layer](x)
        elif kind == "norm":
            result = self.layers[operands[0]](values[operands[1]])
        elif kind == "activation":
            result = _ACTIVATIONS[operands[0]](values[operands[1]])
        elif kind == "flatten":
            result = values[operands[0]].flatten(1)
        else:
            a, b = (values[i] for i in operands)
            result = a + b if kind == "add" else torch.cat([a, b], -1)
        assert isinstance(result, Tensor)
        return result

    def _vector(self, value: Value, gates: dict[str, Tensor]) -> Tensor | None:
        if not any(name in gates for name in value.sets):
            return None
        like = next(iter(gates.values()))
        pieces = zip(value.sets, value.widths, strict=True)
        return torch.cat([gates[n] if n is not None and n in gates else like.new_ones(w) for n, w in pieces])


_ACTIVATIONS: tuple[Callable[[Tensor], Tensor], ...] = (torch.sigmoid, torch.tanh, F.gelu, F.softplus)


def random_networks(seeds: Iterable[int]) -> Iterator[RandomNetwork]:
    """One network for each seed, in float64."""
    for seed in seeds:
        yield RandomNetwork(seed).double()
