"""Sizes of a network for any units kept, from counts alone: neither the model nor its data is needed any more."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from secateur.structure.axis import BATCH, Axis, find, parts
from secateur.structure.ops.net import Axes
from secateur.structure.units import Units

Term = tuple[int, tuple[int, ...]]  # a whole number times some values, by their places
Sum = tuple[Term, ...]

CHUNK = 512  # removals whose sizes are computed at once
POWERS = [10**n for n in range(1, 19)]


class Along(NamedTuple):
    """Sizes after 0, 1, 2 ... removals, int64 [M + 1] each."""

    params: Tensor
    bytes: Tensor
    macs: Tensor


@dataclass(frozen=True)
class NetworkSizes:
    """Parameters, bytes of the written file and MACs as sums of products of how many units are left.

    Attributes:
        sets: The unit sets' names and sizes.
        dims: The dimensions that units reach, each a sum of numbers times counts of sets.
        parameters: The number of parameters: a sum of numbers times dimensions.
        multiplications: The multiplications with addition for one sample, likewise.
        tensors: The bytes of each written tensor, in the file's order: a number times dimensions.
        text: The characters of the file's header but for these dimensions, the tensors' offsets and the units kept.
        least: The number of units that must stay, for the sets where it is more than one.
    """

    sets: tuple[tuple[str, int], ...]
    dims: tuple[Sum, ...]
    parameters: Sum
    multiplications: Sum
    tensors: Sum
    text: int
    least: tuple[tuple[str, int], ...] = ()

    @classmethod
    def of(cls, model: nn.Module, units: Units, written: Mapping[str, Tensor], text: int) -> NetworkSizes:
        """Return the sizes of a model.

        Args:
            model: The network, with the biases that a plan adds.
            units: The network's units.
            written: The tensors of the file, in its order.
            text: The characters of the file's header with all units kept.
        """
        dims = _Dimensions(units)
        params = [dims.term(name, parameter) for name, parameter in model.named_parameters()]
        macs = [dims.product(axes) for axes in units.net.macs]
        stored = tuple(dims.term(name, tensor, tensor.dtype.itemsize) for name, tensor in written.items())
        sets = tuple((unit_set.name, unit_set.size) for unit_set in units)
        least = tuple((unit_set.name, unit_set.least) for unit_set in units if unit_set.least > 1)
        sizes = cls(sets, tuple(dims.places), _merged(params), _merged(macs), stored, 0, least)
        written_of_units, _ = sizes._file(sizes._dims(sizes._counts({})), sizes._kept_text)
        return replace(sizes, text=text - int(written_of_units))

    def params(self, counts: Mapping[str, int]) -> int:
        """Return the number of parameters with so many units left in each set; sets left out are whole."""
        return int(self._parameters(self._dims(self._counts(counts))).sum())

    def macs(self, counts: Mapping[str, int]) -> int:
        """Return the multiplications with addition for one sample."""
        return int(self._multiplications(self._dims(self._counts(counts))).sum())

    def file_bytes(self, kept: Mapping[str, Sequence[int]]) -> int:
        """Return the bytes of the file with these units kept in each set, at least one; sets left out are whole."""
        counts = self._counts({name: len(indices) for name, indices in kept.items()})
        indices = [torch.as_tensor(kept.get(name, range(size))) for name, size in self.sets]
        return int(self._file_bytes(self._dims(counts), _listed(torch.cat(indices), len(self.sets))))

    def along(self, sets: Tensor, indices: Tensor) -> Along:
        """Return the sizes along an order of removals from the whole network.

        Args:
            sets: The number of the set that each removed unit belongs to [M].
            indices: Its index there [M].
        """
        text = self._kept_text - torch.cat([indices.new_zeros(1), _digits(indices) + 1]).cumsum(0)
        pieces = [self._sizes(c, t) for c, t in zip(self._counts_along(sets), torch.split(text, CHUNK), strict=True)]
        return Along(*map(torch.cat, zip(*pieces, strict=True)))

    def after(self, counts: Mapping[str, int], gone_text: int) -> tuple[int, int, int]:
        """Return parameters, bytes of the file and MACs after some removals from the whole network.

        Args:
            counts: The number of units left in each set.
            gone_text: The characters of the removed units' indices, each with a comma.
        """
        sizes = self._sizes(self._counts(counts), torch.tensor([self._kept_text - gone_text]))
        params, written, macs = (int(size) for size in sizes)
        return params, written, macs

    def freed(self, counts: Mapping[str, int]) -> dict[str, int]:
        """Return the bytes of the file's tensors that go with one more unit of each set."""
        return self._freed(counts, self._tensors)

    def params_freed(self, counts: Mapping[str, int]) -> dict[str, int]:
        """Return the parameters that go with one more unit of each set."""
        return self._freed(counts, self._parameters)

    def macs_freed(self, counts: Mapping[str, int]) -> dict[str, int]:
        """Return the multiplications that go with one more unit of each set."""
        return self._freed(counts, self._multiplications)

    def _freed(self, counts: Mapping[str, int], products: _Products) -> dict[str, int]:
        now = self._counts(counts)
        less = torch.cat([now, now - torch.eye(len(self.sets), dtype=torch.long)])
        total = products(self._dims(less)).sum(1)
        return dict(zip(dict(self.sets), (total[0] - total[1:]).tolist(), strict=True))

    def to_json(self) -> dict[str, Any]:
        """Return plain data; `from_json` reads it."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> NetworkSizes:
        """Return the sizes that `to_json` wrote."""
        sums = {name: _read_sum(data[name]) for name in ("parameters", "multiplications", "tensors")}
        sets = tuple((str(name), int(size)) for name, size in data["sets"])
        least = tuple((str(name), int(number)) for name, number in data.get("least", ()))
        return cls(sets=sets, least=least, dims=tuple(map(_read_sum, data["dims"])), text=int(data["text"]), **sums)

    def _counts(self, counts: Mapping[str, int]) -> Tensor:
        return torch.tensor([[counts.get(name, size) for name, size in self.sets]])

    @cached_property
    def _start(self) -> Tensor:
        return torch.tensor([size for _, size in self.sets])

    @cached_property
    def _kept_text(self) -> int:
        return _listed(torch.cat([torch.arange(size) for _, size in self.sets]), len(self.sets))

    def _counts_along(self, sets: Tensor) -> Iterator[Tensor]:
        """Yield the units left [m, sets] after 0, 1, 2 ... removals, in chunks."""
        gone = torch.cat([sets.new_full((1,), -1), sets])[:, None] == torch.arange(len(self.sets))
        left = self._start
        for chunk in torch.split(gone, CHUNK):
            counts = left - chunk.long().cumsum(0)
            left = counts[-1]
            yield counts

    def _sizes(self, counts: Tensor, kept_text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        dims = self._dims(counts)
        params, macs = self._parameters(dims).sum(1), self._multiplications(dims).sum(1)
        return params, self._file_bytes(dims, kept_text), macs

    def _dims(self, counts: Tensor) -> Tensor:
        """Return the dimensions [m, dims] with so many units left [m, sets]."""
        products, owners = self._dimensions
        return counts.new_zeros(len(counts), len(self.dims)).index_add(1, owners, products(counts))

    @cached_property
    def _dimensions(self) -> tuple[_Products, Tensor]:
        """The products that dimensions are sums of, and the dimension that each belongs to."""
        owners = [n for n, dim in enumerate(self.dims) for _ in dim]
        return _Products([term for dim in self.dims for term in dim]), torch.tensor(owners, dtype=torch.long)

    @cached_property
    def _parameters(self) -> _Products:
        return _Products(self.parameters)

    @cached_property
    def _multiplications(self) -> _Products:
        return _Products(self.multiplications)

    @cached_property
    def _tensors(self) -> _Products:
        return _Products(self.tensors)

    @cached_property
    def _shapes(self) -> Tensor:
        return torch.tensor([dim for _, shape in self.tensors for dim in shape], dtype=torch.long)

    def _file_bytes(self, dims: Tensor, kept_text: Tensor | int) -> Tensor:
        """Return eight bytes of length, the header padded to a multiple of eight, and the data [m]."""
        characters, data = self._file(dims, kept_text)
        return 8 + (self.text + characters + 7) // 8 * 8 + data

    def _file(self, dims: Tensor, kept_text: Tensor | int) -> tuple[Tensor, Tensor]:
        """Return the characters of dimensions, offsets and kept units [m], and the bytes of all tensors [m]."""
        sizes = self._tensors(dims)
        ends = sizes.cumsum(1)
        shapes = _digits(dims)[:, self._shapes]
        data = sizes.sum(1)
        offsets = 2 * _digits_of_sorted(ends) - _digits(data)  # each tensor but the first begins where one ends
        return shapes.sum(1) + offsets + kept_text, data


def _listed(indices: Tensor, lists: int) -> int:
    """Return the characters of indices in so many lists, with commas between them."""
    return int((_digits(indices) + 1).sum()) - lists


def _digits(numbers: Tensor) -> Tensor:
    return torch.bucketize(numbers, torch.tensor(POWERS), right=True) + 1


def _digits_of_sorted(numbers: Tensor) -> Tensor:
    """Return the digits of each row of numbers together [m]; they grow along it [m, n]."""
    powers = torch.tensor(POWERS).repeat(len(numbers), 1)
    return (numbers.shape[1] - torch.searchsorted(numbers, powers)).sum(1) + numbers.shape[1]


class _Products:
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


class _Dimensions:
    """The dimensions met, each once, and their places."""

    def __init__(self, units: Units) -> None:
        self.axes = units.axes
        self.numbers = {find(unit_set.axis): n for n, unit_set in enumerate(units)}
        self.places: dict[Sum, int] = {}

    def term(self, name: str, tensor: Tensor, times: int = 1) -> Term:
        """Return how many elements a tensor has, so many times."""
        return self.product(self.axes[name], times) if name in self.axes else (times * tensor.numel(), ())

    def product(self, axes: Axes, times: int = 1) -> Term:
        """Return the product of sizes for one sample, with those that units reach by their places."""
        places = []
        for axis in axes:
            formula = _of_one_sample(_formula(axis, self.numbers))
            if any(sets for _, sets in formula):
                places.append(self.places.setdefault(formula, len(self.places)))
            else:
                times *= sum(number for number, _ in formula)
        return times, tuple(places)


def _formula(axis: Axis, numbers: Mapping[Axis, int]) -> Sum:
    """Return the number of positions of an axis as a sum of numbers times counts of sets."""
    axis = find(axis)
    if axis.kind == "leaf":
        return ((1, (numbers[axis],)),) if axis in numbers else ((axis.size, ()),)
    formulas = [_formula(part, numbers) for part in parts(axis)]
    if axis.kind == "cat":
        return _merged([term for formula in formulas for term in formula])
    product: Sum = ((1, ()),)
    for formula in formulas:
        product = _merged([(m * n, (*a, *b)) for m, a in product for n, b in formula])
    return product


def _of_one_sample(formula: Sum) -> Sum:
    if math.gcd(*(times for times, _ in formula)) % BATCH:
        return formula
    return tuple((times // BATCH, sets) for times, sets in formula)


def _merged(terms: Sequence[Term]) -> Sum:
    """Return a sum in which each product occurs once."""
    total: dict[tuple[int, ...], int] = {}
    for times, places in terms:
        key = tuple(sorted(places))
        total[key] = total.get(key, 0) + times
    return tuple((times, places) for places, times in sorted(total.items()))


def _read_sum(data: Sequence[Any]) -> Sum:
    return tuple((int(times), tuple(map(int, places))) for times, places in data)
