"""The weight update that solves E(w) = 0, of the note "2nd derivative backprop weight update rule" (000)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from secateur.arguments import require_model
from secateur.curvature.weight_loss import WeightLoss
from secateur.errors import ArgumentError, choose
from secateur.objective.losses import find_loss
from secateur.process_state import one_at_a_time
from secateur.structure.capture import capture
from secateur.structure.inputs import as_call, like_model

Curvature = Callable[[], Iterable[Tensor]]


class TaylorRoot(torch.optim.Optimizer):
    """The optimiser w ← w + lr·x, x the zero of E/P + g x + ½ h x² nearest to 0 (000 eq. 6, 13), for each weight alone.

    g = ∂E/∂w and h = ∂²E/∂w² of that weight. P is the number of weights that have a gradient, over all groups: each
    solves for its share of E, for together they would overshoot P-fold if each solved for all of it. With E' = E/P:

        order 1   x = −E' / g
        order 2   x = −2E' / (g + sign(g) √(g² − 2hE'))        sign(0) = +1
                  x = −g / h                                    where g² < 2hE'

    Order 2 is 000 eq. 13 without cancellation (eq. 14 is misprinted) and tends to order 1 as h → 0. Where the parabola
    has no zero, its turning point is where it comes nearest: its lowest for E > 0, its highest for E < 0. A negative E
    is climbed up to zero. g = h = 0, or g = 0 at order 1, gives no step, neither does an infinite g or h; a weight
    that would leave the range of its dtype stops at the end of it.

    It goes for E = 0: as the loss nears a minimum above zero, g → 0 and the first-order step grows without bound (the
    second-order one does not where h > 0). `max_step` bounds it.

    Computed in float64 (float32 on devices without it). Keeps no state; a step costs the closure, the curvature and
    a dozen passes over each parameter.

    Args:
        params: Parameters or groups of them, as for any optimiser of PyTorch's; a group may have its own `lr` and
            `max_step`.
        order: 1 or 2.
        lr: The share of the step that is taken, at least 0; 1 is the note's.
        curvature: A function for order 2 that returns h, a tensor for each parameter, in their order and shapes. Called
            once per step, after the closure and at the same weights, with gradients enabled; it leaves `.grad` alone.
        max_step: The largest |x|, in units of the weight; none by default.

    Raises:
        ArgumentError: One of these is not possible.

    >>> w = torch.nn.Parameter(torch.tensor([3.0]))
    >>> optimiser = TaylorRoot([w], order=2, curvature=lambda: [torch.tensor([2.0])])
    >>> def closure():
    ...     optimiser.zero_grad()
    ...     loss = (w**2 - 4).sum()
    ...     loss.backward()
    ...     return loss
    >>> optimiser.step(closure).item(), w.item()
    (5.0, 2.0)
    """

    def __init__(
        self,
        params: ParamsT,
        order: int = 1,
        lr: float = 1.0,
        curvature: Curvature | None = None,
        max_step: float | None = None,
    ) -> None:
        if isinstance(order, bool) or order not in (1, 2):
            raise ArgumentError(f"TaylorRoot: expected order 1 or 2, got {order!r}")
        if order == 2 and not callable(curvature):
            raise ArgumentError(f"TaylorRoot: order 2 needs curvature, a function without arguments, got {curvature!r}")
        if order == 1 and curvature is not None:
            raise ArgumentError("TaylorRoot: order 1 uses no curvature; leave it out, or give order=2")
        self.curvature = curvature
        super().__init__(params, {"lr": lr, "max_step": max_step})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters; `lr` and `max_step` are those of the optimiser unless it has its own.

        Raises:
            ArgumentError: One of these is not possible.
        """
        options = self.defaults | param_group
        lr, bound = options["lr"], options["max_step"]
        if isinstance(lr, bool) or not isinstance(lr, int | float) or not 0 <= lr < math.inf:
            raise ArgumentError(f"TaylorRoot: expected a finite lr of at least 0, got {lr!r}")
        number = isinstance(bound, int | float) and not isinstance(bound, bool)
        if bound is not None and not (number and bound > 0):
            raise ArgumentError(f"TaylorRoot: expected a max_step above 0, or None, got {bound!r}")
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Change the weights once.

        Args:
            closure: A function that zeroes the gradients, computes the loss, calls `backward` and returns the loss.

        Returns:
            The loss before the step.

        Raises:
            ArgumentError: There is no closure, the loss is no finite number, a gradient is missing everywhere, sparse,
                complex or NaN, or the curvature does not fit. No weight is changed then.
        """
        if closure is None:
            raise ArgumentError("TaylorRoot.step: needs a closure that zeroes the gradients and returns the loss")
        with torch.enable_grad():
            loss = closure()
            curvatures = None if self.curvature is None else list(self.curvature())
        moving = self._moving(curvatures)
        target = _number(loss) / sum(p.numel() for p, *_ in moving)
        for p, g, h, group in moving:
            step = _nearest_zero(target, g, h)
            if group["max_step"] is not None:
                step = step.clamp(-group["max_step"], group["max_step"])
            end = torch.finfo(p.dtype).max
            p.copy_((p + group["lr"] * step).clamp(-end, end))
        return loss

    def _moving(self, curvatures: list[Tensor] | None) -> list[tuple[Tensor, Tensor, Tensor, dict[str, Any]]]:
        """Return each parameter that has a gradient, with g, h and its group.

        Raises:
            ArgumentError: As for `step`.
        """
        owned = [(p, group) for group in self.param_groups for p in group["params"]]
        diagonals: list[Any] = [torch.zeros_like(p) for p, _ in owned] if curvatures is None else curvatures
        if len(diagonals) != len(owned):
            raise ArgumentError(f"curvature: {len(diagonals)} tensors for {len(owned)} parameters")
        moving = [
            (p, _checked(p.grad, p, f"gradient of parameter {i}"), _checked(h, p, f"curvature of parameter {i}"), group)
            for i, ((p, group), h) in enumerate(zip(owned, diagonals, strict=True))
            if p.grad is not None
        ]
        if not any(p.numel() for p, *_ in moving):
            raise ArgumentError("TaylorRoot.step: no weight has a gradient; the closure has to call loss.backward()")
        return moving


def _checked(values: Any, p: Tensor, what: str) -> Tensor:
    """Return the values as a dense tensor of the parameter's shape, in float64 where its device has it.

    Raises:
        ArgumentError: They are something else, or NaN.
    """
    if not isinstance(values, Tensor) or values.shape != p.shape:
        got = f"one of {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
        raise ArgumentError(f"{what}: expected a tensor of shape {tuple(p.shape)}, got {got}")
    if values.layout != torch.strided or values.is_complex():
        raise ArgumentError(f"{what}: expected dense real numbers, got {values.dtype} in {values.layout}")
    if values.isnan().any():
        raise ArgumentError(f"{what}: it holds NaN")
    return values.to(p.device, torch.float32 if p.device.type == "mps" else torch.float64)


@one_at_a_time
def curvature_of(
    model: nn.Module, example_inputs: Any, loss: Any, kind: str = "ggn"
) -> Callable[[Any, Any], list[Tensor]]:
    """Return ∂²E/∂w² of every parameter as a function of inputs and targets: h for `TaylorRoot`.

    Args:
        model: The network, captured once by this call; its weights are those of each call.
        example_inputs: As for `secateur.find_units`.
        loss: As for `secateur.score`.
        kind: "ggn", the Gauss-Newton matrix's diagonal, one backward pass for each output of a sample; "fisher", that
            diagonal in expectation, one backward pass; "hessian", exact, a pass for each neuron or weight.

    Returns:
        A function that returns a tensor for each of `model.parameters()`, zero where the outputs do not depend on it.

    Raises:
        ArgumentError: The kind or the loss is unknown, or the model or the inputs are none.
        ModelError: The model cannot be captured.

    >>> model, x, t = nn.Linear(2, 1), torch.tensor([[1.0, 3.0]]), torch.zeros(1, 1)
    >>> curvature = curvature_of(model, x, "squared_error")
    >>> curvature(x, t)
    [tensor([[1., 9.]]), tensor([1.])]
    >>> optimiser = TaylorRoot(model.parameters(), order=2, curvature=lambda: curvature(x, t))
    """
    choose("kind", kind, _KINDS)
    function = find_loss(loss)
    model = require_model(model)
    captured = capture(model, like_model(model, as_call(example_inputs)))
    seeds = itertools.count()

    @one_at_a_time
    def curvature(inputs: Any, targets: Any) -> list[Tensor]:
        diagonals = _KINDS[kind](WeightLoss(model, captured, [(inputs, targets)], function, next(seeds)))
        named = model.named_parameters()
        return [diagonals[name].to(p.dtype) if name in diagonals else torch.zeros_like(p) for name, p in named]

    return curvature


_KINDS: dict[str, Callable[[WeightLoss], dict[str, Tensor]]] = {
    "ggn": WeightLoss.ggn,
    "fisher": WeightLoss.fisher,
    "hessian": WeightLoss.hessian,
}


def _number(loss: Any) -> float:
    """Return the loss as a number.

    Raises:
        ArgumentError: It is none, or not finite.
    """
    try:
        value = float(loss)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ArgumentError(f"TaylorRoot.step: the closure has to return the loss, one number ({error})") from error
    if not math.isfinite(value):
        raise ArgumentError(f"TaylorRoot.step: the loss is {value}; expected a finite number")
    return value


def _nearest_zero(loss: float, g: Tensor, h: Tensor) -> Tensor:
    """Return the x nearest to 0 where loss + g x + ½ h x² is 0, else where it turns; at h = 0 it is −loss / g."""
    slope, reach = g.abs(), h.abs().sqrt() * (2**0.5 * abs(loss) ** 0.5)  # √|2hE'|: no square leaves the range
    turns = (h > 0) if loss > 0 else (h < 0)  # away from zero
    root = torch.where(turns, (slope - reach).sqrt() * (slope + reach).sqrt(), torch.hypot(slope, reach))
    half = slope / 2 + root / 2
    x = -loss / torch.where(g < 0, -half, half)
    x = torch.where(turns & (slope < reach), -g / h, x)
    return torch.where((slope == 0) & (reach == 0), 0.0, x).nan_to_num()  # NaN of 0/0 or ∞/∞ gives no direction
