"""The slow, obviously correct version of every quantity, and a seeded generator of random networks.

Nothing here captures a graph or keeps a value: a gate is a factor on the consumers' weights, every question is
put to the whole model, every derivative is taken densely. All that is fast is tested against this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call

from secateur.errors import SecateurError

Loss = Callable[[Any, Any], Tensor]


class Slices(Protocol):
    """The part of one tensor that belongs to each unit."""

    @property
    def tensor(self) -> str: ...  # noqa: D102
    @property
    def dim(self) -> int: ...  # noqa: D102
    @property
    def index(self) -> Tensor: ...  # noqa: D102


class UnitSet(Protocol):
    """What is used here of a unit set."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def size(self) -> int: ...  # noqa: D102
    @property
    def outgoing(self) -> Sequence[Slices] | None: ...  # noqa: D102


def gated_weights(model: nn.Module, units: Iterable[UnitSet], g: Tensor) -> dict[str, Tensor]:
    """The model's parameters with the slices on which units are consumed multiplied by their gates.

    Args:
        model: Any model.
        units: Its unit sets.
        g: One gate per unit, in their order, [K].

    Raises:
        SecateurError: A unit set has a consumer without a weight of its own.
    """
    weights: dict[str, Tensor] = dict(model.named_parameters())
    start = 0
    for unit_set in units:
        gates = g[start : start + unit_set.size]
        start += unit_set.size
        if unit_set.outgoing is None:
            raise SecateurError(f"{unit_set.name}: a consumer has no weight of its own to put gates on")
        for part in unit_set.outgoing:
            weight = weights[part.tensor]
            factor = torch.ones(weight.shape[part.dim], dtype=weight.dtype, device=weight.device)
            factor = factor.index_put((part.index,), gates[:, None].expand(part.index.shape))
            weights[part.tensor] = weight * factor.reshape(-1, *[1] * (weight.ndim - part.dim - 1))
    return weights


