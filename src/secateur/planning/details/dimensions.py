"""Dimensions that units reach, as sums of products of how many units are left, and products of dimensions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from secateur.structure.axis import BATCH, Axis, find, parts
from secateur.structure.ops.net import Axes
from secateur.structure.units import Units

Term = tuple[int, tuple[int, ...]]  # a whole number times some values, by their places
Sum = tuple[Term, ...]


class Products:
    """The products of terms for many values at once.

    Args:
        terms: Whole numbers times some values, by their places.
    """

    def __init__(self, terms: Sequence[Term]) -> None:
        most = max((len(places) for _, places in terms), default=0)
        self.times = torch.tensor([times for times, _ in terms], dtype=torch.long)
        self.columns = [
            torch.tensor([places[column] if column < len(places) else -1 for _, places in terms], dtype=torch.long)
            for column in range(most)
        ]

    def __call__(self, values: Tensor) -> Tensor:
        """Return the product of each term [m, terms] for values [m, n]."""
        values = torch.cat([values, values.new_ones(len(values), 1)], 1)  # the last stands for no further factor
        product = self.times.expand(len(values), -1)
        for column in self.columns:
            product = product * values[:, column]
        return product


class Sums:
    """Several sums of terms for many values at once.

    Args:
        sums: The sums.
    """

    def __init__(self, sums: Sequence[Sum]) -> None:
        self.number = len(sums)
        self.products = Products([term for terms in sums for term in terms])
        self.owners = torch.tensor([n for n, terms in enumerate(sums) for _ in terms], dtype=torch.long)

    def __call__(self, values: Tensor) -> Tensor:
        """Return each sum [m, sums] for values [m, n]."""
        return values.new_zeros(len(values), self.number).index_add(1, self.owners, self.products(values))


class Dimensions:
    """The dimensions met, each once, and their places."""

    def __init__(self, units: Units) -> None:
        self.axes = units.axes
        self.numbers = {find(unit_set.axis): n for n, unit_set in enumerate(units)}
        self.places: dict[Sum, int] = {}

    def term(self, name: str, tensor: Tensor, times: int = 1) -> Term:
        """Return how many elements a tensor has, so many times."""
        return self.product(self.axes[name], times) if name in self.axes else (times * tensor.numel(), ())

    def product(self, axes: Axes, times: int = 1, sizes: Sequence[int] = ()) -> Term:
        """Return the product of sizes for one sample, with those that units reach by their places.

        Args:
            axes: The axes.
            times: A factor.
            sizes: The sizes of axes that no units reach, where they are known better than by their axes.
        """
        places = []
        for n, axis in enumerate(axes):
            formula = _of_one_sample(_formula(axis, self.numbers))
            if any(sets for _, sets in formula):
                places.append(self.places.setdefault(formula, len(self.places)))
            else:
                times *= sizes[n] if sizes else sum(number for number, _ in formula)
        return times, tuple(places)


def _formula(axis: Axis, numbers: Mapping[Axis, int]) -> Sum:
    """Return the number of positions of an axis as a sum of numbers times counts of sets."""
    axis = find(axis)
    if axis.kind == "leaf":
        return ((1, (numbers[axis],)),) if axis in numbers else ((axis.size, ()),)
    formulas = [_formula(part, numbers) for part in parts(axis)]
    if axis.kind == "cat":
        return merged([term for formula in formulas for term in formula])
    product: Sum = ((1, ()),)
    for formula in formulas:
        product = merged([(m * n, (*a, *b)) for m, a in product for n, b in formula])
    return product


def _of_one_sample(formula: Sum) -> Sum:
    if math.gcd(*(times for times, _ in formula)) % BATCH:
        return formula
    return tuple((times // BATCH, sets) for times, sets in formula)


def merged(terms: Sequence[Term]) -> Sum:
    """Return a sum in which each product occurs once."""
    total: dict[tuple[int, ...], int] = {}
    for times, places in terms:
        key = tuple(sorted(places))
        total[key] = total.get(key, 0) + times
    return tuple((times, places) for places, times in sorted(total.items()))


def read_sum(data: Sequence[Any]) -> Sum:
    """Return a sum that was read from JSON."""
    return tuple((int(times), tuple(map(int, places))) for times, places in data)
