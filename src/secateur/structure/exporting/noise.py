"""Noise that a forward draws: one fixed draw, equal for all units, wherever networks and graphs are compared.

So a network without some units sees what the original does. What a network does on its own draws afresh.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._python_dispatch import TorchDispatchMode

UNIFORM, NORMAL = 0.75, 0.6745  # the number drawn from 0 to 1, and the standard normal one with as many below

Draw = Callable[..., Any]


def _normal(mean: Any, std: Any = 1.0, **_: Any) -> Any:
    return mean + NORMAL * std


def _uniform(drawn: Tensor, low: float = 0.0, high: float = 1.0, **_: Any) -> Tensor:
    return drawn.fill_(low + UNIFORM * (high - low))


def _slope(value: Tensor, _: Any, lower: float = 1 / 8, upper: float = 1 / 3, *__: Any, **___: Any) -> Tensor:
    return torch.where(value < 0, (lower + upper) / 2 * value, value)


def _dropout(value: Tensor, p: float, train: bool | None) -> tuple[Tensor, Tensor]:
    kept = torch.ones_like(value, dtype=torch.bool)
    return (value / (1 - p) if train is not False else value.clone()), kept


# what is given in place of a draw: of a coin always 1
DRAWS: dict[str, Draw] = {
    "normal_": lambda drawn, mean=0.0, std=1.0, **_: drawn.fill_(_normal(mean, std)),
    "normal_functional": lambda drawn, mean=0.0, std=1.0, **_: torch.full_like(drawn, _normal(mean, std)),
    "normal.Tensor_float": _normal,
    "normal.float_Tensor": _normal,
    "normal.Tensor_Tensor": _normal,
    "uniform_": _uniform,
    "uniform": lambda drawn, *ends, **_: _uniform(torch.empty_like(drawn), *ends),
    "bernoulli": lambda p, *_, **__: torch.ones_like(p),
    "bernoulli_": lambda drawn, *_, **__: drawn.fill_(1),
    "native_dropout": _dropout,
    "rrelu_with_noise": _slope,
}
FILLS = {"randn": NORMAL, "randn_like": NORMAL, "rand": UNIFORM, "rand_like": UNIFORM}


class SteadyNoise(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Gives the fixed draw in place of any other; of operations that choose positions, always the one of seed 0."""

    supports_higher_order_operators = True

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Return the result of an operation, or the fixed draw."""
        kwargs = kwargs or {}
        if not _is_drawing(function):
            return function(*args, **kwargs)
        name = function._schema.name.removeprefix("aten::")
        draw = DRAWS.get(name) or DRAWS.get(f"{name}.{function._overloadname}")
        if draw is not None:
            return draw(*args, **kwargs)
        if name in FILLS:
            return function(*args, **kwargs).fill_(FILLS[name])
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return function(*args, **kwargs)


def random_states() -> list[bytes]:
    """Return the states of all generators that noise is drawn from."""
    states = [torch.get_rng_state()]
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        states += torch.cuda.get_rng_state_all()
    return [state.numpy().tobytes() for state in states]


def draws(node: fx.Node) -> bool:
    """Return whether a call draws noise."""
    if node.op != "call_function" or not _is_drawing(node.target):
        return False
    names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
    given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    switches = [given[name] for name in ("train", "training") if name in given]
    attention = "dropout_p" in names and not given.get("dropout_p")
    return not attention and False not in switches and given.get("p") != 0


def _is_drawing(function: Any) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(function, "tags", ())


def steadily(function: Any, *args: Any, **kwargs: Any) -> Any:
    """Return what an operation gives with the fixed draw."""
    with SteadyNoise():  # type: ignore[no-untyped-call]
        return function(*args, **kwargs)


def steady_call(node: fx.Node) -> Callable[..., Any]:
    """Return the function that a node calls, with the fixed draw where it draws noise."""
    return functools.partial(steadily, node.target) if draws(node) else node.target  # type: ignore[return-value]


def steady(graph: fx.Graph) -> fx.Graph:
    """Return a graph of the same calls, with the fixed draw where it draws noise."""
    if not any(map(draws, graph.nodes)):
        return graph
    copy = fx.Graph()
    copy.output(copy.graph_copy(graph, {}))
    for node in filter(draws, list(copy.nodes)):
        node.args, node.target = (node.target, *node.args), steadily
    return copy
