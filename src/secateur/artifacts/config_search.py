"""The configuration of a cut network: the numbers in it with which its class makes a network of the sizes left.

A configuration of Hugging Face's is any object whose attributes are numbers and configurations of parts. Which numbers
the sizes of which parameters follow from is tried out on the meta device, where networks cost nothing.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

MOST = 400  # choices of numbers that are tried
Shapes = dict[str, tuple[int, ...]]
Path = tuple[str, ...]  # of attributes


class Size(NamedTuple):
    """One size of a parameter: before and after the cut."""

    tensor: str
    dim: int
    before: int
    after: int


def shapes_of(model: nn.Module) -> Shapes:
    """Return the shape of every parameter and buffer that is saved."""
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def configurations(model: nn.Module) -> Iterator[Any]:
    """Yield configurations with which the model's class makes networks of the model's sizes.

    Those that change the fewest numbers come first.
    """
    yield from _Search(model).configurations()


def differing(model: nn.Module) -> list[Size]:
    """Return the sizes that differ from what the model's own configuration says."""
    return _Search(model).sizes


class _Search:
    def __init__(self, model: nn.Module) -> None:
        self.kind, self.config, self.wanted = type(model), model.config, shapes_of(model)
        made = self.shapes(self.config)
        self.start: Shapes = {} if made is None else made
        self.sizes = [
            Size(name, dim, before, after)
            for name, shape in self.start.items()
            for dim, (before, after) in enumerate(zip(shape, self.wanted.get(name, shape), strict=False))
            if before != after
        ]

    def shapes(self, config: Any) -> Shapes | None:
        """Return the shapes that the class makes of a configuration; None where it makes none."""
        with contextlib.suppress(Exception), torch.device("meta"):
            return shapes_of(self.kind(config))
        return None

    def configurations(self) -> Iterator[Any]:
        followers = {path: self._follow(path) for path in _numbers(self.config)}
        for changes in _choices(self.config, followers, self.sizes):
            config = _changed(self.config, changes)
            if self.shapes(config) == self.wanted:
                yield config

    def _follow(self, path: Path) -> set[tuple[str, int]]:
        """Return the sizes that follow from a number: those that change with it."""
        value = _get(self.config, path)
        for other in (2 * value, 3 * value, value // 2):
            made = self.shapes(_changed(self.config, {path: other}))
            if made is not None and made.keys() == self.start.keys():
                return {
                    (name, dim)
                    for name, shape in made.items()
                    for dim, (a, b) in enumerate(zip(shape, self.start[name], strict=False))
                    if a != b
                }
        return set()


def _choices(
    config: Any, followers: Mapping[Path, set[tuple[str, int]]], sizes: Sequence[Size]
) -> Iterator[dict[Path, int]]:
    """Yield new values of the numbers that sizes follow from, the fewest changes first."""
    options: dict[Path, list[int]] = {}
    for path, follow in followers.items():
        value = _get(config, path)
        scaled = [divmod(s.after * value, s.before) for s in sizes if (s.tensor, s.dim) in follow]
        new = dict.fromkeys(whole for whole, rest in scaled if not rest and whole != value)
        if new:
            options[path] = [value, *new]
    every = sorted(
        itertools.islice(itertools.product(*options.values()), 10 * MOST),
        key=lambda values: sum(v != first[0] for v, first in zip(values, options.values(), strict=True)),
    )
    for values in every[:MOST]:
        yield {path: v for (path, first), v in zip(options.items(), values, strict=True) if v != first[0]}


def _numbers(config: Any, within: Path = ()) -> Iterator[Path]:
    """Yield where a configuration and those of its parts hold whole numbers above 1."""
    for name, value in sorted(vars(config).items()):
        if isinstance(value, int) and not isinstance(value, bool) and value > 1 and not name.endswith("_id"):
            yield (*within, name)
        elif hasattr(value, "to_dict"):
            yield from _numbers(value, (*within, name))
    if _width_of_heads(config) is not None and getattr(config, "head_dim", None) is None:
        yield (*within, "head_dim")


def _width_of_heads(config: Any) -> int | None:
    """Return the width that code takes where a configuration does not name one: hidden size over heads."""
    hidden, heads = (getattr(config, name, None) for name in ("hidden_size", "num_attention_heads"))
    return hidden // heads if isinstance(hidden, int) and isinstance(heads, int) and heads else None


def _get(config: Any, path: Path) -> int:
    for name in path[:-1]:
        config = getattr(config, name)
    value = getattr(config, path[-1], None)
    number: int = _width_of_heads(config) if value is None else value  # type: ignore[assignment]
    return number


def _changed(config: Any, changes: Mapping[Path, int]) -> Any:
    config = copy.deepcopy(config)
    for path, value in changes.items():
        part = config
        for name in path[:-1]:
            part = getattr(part, name)
        _set(part, path[-1], value)
    return config


def _set(part: Any, name: str, value: int) -> None:
    """Set a number, and beside the number of heads their width, which would follow from it."""
    width = _width_of_heads(part)
    setattr(part, name, value)
    if name == "num_attention_heads" and getattr(part, "head_dim", None) is None and width is not None:
        part.head_dim = width