def gated_loss(
    model: nn.Module, units: Iterable[UnitSet], inputs: tuple[Any, ...], targets: Any, loss: Loss, g: Tensor
) -> Tensor:
    """E(g), by one pass of the whole model in eval mode.

    >>> from secateur import find_units
    >>> model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    >>> x, zero = torch.ones(4, 2), torch.zeros(4, 1)
    >>> gated_loss(model, find_units(model, x), (x,), zero, lambda o, t: (o - t).mean(), torch.zeros(3)).item() == (
    ...     model[1].bias.item()
    ... )
    True
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        return loss(functional_call(model, gated_weights(model, units, g), inputs), targets)
    finally:
        for module, mode in modes:
            module.training = mode


def leave_one_out(
    model: nn.Module, units: Iterable[UnitSet], inputs: tuple[Any, ...], targets: Any, loss: Loss
) -> Tensor:
    """E(1 − e_k) − E(1) for every unit, by K + 1 passes of the whole model; [K]."""
    units = list(units)
    one = torch.ones(sum(unit_set.size for unit_set in units), dtype=next(model.parameters()).dtype)
    with torch.no_grad():
        here = gated_loss(model, units, inputs, targets, loss, one)
        without = [gated_loss(model, units, inputs, targets, loss, one - e) for e in torch.eye(len(one)).to(one)]
    return torch.stack(without) - here


def dense_hessian(
    model: nn.Module, units: Iterable[UnitSet], inputs: tuple[Any, ...], targets: Any, loss: Loss
) -> tuple[Tensor, Tensor]:
    """∂E/∂g [K] and ∂²E/∂g∂g [K, K] at g = 1, by `torch.func` through the whole model."""
    units = list(units)
    one = torch.ones(sum(unit_set.size for unit_set in units), dtype=next(model.parameters()).dtype)

    def error(g: Tensor) -> Tensor:
        return gated_loss(model, units, inputs, targets, loss, g)

    gradient: Tensor = torch.func.grad(error)(one)
    matrix: Tensor = torch.func.hessian(error)(one)
    return gradient, matrix


def dense_gauss_newton(
    model: nn.Module, units: Iterable[UnitSet], inputs: tuple[Any, ...], targets: Any, loss: Loss
) -> Tensor:
    """1/N Σ_n J_nᵀ L_n J_n [K, K] at g = 1: the outputs' Jacobian in the gates, the loss's Hessian in the outputs.

    The model's outputs are one tensor with the samples along its first dimension.
    """
    units = list(units)
    one = torch.ones(sum(unit_set.size for unit_set in units), dtype=next(model.parameters()).dtype)

    def outputs(g: Tensor) -> Tensor:
        found: Tensor = functional_call(model, gated_weights(model, units, g), inputs)
        return found

    with torch.no_grad():
        out = outputs(one)
    jacobian = torch.func.jacrev(outputs)(one).flatten(0, -2)
    curvature = torch.func.hessian(lambda o: loss(o, targets))(out).reshape(len(jacobian), len(jacobian))
    result: Tensor = (jacobian.T @ curvature @ jacobian).detach()
    return result


class Activation(NamedTuple):
    """A function of each value alone, with its first and second derivative."""

    value: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    curvature: Callable[[Tensor], Tensor]


SIGMOID = Activation(  # 003 eq. 8-9
    torch.sigmoid,
    lambda x: torch.sigmoid(x) * (1 - torch.sigmoid(x)),
    lambda x: torch.sigmoid(x) * (1 - torch.sigmoid(x)) * (1 - 2 * torch.sigmoid(x)),
)
TANH = Activation(torch.tanh, lambda x: 1 - torch.tanh(x) ** 2, lambda x: -2 * torch.tanh(x) * (1 - torch.tanh(x) ** 2))
IDENTITY = Activation(lambda x: x, torch.ones_like, torch.zeros_like)


def second_derivative_back_propagation(
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    activations: Sequence[Activation],
    x: Tensor,
    loss_derivatives: Callable[[Tensor], tuple[Tensor, Tensor]],
) -> list[Tensor]:
    """The saliencies of a chain of dense layers as the paper writes them, sample by sample (003 eq. 4, 49-79).

    Args:
        weights: Of each layer, [outputs, inputs].
        biases: Of each layer, [outputs].
        activations: Of each layer.
        x: The inputs, [N, inputs].
        loss_derivatives: Of one sample's outputs: ∂E/∂o and ∂²E/∂o².

    Returns:
        For each hidden layer −o ∂E/∂o + ½ o² ∂²E/∂o², mean over samples.
    """
    total = [torch.zeros_like(b) for b in biases[:-1]]
    for sample in x:
        layers = _back_propagate(weights, biases, activations, sample, loss_derivatives)
        for m, (o, first_x, second_x) in layers:
            if m > 0:
                first, second = weights[m].T @ first_x, (weights[m].T ** 2) @ second_x  # eq. 77
                total[m - 1] += (-o * first + 0.5 * o**2 * second) / len(x)
    return total


def second_derivatives_of_weights(
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    activations: Sequence[Activation],
    x: Tensor,
    loss_derivatives: Callable[[Tensor], tuple[Tensor, Tensor]],
) -> tuple[list[Tensor], list[Tensor]]:
    """∂²E/∂w_ij² = o_j² ∂²E/∂x_i² and ∂²E/∂b_i² = ∂²E/∂x_i², as x_i = Σ_j w_ij o_j + b_i (003 eq. 73, 77).

    Args and cost are those of `second_derivative_back_propagation`.

    Returns:
        For each layer's weight and for each layer's bias, mean over samples.
    """
    of_weights, of_biases = ([torch.zeros_like(one) for one in all_of] for all_of in (weights, biases))
    for sample in x:
        for m, (o, _, second_x) in _back_propagate(weights, biases, activations, sample, loss_derivatives):
            of_weights[m] += torch.outer(second_x, o**2) / len(x)
            of_biases[m] += second_x / len(x)
    return of_weights, of_biases


def _back_propagate(
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    activations: Sequence[Activation],
    sample: Tensor,
    loss_derivatives: Callable[[Tensor], tuple[Tensor, Tensor]],
) -> Iterator[tuple[int, tuple[Tensor, Tensor, Tensor]]]:
    """For each layer, the last first: the o that it takes, ∂E/∂x and ∂²E/∂x² at its sums x."""
    outputs, sums = [sample], list[Tensor]()
    for weight, bias, activation in zip(weights, biases, activations, strict=True):
        sums.append(weight @ outputs[-1] + bias)
        outputs.append(activation.value(sums[-1]))
    first, second = loss_derivatives(outputs[-1])  # of the outputs: eq. 49
    for m in reversed(range(len(weights))):
        slope, curvature = activations[m].slope(sums[m]), activations[m].curvature(sums[m])
        first_x, second_x = first * slope, second * slope**2 + first * curvature  # eq. 78, 73
        yield m, (outputs[m], first_x, second_x)
        first, second = weights[m].T @ first_x, (weights[m].T ** 2) @ second_x  # eq. 77


def _flat_parameters(model: nn.Module) -> tuple[Tensor, Callable[[Tensor], dict[str, Tensor]]]:
    """Return all parameters as one vector [P], tied ones once, and the function that makes them of it again."""
    named = {name: parameter.detach() for name, parameter in model.named_parameters()}
    sizes = [parameter.numel() for parameter in named.values()]

    def parameters(flat: Tensor) -> dict[str, Tensor]:
        pieces = zip(named.items(), torch.split(flat, sizes), strict=True)
        return {name: piece.reshape(parameter.shape) for (name, parameter), piece in pieces}

    return torch.cat([parameter.reshape(-1) for parameter in named.values()]), parameters


def weight_hessian(model: nn.Module, inputs: tuple[Any, ...], targets: Any, loss: Loss) -> tuple[Tensor, Tensor]:
    """∂E/∂w [P] and ∂²E/∂w∂w [P, P] in all parameters, by `torch.func` through the whole model as it is.

    >>> model, x = nn.Linear(1, 1, bias=False), torch.tensor([[3.0]])
    >>> weight_hessian(model, (x,), torch.zeros(1, 1), lambda o, t: (o - t).square().mean())[1]
    tensor([[18.]])
    """
    flat, parameters = _flat_parameters(model)

    def error(w: Tensor) -> Tensor:
        return loss(functional_call(model, parameters(w), inputs), targets)

    gradient: Tensor = torch.func.grad(error)(flat)
    matrix: Tensor = torch.func.hessian(error)(flat)
    return gradient, matrix


def weight_ggn(model: nn.Module, inputs: tuple[Any, ...], targets: Any, loss: Loss) -> Tensor:
    """Jᵀ (∂²E/∂o∂o) J [P, P] in all parameters, o all outputs of all samples; the model returns tensors alone.

    >>> model, x = nn.Linear(1, 1, bias=False), torch.tensor([[3.0]])
    >>> weight_ggn(model, (x,), torch.zeros(1, 1), lambda o, t: (o - t).square().mean())
    tensor([[18.]])
    """
    flat, parameters = _flat_parameters(model)
    returned = functional_call(model, parameters(flat), inputs)
    several = isinstance(returned, tuple)
    shapes = [o.shape for o in (returned if several else (returned,))]

    def outputs(w: Tensor) -> Tensor:
        now = functional_call(model, parameters(w), inputs)
        return torch.cat([o.reshape(-1) for o in (now if several else (now,))])

    def error(o: Tensor) -> Tensor:
        pieces = torch.split(o, [shape.numel() for shape in shapes])
        whole = tuple(piece.reshape(shape) for piece, shape in zip(pieces, shapes, strict=True))
        return loss(whole if several else whole[0], targets)

    jacobian: Tensor = torch.func.jacrev(outputs)(flat)
    curvature: Tensor = torch.func.hessian(error)(outputs(flat))
    return jacobian.T @ curvature @ jacobian
