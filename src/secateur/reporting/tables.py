"""Tables of saliencies and interactions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import itemgetter

import torch
from torch import Tensor

from secateur.text import table


def saliencies(criterion: str, scores: Mapping[str, Tensor], errors: Mapping[str, Tensor] | None) -> str:
    """Lay out one row per unit, the lowest first, with standard errors where they are known.

    >>> print(saliencies("fisher", {"0": torch.tensor([2.0, 1.0])}, {"0": torch.tensor([0.5, 0.25])}))
    fisher  ± standard error  unit set  unit
    1       0.25              0         1
    2       0.5               0         0
    """
    rows = []
    for name, values in scores.items():
        for k, value in enumerate(values.tolist()):
            rows.append((value, () if errors is None else (f"{errors[name][k].item():.2g}",), name, k))
    columns = [criterion, *(() if errors is None else ("± standard error",)), "unit set", "unit"]
    rows.sort(key=itemgetter(0))
    return table(columns, [(f"{value:.6g}", *error, name, k) for value, error, name, k in rows])


def spread(values: Tensor) -> list[object]:
    """Return the number of values, the least, the quartiles and the largest; dashes where there are none.

    >>> spread(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]))
    [5, '1', '2', '3', '4', '5']
    """
    ordered = values.flatten().sort().values
    if not len(ordered):
        return [0, *"–––––"]
    at = [ordered[round(share * (len(ordered) - 1))].item() for share in (0, 0.25, 0.5, 0.75, 1)]
    return [len(ordered), *(f"{value:.3g}" for value in at)]


def pairs(matrix: Tensor, related: Tensor, places: Sequence[tuple[str, int]], most: int) -> str:
    """List the pairs of units whose removals depend most on each other.

    Args:
        matrix: The interactions [K, K].
        related: Their correlations [K, K].
        places: The set and index of each unit.
        most: The number of pairs to list.

    >>> matrix = torch.tensor([[4.0, 1.0], [1.0, 1.0]])
    >>> print(pairs(matrix, matrix / 2, [("0", 0), ("0", 1)], 1))
    correlation  interaction  unit  and unit
         +0.500           +1  0[0]  0[1]
    """
    i, j = torch.triu_indices(len(matrix), len(matrix), offset=1)
    order = related[i, j].abs().argsort(descending=True, stable=True)[:most].tolist()
    rows = [
        (f"{related[i[n], j[n]].item():+.3f}", f"{matrix[i[n], j[n]].item():+.3g}", *_names(places, i[n], j[n]))
        for n in order
    ]
    return table(["correlation", "interaction", "unit", "and unit"], rows)


def _names(places: Sequence[tuple[str, int]], *units: Tensor) -> list[str]:
    return [f"{name}[{k}]" for name, k in (places[int(unit)] for unit in units)]
