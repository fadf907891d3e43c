"""The error surface of a unit: what does its gain do?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import ArgumentError
from secateur.objective.gated_loss import GatedLoss, ones
from secateur.objective.leave_one_out import change_one
from secateur.objective.question import find_or_check
from secateur.objective.unlabelled import data_for
from secateur.process_state import one_at_a_time
from secateur.structure.units import Units


@one_at_a_time
def gain_sweep(
    model: nn.Module,
    data: Any,
    loss: Any,
    units: Units,
    chosen: Sequence[tuple[str, int]],
    gains: Tensor | Sequence[float],
    max_memory: int | str | None = None,
) -> Tensor:
    """Return E(1 + (α − 1) e_k) for every chosen unit k and every gain α (003 figures 4-6 and 9-11).

    Many gains at a time, as the oracle runs many units; α = 0 removes the unit, α = 1 leaves the network as it is.

    Args:
        model: Evaluated as in eval mode, left as it was.
        data: As for `secateur.score`.
        loss: As for `secateur.score`.
        units: From `find_units`.
        chosen: Unit set and index of each unit.
        gains: The values of α.
        max_memory: As for `secateur.score`.

    Returns:
        Losses [units, gains], float64, on the CPU.

    Raises:
        ArgumentError: There is no such unit, no model, no units.
        DataError: Unusable data or loss.
        ModelError: The model holds NaN, or the units are another model's or were found on another forward.

    >>> from secateur import find_units
    >>> model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
    >>> for layer in model: _ = nn.init.ones_(layer.weight)
    >>> x = torch.tensor([[2.0]])
    >>> gain_sweep(model, (x, x), "squared_error", find_units(model, x), [("0", 0)], [0, 1, 2])
    tensor([[2., 0., 2.]], dtype=torch.float64)
    """
    data = data_for(model, data, loss)
    units = find_or_check(model, data, units, max_memory)
    places = {place: k for k, place in enumerate(units.places)}
    for name, index in chosen:
        if (name, index) not in places:
            size = units[name].size
            raise ArgumentError(f"chosen: {name!r} has units 0 to {size - 1}, got {index!r}")
    gated = GatedLoss(model, units, data, loss, max_memory=max_memory)
    g = ones(model, units)
    values = torch.as_tensor(gains, dtype=g.dtype, device=g.device)
    k = torch.tensor([places[name, index] for name, index in chosen], dtype=torch.long, device=g.device)
    _, losses = change_one(gated, g, k.repeat_interleave(len(values)), values.repeat(len(k)))
    return losses.reshape(len(k), len(values)).cpu()
