"""Sizes of a network for any units kept, from counts alone: neither the model nor its data is needed any more."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from secateur.planning.details.dimensions import Dimensions, Sum, Sums, merged, read_sum
from secateur.planning.details.values_alive import sums_alive, value_terms
from secateur.structure.units import Units

CHUNK = 512  # removals whose sizes are computed at once
POWERS = [10**n for n in range(1, 19)]


class Costs(NamedTuple):
    """What a network costs, or int64 [M + 1] what it costs after 0, 1, 2 ... removals.

    Attributes:
        params: The number of parameters.
        bytes: The bytes of the written file.
        macs: The multiplications with addition for one sample.
        ram: The bytes of the values alive at the same time, at most, for one sample.
        kv_cache: The bytes kept of each earlier token, where that is known; else 0.
    """

    params: Any
    bytes: Any
    macs: Any
    ram: Any
    kv_cache: Any

    def each(self) -> list[dict[str, Any]]:
        """Return the costs after 0, 1, 2 ... removals by their names."""
        return [dict(zip(self._fields, costs, strict=True)) for costs in zip(*(c.tolist() for c in self), strict=True)]


class OtherFile(NamedTuple):
    """The bytes of a file of another kind than .safetensors, in straight lines between those of some networks.

    Attributes:
        points: The bytes of weights and those of the file, of several networks, from the smallest on.
    """

    points: tuple[tuple[int, int], ...]

    def bytes(self, data: Tensor) -> Tensor:
        """Return the bytes of files [m] whose weights have so many [m]."""
        known, written = (torch.tensor(numbers, dtype=torch.float64) for numbers in zip(*self.points, strict=True))
        right = torch.bucketize(data.double(), known).clamp(1, len(known) - 1)
        slope = (written[right] - written[right - 1]) / (known[right] - known[right - 1])
        size: Tensor = written[right] + slope * (data - known[right])
        return size.ceil().long()

    def larger(self, more: int) -> OtherFile:
        """Return files that are larger by so many bytes."""
        return OtherFile(tuple((data, written + more) for data, written in self.points))


@dataclass(frozen=True)
class NetworkSizes:
    """Parameters, bytes of the written file, MACs and memory as sums of products of how many units are left.

    Attributes:
        sets: The unit sets' names and sizes.
        dims: The dimensions that units reach, each a sum of numbers times counts of sets.
        parameters: The number of parameters: a sum of numbers times dimensions.
        multiplications: The multiplications with addition for one sample, likewise.
        tensors: The bytes of each written tensor, in the file's order: a number times dimensions.
        text: The characters of the file's header but for these dimensions, the tensors' offsets and the units kept.
        least: The number of units that must stay, for the sets where it is more than one.
        alive: The bytes of the values alive at each call that may be the worst one, for one sample.
        cached: The bytes that a decoder keeps of each earlier token; empty where that is not known.
        file: The file that is written, where it is of another kind.
    """

    sets: tuple[tuple[str, int], ...]
    dims: tuple[Sum, ...]
    parameters: Sum
    multiplications: Sum
    tensors: Sum
    text: int
    least: tuple[tuple[str, int], ...] = ()
    alive: tuple[Sum, ...] = ()
    cached: Sum = ()
    file: OtherFile | None = None

    @classmethod
    def of(
        cls, model: nn.Module, units: Units, written: Mapping[str, Tensor], text: int, cached: Mapping[fx.Node, int]
    ) -> NetworkSizes:
        """Return the sizes of a model.

        Args:
            model: The network, with the biases that a plan adds.
            units: The network's units.
            written: The tensors of the file, in its order.
            text: The characters of the file's header with all units kept.
            cached: The calls whose results are kept of earlier tokens, each with the number of tokens of the example.
        """
        dims = Dimensions(units)
        params = [dims.term(name, parameter) for name, parameter in model.named_parameters()]
        macs = [dims.product(axes) for axes in units.net.macs]
        stored = tuple(dims.term(name, tensor, tensor.dtype.itemsize) for name, tensor in written.items())
        kept = [
            (times // tokens, places)
            for node, tokens in cached.items()
            for times, places in value_terms(units, dims, node)
        ]
        alive = sums_alive(units, dims)
        sets = tuple((unit_set.name, unit_set.size) for unit_set in units)
        least = tuple((unit_set.name, unit_set.least) for unit_set in units if unit_set.least > 1)
        sizes = cls(sets, tuple(dims.places), merged(params), merged(macs), stored, 0, least, alive, merged(kept))
        written_of_units, _ = sizes._file(sizes._dims(sizes._counts({})), sizes._kept_text)
        return replace(sizes, text=text - int(written_of_units))

    def params(self, counts: Mapping[str, int]) -> int:
        """Return the number of parameters with so many units left in each set; sets left out are whole."""
        return int(self._sums["params"](self._dims(self._counts(counts))))

    def macs(self, counts: Mapping[str, int]) -> int:
        """Return the multiplications with addition for one sample."""
        return int(self._sums["macs"](self._dims(self._counts(counts))))

    def file_bytes(self, kept: Mapping[str, Sequence[int]]) -> int:
        """Return the bytes of the file with these units kept in each set, at least one; sets left out are whole."""
        return int(self.costs(kept).bytes)

    def costs(self, kept: Mapping[str, Sequence[int]]) -> Costs:
        """Return all costs with these units kept in each set, at least one; sets left out are whole."""
        counts = self._counts({name: len(indices) for name, indices in kept.items()})
        listed = _listed([torch.as_tensor(kept.get(name, range(size))) for name, size in self.sets])
        return _ints(self._costs(counts, torch.tensor([listed])))

    def along(self, sets: Tensor, indices: Tensor) -> Costs:
        """Return the costs along an order of removals from the whole network.

        Args:
            sets: The number of the set that each removed unit belongs to [M].
            indices: Its index there [M].
        """
        text = self._kept_text - torch.cat([indices.new_zeros(1), _digits(indices) + 1]).cumsum(0)
        pieces = [self._costs(c, t) for c, t in zip(self._counts_along(sets), torch.split(text, CHUNK), strict=True)]
        return Costs(*map(torch.cat, zip(*pieces, strict=True)))

    def after(self, counts: Mapping[str, int], gone_text: int) -> Costs:
        """Return the costs after some removals from the whole network.

        Args:
            counts: The number of units left in each set.
            gone_text: The characters of the removed units' indices, each with a comma.
        """
        return _ints(self._costs(self._counts(counts), torch.tensor([self._kept_text - gone_text])))

    def freed(self, counts: Mapping[str, int], cost: str = "bytes", bound: int = 0) -> dict[str, int]:
        """Return how much of a cost goes with one more unit of each set.

        Of memory it is what goes at all calls together that hold more than the bound: while several are alike, no unit
        changes the worst.

        Args:
            counts: The number of units left in each set.
            cost: The cost's name; "bytes" are those of the file's tensors.
            bound: The cost that is allowed.
        """
        now = self._counts(counts)
        less = torch.cat([now, now - torch.eye(len(self.sets), dtype=torch.long)])
        sums = self._sums[cost](self._dims(less))
        total = (sums - bound).clamp(min=0).sum(1) if cost == "ram" else sums.sum(1)
        return dict(zip(dict(self.sets), (total[0] - total[1:]).tolist(), strict=True))

    def to_json(self) -> dict[str, Any]:
        """Return plain data; `from_json` reads it."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> NetworkSizes:
        """Return the sizes that `to_json` wrote."""
        sums: Any = {
            name: read_sum(data.get(name, ())) for name in ("parameters", "multiplications", "tensors", "cached")
        }
        several: Any = {name: tuple(map(read_sum, data.get(name, ()))) for name in ("dims", "alive")}
        sets = tuple((str(name), int(size)) for name, size in data["sets"])
        least = tuple((str(name), int(number)) for name, number in data.get("least", ()))
        file = data.get("file") and OtherFile(tuple((int(data), int(size)) for data, size in data["file"][0]))
        return cls(sets=sets, least=least, text=int(data["text"]), file=file, **several, **sums)

    def _counts(self, counts: Mapping[str, int]) -> Tensor:
        return torch.tensor([[counts.get(name, size) for name, size in self.sets]], dtype=torch.long)

    @cached_property
    def _start(self) -> Tensor:
        return torch.tensor([size for _, size in self.sets])

    @cached_property
    def _kept_text(self) -> int:
        return _listed([torch.arange(size) for _, size in self.sets])

    def _counts_along(self, sets: Tensor) -> Iterator[Tensor]:
        """Yield the units left [m, sets] after 0, 1, 2 ... removals, in chunks."""
        gone = torch.cat([sets.new_full((1,), -1), sets])[:, None] == torch.arange(len(self.sets))
        left = self._start
        for chunk in torch.split(gone, CHUNK):
            counts = left - chunk.long().cumsum(0)
            left = counts[-1]
            yield counts

    def _costs(self, counts: Tensor, kept_text: Tensor) -> Costs:
        """Return the costs [m] with so many units left [m, sets], whose indices are so long to write [m]."""
        dims = self._dims(counts)
        ram = self._sums["ram"](dims).amax(1) if self.alive else counts.new_zeros(len(counts))
        single = {name: self._sums[name](dims)[:, 0] for name in ("params", "macs", "kv_cache")}
        return Costs(bytes=self._file_bytes(dims, kept_text), ram=ram, **single)

    @cached_property
    def _dims(self) -> Sums:
        """The dimensions [m, dims] with so many units left [m, sets]."""
        return Sums(self.dims)

    @cached_property
    def _sums(self) -> dict[str, Sums]:
        """The sums that make each cost, by its name: of bytes one for each tensor, of memory one for each call."""
        single = {"params": self.parameters, "macs": self.multiplications, "kv_cache": self.cached}
        return {name: Sums([terms]) for name, terms in single.items()} | {
            "ram": Sums(self.alive),
            "bytes": Sums([(term,) for term in self.tensors]),
        }

    @cached_property
    def _shapes(self) -> Tensor:
        return torch.tensor([dim for _, shape in self.tensors for dim in shape], dtype=torch.long)

    def _file_bytes(self, dims: Tensor, kept_text: Tensor | int) -> Tensor:
        """Return eight bytes of length, the header padded to a multiple of eight, and the data [m]."""
        characters, data = self._file(dims, kept_text)
        if self.file is not None:
            return self.file.bytes(data)
        return 8 + (self.text + characters + 7) // 8 * 8 + data

    def _file(self, dims: Tensor, kept_text: Tensor | int) -> tuple[Tensor, Tensor]:
        """Return the characters of dimensions, offsets and kept units [m], and the bytes of all tensors [m]."""
        sizes = self._sums["bytes"](dims)
        ends = sizes.cumsum(1)
        shapes = _digits(dims)[:, self._shapes]
        data = sizes.sum(1)
        offsets = 2 * _digits_of_sorted(ends) - _digits(data)  # each tensor but the first begins where one ends
        return shapes.sum(1) + offsets + kept_text, data


def _ints(costs: Costs) -> Costs:
    return Costs(*map(int, costs))


def _listed(lists: Sequence[Tensor]) -> int:
    """Return the characters of indices in lists, with commas between them."""
    return sum(int((_digits(indices) + 1).sum()) - 1 for indices in lists)


def _digits(numbers: Tensor) -> Tensor:
    return torch.bucketize(numbers, torch.tensor(POWERS), right=True) + 1


def _digits_of_sorted(numbers: Tensor) -> Tensor:
    """Return the digits of each row of numbers together [m]; they grow along it [m, n]."""
    powers = torch.tensor(POWERS).repeat(len(numbers), 1)
    return (numbers.shape[1] - torch.searchsorted(numbers, powers)).sum(1) + numbers.shape[1]
