"""Sizes from counts alone, against the network's own: parameters, the written file and MACs.

Covers also secateur.planning.details.dimensions.
"""

import json
import random
from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import secateur as sc
from cases import CASES
from random_networks import RandomArchitecture
from secateur.artifacts.header import file_size, network_sizes
from secateur.options import Ranking
from secateur.planning.network_sizes import CHUNK, Costs, NetworkSizes
from secateur.reference import RandomNetwork


class Removals:
    """A random order of removals from a network, and what it leaves after each."""

    def __init__(self, model: nn.Module, x: Tensor, seed: int, at_most: int = 60) -> None:
        self.model, self.units = model, sc.find_units(model, x, include="all")
        self.header = replace(
            sc.Plan.from_kept({}, x), made_by=Ranking("random", "single", threshold="mean"), biases=('a "b" \\ ü',)
        )
        self.sizes = network_sizes(model, self.units, self.header)
        left = [(n, s.size) for n, s in enumerate(self.units)]
        order = [(n, i) for n, size in left for i in random.Random(seed + n).sample(range(size), size - 1)]
        self.order = random.Random(seed).sample(order, len(order))[:at_most]

    def kept(self, n: int) -> dict[str, tuple[int, ...]]:
        gone = set(self.order[:n])
        return {
            s.name: tuple(i for i in range(s.size) if (number, i) not in gone) for number, s in enumerate(self.units)
        }

    def written(self, kept: Mapping[str, tuple[int, ...]]) -> int:
        return file_size(self.model, self.units, replace(self.header, kept_indices=tuple(kept.items())))

    def check(self) -> None:
        sets, indices = (torch.tensor([pair[part] for pair in self.order], dtype=torch.long) for part in (0, 1))
        along = self.sizes.along(sets, indices)
        assert [len(sizes) for sizes in along] == [len(self.order) + 1] * len(Costs._fields)
        for n in range(len(self.order) + 1):
            kept = self.kept(n)
            counts = {name: len(indices) for name, indices in kept.items()}
            true = self.units.params(counts), self.written(kept), self.units.macs(counts)
            assert (self.sizes.params(counts), self.sizes.file_bytes(kept), self.sizes.macs(counts)) == true
            assert along.each()[n] == self.sizes.costs(kept)._asdict()
            assert tuple(along.each()[n].values())[:3] == true


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_they_are_exact_along_random_orders(seed: int, order: int) -> None:
    network = RandomNetwork(seed, widths=(1, 14)).double()
    Removals(network, network.sample(3), order).check()


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_they_are_exact_for_images_and_sequences(seed: int, order: int) -> None:
    network = RandomArchitecture(seed)
    Removals(network, network.sample(3), order).check()


@pytest.mark.parametrize("name", CASES)
def test_they_are_exact_for_the_kinds_of_networks_there_are(name: str) -> None:
    case = CASES[name]()
    Removals(case.model, case.x, 0).check()


def test_they_are_exact_where_digits_and_chunks_change() -> None:
    model = nn.Sequential(nn.Linear(3, 1100), nn.ReLU(), nn.Linear(1100, 12), nn.ReLU(), nn.Linear(12, 2))
    removals = Removals(model, torch.zeros(2, 3), 1, at_most=2 * CHUNK)
    sets, indices = (torch.tensor(column) for column in zip(*removals.order, strict=True))
    written = removals.sizes.along(sets, indices).bytes.tolist()
    near = [0, 1, 95, 96, 97, 98, 99, 100, 101, 102, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK]
    assert [written[n] for n in near] == [removals.written(removals.kept(n)) for n in near]


@settings(max_examples=25)
@given(st.integers(0, 10**6))
def test_what_one_more_unit_of_each_set_frees(seed: int) -> None:
    network = RandomNetwork(seed)
    units = sc.find_units(network, network.sample(2))
    counts = {s.name: random.Random(seed).randint(1, s.size) for s in units}
    less = {name: units.bytes(counts) - units.bytes(counts | {name: left - 1}) for name, left in counts.items()}
    assert network_sizes(network, units, sc.Plan(())).freed(counts) == less


def test_sets_that_are_left_out_are_whole() -> None:
    removals = Removals(CASES["two_hidden"]().model, CASES["two_hidden"]().x, 0)
    first, *others = removals.kept(0)
    part = {first: (0, 2)}
    whole = removals.kept(0) | part
    assert removals.sizes.file_bytes(part) == removals.written(whole)
    counts = {name: len(indices) for name, indices in whole.items()}
    assert removals.sizes.params({first: 2}) == removals.units.params(counts)
    assert others


@pytest.mark.parametrize("name", CASES)
def test_they_are_plain_data(name: str) -> None:
    case = CASES[name]()
    sizes = network_sizes(case.model, sc.find_units(case.model, case.x), sc.Plan(()))
    assert NetworkSizes.from_json(json.loads(json.dumps(sizes.to_json()))) == sizes


def test_tied_weights_count_once_and_buffers_count_in_the_file_alone() -> None:
    tied, twin = nn.Linear(5, 5), nn.Linear(5, 5)
    twin.weight = tied.weight
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), tied, nn.ReLU(), twin, nn.ReLU(), nn.Linear(5, 2)).eval()
    removals = Removals(model, torch.zeros(2, 4), 0)
    assert [unit_set.size for unit_set in removals.units] == [5]
    removals.check()
